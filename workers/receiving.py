"""Language side of the poller: the only writer of the language node's status words; it takes what encode nodes report.

A report names the request by this node's incarnation, slot and epoch; whatever is about another one has no effect but that an ended
request is closed at the sender (R14, R23). Success is taken from the phase, never from the counters (R20). Failed frees nothing
by itself: blocks that were exposed are quarantined until the encode side acknowledges the abort, or until nobody is left who
could write into them (R7, R12, D2).
"""

from __future__ import annotations

import logging

from embridge.allocator.errors import FailureCode
from embridge.allocator.layout import Peer, Slot
from embridge.allocator.metrics import Metric
from embridge.allocator.rings import Kick, Record
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.workers import messages as msg
from embridge.workers.peers import PeerWatch
from embridge.workers.reaping import Reaper
from embridge.workers.roles import Arrival, Desk, Inbox, Out, Send
from embridge.workers.timers import Timers
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

MAX_RESEND_S = 2.0


class StatusReceiver:
    """The language node's poller role."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._control = desk.control
        self._slots = desk.slots
        self._live: dict[int, int] = {}
        self._timers = Timers(desk.is_current)  # deadlines and resends
        self._resends: dict[int, int] = {}  # slot -> how often
        self._watch = PeerWatch(desk, self._rooms_of)
        self._reaper = Reaper(desk)
        self._out: list[Out] = []
        self._scanned_ns = 0
        self._now_ns = 0

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        self._out = []
        self._now_ns = now_ns
        for arrival in inbox.arrivals:
            with self._desk.isolated("message"):
                self._take(arrival)
        touched: dict[int, int] = {}
        for _, record in inbox.records:
            self._look(record, touched)
        if now_ns - self._scanned_ns >= self._desk.timing.scan_s * NS:
            self._scanned_ns = now_ns
            touched.update(self._desk.current_slots())
        for slot, epoch in list(self._timers.due(now_ns)):
            self._repair(slot, epoch)
            touched[slot] = epoch
        if self._watch.step(now_ns, inbox.refused, self._out):
            touched.update(self._live)
        for slot, epoch in touched.items():
            if self._desk.is_current(slot, epoch):
                with self._desk.isolated("status", slot, epoch):
                    self._serve(slot, epoch)
            elif self._live.get(slot) == epoch:
                self._forget(slot)
        self._reaper.free_lanes()
        return self._out

    def next_step_ns(self, now_ns: int) -> int:
        due = min(self._watch.next_ns(), self._scanned_ns + int(self._desk.timing.scan_s * NS))
        return self._timers.next_ns(due)

    # ---- what came

    def _look(self, record: Record, touched: dict[int, int]) -> None:
        slot, epoch = record.slot, record.epoch
        match record.kick:
            case Kick.LANE_DEAD:
                log.info("client of lane %d is gone; its requests end", slot)
                touched.update({s: e for s, e in self._desk.current_slots() if self._slots.get(s, Slot.LANE) == slot})
                self._reaper.bury(slot)
            case Kick.PEER_DEAD:
                self._watch.bury(slot, epoch, "its port is closed, or a newer incarnation replaced it", self._out)
                touched.update(self._live)
            case Kick.WRITER_GONE:
                touched.update(self._live)
            case Kick.ABORT_ACK:
                if self._desk.is_current(slot, epoch):
                    self._acked(slot, epoch, record.value)
                    touched[slot] = epoch
            case _:
                touched[slot] = epoch

    def _take(self, arrival: Arrival) -> None:
        message = arrival.message
        peer = self._watch.heard(message.header, self._now_ns)
        if peer is None:
            self._desk.count(Metric.MESSAGES_STALE)
            return
        match message:
            case msg.Status():
                self._report(message.room, peer)
            case msg.Heartbeat():
                for room in message.rooms:
                    self._report(room, peer)
                    self._grant_again(room)
            case msg.Announce(key=key):
                if self._is_ours(key, peer) and self._set_total(key.slot, key.epoch, message.total_tokens):
                    self._desk.wake_library(key.slot)
            case msg.AbortAck(key=key):
                if self._is_ours(key, peer):
                    self._acked(key.slot, key.epoch, message.tainted)
                    self._serve(key.slot, key.epoch)
                else:
                    self._send_close(key, peer)
            case _:
                self._desk.count(Metric.MESSAGES_REFUSED)

    def _is_ours(self, key: msg.RequestKey, peer: int) -> bool:
        return self._desk.is_current(key.slot, key.epoch) and self._slots.get(key.slot, Slot.PEER) == peer + 1

    def _report(self, room: msg.RoomState, peer: int) -> None:
        """One request, as its encode node sees it."""
        slot, epoch = room.key.slot, room.key.epoch
        if not self._is_ours(room.key, peer):
            self._send_close(room.key, peer)
            return
        slots = self._slots
        word = split(self._desk.status.load(slot))
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
        if room.phase == Phase.Failed:
            slots.claim_failure(slot, room.code or FailureCode.INTERNAL, room.reason)
        elif room.sent_tokens > slots.granted(slot)[1]:
            reason = f"the encode side reports {room.sent_tokens} tokens sent, {slots.granted(slot)[1]} were granted"
            slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
        else:
            self._advance(slot, epoch, room)
        if more_ready or new_total:
            self._desk.wake_library(slot)
        self._serve(slot, epoch)

    def _grant_again(self, room: msg.RoomState) -> None:
        """R24: a heartbeat shows an encode node that does not know all that was granted."""
        slot, epoch = room.key.slot, room.key.epoch
        if self._desk.is_live(slot, epoch) and room.known_blocks < self._slots.granted(slot)[0]:
            self._desk.to("bootstrap").send(Kick.GRANT, slot, epoch)
            self._desk.count(Metric.RESENT)

    def _set_total(self, slot: int, epoch: int, total: int) -> bool:
        """The real length, once; another one fails the request (B3, B7)."""
        known = self._slots.get(slot, Slot.TOTAL)
        if known == total or total == 0:
            return False
        if known:
            reason = f"the encode side announced {known} tokens and then {total}"
            self._slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
            self._desk.to("bootstrap").send(Kick.LOOK, slot, epoch)
            return False
        self._slots.set(slot, Slot.TOTAL, total)
        return True

    def _advance(self, slot: int, epoch: int, room: msg.RoomState) -> None:
        """Through the phases in order: a later one implies those before it."""
        word = split(self._desk.status.load(slot))
        if room.phase >= Phase.WaitingForInput and word.phase < Phase.WaitingForInput:
            self._raise(slot, epoch, Phase.WaitingForInput, word.sent)
        if room.phase == Phase.Success and room.resumed and word.phase < Phase.Transferring:
            self._raise(slot, epoch, Phase.Transferring, word.sent)
        phase = max(room.phase, split(self._desk.status.load(slot)).phase)
        self._raise(slot, epoch, phase, max(room.sent_tokens, word.sent))
        if room.phase == Phase.Success:
            self._desk.count(Metric.SUCCEEDED)

    def _raise(self, slot: int, epoch: int, phase: int, sent: int) -> None:
        if self._desk.status.advance(slot, epoch, phase, sent, self._now_ns):
            self._control.ring_lane(self._slots.get(slot, Slot.LANE))

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> None:
        if self._live.get(slot) != epoch:
            self._live[slot] = epoch
            self._resends[slot] = 0
            self._watch.hurry(self._now_ns)
            self._timers.add(self._slots.get(slot, Slot.DEADLINE_NS), slot, epoch)
            self._timers.add(self._now_ns + int(self._desk.timing.resend_s * NS), slot, epoch)
        if split(self._desk.status.load(slot)).phase < TERMINAL and not self._failed(slot, epoch):
            return
        self._end(slot, epoch)

    def _repair(self, slot: int, epoch: int) -> None:
        """A first grant or an abort that nobody has answered is sent again, ever more rarely (its encoder may come late)."""
        times = self._resends.get(slot, 0)
        pause_s = min(self._desk.timing.resend_s * 2**times, MAX_RESEND_S)
        self._resends[slot] = min(times + 1, 8)
        self._timers.add(self._now_ns + int(pause_s * NS), slot, epoch)
        word = split(self._desk.status.load(slot))
        if word.phase == Phase.Failed:
            if self._slots.get(slot, Slot.ACKED_EPOCH) != epoch:
                self._desk.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
            return
        unheard = self._slots.get(slot, Slot.HEARD_EPOCH) != epoch
        if word.phase < TERMINAL and self._slots.get(slot, Slot.CONTACTED_EPOCH) == epoch and unheard:
            self._desk.to("bootstrap").send(Kick.GRANT, slot, epoch)
            self._desk.count(Metric.RESENT)

    def _failed(self, slot: int, epoch: int) -> bool:
        code, reason = self._slots.get(slot, Slot.FAILURE), ""
        peer = self._slots.get(slot, Slot.PEER) - 1
        if not code and self._desk.is_lane_dead(slot):
            code, reason = FailureCode.CLIENT_DIED, "the scheduler process died"
        if not code and peer >= 0 and not self._control.peers.is_alive(peer):
            code, reason = FailureCode.PEER_LOST, f"encode {self._control.peers.record(peer)} is lost"
        if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):
            code, reason = FailureCode.TIMEOUT, self._why_late(slot, epoch)
        if not code:
            return False
        self._slots.claim_failure(slot, code, reason)
        word = split(self._desk.status.load(slot))
        self._raise(slot, epoch, Phase.Failed, word.sent)
        self._desk.count(Metric.FAILED)
        log.info("room %d failed: %s", self._slots.get(slot, Slot.ROOM), self._slots.reason(slot))
        self._resends[slot] = 0
        return True

    def _why_late(self, slot: int, epoch: int) -> str:
        word, (_, granted) = split(self._desk.status.load(slot)), self._slots.granted(slot)
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
        lane_dead = self._desk.is_lane_dead(slot)
        cleared = lane_dead or self._slots.get(slot, Slot.CLEARED_EPOCH) == epoch
        cells = self._control.blocks.cells
        if split(self._desk.status.load(slot)).phase == Phase.Success:
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
            self._desk.to("bootstrap").send(Kick.RELEASE, slot, epoch)
            self._forget(slot)

    def _is_tainted(self, slot: int) -> bool:
        """R7: an attempt under the session that is still ours ended other than done; it may yet land."""
        return self._slots.get(slot, Slot.TAINTED) > self._control.session

    def _is_acked(self, slot: int, epoch: int, peer: int) -> bool:
        """Whether nobody will write into this request's blocks any more. If not, ask."""
        if self._slots.get(slot, Slot.ACKED_EPOCH) == epoch or self._slots.get(slot, Slot.CONTACTED_EPOCH) != epoch:
            return True
        peers = self._control.peers
        if not peers.is_alive(peer):
            gone = not self._control.writers.has(peers.get(peer, Peer.NODE_ID), peers.get(peer, Peer.INCARNATION))
            if gone:
                self._slots.set(slot, Slot.ACKED_EPOCH, epoch)
            return gone
        if self._resends.get(slot, 0) == 0:
            self._resends[slot] = 1
            self._desk.to("bootstrap").send(Kick.SEND_ABORT, slot, epoch)
            self._timers.add(self._now_ns + int(self._desk.timing.resend_s * NS), slot, epoch)
        return False

    def _acked(self, slot: int, epoch: int, tainted: int) -> None:
        self._slots.raise_to(slot, Slot.TAINTED, tainted)
        if split(self._desk.status.load(slot)).phase == Phase.Failed:
            self._slots.set(slot, Slot.ACKED_EPOCH, epoch)

    def _key(self, slot: int, epoch: int) -> msg.RequestKey:
        return msg.RequestKey(slot, epoch, self._slots.get(slot, Slot.ROOM))

    def _send_close(self, key: msg.RequestKey, peer: int) -> None:
        record = self._control.peers.record(peer)
        if self._control.peers.is_alive(peer):
            self._out.append(Send(record.poller_addr, msg.Close(self._desk.header(record.incarnation), key)))

    def _rooms_of(self, peer: int) -> list[msg.RoomState]:
        """What a heartbeat to an encode node lists: what is in flight with it."""
        rooms = []
        for slot, epoch in self._live.items():
            if self._slots.get(slot, Slot.PEER) != peer + 1 or not self._desk.is_current(slot, epoch):
                continue
            word, (blocks, _) = split(self._desk.status.load(slot)), self._slots.granted(slot)
            key = self._key(slot, epoch)
            rooms.append(msg.RoomState(key, word.phase, False, word.sent, 0, 0, blocks, 0, 0, ""))
        return rooms

    def _forget(self, slot: int) -> None:
        self._live.pop(slot, None)
        self._resends.pop(slot, None)
