"""Encode side of the bootstrap: takes grants and aborts of registered nodes, and joins them by room to encoders' calls.

It trusts no message. A message for another incarnation, or of a node that is not registered, is answered "stale".
Indices and counts are checked against the geometry that the node has registered. A message that breaks a rule fails one
request and no process (B6). An init or resume that names a request at or below its slot's tombstone is refused unless
that request is open (R15).
"""

from __future__ import annotations

import logging
from collections import deque

from embridge.allocator._core import Mapping
from embridge.allocator.errors import FailureCode
from embridge.allocator.plain_enums import JoinedBy, Kick, Lane, Metric, Peer, Slot
from embridge.allocator.rings import Record
from embridge.allocator.status import TERMINAL, split
from embridge.workers import messages as msg
from embridge.workers.bootstrap.announcing import Announcing
from embridge.workers.bootstrap.bound_rooms import BoundRooms
from embridge.workers.bootstrap.ended_rooms import PATIENCE_NS, EndedRooms, Refusal, Remote
from embridge.workers.bootstrap.fetched_items import FetchedItems
from embridge.workers.bootstrap.grant_applier import GrantApplier, Open
from embridge.workers.bootstrap.pending_grants import Grant, Pending, PendingGrants, RemoteSlot, wider
from embridge.workers.bootstrap.registrations import LOOK_NS, Registrations
from embridge.workers.log_limit import LogLimit
from embridge.workers.role import Arrival, Inbox, Out, Reply, RoleContext
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

MAX_PENDING_A_PEER = 16384


