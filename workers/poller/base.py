"""What the pollers of both sides share: which requests to look at in a step, how a word rises, and how a request fails.

A request is looked at when a kick or a message names it, when its time has come, when a peer or its client died, and
when the slow scan finds that its words have changed (R25). What is looked for is the side's own: `publishing` on the
encode side, `receiving` on the language side.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from embridge.allocator.ends import Counter
from embridge.allocator.errors import known_code
from embridge.allocator.geometry import Role
from embridge.allocator.plain_enums import Kick, Metric, Peer, Phase, Slot
from embridge.allocator.rings import Record
from embridge.allocator.slot_changes import SlotChanges
from embridge.workers import messages as msg
from embridge.workers.log_limit import MOST_LINES
from embridge.workers.poller.followed_shelves import FollowedShelves
from embridge.workers.poller.paths import paths_of
from embridge.workers.poller.peer_watch import PeerWatch
from embridge.workers.poller.reaper import Reaper
from embridge.workers.poller.shelf_notices import ShelfNotices
from embridge.workers.poller.timers import Timers
from embridge.workers.role import Arrival, Inbox, Out, RoleContext, Send
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

_RARE_KICKS = frozenset((Kick.LANE_DEAD, Kick.PEER_DEAD, Kick.WRITER_GONE, Kick.SESSION))  # no request in its slot
FAILURES_A_CAUSE = 10  # lines a minute about failed requests of one code


class Poller(ABC):
    """The only writer of a node's status words."""

    _beats_say_more = True
    """Whether a heartbeat says more than that this node lives."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._live: dict[int, int] = {}  # slot -> epoch
        self._succeeded: dict[int, int] = {}  # slot -> epoch of the latest success that was counted
        self._timers = Timers(self._is_awaited)
        self._watch = PeerWatch(ctx, self._num_rooms, self._beats)
        self._reaper = Reaper(ctx)
        self._notices: FollowedShelves | ShelfNotices | None = None
        if ctx.control.role == Role.LANGUAGE:
            self._notices = FollowedShelves(ctx)
        elif ctx.control.has_shelf:
            self._notices = ShelfNotices(ctx)
        self._changes = SlotChanges(ctx.control)
        self._out: list[Out] = []
        self._scan_ns = int(ctx.timing.scan_s * NS)
        self._scanned_ns = 0
        self._now_ns = 0
        self._held_while_idle = 0
        self._told_of_leak = False

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        self._out = []
        self._now_ns = now_ns
        for arrival in inbox.arrivals:
            try:
                self._receive(arrival)
            except Exception as error:
                self._ctx.broke("message", error)
        touched: dict[int, int] = {}
        for _, record in inbox.records:
            if record.kick in _RARE_KICKS:
                self._look(record, touched)
            elif record.epoch:
                self._kicked(record)
                touched[record.slot] = record.epoch
            elif isinstance(self._notices, FollowedShelves):  # of no request
                self._notices.hurry()
        if now_ns - self._scanned_ns >= self._scan_ns:
            self._scanned_ns = now_ns
            changed = self._changes.take()
            touched.update(changed)
            self._reaper.look()
            self._check_blocks(is_idle=not changed and not self._live)
        if self._timers.has_due(now_ns):
            for slot, epoch in list(self._timers.due(now_ns)):
                self._due(slot, epoch)
                touched[slot] = epoch
        if (inbox.refused or now_ns >= self._watch.next_ns()) and self._watch.step(now_ns, inbox.refused, self._out):
            touched.update(self._live)
        for slot, epoch in touched.items():
            if self._ctx.is_current(slot, epoch):
                try:
                    self._serve(slot, epoch)
                except Exception as error:
                    self._ctx.broke("status", error, slot, epoch)
            elif self._live.get(slot) == epoch:
                self._forget(slot)
        self._reaper.free_lanes()
        if self._notices is not None:
            try:
                self._notices.step(now_ns, self._out)
            except Exception as error:
                self._ctx.broke("notices", error)
        return self._out

    def next_step_ns(self, now_ns: int) -> int:
        due = min(self._watch.next_ns(), self._scanned_ns + self._scan_ns)
        due_ns = self._notices.next_ns() if self._notices is not None else None
        return self._timers.next_ns(due if due_ns is None else min(due, due_ns))

    def _check_blocks(self, *, is_idle: bool) -> None:
        """Check that, with no request in flight, every block is free (P1) or waits for a fence.

        Held blocks are reported once, if two scans one after the other find the same number of them.
        """
        counts = self._control.blocks.check()
        waits_for_fence = counts.quarantined if self._ctx.has_sessions else 0
        held = sum(counts[1:]) - waits_for_fence if is_idle else 0
        if held and next(self._control.open_slots(), None) is not None:
            held = 0  # a client alone has requests of which this process was not told
        if held and held == self._held_while_idle and not self._told_of_leak:
            self._told_of_leak = True
            self._ctx.count(Metric.ERRORS)
            log.error("%d blocks are held though no request is in flight: %s", held, self._control.blocks.counts())
        self._held_while_idle = held

    def _receive(self, arrival: Arrival) -> None:
        message = arrival.message
        if isinstance(message, msg.Foreign):
            return  # refused, and counted so, where it came in; whoever registers is told
        peer = self._watch.heard(message.envelope, self._now_ns, arrival.identity)
        if peer is None or (self._notices is not None and self._notices.take(message, peer, self._now_ns)):
            return
        if not self._take(message, peer):
            self._ctx.count(Metric.MESSAGES_REFUSED)

    def _look(self, record: Record, touched: dict[int, int]) -> None:
        """A kick that names no request."""
        slot, epoch = record.slot, record.epoch
        match record.kick:
            case Kick.LANE_DEAD:
                log.info("client of lane %d is gone; its requests end", slot)
                touched.update({s: e for s, e in self._ctx.current_slots() if self._slots.get(s, Slot.LANE) == slot})
                self._reaper.bury(slot)
                if isinstance(self._notices, FollowedShelves):
                    self._notices.hurry()
            case Kick.PEER_DEAD:
                self._watch.bury(slot, epoch, "its port is closed, or a newer incarnation replaced it", self._out)
                touched.update(self._live)
            case Kick.WRITER_GONE:
                touched.update(self._live)
            case Kick.SESSION:
                self._session_began(slot, epoch)

    def _enter(self, slot: int, epoch: int) -> bool:
        """Note a request that is in flight, and its deadline. True the first time."""
        if self._live.get(slot) == epoch:
            return False
        if slot in self._live:  # one before it, looked at once more between its end and its release
            self._forget(slot)
        self._live[slot] = epoch
        self._watch.hurry(self._now_ns)
        self._timers.add(self._slots.get(slot, Slot.DEADLINE_NS), slot, epoch)
        return True

    def _raise(self, slot: int, epoch: int, phase: int, sent: int, *, is_told: bool = False) -> bool:
        if not self._ctx.status.advance(slot, epoch, phase, sent, self._now_ns, is_told):
            return False
        self._slots.raise_to(slot, Slot.MOVED_NS, self._now_ns)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("room %d is %s: %d tokens sent", self._slots.get(slot, Slot.ROOM), Phase(phase).name, sent)
        self._wake_client(slot, epoch, phase)
        return True

    def _wake_client(self, slot: int, epoch: int, phase: int) -> None:
        """Have the client of a slot look at its word."""
        self._control.ring_lane(self._slots.get(slot, Slot.LANE))

    def _fail(self, slot: int, epoch: int, code: int, reason: str, *, is_told: bool = False) -> None:
        """End a request as Failed; a reason that was claimed before stands.

        One that has succeeded stays as it is, and so does one that is whole, unless its encode node has told so or is
        lost (`is_told`, R36).
        """
        self._slots.claim_failure(slot, code, reason)
        if self._raise(slot, epoch, Phase.Failed, self._ctx.status.sent(slot), is_told=is_told):
            self._ctx.count(Metric.FAILED)
            known = known_code(self._slots.get(slot, Slot.FAILURE))
            self._control.ends.failed(Counter.POLLER, known)
            said = self._slots.get(slot, Slot.ROOM), self._slots.reason(slot)
            log.warning(f"room %d failed, {known.name}: %s", *said, extra={MOST_LINES: FAILURES_A_CAUSE})

    def _note_success(self, slot: int, epoch: int) -> None:
        """Count a request that has succeeded, once: whoever has written its rows may have raised its word."""
        if self._succeeded.get(slot) != epoch:
            self._succeeded[slot] = epoch
            self._ctx.count(Metric.SUCCEEDED)
            first, *others = paths_of(self._control, self._ctx.engine_of, slot)
            rounds = self._slots.get(slot, Slot.NUM_ROUNDS)
            if self._control.ends.succeeded(Counter.POLLER, slot, epoch, first, rounds):
                for path in others:
                    self._control.ends.delivered(Counter.POLLER, path, self._ctx.status.sent(slot))

    def _envelope_to(self, peer: int) -> msg.Envelope:
        return self._ctx.envelope(self._control.peers.get(peer, Peer.INCARNATION))

    def _say(self, peer: int, message: msg.Message) -> None:
        poller_addr, key = self._control.peers.where_its_poller_is(peer)
        self._out.append(Send(poller_addr, message, key))
        if not self._beats_say_more:
            self._watch.spoke(peer, self._now_ns)

    # ---- the side's own

    @abstractmethod
    def _session_began(self, worker: int, number: int) -> None:
        """A transfer worker of this node is in a new session."""

    @abstractmethod
    def _take(self, message: msg.Message, peer: int) -> bool:
        """A message from a living peer. False if it has no business here."""

    @abstractmethod
    def _serve(self, slot: int, epoch: int) -> None:
        """Do for one current request what its words ask for; idempotent."""

    @abstractmethod
    def _forget(self, slot: int) -> None:
        """This request is over and released."""

    @abstractmethod
    def _num_rooms(self, peer: int) -> int:
        """How many requests are in flight with one peer."""

    @abstractmethod
    def _beats(self, peer: int, envelope: msg.Envelope) -> list[msg.Message]:
        """The sign of life that goes to a peer."""

    @abstractmethod
    def _kicked(self, record: Record) -> None:
        """What a kick says beyond "look"."""

    def _is_awaited(self, when_ns: int, slot: int, epoch: int) -> bool:
        """Whether a time at which to look at a request still matters."""
        return self._ctx.is_current(slot, epoch)

    @abstractmethod
    def _due(self, slot: int, epoch: int) -> None:
        """A timer of this request has run out."""
