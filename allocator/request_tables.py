"""The slots' records, the destinations' watermarks, the grant windows and the staging entries.

`records` says beside each word who writes it; this module reads and writes them. A record is about the epoch that its
word `EPOCH` names. A client resets it before it opens that epoch. No other process touches the slot until then, because
all of them have released the epoch before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from embridge.allocator._core import Mapping, Records, Words
from embridge.allocator.geometry import AUX_WORDS
from embridge.allocator.layout import ControlLayout
from embridge.allocator.plain_enums import Destination, JoinedBy, Slot, Told
from embridge.allocator.records import (
    ADDRESS_BYTES,
    ADDRESS_OFFSET,
    AUX_OFFSET,
    DESTINATION_WORDS,
    REASON_BYTES,
    REASON_OFFSET,
    SLOT_BYTES,
    SLOT_WORDS,
    Lent,
)
from embridge.allocator.texts import packed, unpacked

TOLD_BITS: Final = 2
_TOLD: Final = (Told.TOLD, Told.UNTOLD, Told.TOLD, Told.RELEASED)  # by its bits; 0 is of no epoch
_BLANK: Final = bytes(SLOT_BYTES)
STAGE_STAGED: Final = 1  # 0: the entry is empty
STAGE_READING: Final = 2


class StageEntry(NamedTuple):
    """One cached source block: rows [0, rows) of request block `block` stand in block `source`.

    It is packed as `block:24 | source:24 | rows:14 | state:2`. So one CAS decides between the stager, who drops it, and
    the transfer worker, who reads it.
    """

    block: int
    source: int
    rows: int
    state: int

    def pack(self) -> int:
        return self.block << 40 | self.source << 16 | self.rows << 2 | self.state

    @classmethod
    def of(cls, word: int) -> StageEntry:
        return cls(*stage_entry(word))


def stage_entry(word: int) -> tuple[int, int, int, int]:
    """The fields of a `StageEntry` by its word, for who looks at many."""
    return word >> 40, word >> 16 & 0xFF_FFFF, word >> 2 & 0x3FFF, word & 3


class SlotRecord:
    """The record of a slot's next epoch, before it is written. What is not set is 0."""

    __slots__ = ("words",)

    def __init__(self) -> None:
        self.words = array("Q", _BLANK)

    def set_address(self, text: str) -> None:
        """Raises ValueError: it is too long."""
        self.words[ADDRESS_OFFSET // 8 :] = address_words(text)

    def set_aux(self, aux: array[int]) -> None:
        """The request's 16 auxiliary words, int32 (encode side)."""
        self.words[AUX_OFFSET // 8 : ADDRESS_OFFSET // 8] = array("Q", aux.tobytes())


@lru_cache(maxsize=256)
def address_words(text: str) -> array[int]:
    """The words of an address in a record. Raises ValueError: it is too long."""
    if len(text.encode()) > ADDRESS_BYTES:
        raise ValueError(f"bootstrap_addr: {len(text.encode())} bytes > {ADDRESS_BYTES} bytes")
    return array("Q", packed(text, ADDRESS_BYTES))


class SlotTable:
    """The record of every slot."""

    get: Callable[[int, Slot], int]
    """get(slot, field)"""
    set: Callable[[int, Slot, int], None]
    """set(slot, field, value)"""
    raise_to: Callable[[int, Slot, int], bool]
    """raise_to(slot, field, value): store it if it is greater than what stands there; True if it was."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_slots = layout.limits.num_slots
        self._stride = SLOT_BYTES // 8
        self._words = Words(mapping, layout.slots, self.num_slots * self._stride)
        self._bytes = memoryview(mapping)[layout.slots : layout.slots + self.num_slots * SLOT_BYTES]
        records = Records(mapping, layout.slots, self.num_slots, self._stride)
        self.get, self.set, self.raise_to = records.get, records.set, records.raise_to  # native ones, for their cost

    @property
    def words(self) -> Words:
        """All of them, the texts among them."""
        return self._words

    def get_all(self, slot: int) -> list[int]:
        """The words of a slot's record, loaded one after the other."""
        return self._words.load_many(slot * self._stride, SLOT_WORDS)

    def is_lent(self, slot: int) -> bool:
        """Whether its scheduler has views of all rows of a request, which needs nothing of its peer any more."""
        return self.get(slot, Slot.LENT) == Lent.RESULT

    # ---- who has the slot

    def told(self, slot: int, epoch: int) -> Told:
        """Whether the node's processes have this epoch, by one look; TOLD where the word is about another one."""
        word = self.get(slot, Slot.TOLD)
        return _TOLD[word & (1 << TOLD_BITS) - 1] if word >> TOLD_BITS == epoch else Told.TOLD

    def is_untold(self, slot: int, epoch: int) -> bool:
        """Whether the client alone has this epoch."""
        return 0 <= slot < self.num_slots and self.get(slot, Slot.TOLD) == epoch << TOLD_BITS | Told.UNTOLD

    def tell(self, slot: int, epoch: int) -> bool:
        """Give the node's processes a request that its client alone had (R78). True for the one who has done it."""
        return self._leave_untold(slot, epoch, Told.TOLD)

    def release_untold(self, slot: int, epoch: int) -> bool:
        """Release a request of which no process of the node has heard (its client only). False: one has (R78)."""
        return self._leave_untold(slot, epoch, Told.RELEASED)

    def _leave_untold(self, slot: int, epoch: int, told: Told) -> bool:
        head = epoch << TOLD_BITS
        return self._words.compare_exchange(slot * self._stride + Slot.TOLD, head | Told.UNTOLD, head | told)

    def join(self, slot: int, who: JoinedBy) -> bool:
        """Be the one who enters the first destination of a slot, and those that follow it (R79)."""
        is_first = self._words.compare_exchange(slot * self._stride + Slot.JOINED_BY, JoinedBy.NOBODY, who)
        return is_first or self.get(slot, Slot.JOINED_BY) == who

    # ---- why it has failed

    def reason(self, slot: int) -> str:
        return self._text(slot, REASON_OFFSET, REASON_BYTES)

    def set_reason(self, slot: int, text: str) -> None:
        self._set_text(slot, REASON_OFFSET, REASON_BYTES, text)

    def claim_failure(self, slot: int, code: int, reason: str, *, insist: bool = True) -> bool:
        """Claim to say why this request fails. False if another process has claimed it before; the first reason stands.

        The code is written last, so whoever sees it finds the reason, too. A process that has claimed the failure and
        written no code may have died; with `insist` the caller finishes for it. If that process lives after all, both
        reasons are true, and one of them stays.
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

    def aux(self, slot: int) -> memoryview[int]:
        """A view of the request's 16 auxiliary words, int32 (encode side)."""
        return self._at(slot, AUX_OFFSET, 4 * AUX_WORDS).cast("i")

    def _text(self, slot: int, offset: int, size: int) -> str:
        return unpacked(bytes(self._at(slot, offset, size)))

    def _set_text(self, slot: int, offset: int, size: int, text: str) -> None:
        self._at(slot, offset, size)[:] = packed(text, size)

    def _at(self, slot: int, offset: int, size: int) -> memoryview[int]:
        """Bytes of a slot's record."""
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} of {self.num_slots}")
        first = slot * SLOT_BYTES + offset
        return self._bytes[first : first + size]


class DestinationTable:
    """Encode side: each slot's destinations, with their watermarks and the set-once table of granted blocks (R1).

    The destinations of a slot share the slot's entries of that table. The grant of the first destination says how many
    destinations there will be, and so how many entries each has. So a slot has from its start all that its request can
    need, and waits for none.
    """

    get: Callable[[int, int, Destination], int]
    """get(slot, destination, field)"""
    set: Callable[[int, int, Destination, int], None]
    """set(slot, destination, field, value)"""
    raise_to: Callable[[int, int, Destination, int], bool]
    """raise_to(slot, destination, field, value): store it if it is greater than what stands there; True if it was."""
    get_all: Callable[[int, int], list[int]]
    """get_all(slot, destination): its words, loaded one after the other."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_destinations = layout.limits.max_destinations
        self.window_blocks = layout.limits.window_blocks
        count = layout.limits.num_slots
        self._words = Words(mapping, layout.destinations, count * self.num_destinations * DESTINATION_WORDS)
        self._grants = Words(mapping, layout.grants, count * self.window_blocks)
        records = Records(mapping, layout.destinations, count, DESTINATION_WORDS, self.num_destinations)
        self.get, self.set, self.raise_to, self.get_all = records.get, records.set, records.raise_to, records.get_all

    def _at(self, slot: int, destination: int) -> int:
        return (slot * self.num_destinations + destination) * DESTINATION_WORDS

    def settle(self, slot: int, destination: int, field: Destination, value: int) -> int:
        """Store a value where there is none yet. Returns the one that stands there now, whoever has stored it."""
        at = self._at(slot, destination) + field
        self._words.compare_exchange(at, 0, value)
        return self._words.load(at)

    def grant(self, slot: int, destination: int, block: int) -> tuple[int, int]:
        """(block index, session) that were granted for request block `block`; meaningful within the window only."""
        word = self._grants.load(self._entry(slot, destination, block))
        return word & 0xFFFF_FFFF, word >> 32

    def set_grant(self, slot: int, destination: int, block: int, index: int, session: int) -> None:
        self._grants.store(self._entry(slot, destination, block), session << 32 | index)

    def _entry(self, slot: int, destination: int, block: int) -> int:
        window = self.get(slot, destination, Destination.WINDOW) or 1  # 0: it has not joined yet
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


class WindowTable:
    """Language side: the destination block of each granted request block. Writers of other nodes map it, too.

    Entry `k % window` is written before `GRANTED_BLOCKS` rises above k, and again only after `DRAINED_BLOCKS` has
    passed k. A reader takes the entries, then reads `DRAINED_BLOCKS` again and drops the entries below it.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout, begin: int = 0) -> None:
        """`begin`: where the mapping begins in the control segment."""
        self.window = layout.own_window
        self._words = Words(mapping, layout.windows - begin, layout.limits.num_slots * self.window)

    def get(self, slot: int, block: int) -> int:
        return self._words.load(slot * self.window + block % self.window)

    def get_some(self, slot: int, first: int, end: int) -> list[int]:
        """The entries of the blocks from `first` to `end - 1`, at most a window of them, loaded one after the other."""
        at, begin, count = slot * self.window, first % self.window, end - first
        if begin + count <= self.window:
            return self._words.load_many(at + begin, max(count, 0))
        return [self.get(slot, block) for block in range(first, end)]

    def set(self, slot: int, block: int, index: int) -> None:
        self._words.store(slot * self.window + block % self.window, index)
