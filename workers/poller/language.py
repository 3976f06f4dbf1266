"""Language side of the poller: the only writer of the language node's status words; it takes what encode nodes report.

A report names the request by this node's incarnation, slot and epoch; whatever is about another one has no effect but
that an ended request is closed at the sender (R14, R23). Success is taken from the phase, never from the counters
(R20). Failed frees nothing by itself: blocks that were exposed are quarantined until the encode side acknowledges the
abort, or until nobody is left who could write into them (R7, R12, D2). Over a network nobody but a fence can say that:
the poller asks for one when a block has been quarantined for `fence_wait_s` while somebody waits for blocks, and at
latest after `fence_after_s` (R11).

Where nodes verify, a report advances the word only when its rows have been checked (R27): see `verifying`.
"""

from __future__ import annotations

import logging

from embridge.allocator.errors import FailureCode
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Peer, Slot
from embridge.allocator.rings import Kick, Record
from embridge.allocator.sessions import SHM_EXPOSURE, exposure_of
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.workers import messages as msg
from embridge.workers.poller.base import Poller
from embridge.workers.poller.peer_watch import why_lost
from embridge.workers.poller.verifier import Verifier
from embridge.workers.role import Inbox, Out, RoleContext, Send
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

MAX_RESEND_S = 2.0
FENCE_AGAIN_NS = 5 * NS  # a fence that was asked for and has not come
QUARANTINE_LOOK_NS = NS // 10
_SESSION_MASK = (1 << 32) - 1


