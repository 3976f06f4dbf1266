"""Encode side of the poller: the only writer of the encode node's status words; it tells every destination what
concerns it.

The word is (phase, least `sent` of all required destinations, an absent one counting as 0), computed from the
watermarks and never passed by a caller (B2, R18). A destination is told the common phase and its own progress. A
request that has ended is told again with every heartbeat until its destination closes it or is dead (R23), and its slot
is free only when the worker has said that nothing of it is under way and the client has cleared it.

Where nodes verify, `sent` and the checksum of those rows come from one word, and a request succeeds only when each
destination has said, in its heartbeats, that it has checked all of it (R27): then a row that was damaged on its way
fails the request on every side.
"""

from __future__ import annotations

from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Destination, Peer, Slot
from embridge.allocator.rings import Kick, Record
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.workers import messages as msg
from embridge.workers.poller.base import Poller
from embridge.workers.poller.peer_watch import why_lost
from embridge.workers.role import RoleContext, Send


class Publisher(Poller):
    """The encode node's poller role."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx)
        self._dsts = ctx.control.destinations
        self._told: dict[int, dict[int, tuple[int, ...]]] = {}  # slot -> destination -> what it was told last
        self._by_key: dict[tuple[int, int, int], tuple[int, int, int]] = {}  # (peer, slot, epoch there) -> ours
        self._keys: dict[int, list[tuple[int, int, int]]] = {}  # slot -> those of them that lead to it
        self._acks_due: set[tuple[int, int, int]] = set()  # (slot, epoch, destination)
        self._sent: dict[int, list[int]] = {}  # slot -> of each destination, when its phase was computed: told together
        self._checksums: dict[int, list[int]] = {}  # slot -> of these rows, where nodes verify

    # ---- what came

    def _kicked(self, record: Record) -> None:
        if record.kick == Kick.ABORTED and self._ctx.is_current(record.slot, record.epoch):
            self._acks_due.add((record.slot, record.epoch, record.value))

    def _session_began(self, worker: int, number: int) -> None:
        raise AssertionError("an encode node has no sessions")

    def _due(self, slot: int, epoch: int) -> None:
        """The deadline: `_serve`, which follows, sees that it has passed."""

    def _take(self, message: msg.Message, peer: int) -> bool:
        match message:
            case msg.Close():
                self._close(message.key, peer)
            case msg.Heartbeat():
                for room in message.rooms if self._control.verify else ():
                    self._verified(room, peer)
            case _:
                return False
        return True

    def _verified(self, room: msg.RoomState, peer: int) -> None:
        """How many rows a destination has checked (R27)."""
        held = self._by_key.get((peer, room.key.slot, room.key.epoch))
        if held is not None and self._ctx.is_live(held[0], held[1]):
            slot, epoch, d = held
            sent = RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)).tokens
            if room.sent_tokens > sent:
                checked = f"{room.sent_tokens} tokens > {sent} tokens that were sent to it"
                reason = f"a destination says that it has checked {checked}"
                self._slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
                self._serve(slot, epoch)
            elif self._dsts.raise_to(slot, d, Destination.VERIFIED, room.sent_tokens):
                self._serve(slot, epoch)

    def _close(self, key: msg.RequestKey, peer: int) -> None:
        held = self._by_key.get((peer, key.slot, key.epoch))
        if held is not None and self._ctx.is_current(held[0], held[1]):
            slot, epoch, d = held
            self._dsts.set(slot, d, Destination.CLOSED, 1)
            self._serve(slot, epoch)

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> None:
        self._enter(slot, epoch)
        self._read_progress(slot)
        word = split(self._ctx.status.load(slot))
        if word.epoch != epoch:
            return  # released since, and open again
        if word.phase < TERMINAL:
            self._advance(slot, epoch)
            word = split(self._ctx.status.load(slot))
        self._tell_all(slot, epoch, word.phase, self._sent[slot])
        if word.phase >= TERMINAL:
            self._end(slot, epoch)

    def _read_progress(self, slot: int) -> None:
        destinations = range(self._slots.get(slot, Slot.NUM_DESTINATIONS))
        if not self._control.verify:
            self._sent[slot] = [self._dsts.get(slot, d, Destination.SENT) for d in destinations]
            return
        sums = [RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)) for d in destinations]
        self._sent[slot] = [tokens for tokens, _ in sums]
        self._checksums[slot] = [checksum for _, checksum in sums]

    def _advance(self, slot: int, epoch: int) -> None:
        slots, sent = self._slots, self._sent[slot]
        count = len(sent)
        if self._failed(slot, epoch, count):
            return
        required, total = slots.get(slot, Slot.REQUIRED), slots.get(slot, Slot.TOTAL)
        begin = max((self._dsts.get(slot, d, Destination.BEGIN) for d in range(count)), default=0)
        if 0 < total <= begin:
            reason = (
                f"a destination has {begin} rows from another encode node, "
                f"and the encoder announces {total} tokens here"
            )
            self._fail(slot, epoch, FailureCode.PROTOCOL, reason)
            return
        if not required or count < required:
            return
        if self._raise(slot, epoch, Phase.WaitingForInput, 0):
            self._tell_all(slot, epoch, Phase.WaitingForInput, [0] * count)
        first = [self._dsts.get(slot, d, Destination.FIRST_GRANT) for d in range(count)]
        least = min(sent)
        if not total or not least:
            return
        if any(grant < total for grant in first) and all(
            s >= min(g, total) > 0 for s, g in zip(sent, first, strict=True)
        ):
            before = split(self._ctx.status.load(slot)).phase
            self._raise(slot, epoch, Phase.Transferring, min(least, total))
            if before < Phase.Transferring:
                self._tell_all(slot, epoch, Phase.Transferring, sent)
        if least >= total and self._is_verified(slot, count, total):
            self._raise(slot, epoch, Phase.Success, total)
            self._ctx.count(Metric.SUCCEEDED)
        else:
            self._raise(slot, epoch, Phase(split(self._ctx.status.load(slot)).phase), least)

    def _is_verified(self, slot: int, count: int, total: int) -> bool:
        """Whether every destination has checked every row, where nodes verify (R27)."""
        return not self._control.verify or all(
            self._dsts.get(slot, d, Destination.VERIFIED) >= total for d in range(count)
        )

    def _failed(self, slot: int, epoch: int, count: int) -> bool:
        """End the request if something says so: a reason somebody claimed, its client, a peer, its deadline."""
        code, reason = self._slots.get(slot, Slot.FAILURE), ""
        if not code and self._ctx.is_lane_dead(slot):
            code, reason = FailureCode.CLIENT_DIED, self._ctx.why_lane_is_dead(slot, "encoder")
        for d in range(count):
            peer = self._dsts.get(slot, d, Destination.PEER) - 1
            if not code and not (
                self._peer_is(peer, self._dsts.get(slot, d, Destination.INCARNATION))
                and self._control.peers.get(peer, Peer.REGISTRATION)
                == self._dsts.get(slot, d, Destination.REGISTRATION)
            ):
                code, reason = FailureCode.PEER_LOST, f"language {why_lost(self._control.peers, peer)}"
            if not code and self._dsts.get(slot, d, Destination.CLOSED):
                code, reason = FailureCode.ABORTED, "a destination no longer knows the request"
        if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):
            code, reason = FailureCode.TIMEOUT, self._why_late(slot, count)
        if not code:
            return False
        self._fail(slot, epoch, code, reason)
        return True

    def _why_late(self, slot: int, count: int) -> str:
        required = self._slots.get(slot, Slot.REQUIRED)
        if not required or count < required:
            waited = f"{count} of {required or 'unknown'} destinations had sent their init"
        else:
            sent = [self._dsts.get(slot, d, Destination.SENT) for d in range(count)]
            granted = [self._dsts.get(slot, d, Destination.GRANTED_TOKENS) for d in range(count)]
            ready, total = self._slots.get(slot, Slot.READY), self._slots.get(slot, Slot.TOTAL)
            waited = f"sent {sent} granted {granted} ready {ready} of {total} tokens"
        return f"deadline passed on the encode side: {waited}"

    def _peer_is(self, peer: int, incarnation: int) -> bool:
        peers = self._control.peers
        return peers.is_alive(peer) and peers.get(peer, Peer.INCARNATION) == incarnation

    # ---- telling

    def _state(self, slot: int, d: int, phase: int, sent: int) -> msg.RoomState:
        """`sent` was read before `tainted`, so that what is reported clean is clean (R6); and with it the phase was
        computed.
        """
        tainted = self._dsts.get(slot, d, Destination.TAINTED)
        key = msg.RequestKey(
            self._dsts.get(slot, d, Destination.REMOTE_SLOT),
            self._dsts.get(slot, d, Destination.REMOTE_EPOCH),
            self._slots.get(slot, Slot.ROOM),
        )
        failed = phase == Phase.Failed
        return msg.RoomState(
            key=key,
            phase=phase,
            resumed=self._ctx.status.stamps(slot)[Phase.Transferring] != 0,
            sent_tokens=sent,
            total_tokens=self._slots.get(slot, Slot.TOTAL),
            ready_tokens=self._slots.get(slot, Slot.READY),
            known_blocks=self._dsts.get(slot, d, Destination.GRANTED_BLOCKS),
            session=self._dsts.get(slot, d, Destination.SESSION),
            tainted=tainted,
            code=self._slots.get(slot, Slot.FAILURE) if failed else 0,
            reason=msg.clip(self._slots.reason(slot)) if failed else "",
            checksum=self._checksums[slot][d] if sent and self._control.verify else 0,
        )

    def _tell_all(self, slot: int, epoch: int, phase: int, sent: list[int]) -> None:
        for d, tokens in enumerate(sent):
            self._tell(slot, epoch, d, phase, tokens)

    def _tell(self, slot: int, epoch: int, d: int, phase: int, sent: int) -> None:
        """Tell one destination, if what concerns it has changed since it was told last."""
        if self._dsts.get(slot, d, Destination.CLOSED):
            return
        peer = self._dsts.get(slot, d, Destination.PEER) - 1
        if not self._peer_is(peer, self._dsts.get(slot, d, Destination.INCARNATION)):
            return
        state = self._state(slot, d, phase, sent)
        granted = self._dsts.get(slot, d, Destination.GRANTED_TOKENS)
        if not self._ctx.is_current(slot, epoch):
            return  # it was released after it had been asked for, and what was read may be the next one's (R16)
        crossing = min(state.ready_tokens, granted + 1)  # more ready than granted is news; how much more is not
        news = (epoch, phase, state.sent_tokens, state.total_tokens, crossing, state.known_blocks, state.tainted)
        record = self._control.peers.record(peer)
        told = self._told.setdefault(slot, {}).get(d)
        if told != news:
            self._told[slot][d] = news
            if told is None:
                self._by_key[peer, state.key.slot, state.key.epoch] = (slot, epoch, d)
                self._keys.setdefault(slot, []).append((peer, state.key.slot, state.key.epoch))
            envelope = self._ctx.envelope(record.incarnation)
            if told is None and phase < TERMINAL and not state.sent_tokens and state.total_tokens:
                self._out.append(
                    Send(record.poller_addr, msg.Announce(envelope, state.key, state.total_tokens), record.key)
                )
            self._out.append(
                Send(record.poller_addr, msg.Status(self._ctx.envelope(record.incarnation), state), record.key)
            )
        if (
            (slot, epoch, d) in self._acks_due
            and phase >= TERMINAL
            and self._slots.get(slot, Slot.QUIESCED_EPOCH) == epoch
        ):
            self._acks_due.discard((slot, epoch, d))
            envelope = self._ctx.envelope(record.incarnation)
            self._out.append(Send(record.poller_addr, msg.AbortAck(envelope, state.key, state.tainted), record.key))

    def _rooms_of(self, peer: int) -> list[msg.RoomState]:
        """What a heartbeat to one peer lists."""
        rooms = []
        for slot, epoch in self._live.items():
            if not self._ctx.is_current(slot, epoch):
                continue
            phase = split(self._ctx.status.load(slot)).phase
            states = []
            for d, sent in enumerate(self._sent[slot]):
                if self._dsts.get(slot, d, Destination.PEER) == peer + 1 and not self._dsts.get(
                    slot, d, Destination.CLOSED
                ):
                    states.append(self._state(slot, d, phase, sent))
            if self._ctx.is_current(slot, epoch):  # still: what was read is its own (R16)
                rooms += states
        return rooms

    # ---- the end

    def _end(self, slot: int, epoch: int) -> None:
        if self._slots.get(slot, Slot.QUIESCED_EPOCH) != epoch:
            self._ctx.to_worker_of(slot).send(Kick.LOOK, slot, epoch)  # it says when nothing of it is under way
            return
        lane_dead = self._ctx.is_lane_dead(slot)
        if lane_dead and self._control.blocks.cells.reclaim(slot, epoch, False):
            self._control.ring_block_waiters()
        if not lane_dead and self._slots.get(slot, Slot.CLEARED_EPOCH) != epoch:
            return
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            peer = self._dsts.get(slot, d, Destination.PEER) - 1
            if self._peer_is(peer, self._dsts.get(slot, d, Destination.INCARNATION)) and not (
                self._dsts.get(slot, d, Destination.CLOSED)
            ):
                return
        self._ctx.to("bootstrap").send(Kick.RELEASE, slot, epoch)
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        """By what was noted here: the slot's own words may be about the next request by now."""
        epoch = self._live.pop(slot, 0)
        self._sent.pop(slot, None)
        self._checksums.pop(slot, None)
        self._told.pop(slot, None)
        self._acks_due.difference_update([(slot, epoch, d) for d in range(self._dsts.num_destinations)])
        for key in self._keys.pop(slot, ()):
            if self._by_key.get(key, (0, 0))[:2] == (slot, epoch):
                del self._by_key[key]
