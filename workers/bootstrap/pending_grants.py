"""Grants that came to an encode node before the call of its encoder wait here, by room, one for each slot of a peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from embridge.workers import messages as msg

Grant = msg.Init | msg.Resume | msg.Ask
RemoteSlot = tuple[int, int]
"""(peer, slot there)."""


class Pending(NamedTuple):
    """A grant that waits for the encoder of its room."""

    grant: Grant
    peer: int
    connection: bytes
    since_ns: int


class PendingGrants:
    """At most one grant for each slot of a peer. Used by the encode bootstrap only."""

    def __init__(self, count: Callable[[int, int], None] = lambda room, change: None) -> None:
        """`count(room, change)` is told how many grants more, or less, wait for a room."""
        self._count = count
        self._by_room: dict[int, dict[RemoteSlot, Pending]] = {}
        self._rooms: dict[RemoteSlot, int] = {}
        self._num_of_peer: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._rooms)

    def num_of(self, peer: int) -> int:
        return self._num_of_peer[peer]

    def peers(self) -> set[int]:
        return {peer for peer, _ in self._rooms}

    def rooms(self) -> list[int]:
        return list(self._by_room)

    def of_slot(self, key: RemoteSlot) -> Pending | None:
        """The grant that waits for a slot of a peer, whatever room it is for."""
        return self._by_room.get(self._rooms.get(key, -1), {}).get(key)

    def of_room(self, room: int) -> list[tuple[RemoteSlot, Pending]]:
        """The grants that wait for a room, by slot of a peer."""
        return list(self._by_room.get(room, {}).items())

    def put(self, key: RemoteSlot, pending: Pending) -> None:
        """Have this grant wait; a grant that waits for the same slot of the peer is dropped."""
        self.drop(key)
        room = pending.grant.key.room
        self._by_room.setdefault(room, {})[key] = pending
        self._count(room, 1)
        self._rooms[key] = room
        self._num_of_peer[key[0]] += 1

    def replace(self, key: RemoteSlot, pending: Pending) -> None:
        """Put a later message of the same request in the place of the one that waits."""
        self._by_room[pending.grant.key.room][key] = pending

    def take_room(self, room: int) -> list[Pending]:
        """Remove and return all grants that wait for a room."""
        taken = self._by_room.pop(room, {})
        self._count(room, -len(taken))
        for key in taken:
            self._rooms.pop(key, None)
            self._num_of_peer[key[0]] -= 1
        return list(taken.values())

    def drop(self, key: RemoteSlot) -> None:
        room = self._rooms.pop(key, None)
        if room is not None:
            self._num_of_peer[key[0]] -= 1
            self._count(room, -1)
            self._by_room[room].pop(key, None)
            if not self._by_room[room]:
                del self._by_room[room]

    def drop_peer(self, peer: int) -> None:
        self._drop_all([key for key in self._rooms if key[0] == peer])

    def drop_before(self, limit_ns: int) -> None:
        """Drop the grants that have waited since before `limit_ns`."""
        self._drop_all([key for held in self._by_room.values() for key, it in held.items() if it.since_ns < limit_ns])

    def _drop_all(self, keys: Iterable[RemoteSlot]) -> None:
        for key in keys:
            self.drop(key)


def wider(old: Grant, new: Grant) -> Grant:
    """The one of two grants of one request that reaches further.

    Both begin where the request does, for nothing has been sent yet.
    """
    if new.first_block != old.first_block:
        return old
    reach = (len(new.dst_embedding_indices), new.allocated_tokens, new.session_id)
    return new if reach >= (len(old.dst_embedding_indices), old.allocated_tokens, old.session_id) else old
