"""The slots' records, the destinations' watermarks, the grant windows and the staging entries.

Who writes which word stands in `records` beside its name; here is how they are read and written. A record is about the
epoch that its word `EPOCH` names. A client resets it before it opens that epoch, and nobody else touches the slot until
then: the epoch before was released by all of them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from embridge.allocator._core import Mapping, Words
from embridge.allocator.geometry import AUX_WORDS
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    ADDRESS_BYTES,
    ADDRESS_OFFSET,
    AUX_OFFSET,
    DESTINATION_WORDS,
    REASON_BYTES,
    REASON_OFFSET,
    SLOT_BYTES,
    Destination,
    Slot,
)
from embridge.allocator.texts import packed, unpacked

STAGE_STAGED: Final = 1  # 0: the entry is empty
STAGE_READING: Final = 2


class StageEntry(NamedTuple):
    """One cached source block: rows [0, rows) of request block `block` stand in block `source`.

    Packed `block:24 | source:24 | rows:14 | state:2`, so that one CAS decides between the stager, who drops it, and the
    worker, who reads it.
    """

    block: int
    source: int
    rows: int
    state: int

    def pack(self) -> int:
        return self.block << 40 | self.source << 16 | self.rows << 2 | self.state

    @classmethod
    def of(cls, word: int) -> StageEntry:
        return cls(word >> 40, word >> 16 & 0xFF_FFFF, word >> 2 & 0x3FFF, word & 3)


class SlotTable:
    """The record of every slot."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_slots = layout.limits.num_slots
        self._stride = SLOT_BYTES // 8
        self._words = Words(mapping, layout.slots, self.num_slots * self._stride)
        self._bytes = np.frombuffer(
            mapping, dtype=np.uint8, count=self.num_slots * SLOT_BYTES, offset=layout.slots
        ).reshape(self.num_slots, SLOT_BYTES)

    def get(self, slot: int, field: Slot) -> int:
        return self._words.load(slot * self._stride + field)

    def set(self, slot: int, field: Slot, value: int) -> None:
        self._words.store(slot * self._stride + field, value)

    def raise_to(self, slot: int, field: Slot, value: int) -> bool:
        return self._words.raise_to(slot * self._stride + field, value)

    def reset(self, slot: int) -> None:
        """Zero the record but for `RELEASED_EPOCH`, which only rises."""
        for field in Slot:
            if field != Slot.RELEASED_EPOCH:
                self.set(slot, field, 0)
        self._bytes[slot, REASON_OFFSET:] = 0

    def reason(self, slot: int) -> str:
        return self._text(slot, REASON_OFFSET, REASON_BYTES)

    def set_reason(self, slot: int, text: str) -> None:
        self._set_text(slot, REASON_OFFSET, REASON_BYTES, text)

    def claim_failure(self, slot: int, code: int, reason: str, *, insist: bool = True) -> bool:
        """Be the one who says why this request fails. False when somebody else was first; the first reason stands.

        The code comes last: whoever sees it finds the reason there. Somebody who was first and has not come to the code
        may have died: to `insist` is to finish for them. Should they live, both reasons are true, and one of them
        stays.
        """
        first = self._words.compare_exchange(slot * self._stride + Slot.FAILURE_CLAIMED, 0, 1)
        if not first and (not insist or self.get(slot, Slot.FAILURE)):
            return False
        self.set_reason(slot, reason)
        self.set(slot, Slot.FAILURE, code)
        return True

    def granted(self, slot: int) -> tuple[int, int]:
        """Language side: (blocks, tokens) granted so far, from one load."""
        word = self.get(slot, Slot.GRANTED)
        return word >> 32, word & 0xFFFF_FFFF

    def address(self, slot: int) -> str:
        return self._text(slot, ADDRESS_OFFSET, ADDRESS_BYTES)

    def set_address(self, slot: int, text: str) -> None:
        if len(text.encode()) > ADDRESS_BYTES:
            raise ValueError(f"bootstrap_addr: {len(text.encode())} bytes > {ADDRESS_BYTES} bytes")
        self._set_text(slot, ADDRESS_OFFSET, ADDRESS_BYTES, text)

    def aux(self, slot: int) -> npt.NDArray[np.int32]:
        """A view of the request's 16 auxiliary words (encode side)."""
        raw = self._bytes[slot, AUX_OFFSET : AUX_OFFSET + 4 * AUX_WORDS]
        return raw.view(np.int32)

    def _text(self, slot: int, offset: int, size: int) -> str:
        raw = self._bytes[slot, offset : offset + size].tobytes()
        return unpacked(raw)

    def _set_text(self, slot: int, offset: int, size: int, text: str) -> None:
        self._bytes[slot, offset : offset + size] = np.frombuffer(packed(text, size), np.uint8)


