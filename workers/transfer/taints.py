"""What a transfer worker says of attempts that ended other than done, and what it makes of those of its predecessor."""

from __future__ import annotations

from collections.abc import Mapping

from embridge.allocator.checksums import RowSum
from embridge.allocator.plain_enums import Destination, Peer, Slot
from embridge.workers.role import RoleContext
from embridge.workers.transfer.engines.base import TransferEngine


class Taints:
    """Of one transfer worker's rooms."""

    def __init__(self, ctx: RoleContext, engines: Mapping[int, TransferEngine]) -> None:
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._peers = ctx.control.peers
        self._engines = engines

    def take_what_is_done(self, slot: int) -> None:
        """After a restart: count the rows that the dead worker has summed and not yet counted (R27)."""
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            self._dsts.raise_to(
                slot, d, Destination.SENT, RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)).tokens
            )

    def taint_unfinished(self, slot: int) -> None:
        """After a restart: taint what the dead worker was writing over a network, because it may still land (R6)."""
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            engine = self._engine_of(self._dsts.get(slot, d, Destination.PEER) - 1)
            if engine is not None and not engine.late_writes:
                continue
            if self._dsts.get(slot, d, Destination.ISSUED) > self._dsts.get(slot, d, Destination.SENT):
                self.taint(slot, d)

    def _engine_of(self, peer: int) -> TransferEngine | None:
        """The engine of a peer; None if another one has taken the peer's entry since."""
        return self._engines.get(self._peers.get(peer, Peer.ENGINE))

    def taint(self, slot: int, d: int) -> None:
        """Taint the session of the last attempt for this destination, which ended other than done (R7).

        Its peer's word is tainted, too, in case the request is forgotten.
        """
        tainted = self._dsts.get(slot, d, Destination.ATTEMPT_SESSION) + 1
        self._dsts.raise_to(slot, d, Destination.TAINTED, tainted)
        self._peers.raise_to(self._dsts.get(slot, d, Destination.PEER) - 1, Peer.TAINTED, tainted)
