"""The encode nodes of this host whose clients may write into this node's blocks (language side).

Requests at them are granted by the scheduler's client itself, and found by the encoder's (R37).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from embridge.allocator.control import Control
from embridge.allocator.records import Peer
from embridge.workers.timing import NS
from embridge.workers.transfer import engines

AGAIN_NS: Final = NS // 200


class Neighbour(NamedTuple):
    """An encode node of this host: its entry in the peer table, and who it is."""

    peer: int
    node: tuple[int, int]
    """Its id and incarnation."""


class Neighbours:
    """One client's view of them. The library thread looks; either thread asks."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._peers = control.peers
        self.by_address: dict[str, Neighbour] = {}
        """Those who were neighbours at the last look; another table after the next."""
        self._looked_ns = 0

    def look(self) -> None:
        """Look who is there, some times a second: one that has just come is found by its node's bootstrap meanwhile."""
        found = {}
        for peer in self._peers.alive():
            engine = engines.numbered(self._peers.get(peer, Peer.ENGINE))
            if engine is None or not engine.is_local:
                continue
            record = self._peers.record(peer)
            node = (record.node_id, record.incarnation)
            if self._control.writers.pids(*node, has_claims=True):
                found[record.bootstrap_addr] = Neighbour(peer, node)
        self.by_address = found

    def look_again(self, address: str, now_ns: int) -> Neighbour | None:
        """The encode node at this address, if it has become a neighbour since the last look; at most every
        `AGAIN_NS` (whoever has the turn).
        """
        if now_ns - self._looked_ns < AGAIN_NS:
            return None
        self._looked_ns = now_ns
        self.look()
        return self.by_address.get(address)

    def find(self, address: str) -> Neighbour | None:
        """The encode node at this address, if it is a neighbour and lives."""
        neighbour = self.by_address.get(address)
        return neighbour if neighbour is not None and self.is_there(neighbour) else None

    def is_there(self, neighbour: Neighbour) -> bool:
        """Whether it has its entry still, and lives."""
        return self._peers.is_here(neighbour.peer, neighbour.node)