class Admission:
    """The encode node's bootstrap role."""

    def __init__(self, ctx: RoleContext, shelf: Mapping | None = None) -> None:
        """`shelf`: the rows of published items; None where the node has no shelf."""
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._peers = ctx.control.peers
        self._rooms: dict[int, tuple[int, int]] = {}
        self._open: dict[RemoteSlot, Open] = {}
        asked = ctx.control.asked
        asked.clear()
        self._pending = PendingGrants(asked.add)
        self._grants = GrantApplier(ctx)
        self._bound = BoundRooms(ctx, self._open, self._pending, self._grants)
        self._items = FetchedItems(ctx, shelf, self._open, self._grants)
        keep_s, control = ctx.timing.request_timeout_s, ctx.control
        self._ended = EndedRooms(keep_s, control.limits.max_destinations, control.finished.has)
        # (until, room, destination): destinations that wait for a finished room to be opened again
        self._asked: deque[tuple[int, int, Remote]] = deque()
        self._doubles: set[tuple[int, int]] = set()  # senders of a room that another sender has
        self._out: list[Out] = []
        self._limit = LogLimit()
        self._registrations = Registrations(ctx, self._limit)
        self._now_ns = 0
        self._swept_ns = 0
        self._announcing = Announcing(ctx, self._rooms, self._pending, self._ended)
        self._recover = True

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        self._out, self._now_ns = [], now_ns
        if self._recover:
            self._recover = False
            self._rebuild()
        for _, record in inbox.records:
            try:
                self._look(record)
            except Exception as error:
                self._ctx.broke("kick", error, record.slot, record.epoch)
        for arrival in inbox.arrivals:
            try:
                self._take(arrival, now_ns)
            except Exception as error:
                self._ctx.broke("message", error)
        for waiting in self._registrations.due(now_ns) if self._registrations.is_waiting else ():
            with self._ctx.isolated("registration"):
                self._register(waiting.message, waiting.key, waiting.connection, now_ns)
        while self._asked and self._asked[0][0] <= now_ns:
            self._refuse_finished(*self._asked.popleft()[1:])
        if now_ns - self._swept_ns > self._ctx.timing.scan_s * NS:
            self._swept_ns = now_ns
            self._drop_old_pending(now_ns)
            self._items.look(now_ns)
        self._announcing.ring()
        return self._out

    def next_step_ns(self, now_ns: int) -> int:
        due_ns = now_ns + (LOOK_NS if self._registrations.is_waiting else 10 * NS)
        return min(due_ns, self._asked[0][0]) if self._asked else due_ns

    def _rebuild(self) -> None:
        """After a restart, take up everything that is open from the control segment.

        Grants that were pending are sent again by their nodes.
        """
        for slot, epoch in self._ctx.current_slots():
            room, is_fetch = self._slots.get(slot, Slot.ROOM), self._control.is_fetch(slot, epoch)
            if not is_fetch and (room not in self._rooms or self._ctx.is_live(slot, epoch)):
                self._rooms[room] = (slot, epoch)
            for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
                remote = self._bound.remote(slot, d)
                key, held = (remote.peer, remote.slot), Open(remote.epoch, slot, epoch, d)
                # an earlier request of that slot may not be released yet
                if key not in self._open or held.remote_epoch > self._open[key].remote_epoch:
                    self._open[key] = held
            self._bound.take_up(slot, epoch, self._now_ns)
            self._grants.look(slot, epoch)
        self._items.rebuild()

    # ---- from the clients and the poller

    def _look(self, record: Record) -> None:
        slot, epoch = record.slot, record.epoch
        match record.kick:
            case Kick.OPEN:
                self._open_room(slot, epoch)
            case Kick.FAIL | Kick.LOOK:
                self._ctx.to("poller").send(record.kick, slot, epoch)
            case Kick.RELEASE:
                self._release(slot, epoch)
            case Kick.PEER_DEAD:
                self._forget_pending_of(slot)
            case Kick.ASK:
                self._announcing.announce(record.value)

    def _open_room(self, slot: int, epoch: int) -> None:
        self._ctx.to("poller").send(Kick.OPEN, slot, epoch)
        if not self._ctx.is_current(slot, epoch):
            return
        room = self._slots.get(slot, Slot.ROOM)
        held = self._rooms.get(room)
        if not self._ctx.is_live(slot, epoch) and not self._bound.is_bound(slot):
            return
        if held is None:
            self._bound.look_for(room, self._open_room)  # it has come before this one
            held = self._rooms.get(room)
        if held is not None and held != (slot, epoch):
            self._doubles.add((slot, epoch))
            self._bound.take_up(slot, epoch, self._now_ns)  # its destination, if it has one, hears how it has ended
            if self._ctx.is_live(slot, epoch):
                why = f"room {room} is in use by another sender of this node"
                self._ctx.fail(slot, epoch, FailureCode.REFUSED, why)
            return
        self._rooms[room] = (slot, epoch)
        self._bound.take_up(slot, epoch, self._now_ns)
        if self._ctx.is_live(slot, epoch) and (refusal := self._ended.opened(room, self._now_ns)) is not None:
            self._ctx.fail(slot, epoch, *refusal)
        for pending in self._pending.take_room(room):
            self._join(slot, epoch, pending.grant, pending.peer, pending.connection)

    def _release(self, slot: int, epoch: int) -> None:
        if not self._ctx.is_current(slot, epoch):
            return
        words = self._slots.get_all(slot)
        room, count, lane = words[Slot.ROOM], words[Slot.NUM_DESTINATIONS], words[Slot.LANE]
        if any(self._bound.is_waiting(slot, d) for d in range(count)):
            # a destination joined while the poller ended the request: it must be told (R23)
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
            return
        joined = [self._bound.remote(slot, d) for d in range(count)]
        if is_fetch := self._control.is_fetch(slot, epoch):
            pass  # it has no room
        elif (slot, epoch) in self._doubles:
            self._doubles.discard((slot, epoch))
        elif self._rooms.get(room, (slot, epoch)) == (slot, epoch):
            self._rooms.pop(room, None)
            failure = Refusal(code, self._slots.reason(slot)) if (code := words[Slot.FAILURE]) else None
            self._ended.released(room, failure, self._now_ns, required=words[Slot.REQUIRED], joined=joined)
            self._refuse_pending(room)
        for key in [(it.peer, it.slot) for it in joined]:
            held = self._open.get(key)
            if held is not None and (held.slot, held.epoch) == (slot, epoch):
                del self._open[key]
        self._slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
        if is_fetch:
            self._items.released(slot)
            return
        self._bound.count_released(slot, epoch, room)
        if self._control.slot_waiters.lanes() or self._control.lanes.get(lane, Lane.NUM_WAITING):
            self._ctx.wake_library(slot)  # it has the page
        self._ctx.wake_reaper(slot)

    # ---- from language nodes

    def _take(self, arrival: Arrival, now_ns: int) -> None:
        message, connection = arrival.message, arrival.connection
        assert connection is not None
        if isinstance(message, msg.Foreign):
            answer = self._registrations.refuse_version(message)
            if answer is not None:  # otherwise the frame has been counted as refused
                self._out.append(Reply(connection, answer))
            return
        if isinstance(message, msg.Register):
            self._register(message, arrival.identity, connection, now_ns)
            return
        peer = self._peers.find(message.envelope.node_id, message.envelope.incarnation)
        if peer is not None and self._peers.key(peer) != arrival.identity:
            self._forged(message.envelope)
            return
        if peer is None or message.envelope.for_incarnation != self._control.incarnation:
            self._ctx.count(Metric.MESSAGES_STALE)
            self._out.append(Reply(connection, msg.Stale(self._header(message), message.envelope.for_incarnation)))
            return
        match message:
            case msg.Init() | msg.Resume():
                self._take_grant(message, peer, connection, now_ns)
            case msg.Ask():
                self._take_question(message, peer, connection, now_ns)
            case msg.Abort():
                self._take_abort(message, peer, connection)
            case _:
                self._ctx.count(Metric.MESSAGES_REFUSED)

    def _header(self, message: msg.Message) -> msg.Envelope:
        return self._ctx.envelope(message.envelope.incarnation)

    def _forged(self, envelope: msg.Envelope) -> None:
        """A message came over a connection of another node. It is counted and not answered.

        A listed node cannot speak for another one (D15, P17).
        """
        self._ctx.count(Metric.MESSAGES_FORGED)
        self._warn(
            envelope, "a message in the name of node %x came with another node's key; it is dropped", envelope.node_id
        )

    def _warn(self, envelope: msg.Envelope, text: str, *values: object) -> None:
        self._limit.log(log, logging.WARNING, envelope.node_id, self._now_ns, text, *values)

    def _refuse(self, connection: bytes, message: Grant, code: int, reason: str, *, is_news: bool = True) -> None:
        self._ctx.count(Metric.MESSAGES_REFUSED)
        if is_news:
            self._warn(message.envelope, "room %d: %s", message.key.room, reason)
        self._out.append(Reply(connection, msg.Refused(self._header(message), code, msg.clip(reason), message.key)))

    def _register(self, message: msg.Register, key: str, connection: bytes, now_ns: int) -> None:
        answer = self._registrations.take(message, key, connection, now_ns, self._peers_in_use)
        if answer is not None:
            if answer.begins_again is not None:
                self._forget_granted_by(answer.begins_again)
            self._out.append(Reply(connection, answer.message))

    def _forget_granted_by(self, peer: int) -> None:
        """Forget what a peer granted before it took this node for dead.

        It has taken back those blocks, so none of these grants is valid any more (R14, D2).
        """
        self._forget_pending_of(peer)
        for key, held in self._open.items():
            if key[0] == peer:
                self._grants.look(held.slot, held.epoch)

    def _peers_in_use(self) -> set[int]:
        return {key[0] for key in self._open} | self._pending.peers() | self._bound.peers()

    # ---- grants

    def _take_grant(self, grant: Grant, peer: int, connection: bytes, now_ns: int) -> None:
        key = (peer, grant.key.slot)
        held = self._open.get(key)
        wrong = self._grants.why_wrong(grant, peer)
        if held is not None and held.remote_epoch == grant.key.epoch:
            if wrong:
                self._ctx.fail(held.slot, held.epoch, FailureCode.PROTOCOL, f"a destination's grant is wrong: {wrong}")
            else:
                self._bound.apply(held, grant, peer, self._now_ns)
            return
        if wrong:
            self._refuse(connection, grant, FailureCode.PROTOCOL, f"grant refused: {wrong}")
            return
        room = grant.key.room
        waiting = self._pending.of_slot(key)
        if waiting is not None and waiting.grant.key.epoch >= grant.key.epoch:
            if waiting.grant.key == grant.key:
                self._pending.replace(key, waiting._replace(grant=wider(waiting.grant, grant), connection=connection))
                self._announcing.announce(room)  # once more, because the client may have been too slow for the log
            else:
                self._ctx.count(Metric.MESSAGES_STALE)  # it is about an earlier request than the one that waits (P17)
            return
        if isinstance(grant, msg.Resume):
            # one of a request that is over here has crossed its end, and is nothing to warn of
            is_news, why = grant.key.epoch > self._peers.tombstone(*key), f"room {room} is not known to the encode node"
            self._refuse(connection, grant, FailureCode.UNKNOWN_ROOM, why, is_news=is_news)
        elif grant.key.epoch <= self._peers.tombstone(peer, grant.key.slot) or not self._is_newest(grant, peer):
            self._ctx.count(Metric.MESSAGES_STALE)
        elif (
            refusal := self._ended.came(room, Remote(*key, grant.key.epoch), grant.required_dst_info_num, now_ns)
        ) is not None:
            self._refuse(connection, grant, *refusal)
        elif room in self._rooms:
            self._pending.drop(key)
            if self._ctx.is_live(*self._rooms[room]):
                self._bound.look_for(room, self._open_room)  # a second sender, which has found this grant
            held = self._open.get(key)
            if held is not None and held.remote_epoch == grant.key.epoch:
                self._bound.apply(held, grant, peer, now_ns)
            else:
                self._join(*self._rooms[room], grant, peer, connection)
        elif self._pending.num_of(peer) >= MAX_PENDING_A_PEER:
            why = f"{MAX_PENDING_A_PEER} requests of this node already wait"
            self._refuse(connection, grant, FailureCode.REFUSED, why)
        else:
            # a slot has one request, so the one that waited before is over
            self._pend(key, Pending(grant, peer, connection, now_ns))
            if self._ended.finished(room, now_ns) is not None:
                self._asked.append((now_ns + PATIENCE_NS, room, Remote(*key, grant.key.epoch)))
            self._announcing.announce(room)

    def _take_question(self, ask: msg.Ask, peer: int, connection: bytes, now_ns: int) -> None:
        """A fetch: answered at once. It is refused, or a request like any other from now on (R50, R51)."""
        key = (peer, ask.key.slot)
        held = self._open.get(key)
        if held is not None and held.remote_epoch == ask.key.epoch:
            self._grants.apply(held, ask, now_ns)
        elif wrong := self._grants.why_wrong(ask, peer):
            self._refuse(connection, ask, FailureCode.PROTOCOL, f"fetch refused: {wrong}")
        elif not self._is_newest(ask, peer):
            self._ctx.count(Metric.MESSAGES_STALE)
        else:
            self._pending.drop(key)
            if (refusal := self._items.take(ask, peer, now_ns)) is not None:
                self._out.append(Reply(connection, msg.Refused(self._header(ask), *refusal, ask.key)))

    def _is_newest(self, grant: msg.Init | msg.Ask, peer: int) -> bool:
        """Whether a first grant is of its node's latest registration, which voids those before it (R14, D2)."""
        return grant.registration == self._peers.get(peer, Peer.REGISTRATION)

    def _join(self, slot: int, epoch: int, grant: Grant, peer: int, connection: bytes) -> None:
        """Enter one more destination of a room that is open here.

        The tombstone is raised last, by `apply`: a successor that is started before that finds everything as open.
        """
        is_bound = self._bound.is_bound(slot)
        if not is_bound and not self._ctx.is_live(slot, epoch):
            code = self._slots.get(slot, Slot.FAILURE) or FailureCode.REFUSED
            self._refuse(connection, grant, code, self._slots.reason(slot) or "the encoder's request has ended")
            return
        if is_bound or not self._slots.join(slot, JoinedBy.BOOTSTRAP):
            self._join_bound(slot, epoch, grant, peer, connection)
            return
        count = self._slots.get(slot, Slot.NUM_DESTINATIONS)
        required = self._slots.get(slot, Slot.REQUIRED)
        if required == 0:
            self._slots.set(slot, Slot.REQUIRED, grant.required_dst_info_num)
        elif required != grant.required_dst_info_num:
            reason = f"destinations disagree on required_dst_info_num: {required} and {grant.required_dst_info_num}"
            self._ctx.fail(slot, epoch, FailureCode.PROTOCOL, reason)
            self._refuse(connection, grant, FailureCode.PROTOCOL, reason)
            return
        elif count >= required:
            self._refuse(
                connection, grant, FailureCode.REFUSED, f"room {grant.key.room} has all its {required} destinations"
            )
            return
        self._grants.begin(slot, count, grant, peer)
        held = self._open[(peer, grant.key.slot)] = Open(grant.key.epoch, slot, epoch, count)
        self._slots.set(slot, Slot.NUM_DESTINATIONS, count + 1)
        self._bound.apply(held, grant, peer, self._now_ns)

    def _join_bound(self, slot: int, epoch: int, grant: Grant, peer: int, connection: bytes) -> None:
        """A grant comes to a room whose client has bound itself to one, or is about to say to which (R79)."""
        held, key = self._bound.take_up(slot, epoch, self._now_ns), (peer, grant.key.slot)
        if held is None:
            self._pend(key, Pending(grant, peer, connection, self._now_ns))
        elif self._open.get(key) == held and held.remote_epoch == grant.key.epoch:
            self._bound.apply(held, grant, peer, self._now_ns)
        else:
            reason = f"room {grant.key.room} has its destination, which its encoder has found on this host"
            self._refuse(connection, grant, FailureCode.REFUSED, reason)

    def _pend(self, key: RemoteSlot, pending: Pending) -> None:
        """Have a grant wait for its encoder, unless that is there and only its client knows (R80)."""
        self._pending.put(key, pending)
        self._bound.look_for(pending.grant.key.room, self._open_room)

    # ---- aborts

    def _take_abort(self, abort: msg.Abort, peer: int, connection: bytes) -> None:
        key, room = (peer, abort.key.slot), abort.key.room
        if abort.key.slot >= self._peers.get(peer, Peer.NUM_SLOTS):
            self._ctx.count(Metric.MESSAGES_REFUSED)
            return
        if key not in self._open:
            self._bound.look_for(room, self._open_room)
        held = self._open.get(key)
        tainted = 0
        if held is not None and held.remote_epoch == abort.key.epoch:
            if split(self._ctx.status.load(held.slot)).phase < TERMINAL:
                self._slots.claim_failure(held.slot, abort.code or FailureCode.ABORTED, abort.reason)
            self._ctx.to("poller").send(Kick.ABORTED, held.slot, held.epoch, held.destination)
            return
        remote, required = Remote(*key, abort.key.epoch), 0
        waiting = self._pending.of_slot(key)
        if waiting is not None and waiting.grant.key == abort.key:
            required = waiting.grant.required_dst_info_num
            self._pending.drop(key)
        is_news = self._peers.raise_tombstone(peer, abort.key.slot, abort.key.epoch)
        if self._ended.aborted(room, remote, self._now_ns):
            pass  # it aborts because it was told here that it comes too late
        elif is_news or required:
            failure = self._ended.fail(
                room, abort.code or FailureCode.ABORTED, abort.reason, self._now_ns, required=required, told=[remote]
            )
            self._refuse_pending(room)
            if room in self._rooms:
                self._ctx.fail(*self._rooms[room], *failure)
        else:
            # the request was open here and is forgotten with what it has tainted; its peer's word still has that (R7)
            tainted = self._peers.get(peer, Peer.TAINTED)
        self._out.append(Reply(connection, msg.AbortAck(self._header(abort), abort.key, tainted)))

    def _refuse_pending(self, room: int) -> None:
        """Tell the destinations that wait for an encoder of this room that the room has ended."""
        for key, late in self._pending.of_room(room):
            required = late.grant.required_dst_info_num
            refusal = self._ended.came(room, Remote(*key, late.grant.key.epoch), required, self._now_ns)
            if refusal is not None:
                self._refuse(late.connection, late.grant, *refusal)
                self._pending.drop(key)
        self._announcing.announce(room)

    def _refuse_finished(self, room: int, remote: Remote) -> None:
        """Refuse a destination that has waited long enough for an encoder to open a finished room again."""
        key = (remote.peer, remote.slot)
        waiting, refusal = self._pending.of_slot(key), self._ended.finished(room, self._now_ns)
        is_meant = waiting is not None and (waiting.grant.key.room, waiting.grant.key.epoch) == (room, remote.epoch)
        if waiting is not None and is_meant and refusal is not None:
            self._refuse(waiting.connection, waiting.grant, *refusal)
            self._pending.drop(key)

    # ---- what waits for its encoder

    def _forget_pending_of(self, peer: int) -> None:
        self._items.forget_peer(peer)
        self._ended.peer_gone(peer, self._now_ns)
        self._pending.drop_peer(peer)

    def _drop_old_pending(self, now_ns: int) -> None:
        """Drop grants that have waited too long.

        A language node aborts a request at its deadline; this is for requests whose abort never came.
        """
        self._ended.forget_old(now_ns)
        self._pending.drop_before(now_ns - int(2 * self._ctx.timing.request_timeout_s * NS))
