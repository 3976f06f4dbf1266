"""Language side of the poller: the only writer of the language node's status words. It takes what encode nodes report.

A report names a request by this node's incarnation, slot and epoch. A report about any other request has no effect,
except that the sender is told to close a request that has ended (R14, R23). Success is taken from the reported phase,
never from the counters (R20). A failure frees nothing by itself: blocks that were exposed are quarantined until the
encode side acknowledges the abort, or until nobody is left who could write into them (R7, R12, D2). Over a network only
a fence can say that. The poller asks for a fence when a block has been quarantined for `fence_wait_s` while somebody
waits for blocks, and at the latest after `fence_after_s` (R11). A request that is whole does not fail for itself: its
encode node is asked to abort it, and is obeyed (R36).

Where nodes verify, a report advances the word only when its rows have been checked (R27; `verifier.py`).
"""

from __future__ import annotations

import logging

from embridge.allocator.errors import FailureCode
from embridge.allocator.plain_enums import Kick, Metric, Peer, Phase, Slot
from embridge.allocator.rings import Record
from embridge.allocator.status import TERMINAL, split
from embridge.workers import messages as msg
from embridge.workers.poller.base import Poller
from embridge.workers.poller.grant_watch import GrantWatch
from embridge.workers.poller.peer_watch import why_lost
from embridge.workers.poller.quarantine import Quarantine
from embridge.workers.poller.reports import note_item, what_is_wrong, why_late
from embridge.workers.poller.resending import sent_again_ns
from embridge.workers.poller.room_lists import HeardNodes, HeardRooms
from embridge.workers.poller.rooms_by_peer import RoomsByPeer
from embridge.workers.poller.verifier import Verifier
from embridge.workers.role import Inbox, Out, RoleContext
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

MOST_ROOMS = 1024  # in a message that tells what was checked
QUARANTINE_LOOK_NS = NS // 10
CLAIM_LOOK_NS = NS // 50  # at a claim that was revoked while its writer held it


