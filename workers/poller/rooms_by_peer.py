"""With which peer each request of the language poller is in flight, and how many are with each."""

from __future__ import annotations

from collections import Counter


class RoomsByPeer:
    """Used by the language poller only."""

    def __init__(self) -> None:
        self._peer_of: dict[int, int] = {}  # slot -> peer
        self._num_with: Counter[int] = Counter()

    def put(self, slot: int, peer: int) -> None:
        """A slot's request is in flight with this peer from now on; -1: with none."""
        before = self._peer_of.get(slot, -1)
        if peer == before:
            return
        if before >= 0:
            self._num_with[before] -= 1
        if peer >= 0:
            self._num_with[peer] += 1
            self._peer_of[slot] = peer
        else:
            del self._peer_of[slot]

    def peer_of(self, slot: int) -> int | None:
        """The peer with which a slot's request is in flight."""
        return self._peer_of.get(slot)

    def num_with(self, peer: int) -> int:
        return self._num_with[peer]
