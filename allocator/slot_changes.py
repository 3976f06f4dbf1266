"""Which slots have changed since a process looked at them last: the slow look, at what differs (R25)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from embridge.allocator._core import Words
from embridge.allocator.control import Control
from embridge.allocator.geometry import SLOTS_PER_PAGE, Role
from embridge.allocator.plain_enums import Lane, Peer, Slot
from embridge.allocator.records import (
    CLAIM_WORDS,
    DESTINATION_WORDS,
    MAX_WRITERS,
    SLOT_BYTES,
    SLOT_WORDS,
    WRITER_WORDS,
)
from embridge.allocator.status import split

PARTS: Final = 10
_WRITER_PAGES: Final = array("I", range(MAX_WRITERS // SLOTS_PER_PAGE))


class _Rows:
    """Some words of each slot's row of one table, as they were at the last look."""

    def __init__(self, words: Words, row_words: int, first: int, count: int) -> None:
        self._words = words
        self._at = (row_words, first, count)
        self._seen = array("Q", bytes(8 * (len(words) // row_words)))

    def take(self, pages: array[int] | memoryview[int], out: array[int]) -> array[int]:
        if not len(pages):
            return array("I")
        return out[: self._words.changed_rows(*self._at, pages, len(pages), self._seen, out)]


class SlotChanges:
    """The slots of a node of which a word differs from what it was when this was asked last. One process's own.

    Whoever changes a word kicks whoever goes by it; a kick may be lost with its sender. Asked anew, as by a process
    that was restarted, it names every slot that is open. It costs a native look at each open slot's words, and time in
    Python for each that differs.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        at, limits = control.layout, control.limits
        n = limits.num_slots
        self._tables = [_slot_rows(control, 0, SLOT_WORDS)]
        if control.role == Role.ENCODE:
            row_words = limits.max_destinations * DESTINATION_WORDS
            destinations = Words(control.mapping, at.destinations, n * row_words)
            self._tables.append(_Rows(destinations, row_words, 0, row_words))
        else:
            claims = Words(control.mapping, at.claims, n * CLAIM_WORDS)
            self._tables.append(_Rows(claims, CLAIM_WORDS, 0, CLAIM_WORDS))
        self._tables.append(_Rows(Words(control.mapping, at.words, n), 1, 0, 1))
        writers = Words(control.mapping, at.writers, MAX_WRITERS * WRITER_WORDS)
        self._writers = _Rows(writers, WRITER_WORDS, 0, WRITER_WORDS)
        self._out = array("I", bytes(4 * n))
        self._others: tuple[int, ...] = ()
        self._num_parts = 0

    def take(self) -> dict[int, int]:
        """Slot -> epoch of every request that is not released and has changed.

        Of all of them, where a client or a foreign writer has gone, or a peer has come, gone or registered anew: that
        stands in no word of theirs.
        """
        control, pages = self._control, leased_pages(self._control)
        changed = {slot for table in self._tables for slot in table.take(pages, self._out)}
        others = tuple(self._words_of_others())
        if self._writers.take(_WRITER_PAGES, self._out) or others != self._others:
            self._others = others
            return dict(control.current_slots())
        words = ((slot, split(control.status.load(slot)).epoch) for slot in sorted(changed))
        return {slot: epoch for slot, epoch in words if epoch and control.is_current(slot, epoch)}

    def take_some(self, pages: memoryview[int]) -> set[int]:
        """The slots of these pages (u32) of which a word has changed; a tenth of the pages at each call, in turn."""
        part, self._num_parts = self._num_parts % PARTS, self._num_parts + 1
        some = pages[len(pages) * part // PARTS : len(pages) * (part + 1) // PARTS]
        return {slot for table in self._tables for slot in table.take(some, self._out)}

    def _words_of_others(self) -> Iterator[int]:
        lanes, peers = self._control.lanes, self._control.peers
        for lane in range(lanes.num_lanes):
            yield lanes.get(lane, Lane.STATE)
        for peer in range(peers.num_peers):
            for field in (Peer.STATE, Peer.NODE_ID, Peer.INCARNATION, Peer.REGISTRATION):
                yield peers.get(peer, field)


class WordChanges:
    """The open slots of which one word of the record differs from what it was when this was asked last."""

    def __init__(self, control: Control, field: Slot) -> None:
        self._control = control
        self._rows = _slot_rows(control, field, 1)
        self._out = array("I", bytes(4 * control.limits.num_slots))

    def take(self, pages: array[int]) -> list[int]:
        """The slots of these pages; also those that were released since."""
        return self._rows.take(pages, self._out).tolist()


def _slot_rows(control: Control, first: int, count: int) -> _Rows:
    row_words = SLOT_BYTES // 8
    words = Words(control.mapping, control.layout.slots, control.limits.num_slots * row_words)
    return _Rows(words, row_words, first, count)


def leased_pages(control: Control) -> array[int]:
    """The pages of slots that some client has."""
    lanes = control.lanes
    return array("I", [page for page in range(lanes.num_pages) if lanes.page_lane(page) is not None])