class StatusReceiver(Poller):
    """The language node's poller role."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx)
        self._resends: dict[int, int] = {}  # slot -> how often
        self._unheard: dict[int, int] = {}  # slot -> epoch of requests of which no encode node has told
        self._heard = HeardNodes()
        self._grants = GrantWatch(ctx)
        self._by_peer = RoomsByPeer()
        self._closed: dict[int, int] = {}  # slot -> epoch that was closed there; kept, for it is released later
        self._checked_slots: dict[int, int] = {}  # slot -> epoch of requests of which rows were checked
        self._sessions = ctx.control.sessions
        self._claims = ctx.control.claims
        self._quarantine = Quarantine(ctx)
        self._looked_ns = 0
        self._revoked: dict[int, int] = {}  # slot -> epoch of those whose claims their writers hold still
        self._asking: dict[int, int] = {}  # slot -> epoch of those that are whole, and whose encode nodes are to decide
        self._claims_looked_ns = 0
        self._beats_say_more = ctx.control.verify
        self._verifier = Verifier(ctx, self._advance_verified, self._corrupt) if ctx.control.verify else None

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        out = super().step(now_ns, inbox)
        if self._ctx.has_sessions and now_ns - self._looked_ns >= QUARANTINE_LOOK_NS:
            self._looked_ns = now_ns
            with self._ctx.isolated("fence"):
                self._quarantine.look(now_ns)
        if self._revoked and now_ns - self._claims_looked_ns >= CLAIM_LOOK_NS:
            self._claims_looked_ns = now_ns
            self._look_at_claims()
        return out

    def next_step_ns(self, now_ns: int) -> int:
        due = super().next_step_ns(now_ns)
        if self._revoked:
            due = min(due, self._claims_looked_ns + CLAIM_LOOK_NS)
        return min(due, self._looked_ns + QUARANTINE_LOOK_NS) if not self._quarantine.is_empty else due

    # ---- what came

    def _kicked(self, record: Record) -> None:
        if record.kick == Kick.ABORT_ACK and self._ctx.is_current(record.slot, record.epoch):
            if record.epoch == self._asking.get(record.slot):  # else it has failed by itself
                why = "its encode node knows nothing of it"
                self._fail(record.slot, record.epoch, FailureCode.PEER_LOST, why, is_told=True)
            self._acked(record.slot, record.epoch, record.value)
        if record.kick == Kick.CHECKSUM and self._verifier is not None:
            with self._ctx.isolated("checksum", record.slot, record.epoch):
                self._verifier.answered(record, self._now_ns)

    def _session_began(self, worker: int, number: int) -> None:
        self._ctx.count(Metric.SESSIONS)
        self._quarantine.session_began(worker, number)
        self._ctx.to("bootstrap").send(Kick.SESSION, worker, number)

    # ---- claims

    def _look_at_claims(self) -> None:
        """Go on with requests that have ended, and whose writers have given their claims back since (R30)."""
        for slot, epoch in list(self._revoked.items()):
            if self._claims.revoke(slot, epoch):
                del self._revoked[slot]
                if self._ctx.is_current(slot, epoch):
                    with self._ctx.isolated("claim", slot, epoch):
                        self._serve(slot, epoch)

    # ---- messages

    def _take(self, message: msg.Message, peer: int) -> bool:
        heard = self._heard.of(peer, message.envelope.incarnation)
        match message:
            case msg.Status():
                self._report(message.room, peer, heard)
            case msg.Landed(room=room):  # in no list: it comes over another connection than what is (R83)
                if self._is_ours(room.key, peer):
                    self._take_report(room, peer)
            case msg.Heartbeat():
                self._take_heartbeat(message, peer, heard)
            case msg.Snapshot():
                for room in message.rooms:
                    self._report(room, peer, heard)
                heard.keep_only(message.first_slot, message.end_slot, message.rooms)
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

    def _take_heartbeat(self, beat: msg.Heartbeat, peer: int, heard: HeardRooms) -> None:
        """Take what it tells, and look which messages of either side the other has missed (R24, R77)."""
        for key in heard.unknown():
            self._send_close(key, peer)
        for key in beat.closed:
            heard.drop(key)
        for room in beat.rooms:
            self._report(room, peer, heard)
        self._grants.look(peer, heard, {room.key.slot for room in beat.rooms}, self._now_ns)
        if heard.bootstrap_restarts not in (None, beat.bootstrap_restarts):
            self._grant_unheard(peer)
        heard.bootstrap_restarts = beat.bootstrap_restarts
        if self._verifier is not None:
            self._verifier.look(self._now_ns)
        if heard.digest != (beat.num_rooms, beat.digest):
            self._say(peer, msg.Resync(self._envelope_to(peer)))

    def _grant_unheard(self, peer: int) -> None:
        """Send the first grants again that waited for their encoders in a bootstrap that was restarted."""
        for slot, epoch in self._unheard.items():
            if self._slots.get(slot, Slot.PEER) == peer + 1 and self._ctx.is_live(slot, epoch):
                self._ctx.to("bootstrap").send(Kick.GRANT, slot, epoch)
                self._ctx.count(Metric.RESENT)

    def _is_ours(self, key: msg.RequestKey, peer: int) -> bool:
        return self._ctx.is_current(key.slot, key.epoch) and self._slots.get(key.slot, Slot.PEER) == peer + 1

    def _report(self, room: msg.RoomState, peer: int, heard: HeardRooms) -> None:
        """Take the state of one request as its encode node reports it."""
        if not self._is_ours(room.key, peer) and not self._is_told_by(room.key, peer):
            heard.put_unknown(room)
            self._send_close(room.key, peer)
            return
        self._take_report(room, peer)
        heard.put(room)  # when all of that was done
        self._grants.reported(room, self._now_ns)

    def _is_told_by(self, key: msg.RequestKey, peer: int) -> bool:
        """Whether a report names a request in flight that only its client has had: this node has it from now on (R78).

        One that has succeeded is left to its client, and its encode node may close it.
        """
        slot = key.slot
        if not self._control.is_open(slot, key.epoch) or self._slots.get(slot, Slot.PEER) != peer + 1:
            return False
        if self._ctx.status.phase(slot) >= TERMINAL:
            return False
        if self._slots.tell(slot, key.epoch):  # else its client was faster
            self._ctx.to("bootstrap").send(Kick.OPEN, slot, key.epoch)
        return self._is_ours(key, peer)

    def _take_report(self, room: msg.RoomState, peer: int) -> None:
        slot, epoch = room.key.slot, room.key.epoch
        slots = self._slots
        phase = self._ctx.status.phase(slot)
        if phase == Phase.Success or self._closed.get(slot) == epoch:  # again: of a second sender, say (R79)
            self._send_close(room.key, peer)
            return
        if phase == Phase.Failed:
            return  # the abort, sent until it is acknowledged, ends it
        slots.set(slot, Slot.HEARD_EPOCH, epoch)
        self._unheard.pop(slot, None)
        slots.raise_to(slot, Slot.TAINTED, room.tainted)  # before the word (R6)
        slots.raise_to(slot, Slot.KNOWN_BLOCKS, room.known_blocks)
        more_ready = slots.raise_to(slot, Slot.PEER_READY, room.ready_tokens)
        if room.item is not None:
            note_item(self._ctx, room)
        new_total = self._set_total(slot, epoch, room.total_tokens)
        if more_ready:
            slots.raise_to(slot, Slot.MOVED_NS, self._now_ns)
        if room.phase == Phase.Failed:
            self._fail(slot, epoch, room.code or FailureCode.INTERNAL, room.reason, is_told=True)
            self._resends[slot] = 0
        elif wrong := what_is_wrong(slots, room):
            slots.claim_failure(slot, FailureCode.PROTOCOL, f"the encode side reports {wrong}")
        elif room.total_tokens in (0, slots.get(slot, Slot.TOTAL)):  # else it has failed for that
            if self._verifier is not None:
                self._verifier.report(slot, epoch, room, self._now_ns)
            else:
                self._advance(slot, epoch, room)
        if (more_ready or new_total) and self._ctx.status.phase(slot) < TERMINAL:  # else its client was woken
            self._ctx.wake_library(slot)
        self._serve(slot, epoch)

    def _set_total(self, slot: int, epoch: int, total: int) -> bool:
        """Store the real length, once. True if it is news.

        Another length fails the request (B3, B7), also if another encode node announces it (R26).
        """
        stored = self._slots.get(slot, Slot.TOTAL)
        if total in (0, stored):
            return False
        if (known := stored or self._claims.length(slot)) not in (0, total):  # who writes directly tells it there
            reason = f"the encode side announced {known} tokens and then {total}"
            self._slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
            self._ctx.to("bootstrap").send(Kick.LOOK, slot, epoch)
            return False
        self._slots.set(slot, Slot.TOTAL, total)
        return True

    def _advance(self, slot: int, epoch: int, room: msg.RoomState) -> None:
        """Raise the status word through the phases in order: a later phase implies those before it."""
        word = split(self._ctx.status.load(slot))
        if room.phase >= Phase.WaitingForInput and word.phase < Phase.WaitingForInput:
            self._raise(slot, epoch, Phase.WaitingForInput, word.sent)
        if room.phase == Phase.Success and room.resumed and word.phase < Phase.Transferring:
            self._raise(slot, epoch, Phase.Transferring, word.sent)
        phase = max(room.phase, self._ctx.status.phase(slot))
        if phase == Phase.Success:
            self._claims.end(slot, epoch)  # its blocks may be anybody's once its scheduler knows (R81)
        self._raise(slot, epoch, phase, max(room.sent_tokens, word.sent))

    def _wake_client(self, slot: int, epoch: int, phase: int) -> None:
        is_whole = phase == Phase.Success and not self._control.is_fetch(slot, epoch)  # its caller may end it by a look
        ring = self._control.ring_client if is_whole else self._control.ring_lane
        ring(self._slots.get(slot, Slot.LANE))

    # ---- rows that are checked on receipt

    def _advance_verified(self, slot: int, epoch: int, room: msg.RoomState) -> None:
        """Raise the status word, because the rows of this report are right, and tell the encode side (R27).

        The encode side succeeds only when it has been told.
        """
        before = self._ctx.status.sent(slot)
        self._checked_slots[slot] = epoch
        self._advance(slot, epoch, room)
        if room.sent_tokens > before and self._control.peers.is_alive(peer := self._slots.get(slot, Slot.PEER) - 1):
            self._say(peer, msg.Checked(self._envelope_to(peer), [self._checked(slot, epoch)]))

    def _corrupt(self, slot: int, epoch: int, reason: str) -> None:
        self._ctx.count(Metric.CORRUPT)
        log.error("room %d: rows are not those that were sent: %s", self._slots.get(slot, Slot.ROOM), reason)
        self._slots.claim_failure(slot, FailureCode.CORRUPT, reason)

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> None:
        if self._enter(slot, epoch):
            self._resends[slot] = 0
            self._timers.add(self._now_ns + int(self._ctx.timing.resend_s * NS), slot, epoch)
            if self._slots.get(slot, Slot.HEARD_EPOCH) != epoch:
                self._unheard[slot] = epoch
            if self._verifier is not None and self._ctx.status.sent(slot):
                self._checked_slots[slot] = epoch
        # a lent result needs nothing of its peer
        self._by_peer.put(slot, -1 if self._slots.is_lent(slot) else self._slots.get(slot, Slot.PEER) - 1)
        word = split(self._ctx.status.load(slot))
        if word.epoch == epoch and (word.phase >= TERMINAL or self._failed(slot, epoch)):  # else it was released
            if self._ctx.status.phase(slot) == Phase.Success:
                self._note_success(slot, epoch)
            self._end(slot, epoch)

    def _due(self, slot: int, epoch: int) -> None:
        """Send a first grant or an abort again that nobody has answered, ever more rarely: encoders may come late."""
        word, unheard = split(self._ctx.status.load(slot)), self._slots.get(slot, Slot.HEARD_EPOCH) != epoch
        is_asking = self._asking.get(slot) == epoch and word.phase < TERMINAL
        if word.phase == Phase.Success or (word.phase < TERMINAL and not unheard and not is_asking):
            return  # its scheduler may keep the result for long; its encoder may be silent for long
        times = self._resends.get(slot, 0)
        self._resends[slot] = min(times + 1, 8)
        due_ns = sent_again_ns(
            self._now_ns, self._ctx.timing.resend_s, times, slot, len(self._unheard) if unheard else 0
        )
        self._timers.add(due_ns, slot, epoch)
        if word.phase == Phase.Failed or is_asking:
            if self._slots.get(slot, Slot.ACKED_EPOCH) != epoch:
                self._ctx.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
                self._ctx.count(Metric.RESENT)
            return
        if self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch:
            self._ctx.to("bootstrap").send(Kick.GRANT, slot, epoch)
            self._ctx.count(Metric.RESENT)

    def _is_awaited(self, when_ns: int, slot: int, epoch: int) -> bool:
        if not self._ctx.is_current(slot, epoch):
            return False
        phase, is_answered = self._ctx.status.phase(slot), self._slots.get(slot, Slot.HEARD_EPOCH) == epoch
        waits = phase == Phase.Failed or not is_answered or self._asking.get(slot) == epoch
        return (waits and phase != Phase.Success) or self._slots.get(slot, Slot.DEADLINE_NS) <= when_ns

    def _failed(self, slot: int, epoch: int) -> bool:
        code, reason = self._slots.get(slot, Slot.FAILURE), ""
        peer = self._slots.get(slot, Slot.PEER) - 1
        if not code and self._ctx.is_lane_dead(slot):
            code, reason = FailureCode.CLIENT_DIED, self._ctx.why_lane_is_dead(slot, "scheduler")
        is_lost = peer >= 0 and not self._control.peers.is_alive(peer)
        if not code and is_lost:
            code, reason = FailureCode.PEER_LOST, f"encode {why_lost(self._control.peers, peer)}"
        if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):
            code, reason = FailureCode.TIMEOUT, why_late(self._ctx, slot)
        if not code:
            return False
        self._fail(slot, epoch, code, reason, is_told=is_lost)
        if self._ctx.status.phase(slot) < TERMINAL:
            self._ask_to_abort(slot, epoch)
            return False
        self._resends[slot] = 0
        return True

    def _ask_to_abort(self, slot: int, epoch: int) -> None:
        """Have an abort sent for a request that is whole, until its encode node says how it ends."""
        if self._asking.get(slot) != epoch:
            self._asking[slot] = epoch
            self._resends[slot] = 1
            self._ctx.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
            self._timers.add(self._now_ns + int(self._ctx.timing.resend_s * NS), slot, epoch)

    # ---- the end

    def _end(self, slot: int, epoch: int) -> None:
        peer = self._slots.get(slot, Slot.PEER) - 1
        lane_dead = self._ctx.is_lane_dead(slot)
        cleared = lane_dead or self._slots.get(slot, Slot.CLEARED_EPOCH) == epoch
        cells = self._control.blocks.cells
        if self._ctx.status.phase(slot) == Phase.Success:
            if lane_dead and cells.reclaim(slot, epoch, self._is_tainted(slot)):
                self._control.ring_block_waiters()
            self._close(slot, epoch, peer)
        else:
            is_ended = self._claims.revoke(slot, epoch)  # before a block of it can be anybody's (R30)
            if cells.reclaim(slot, epoch, True):
                self._control.ring_block_waiters()
            if not is_ended:
                self._revoked[slot] = epoch
            if not self._is_acked(slot, epoch, peer) or not is_ended:
                return
            may_free = cleared or not self._slots.get(slot, Slot.LENT)  # else its scheduler looks at them (R82)
            if may_free and not self._is_tainted(slot) and cells.end_quarantine(slot, epoch):
                self._control.ring_block_waiters()
            if self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch:
                self._close(slot, epoch, peer)
        if cleared:
            self._ctx.to("bootstrap").send(Kick.RELEASE, slot, epoch)
            self._forget(slot)

    def _is_tainted(self, slot: int) -> bool:
        """Whether an attempt under the session that still lives ended other than done, so that it may yet land (R7)."""
        get, worker = self._slots.get, self._control.worker_of(self._slots.get(slot, Slot.ROOM))
        return get(slot, Slot.SESSION) != 0 and get(slot, Slot.TAINTED) > self._sessions.number(worker)

    def _is_acked(self, slot: int, epoch: int, peer: int) -> bool:
        """Whether nobody will write into this request's blocks any more. If not, have an abort sent."""
        if self._slots.get(slot, Slot.ACKED_EPOCH) == epoch:
            return True
        if peer < 0:  # no handshake: either there will be none, or it is under way and the encoder is told after it
            return self._slots.get(slot, Slot.FAILURE) in (FailureCode.UNREACHABLE, FailureCode.REFUSED)
        peers = self._control.peers
        if not peers.is_alive(peer):
            contacted = self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch
            session = self._slots.get(slot, Slot.SESSION)
            if session:  # over a network the peer's death does not stop what it has sent; only the fence does (R12)
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
        if self._ctx.status.phase(slot) == Phase.Failed:
            self._slots.set(slot, Slot.ACKED_EPOCH, epoch)

    def _key(self, slot: int, epoch: int) -> msg.RequestKey:
        return msg.RequestKey(slot, epoch, self._slots.get(slot, Slot.ROOM))

    def _close(self, slot: int, epoch: int, peer: int) -> None:
        """Close a request there, once: the encode node repeats what has ended until it has heard that (R23)."""
        if peer >= 0 and self._closed.get(slot) != epoch:
            self._closed[slot] = epoch
            self._send_close(self._key(slot, epoch), peer)

    def _send_close(self, key: msg.RequestKey, peer: int) -> None:
        if self._control.peers.is_alive(peer):
            self._say(peer, msg.Close(self._envelope_to(peer), key))

    def _num_rooms(self, peer: int) -> int:
        return self._by_peer.num_with(peer)

    def _beats(self, peer: int, envelope: msg.Envelope) -> list[msg.Message]:
        """Where nodes verify, what was checked of the requests in flight with that peer; else nothing but life."""
        rooms = [
            self._checked(slot, epoch)
            for slot, epoch in self._checked_slots.items()
            if self._by_peer.peer_of(slot) == peer and self._ctx.is_current(slot, epoch)
        ]
        pieces = [rooms[first : first + MOST_ROOMS] for first in range(0, len(rooms), MOST_ROOMS)]
        return [msg.Checked(envelope, piece) for piece in pieces] or [msg.Heartbeat(envelope, [], [], 0, 0, 0)]

    def _checked(self, slot: int, epoch: int) -> msg.CheckedRows:
        """Where nodes verify, the word says that rows are there when they have been checked."""
        return msg.CheckedRows(self._key(slot, epoch), self._ctx.status.sent(slot))

    def _forget(self, slot: int) -> None:
        self._live.pop(slot, None)
        for held in (self._resends, self._unheard, self._checked_slots, self._revoked, self._asking):
            held.pop(slot, None)
        self._grants.forget(slot)
        self._by_peer.put(slot, -1)
        if self._verifier is not None:
            self._verifier.forget(slot)
