"""Encode side: what node and clients tell each other of rooms, without a message."""

from __future__ import annotations

from typing import Final

from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import LINE_BYTES

_FIRST = LINE_BYTES // 8
_SPREAD: Final = 0x9E37_79B9_7F4A_7C15
_WORD: Final = (1 << 64) - 1
_ROOM_BITS = 63
_ROOM_MASK = (1 << _ROOM_BITS) - 1


def _place(room: int, count: int) -> int:
    """Where a room stands in a table of so many words."""
    return ((room * _SPREAD & _WORD) >> 32) % count


class WantedLog:
    """A log of rooms that somebody has asked for, for clients whose calls wait for a slot: how many rooms were written
    so far, and the latest of them.

    It has one writer, the bootstrap, and any number of readers, each with its own place. A reader that falls behind by
    more than the log holds loses what was overwritten, or reads newer rooms in place of older ones; each of them is a
    room that was asked for. A language node repeats an init that is not answered, and then the room is announced again.

    An entry is the room and, above its 63 bits, whether the room can end at once: because blocks wait for its rows, or
    because it has failed.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.capacity = layout.limits.num_slots
        self._words = Words(mapping, layout.wanted, _FIRST + self.capacity)

    @property
    def end(self) -> int:
        """How many rooms were written so far."""
        return self._words.load(0)

    def append(self, room: int, *, can_end: bool) -> None:
        """Write a room (bootstrap only).

        If it is killed between the two stores, it leaves an entry that nobody reads.
        """
        end = self._words.load(0)
        self._words.store(_FIRST + end % self.capacity, room | can_end << _ROOM_BITS)
        self._words.store(0, end + 1)

    def since(self, first: int) -> tuple[list[tuple[int, bool]], int]:
        """([(room, whether it can end)], next place): the rooms from place `first` on that are still in the log."""
        end, load, capacity = self.end, self._words.load, self.capacity
        words = [load(_FIRST + at % capacity) for at in range(max(first, end - capacity), end)]
        return [(word & _ROOM_MASK, word > _ROOM_MASK) for word in words], end


class FinishedRooms:
    """Encode side: rooms whose requests have succeeded without the node's being told of them (P24).

    Clients note them, and whoever opens a room forgets it; the bootstrap looks. A room has one place, by a part of its
    hash, and the latest of those that share it stands there.
    """

    def __init__(self, mapping: Mapping, offset: int, num_slots: int) -> None:
        self._count = num_slots
        self._words = Words(mapping, offset, num_slots)  # the room, and one more, for 0 is none

    def note(self, room: int) -> None:
        """Say that the request of a room has succeeded (any thread)."""
        self._words.store(_place(room, self._count), room + 1)

    def forget(self, room: int) -> None:
        """Say that the room is used again (any thread)."""
        self._words.compare_exchange(_place(room, self._count), room + 1, 0)

    def has(self, room: int) -> bool:
        """Whether it was noted last (any thread)."""
        return self._words.load(_place(room, self._count)) == room + 1


class RoomCounts:
    """How many of something there are of each room, by a part of the room's hash: rooms may share a word (R80).

    An encode node has two. One counts grants that wait in the bootstrap for an encoder, the other requests that only
    their clients know of. A client opens such a request, counts it, and looks for a grant; the bootstrap has a grant
    wait, counts it, and looks for a request. So one of the two sees the other.
    """

    def __init__(self, mapping: Mapping, offset: int, num_slots: int) -> None:
        self._count = num_slots
        self._words = Words(mapping, offset, num_slots)

    def clear(self) -> None:
        """Begin with none."""
        self._words.fill(0, self._count, 0)

    def add(self, room: int, change: int) -> None:
        """Count more, or less, of this room (any thread)."""
        self._words.add(_place(room, self._count), change & _WORD)

    def get(self, room: int) -> int:
        """How many there may be of this room (any thread); 0: none."""
        return self._words.load(_place(room, self._count))
