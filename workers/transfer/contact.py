"""Whether a transfer worker may write to a destination now: under which session, how far, and whether it answers."""

from __future__ import annotations

from embridge.allocator.peertable import PeerRecord
from embridge.allocator.plain_enums import Destination, Peer, Slot
from embridge.allocator.sessions import LiveSession
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS
from embridge.workers.transfer.engines.base import EngineError, NoAnswer, OwnShortage, TransferEngine


class Contact:
    """The destinations of one transfer worker's rooms, as it reaches them."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._peers = ctx.control.peers
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._records: dict[int, tuple[int, int, int, PeerRecord]] = {}  # peer -> what tells registrations apart; it
        # (slot, destination) -> (epoch, since when it waits for contact)
        self._knocking: dict[tuple[int, int], tuple[int, int]] = {}

    def record_of(self, peer: int) -> PeerRecord:
        """A node as it registered; kept, for each registration has a number of its own."""
        get = self._peers.get
        node, incarnation = get(peer, Peer.NODE_ID), get(peer, Peer.INCARNATION)
        registration = get(peer, Peer.REGISTRATION)
        known = self._records.get(peer)
        if known is not None and known[:3] == (node, incarnation, registration):
            return known[3]
        record = self._peers.record(peer)
        if record.registration == registration and self._peers.is_here(peer, (node, incarnation)):
            self._records[peer] = node, incarnation, registration, record
        return record

    def session_of(self, slot: int, d: int, there: list[int]) -> LiveSession:
        """The latest session of a destination's grants, by its words, or by later ones. The three words belong
        together: each number is used once.
        """
        while self._dsts.get(slot, d, Destination.SESSION) != there[Destination.SESSION]:
            there = self._dsts.get_all(slot, d)  # `SESSION` first
        return LiveSession(there[Destination.SESSION], there[Destination.PORT], there[Destination.BASE])

    def within(self, session: LiveSession, slot: int, d: int, first: int, limit: int, most_blocks: int) -> int:
        """How far the rows from `first` on are granted under one session, of so many blocks.

        An attempt is written under its session or not at all (R10).
        """
        bs = self._ctx.bs
        for k in range(first // bs, min(-(-limit // bs), first // bs + most_blocks)):
            if self._dsts.grant(slot, d, k)[1] != session.number:
                return max(first, k * bs)
        return limit

    def is_granted_by(self, there: list[int]) -> bool:
        """Whether the node of a destination with these words is alive and still holds what it granted, and so has not
        taken us for dead meanwhile (R14).
        """
        peers, peer = self._peers, there[Destination.PEER] - 1
        return (
            peers.is_it(peer, there[Destination.INCARNATION])
            and peers.get(peer, Peer.REGISTRATION) == there[Destination.REGISTRATION]
        )

    def open(
        self, engine: TransferEngine, slot: int, d: int, record: PeerRecord, session: LiveSession, now_ns: int
    ) -> bool:
        """Whether a session can be written to now.

        A session that does not answer is tried for longer if rows have been written there before: its transfer worker
        may be restarting, which fails no request (P11).

        Raises:
            OwnShortage: this process has run out of something.
            EngineError: it is not tried any longer.
        """
        peer = self._dsts.get(slot, d, Destination.PEER) - 1
        try:
            is_open = engine.open(peer, record, session)
            if is_open:
                self._knocking.pop((slot, d), None)
            else:
                self._knocks_since(slot, d, now_ns)
            return is_open
        except OwnShortage:
            raise
        except EngineError as error:
            if isinstance(error, NoAnswer) and now_ns - self._knocks_since(slot, d, now_ns) <= error.patience_ns:
                return False
            since = self._dsts.get(slot, d, Destination.FAILING_NS) or now_ns
            self._dsts.set(slot, d, Destination.FAILING_NS, since)
            if not self._peers.get(peer, Peer.REACHED) or now_ns - since > self._ctx.timing.peer_timeout_s * NS:
                raise
            return False

    def _knocks_since(self, slot: int, d: int, now_ns: int) -> int:
        """Since when this request waits for contact with its destination; others may have waited for longer."""
        epoch = self._slots.get(slot, Slot.EPOCH)
        known, since_ns = self._knocking.get((slot, d), (0, 0))
        if known != epoch:
            since_ns = now_ns
            self._knocking[slot, d] = epoch, since_ns
        return since_ns