class StatusReceiver(Poller):
    """The language node's poller role."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx)
        self._resends: dict[int, int] = {}  # slot -> how often
        self._sessions = ctx.control.sessions
        self._quarantined_ns: dict[tuple[int, int], int] = {}  # (block, cell) -> since when it is seen in quarantine
        self._fenced_ns: dict[int, int] = {}  # worker -> when it was told to fence its session
        self._looked_ns = 0
        self._verifier = Verifier(ctx, self._advance_verified, self._corrupt) if ctx.control.verify else None

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        out = super().step(now_ns, inbox)
        if self._ctx.has_sessions and now_ns - self._looked_ns >= QUARANTINE_LOOK_NS:
            self._looked_ns = now_ns
            with self._ctx.isolated("fence"):
                self._look_at_quarantine()
        return out

    def next_step_ns(self, now_ns: int) -> int:
        due = super().next_step_ns(now_ns)
        return min(due, self._looked_ns + QUARANTINE_LOOK_NS) if self._quarantined_ns else due

    # ---- what came

    def _kicked(self, record: Record) -> None:
        if record.kick == Kick.ABORT_ACK and self._ctx.is_current(record.slot, record.epoch):
            self._acked(record.slot, record.epoch, record.value)
        if record.kick == Kick.CHECKSUM and self._verifier is not None:
            with self._ctx.isolated("checksum", record.slot, record.epoch):
                self._verifier.answered(record, self._now_ns)

    def _session_began(self, worker: int, number: int) -> None:
        self._fenced_ns.pop(worker, None)
        self._ctx.count(Metric.SESSIONS)
        self._free_fenced(worker, number)
        self._ctx.to("bootstrap").send(Kick.SESSION, worker, number)

    # ---- the fence

    def _free_fenced(self, worker: int, number: int) -> None:
        """What was quarantined under a lesser session of this worker is free: the engine that could write there is dead
        (R10).
        """
        if self._control.blocks.cells.end_exposure(~_SESSION_MASK & (1 << 64) - 1, exposure_of(worker, 0), number):
            self._control.ring_block_waiters()

    def _look_at_quarantine(self) -> None:
        """Free what a fence has passed, and have the other sessions fenced that keep blocks in quarantine for too long
        (R11).
        """
        held = self._sessions.quarantined() if self._control.blocks.counts().quarantined else {}
        held.pop(SHM_EXPOSURE, None)
        since = self._quarantined_ns = {
            block: self._quarantined_ns.get(block, self._now_ns) for blocks in held.values() for block in blocks
        }
        patience_s = self._ctx.timing.fence_wait_s if self._control.blocks.waiters() else self._ctx.timing.fence_after_s
        for word, blocks in held.items():
            worker, number = (word >> 32) - 1, word & _SESSION_MASK
            current = self._sessions.number(worker)
            if number < current:
                self._free_fenced(worker, current)
            elif self._now_ns - min(since[block] for block in blocks) >= patience_s * NS and (
                self._now_ns - self._fenced_ns.get(worker, -FENCE_AGAIN_NS) >= FENCE_AGAIN_NS
            ):
                self._fenced_ns[worker] = self._now_ns
                log.info("session %d is fenced: %d blocks are in quarantine under it", number, len(blocks))
                self._ctx.to(f"worker{worker}").send(Kick.FENCE, worker, 0, number)

    def _take(self, message: msg.Message, peer: int) -> bool:
        match message:
            case msg.Status():
                self._report(message.room, peer)
            case msg.Heartbeat():
                for room in message.rooms:
                    self._report(room, peer)
                    self._grant_again(room)
            case msg.Announce(key=key):
                if self._is_ours(key, peer) and self._set_total(key.slot, key.epoch, message.total_tokens):
                    self._ctx.wake_library(key.slot)
            case msg.AbortAck(key=key):
                if self._is_ours(key, peer):
                    self._acked(key.slot, key.epoch, message.tainted)
                    self._serve(key.slot, key.epoch)
                else:
                    self._send_close(key, peer)
            case _:
                return False
        return True

    def _is_ours(self, key: msg.RequestKey, peer: int) -> bool:
        return self._ctx.is_current(key.slot, key.epoch) and self._slots.get(key.slot, Slot.PEER) == peer + 1

    def _report(self, room: msg.RoomState, peer: int) -> None:
        """One request, as its encode node sees it."""
        slot, epoch = room.key.slot, room.key.epoch
        if not self._is_ours(room.key, peer):
            self._send_close(room.key, peer)
            return
        slots = self._slots
        word = split(self._ctx.status.load(slot))
        if word.phase == Phase.Success:
            self._send_close(room.key, peer)
            return
        if word.phase == Phase.Failed:
            return  # the abort, sent until it is acknowledged, ends it
        slots.set(slot, Slot.HEARD_EPOCH, epoch)
        slots.raise_to(slot, Slot.TAINTED, room.tainted)  # before the word (R6)
        slots.raise_to(slot, Slot.KNOWN_BLOCKS, room.known_blocks)
        more_ready = slots.raise_to(slot, Slot.PEER_READY, room.ready_tokens)
        new_total = self._set_total(slot, epoch, room.total_tokens)
        if more_ready:
            slots.raise_to(slot, Slot.MOVED_NS, self._now_ns)
        if room.phase == Phase.Failed:
            slots.claim_failure(slot, room.code or FailureCode.INTERNAL, room.reason)
        elif wrong := self._check_report(slot, room):
            slots.claim_failure(slot, FailureCode.PROTOCOL, f"the encode side reports {wrong}")
        elif room.total_tokens in (0, slots.get(slot, Slot.TOTAL)):  # else it has failed for that
            if self._verifier is not None:
                self._verifier.report(slot, epoch, room, self._now_ns)
            else:
                self._advance(slot, epoch, room)
        if more_ready or new_total:
            self._ctx.wake_library(slot)
        self._serve(slot, epoch)

    def _check_report(self, slot: int, room: msg.RoomState) -> str | None:
        """What cannot be true of a report, by what this node has granted and been told; None when all can.

        All that is granted stands here before the grant leaves, so that no report of an honest node is ahead of it.
        """
        blocks, tokens = self._slots.granted(slot)
        session, total = self._slots.get(slot, Slot.SESSION), room.total_tokens
        if room.sent_tokens > tokens:
            return f"{room.sent_tokens} tokens sent, {tokens} were granted"
        if room.known_blocks > blocks:
            return f"{room.known_blocks} blocks known, {blocks} were granted"
        if room.session > session:
            return f"a grant under session {room.session}, the latest was under {session}"
        if total and max(room.sent_tokens, room.ready_tokens) > total:
            return f"{room.sent_tokens} tokens sent and {room.ready_tokens} ready of {total}"
        if room.phase == Phase.Success and not 0 < total == room.sent_tokens:
            return f"Success with {room.sent_tokens} of {total} tokens sent"
        return None

    def _grant_again(self, room: msg.RoomState) -> None:
        """R24: a heartbeat shows an encode node that does not know all that was granted, or not under which session."""
        slot, epoch = room.key.slot, room.key.epoch
        if not self._ctx.is_live(slot, epoch):
            return
        if room.known_blocks < self._slots.granted(slot)[0] or room.session < self._slots.get(slot, Slot.SESSION):
            self._ctx.to("bootstrap").send(Kick.GRANT, slot, epoch)
            self._ctx.count(Metric.RESENT)

    def _set_total(self, slot: int, epoch: int, total: int) -> bool:
        """The real length, once; another one fails the request (B3, B7), be it another encode node's (R26)."""
        known = self._slots.get(slot, Slot.TOTAL)
        if known == total or total == 0:
            return False
        if known:
            reason = f"the encode side announced {known} tokens and then {total}"
            self._slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
            self._ctx.to("bootstrap").send(Kick.LOOK, slot, epoch)
            return False
        self._slots.set(slot, Slot.TOTAL, total)
        return True

    def _advance(self, slot: int, epoch: int, room: msg.RoomState) -> None:
        """Through the phases in order: a later one implies those before it."""
        word = split(self._ctx.status.load(slot))
        if room.phase >= Phase.WaitingForInput and word.phase < Phase.WaitingForInput:
            self._raise(slot, epoch, Phase.WaitingForInput, word.sent)
        if room.phase == Phase.Success and room.resumed and word.phase < Phase.Transferring:
            self._raise(slot, epoch, Phase.Transferring, word.sent)
        phase = max(room.phase, split(self._ctx.status.load(slot)).phase)
        self._raise(slot, epoch, phase, max(room.sent_tokens, word.sent))
        if room.phase == Phase.Success:
            self._ctx.count(Metric.SUCCEEDED)

    # ---- rows that are checked on receipt

    def _advance_verified(self, slot: int, epoch: int, room: msg.RoomState) -> None:
        """The rows of this report are right: the encode side is told, for it succeeds only then (R27)."""
        before = split(self._ctx.status.load(slot)).sent
        self._advance(slot, epoch, room)
        peer = self._slots.get(slot, Slot.PEER) - 1
        if room.sent_tokens > before and self._control.peers.is_alive(peer):
            record = self._control.peers.record(peer)
            message = msg.Heartbeat(self._ctx.envelope(record.incarnation), [self._state(slot, epoch)])
            self._out.append(Send(record.poller_addr, message, record.key))

    def _corrupt(self, slot: int, epoch: int, reason: str) -> None:
        self._ctx.count(Metric.CORRUPT)
        log.error("room %d: rows are not those that were sent: %s", self._slots.get(slot, Slot.ROOM), reason)
        self._slots.claim_failure(slot, FailureCode.CORRUPT, reason)

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> None:
        if self._enter(slot, epoch):
            self._resends[slot] = 0
            self._timers.add(self._now_ns + int(self._ctx.timing.resend_s * NS), slot, epoch)
        word = split(self._ctx.status.load(slot))
        if word.epoch == epoch and (word.phase >= TERMINAL or self._failed(slot, epoch)):  # else it was released since
            self._end(slot, epoch)

    def _due(self, slot: int, epoch: int) -> None:
        """A first grant or an abort that nobody has answered is sent again, ever more rarely (its encoder may come
        late).
        """
        times = self._resends.get(slot, 0)
        pause_s = min(self._ctx.timing.resend_s * 2**times, MAX_RESEND_S)
        self._resends[slot] = min(times + 1, 8)
        self._timers.add(self._now_ns + int(pause_s * NS), slot, epoch)
        word = split(self._ctx.status.load(slot))
        if word.phase == Phase.Failed:
            if self._slots.get(slot, Slot.ACKED_EPOCH) != epoch:
                self._ctx.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
                self._ctx.count(Metric.RESENT)
            return
        unheard = self._slots.get(slot, Slot.HEARD_EPOCH) != epoch
        if word.phase < TERMINAL and self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch and unheard:
            self._ctx.to("bootstrap").send(Kick.GRANT, slot, epoch)
            self._ctx.count(Metric.RESENT)

    def _failed(self, slot: int, epoch: int) -> bool:
        code, reason = self._slots.get(slot, Slot.FAILURE), ""
        peer = self._slots.get(slot, Slot.PEER) - 1
        if not code and self._ctx.is_lane_dead(slot):
            code, reason = FailureCode.CLIENT_DIED, self._ctx.why_lane_is_dead(slot, "scheduler")
        if not code and peer >= 0 and not self._control.peers.is_alive(peer):
            code, reason = FailureCode.PEER_LOST, f"encode {why_lost(self._control.peers, peer)}"
        if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):
            code, reason = FailureCode.TIMEOUT, self._why_late(slot, epoch)
        if not code:
            return False
        self._fail(slot, epoch, code, reason)
        self._resends[slot] = 0
        return True

    def _why_late(self, slot: int, epoch: int) -> str:
        word, (_, granted) = split(self._ctx.status.load(slot)), self._slots.granted(slot)
        total = self._slots.get(slot, Slot.TOTAL)
        if not self._slots.get(slot, Slot.PEER):
            waited = "no handshake with the encode node"
        elif word.phase == Phase.Bootstrapping:
            waited = "the encoder has not opened the room, or not all destinations have sent their init"
        else:
            free = self._control.blocks.cells.num_free(1)
            waited = f"sent {word.sent} granted {granted} of {total or 'unknown'} tokens, {free or 'no'} block free"
        return f"deadline passed on the language side: {waited}"

    # ---- the end

    def _end(self, slot: int, epoch: int) -> None:
        peer = self._slots.get(slot, Slot.PEER) - 1
        lane_dead = self._ctx.is_lane_dead(slot)
        cleared = lane_dead or self._slots.get(slot, Slot.CLEARED_EPOCH) == epoch
        cells = self._control.blocks.cells
        if split(self._ctx.status.load(slot)).phase == Phase.Success:
            if lane_dead and cells.reclaim(slot, epoch, self._is_tainted(slot)):
                self._control.ring_block_waiters()
            if peer >= 0:
                self._send_close(self._key(slot, epoch), peer)
        else:
            if cells.reclaim(slot, epoch, True):
                self._control.ring_block_waiters()
            if not self._is_acked(slot, epoch, peer):
                return
            if not self._is_tainted(slot) and cells.end_quarantine(slot, epoch):
                self._control.ring_block_waiters()
            if peer >= 0 and self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch:
                self._send_close(self._key(slot, epoch), peer)
        if cleared:
            self._ctx.to("bootstrap").send(Kick.RELEASE, slot, epoch)
            self._forget(slot)

    def _is_tainted(self, slot: int) -> bool:
        """R7: an attempt under the session that still lives ended other than done; it may yet land."""
        worker = self._control.worker_of(self._slots.get(slot, Slot.ROOM))
        return self._slots.get(slot, Slot.SESSION) != 0 and self._slots.get(slot, Slot.TAINTED) > self._sessions.number(
            worker
        )

    def _is_acked(self, slot: int, epoch: int, peer: int) -> bool:
        """Whether nobody will write into this request's blocks any more. If not, ask."""
        if self._slots.get(slot, Slot.ACKED_EPOCH) == epoch:
            return True
        if peer < 0:  # no handshake: there is none to be had, or it is under way, and the encoder will be told then
            return self._slots.get(slot, Slot.FAILURE) in (FailureCode.UNREACHABLE, FailureCode.REFUSED)
        peers = self._control.peers
        if not peers.is_alive(peer):
            contacted = self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch
            session = self._slots.get(slot, Slot.SESSION)
            if session:  # over a network its death stops nothing that it has sent: only the fence does (R12)
                self._acked(slot, epoch, session + 1)
                return True
            gone = not contacted or not self._control.writers.has(
                peers.get(peer, Peer.NODE_ID), peers.get(peer, Peer.INCARNATION)
            )
            if gone:
                self._slots.set(slot, Slot.ACKED_EPOCH, epoch)
            return gone
        if self._resends.get(slot, 0) == 0:
            self._resends[slot] = 1
            self._ctx.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
            self._timers.add(self._now_ns + int(self._ctx.timing.resend_s * NS), slot, epoch)
        return False

    def _acked(self, slot: int, epoch: int, tainted: int) -> None:
        self._slots.raise_to(slot, Slot.TAINTED, tainted)
        if split(self._ctx.status.load(slot)).phase == Phase.Failed:
            self._slots.set(slot, Slot.ACKED_EPOCH, epoch)

    def _key(self, slot: int, epoch: int) -> msg.RequestKey:
        return msg.RequestKey(slot, epoch, self._slots.get(slot, Slot.ROOM))

    def _send_close(self, key: msg.RequestKey, peer: int) -> None:
        record = self._control.peers.record(peer)
        if self._control.peers.is_alive(peer):
            self._out.append(
                Send(record.poller_addr, msg.Close(self._ctx.envelope(record.incarnation), key), record.key)
            )

    def _rooms_of(self, peer: int) -> list[msg.RoomState]:
        """What a heartbeat to an encode node lists: what is in flight with it."""
        rooms = []
        for slot, epoch in self._live.items():
            if self._slots.get(slot, Slot.PEER) != peer + 1 or not self._ctx.is_current(slot, epoch):
                continue
            rooms.append(self._state(slot, epoch))
        return rooms

    def _state(self, slot: int, epoch: int) -> msg.RoomState:
        word, (blocks, _) = split(self._ctx.status.load(slot)), self._slots.granted(slot)
        return msg.RoomState(
            key=self._key(slot, epoch),
            phase=word.phase,
            resumed=False,
            sent_tokens=word.sent,
            total_tokens=0,
            ready_tokens=0,
            known_blocks=blocks,
            session=0,
            tainted=0,
            code=0,
            reason="",
            checksum=0,
        )

    def _forget(self, slot: int) -> None:
        self._live.pop(slot, None)
        self._resends.pop(slot, None)
        if self._verifier is not None:
            self._verifier.forget(slot)