class DestinationTable:
    """Encode side: each slot's destinations, with their watermarks and the set-once table of granted blocks (R1).

    The destinations of a slot share its entries of that table: each has as many as the first one's grant, which says
    how many there will be, leaves it. So a slot has all that its request can need from the start, and waits for none.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_destinations = layout.limits.max_destinations
        self.window_blocks = layout.limits.window_blocks
        count = layout.limits.num_slots
        self._words = Words(mapping, layout.destinations, count * self.num_destinations * DESTINATION_WORDS)
        self._grants = Words(mapping, layout.grants, count * self.window_blocks)

    def _at(self, slot: int, destination: int) -> int:
        return (slot * self.num_destinations + destination) * DESTINATION_WORDS

    def get(self, slot: int, destination: int, field: Destination) -> int:
        return self._words.load(self._at(slot, destination) + field)

    def set(self, slot: int, destination: int, field: Destination, value: int) -> None:
        self._words.store(self._at(slot, destination) + field, value)

    def raise_to(self, slot: int, destination: int, field: Destination, value: int) -> bool:
        return self._words.raise_to(self._at(slot, destination) + field, value)

    def reset(self, slot: int) -> None:
        for destination in range(self.num_destinations):
            for field in Destination:
                self.set(slot, destination, field, 0)

    def grant(self, slot: int, destination: int, block: int) -> tuple[int, int]:
        """(block index, session) that request block `block` was granted; meaningful within the window only."""
        word = self._grants.load(self._entry(slot, destination, block))
        return word & 0xFFFF_FFFF, word >> 32

    def set_grant(self, slot: int, destination: int, block: int, index: int, session: int) -> None:
        self._grants.store(self._entry(slot, destination, block), session << 32 | index)

    def _entry(self, slot: int, destination: int, block: int) -> int:
        window = self.get(slot, destination, Destination.WINDOW) or 1  # 0: who only looks is faster than who joins it
        return slot * self.window_blocks + destination * window + block % window


class StagingTable:
    """Encode side: which source block caches which block of a request."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.window = layout.own_window
        self._words = Words(mapping, layout.staging, layout.limits.num_slots * self.window)

    def load(self, slot: int, block: int) -> int:
        return self._words.load(slot * self.window + block % self.window)

    def replace(self, slot: int, block: int, expected: int, word: int) -> bool:
        return self._words.compare_exchange(slot * self.window + block % self.window, expected, word)

    def reset(self, slot: int) -> None:
        for entry in range(self.window):
            self._words.store(slot * self.window + entry, 0)


class WindowTable:
    """Language side: the destination block of each granted request block.

    Entry `k % window` is written before `GRANTED_BLOCKS` rises above k, and again only after `DRAINED_BLOCKS` has
    passed k; a reader takes the entries, then looks at `DRAINED_BLOCKS` again and drops those below it.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.window = layout.own_window
        self._words = Words(mapping, layout.windows, layout.limits.num_slots * self.window)

    def get(self, slot: int, block: int) -> int:
        return self._words.load(slot * self.window + block % self.window)

    def set(self, slot: int, block: int, index: int) -> None:
        self._words.store(slot * self.window + block % self.window, index)
