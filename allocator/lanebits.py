"""A header word with one bit a lane: the clients that wait for something, so that whoever has it can ring them."""

from __future__ import annotations

from embridge.allocator._core import Mapping, Words
from embridge.allocator.lanes_and_processes import LaneTable
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import Lane, LaneState, SegmentHeader


class LaneBits:
    """The bits of the lanes that wait.

    A lane's client sets and clears its bit; a process that frees something reads it.

    The poller clears the bit of a dead client with all else that the client has left. That may take as long as the
    client's peers do, so until then the bit counts for nothing.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout, word: SegmentHeader) -> None:
        self._header = Words(mapping, layout.header, 64)
        self._lanes = LaneTable(mapping, layout)
        self._word = word

    def set(self, lane: int, waits: bool) -> None:
        if waits:
            self._header.set_bits(self._word, 1 << lane)
        else:
            self._header.clear_bits(self._word, 1 << lane)

    def has(self, lane: int) -> bool:
        return bool(self._header.load(self._word) >> lane & 1)

    def lanes(self) -> list[int]:
        """The lanes of living clients that wait; one load while none does."""
        word = self._header.load(self._word)
        if not word:
            return []
        return [
            lane
            for lane in range(word.bit_length())
            if word >> lane & 1 and self._lanes.get(lane, Lane.STATE) == LaneState.ATTACHED
        ]
