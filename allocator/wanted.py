"""Encode side: a log of rooms that somebody has asked for, for clients whose calls wait for a slot.

One writer, the bootstrap; any number of readers, each with its own place. A reader that falls behind by more than the
log holds loses what was overwritten, or reads newer rooms in place of older ones: each is one that was asked for. A
language node sends an init that is not answered again, and then the room is announced again.

An entry is the room, and above its 63 bits whether it can end at once: blocks wait for its rows, or it has failed.
"""

from __future__ import annotations

from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import LINE_BYTES

_FIRST = LINE_BYTES // 8
_ROOM_BITS = 63
_ROOM_MASK = (1 << _ROOM_BITS) - 1


class WantedLog:
    """Words: how many rooms were written so far, and the latest of them."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.capacity = layout.limits.num_slots
        self._words = Words(mapping, layout.wanted, _FIRST + self.capacity)

    @property
    def end(self) -> int:
        """How many were written so far."""
        return self._words.load(0)

    def append(self, room: int, *, can_end: bool) -> None:
        """Bootstrap only. Killed between the two stores, it leaves an entry that nobody reads."""
        end = self._words.load(0)
        self._words.store(_FIRST + end % self.capacity, room | can_end << _ROOM_BITS)
        self._words.store(0, end + 1)

    def since(self, first: int) -> tuple[list[tuple[int, bool]], int]:
        """([(room, whether it can end)], the place to go on from): those from place `first` on that are still there."""
        end, load, capacity = self.end, self._words.load, self.capacity
        words = [load(_FIRST + at % capacity) for at in range(max(first, end - capacity), end)]
        return [(word & _ROOM_MASK, word > _ROOM_MASK) for word in words], end
