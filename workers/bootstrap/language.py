"""Language side of the bootstrap: registers with encode nodes, and sends grants and aborts to them.

A grant is the whole window of blocks that a request still holds, absolute (R1), under the session of this node (R10).
Before it leaves, each of its blocks moves from owned to exposed by one CAS, with the session noted. If the request has
ended meanwhile, the CAS fails and the grant does not leave (D2). A lost message is sent again by whoever sees its peer
behind (R24).

A link leads to a numeric address, however a request has spelt it: of two links to one node, each would void what was
granted over the other (R14). A request whose address holds a name waits until the name has been looked up. What was
found is forgotten when nobody answers there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from embridge.allocator.errors import FailureCode
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.plain_enums import Kick, Metric, Peer, PeerState, Slot
from embridge.allocator.rings import Record
from embridge.allocator.sessions import NO_SESSION, SHM_EXPOSURE, LiveSession, exposure_of
from embridge.workers import messages as msg
from embridge.workers.addresses import Found, host_of, numeric
from embridge.workers.bootstrap.grant_messages import GrantMessages
from embridge.workers.bootstrap.granted_window import GrantedWindow
from embridge.workers.bootstrap.links import Link, Waiting, registration
from embridge.workers.bootstrap.registrations import why_not_numeric
from embridge.workers.log_limit import LogLimit
from embridge.workers.role import Arrival, Denied, Disconnect, Inbox, Out, RoleContext
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

REGISTER_AGAIN_NS = NS // 2


class GrantSender:
    """The language node's bootstrap role."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._window = GrantedWindow(ctx)
        self._messages = GrantMessages(ctx)
        self._sessions = ctx.control.sessions
        self._posts = ctx.control.posts
        self._refused_nodes = ctx.control.refused_nodes
        self._now_ns = 0
        self._links: dict[str, Link] = {}
        self._lookups: dict[str, Waiting] = {}  # requests that wait for a name, by their address as given
        self._limit = LogLimit()
        self._out: list[Out] = []
        for peer in self._control.peers.alive():
            record = self._control.peers.record(peer)
            self._links[record.bootstrap_addr] = Link(record.bootstrap_addr, 0, record.registration, peer)
        self._registration = 0
        self._recover = True

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        self._out, self._now_ns = [], now_ns
        if self._recover:
            self._recover = False
            for slot, epoch in self._ctx.current_slots():
                self._open(slot, epoch, now_ns)
                self._send_grant(slot, epoch)
        for address in inbox.refused:
            self._refused(address, now_ns)
        for denied in inbox.denied:
            self._denied(denied)
        for arrival in inbox.arrivals:
            try:
                self._take(arrival, now_ns)
            except Exception as error:
                self._ctx.broke("message", error)
        for _, record in inbox.records:
            try:
                self._look(record, now_ns)
            except Exception as error:
                self._ctx.broke("kick", error, record.slot, record.epoch)
        if self._lookups:
            for address in list(self._lookups):
                self._look_up(address, now_ns)
        for link in self._unregistered():
            self._register(link, now_ns)
        return self._out

    def _unregistered(self) -> list[Link]:
        return [link for link in self._links.values() if link.peer is None]

    def next_step_ns(self, now_ns: int) -> int:
        return now_ns + (REGISTER_AGAIN_NS if self._unregistered() or self._lookups else 10 * NS)

    # ---- from the clients and the poller

    def _look(self, record: Record, now_ns: int) -> None:
        slot, epoch = record.slot, record.epoch
        match record.kick:
            case Kick.OPEN:
                self._ctx.to("poller").send(Kick.OPEN, slot, epoch)
                self._open(slot, epoch, now_ns)
                if self._ctx.is_current(slot, epoch) and self._slots.get(slot, Slot.INIT_ASKED):
                    self._send_grant(slot, epoch)  # its client had granted before it told us
            case Kick.GRANT:
                self._send_grant(slot, epoch)
            case Kick.FAIL:
                self._ctx.to("poller").send(Kick.FAIL, slot, epoch)
            case Kick.LOOK:
                self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
            case Kick.SEND_ABORT:
                self._open(slot, epoch, now_ns)
                self._send_abort(slot, epoch)
            case Kick.RELEASE:
                room = self._slots.get(slot, Slot.ROOM)
                log.debug("room %d is released: slot %d.%d", room, slot, epoch)
                self._posts.take_off_grant(room, slot, epoch)
                self._slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
                self._control.ring_slot_waiters()
                self._ctx.wake_reaper(slot)
                for waiting in (*[link.waiting for link in self._links.values()], *self._lookups.values()):
                    waiting.drop(slot, epoch)
            case Kick.PEER_DEAD:
                self._drop_link_of(slot)
            case Kick.SESSION:
                self._grant_anew(slot)
            case Kick.MEET:
                self._meet(slot, now_ns)

    def _open(self, slot: int, epoch: int, now_ns: int) -> None:
        """Have a request's encode node registered; if the request has failed, too, so that its encoder hears why."""
        if not self._ctx.is_current(slot, epoch) or self._slots.get(slot, Slot.PEER):
            return
        asked = self._slots.address(slot)
        try:
            self._open_at(numeric(asked), asked, slot, epoch, now_ns)
        except ValueError:  # it holds a name
            self._lookups.setdefault(asked, Waiting()).add(slot, epoch, now_ns)

    def _look_up(self, asked: str, now_ns: int) -> None:
        """Go on with the requests that wait for a name, once its address is known; no other request waits for it."""
        waiting = self._lookups[asked]
        found = self._ctx.find(asked) if waiting else Found("")
        if found is not None and found.endpoint:
            for slot, epoch in waiting.take_all():
                self._open_at(found.endpoint, asked, slot, epoch, now_ns)
        elif late := waiting.take_before(now_ns - self._patience_ns):
            why = found.why if found is not None else f"name {host_of(asked)} does not resolve: no answer yet"
            self._end(late, FailureCode.UNREACHABLE, self._no_answer(asked, why))
        if not waiting:
            del self._lookups[asked]

    @property
    def _patience_ns(self) -> int:
        return int(self._ctx.timing.connect_timeout_s * NS)

    def _open_at(self, address: str, asked: str, slot: int, epoch: int, now_ns: int) -> None:
        if not self._ctx.is_current(slot, epoch):
            return
        link = self._links.get(address)
        if link is None:
            link = self._new_link(address, now_ns)
        if link.peer is not None and self._control.peers.is_alive(link.peer):
            self._join(slot, epoch, link.peer)
            return
        if link.peer is not None:
            self._drop_link_of(link.peer)
            link = self._new_link(address, now_ns)
        link.asked = asked
        link.waiting.add(slot, epoch, now_ns)

    def _new_link(self, address: str, now_ns: int) -> Link:
        """Make a link. Its registration number is above all before it, those of an earlier bootstrap included (R14)."""
        peers = self._control.peers
        known = [peers.get(peer, Peer.REGISTRATION) for peer in range(peers.num_peers)]
        self._registration = max(self._registration + 1, max(known) + 1, now_ns)
        link = self._links[address] = Link(address, now_ns, self._registration)
        return link

    def _meet(self, lane: int, now_ns: int) -> None:
        """Have an encode node registered that a client wants to know, for which nobody has a request."""
        if (wanted := self._control.wanted_nodes.take(lane)) is None:  # an earlier kick has led here
            return
        try:
            address = numeric(wanted)
        except ValueError:  # no client of ours says so
            self._ctx.count(Metric.MESSAGES_REFUSED)
            return
        link = self._links.get(address)
        if link is not None and link.peer is not None and not self._control.peers.is_alive(link.peer):
            self._drop_link_of(link.peer)
            link = None
        link = link or self._new_link(address, now_ns)
        link.wanted_until_ns = now_ns + self._patience_ns

    def _join(self, slot: int, epoch: int, peer: int) -> None:
        """The handshake of this request is done: its client may grant, or the poller may have it aborted."""
        if not self._ctx.is_current(slot, epoch):
            return
        self._slots.set(slot, Slot.PEER, peer + 1)
        if not self._ctx.is_live(slot, epoch):
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
            return
        self._ctx.wake_library(slot)
        if self._slots.get(slot, Slot.INIT_ASKED):
            self._send_grant(slot, epoch)

    # ---- registration

    def _register(self, link: Link, now_ns: int) -> None:
        if late := link.waiting.take_before(now_ns - self._patience_ns):
            reason = self._no_answer(link.address, link.hint or "check its address and that it is up")
            self._limit.log(log, logging.WARNING, link.address, now_ns, "encode node %s: %s", link.address, reason)
            self._end(late, FailureCode.UNREACHABLE, reason)
            self._ctx.forget(link.address)
        if not link.waiting and now_ns >= link.wanted_until_ns:
            self._drop(link)
            return
        # requests that came later begin again, with no hint and with nothing queued in a socket
        if now_ns - link.since_ns > self._patience_ns:
            self._drop(link)
            again = self._new_link(link.address, now_ns)
            again.asked, again.waiting, again.wanted_until_ns = link.asked, link.waiting, link.wanted_until_ns
            link = again
        if now_ns - link.sent_ns < REGISTER_AGAIN_NS and link.sent_ns:
            return
        link.sent_ns = now_ns
        self._out.append(registration(self._ctx, link))

    def _no_answer(self, address: str, why: str) -> str:
        return f"no encode node answers at {address} for {self._ctx.timing.connect_timeout_s:g} s; {why}"

    def _give_up(self, link: Link, code: FailureCode, reason: str) -> None:
        log.warning("encode node %s: %s", link.address, reason)
        self._refused_nodes.put(link.address, reason, self._now_ns)
        self._end(link.waiting.take_all(), code, reason)
        self._ctx.forget(link.address)
        self._drop(link)

    def _drop(self, link: Link) -> None:
        self._links.pop(link.address, None)
        self._out.append(Disconnect(link.address))

    def _end(self, those: Iterable[tuple[int, int]], code: FailureCode, reason: str) -> None:
        for slot, epoch in those:
            if self._ctx.is_live(slot, epoch):
                self._ctx.fail(slot, epoch, code, reason)
            else:  # the request failed earlier, and nobody is there to be told
                self._ctx.to("poller").send(Kick.ABORT_ACK, slot, epoch)

    def _refused(self, address: str, now_ns: int) -> None:
        """Nobody listens there: a registered node is dead then; a node that has never answered may be starting."""
        self._ctx.forget(address)
        link = self._links.get(address)
        if link is not None and link.peer is not None:
            self._ctx.to("poller").send(Kick.PEER_DEAD, link.peer, self._control.peers.get(link.peer, Peer.INCARNATION))
            self._drop_link_of(link.peer)

    def _denied(self, denied: Denied) -> None:
        """Somebody listens there, and either we are not let in or it is not; silence alone judges a registered node."""
        link = self._links.get(denied.address)
        if link is None or link.peer is not None:
            return
        if denied.is_final:
            self._give_up(link, FailureCode.REFUSED, f"encode node {denied.address}: {denied.reason}")
        else:
            link.hint = denied.reason

    def _drop_link_of(self, peer: int) -> None:
        for link in list(self._links.values()):
            if link.peer == peer:
                self._ctx.forget(link.address)
                self._drop(link)

    # ---- from encode nodes

    def _take(self, arrival: Arrival, now_ns: int) -> None:
        message = arrival.message
        link = self._links.get(arrival.address or "")
        if link is None:
            self._ctx.count(Metric.MESSAGES_STALE)
            return
        envelope = message.envelope
        if self._control.peers.belongs_to_another(envelope.node_id, envelope.incarnation, arrival.identity) or (
            link.peer is not None and self._control.peers.key(link.peer) != arrival.identity
        ):
            self._ctx.count(Metric.MESSAGES_FORGED)
            link.hint = "it speaks in the name of a node with another key"
            return
        if message.envelope.for_incarnation != self._control.incarnation:
            self._ctx.count(Metric.MESSAGES_STALE)
            return
        match message:
            case msg.Foreign():
                if link.peer is None:
                    self._give_up(link, FailureCode.REFUSED, f"encode node {link.address} {_other_version(message)}")
            case msg.Registered():
                self._registered(link, message, arrival.identity, now_ns)
            case msg.Refused(key=None):
                self._give_up(link, FailureCode.REFUSED, f"encode node {link.address} refused: {message.reason}")
            case msg.Refused(key=msg.RequestKey() as key):
                if self._is_ours(key, link):
                    self._ctx.fail(key.slot, key.epoch, message.code or FailureCode.REFUSED, message.reason)
            case msg.AbortAck(key=key):
                if self._is_ours(key, link):
                    self._ctx.to("poller").send(Kick.ABORT_ACK, key.slot, key.epoch, message.tainted)
            case msg.Stale():
                if (
                    link.peer is not None
                    and self._control.peers.get(link.peer, Peer.INCARNATION) == message.incarnation
                ):
                    log.warning("encode node %s: its incarnation %d is gone", link.address, message.incarnation)
                    self._ctx.to("poller").send(Kick.PEER_DEAD, link.peer, message.incarnation)
                    self._drop_link_of(link.peer)
            case _:
                self._ctx.count(Metric.MESSAGES_REFUSED)

    def _is_ours(self, key: msg.RequestKey, link: Link) -> bool:
        return (
            link.peer is not None
            and self._ctx.is_current(key.slot, key.epoch)
            and self._slots.get(key.slot, Slot.PEER) == link.peer + 1
        )

    def _registered(self, link: Link, message: msg.Registered, key: str, now_ns: int) -> None:
        if link.peer is not None:
            return
        if wrong := why_not_numeric(message):
            reason = f"encode node {link.address} announces what is no address: {wrong}"
            self._give_up(link, FailureCode.PROTOCOL, reason)
            return
        engine = next((it for it in self._ctx.engines if it.name == message.engine), None)
        if engine is None:
            reason = f"encode node {link.address} chose engine {message.engine}, which this node has not offered"
            self._give_up(link, FailureCode.PROTOCOL, reason)
            return
        envelope, peers = message.envelope, self._control.peers
        for other in peers.alive():
            if peers.get(other, Peer.NODE_ID) == envelope.node_id and (
                peers.get(other, Peer.INCARNATION) < envelope.incarnation
            ):
                self._ctx.to("poller").send(Kick.PEER_DEAD, other, peers.get(other, Peer.INCARNATION))
                self._drop_link_of(other)
        peer = peers.find(envelope.node_id, envelope.incarnation)
        if peer is None:
            get = self._slots.get  # what is lent may be held for long, and needs nothing of its peer
            in_use = {get(s, Slot.PEER) - 1 for s, _ in self._control.open_slots() if not self._slots.is_lent(s)}
            record = PeerRecord(
                node_id=envelope.node_id,
                incarnation=envelope.incarnation,
                window_blocks=message.window_blocks,
                num_blocks=message.num_blocks,
                num_slots=0,
                engine=engine.number,
                bootstrap_addr=link.address,
                poller_addr=message.poller_addr,
                offer=message.run_socket,
                registration=link.registration,
                key=key,
            )
            peer = peers.register(record, now_ns, in_use)
            if peer is None:
                self._give_up(
                    link, FailureCode.REFUSED, f"all {peers.num_peers} peer entries are taken; raise max_peers"
                )
                return
            log.info("registered with encode %s", record)
        peers.put(peer, Peer.REGISTRATION, link.registration)
        peers.put(peer, Peer.ENGINE, engine.number)
        link.peer = peer
        for slot, epoch in link.waiting.take_all():
            self._join(slot, epoch, peer)

    # ---- to encode nodes

    def _peer_of(self, slot: int) -> int | None:
        peer = self._slots.get(slot, Slot.PEER) - 1
        if peer < 0 or self._control.peers.get(peer, Peer.STATE) != PeerState.REGISTERED:
            return None
        return peer

    def _grant_anew(self, worker: int) -> None:
        """Send every window again that was granted under the worker's session before, as it is in a new one (R10)."""
        for slot, epoch in self._ctx.current_slots():
            if (
                self._slots.get(slot, Slot.SESSION)
                and self._control.worker_of(self._slots.get(slot, Slot.ROOM)) == worker
            ):
                self._send_grant(slot, epoch)

    def _session_for(self, slot: int, peer: int) -> LiveSession | None:
        """The session under which a peer may write a request's rows; None while the worker's engine is starting."""
        engine = self._ctx.engine_of(peer)
        if engine is not None and not engine.has_sessions:
            return NO_SESSION
        session = self._sessions.live(self._control.worker_of(self._slots.get(slot, Slot.ROOM)))
        return session if session.number else None

    def _send_grant(self, slot: int, epoch: int) -> None:
        """Grants, step 3, sent: expose the window that `EmbeddingReceiver.grant` recorded (step 2), and send it.

        `GrantApplier.apply` applies it at the encode node (step 4). Without a session, its kick sends it later.
        """
        if not self._ctx.is_current(slot, epoch):
            return
        self._posts.show_told(slot, epoch)  # before the look at the word: who ends it looks after that (R80)
        peer = self._peer_of(slot)
        if peer is None or not self._ctx.is_live(slot, epoch):
            return
        session = self._session_for(slot, peer)
        if session is None:
            return  # the worker kicks when its session has begun
        worker = self._control.worker_of(self._slots.get(slot, Slot.ROOM))
        self._slots.set(slot, Slot.CONTACTED_EPOCH, epoch)
        self._slots.raise_to(slot, Slot.SESSION, session.number)
        window = self._window.expose(
            slot, epoch, exposure_of(worker, session.number) if session.number else SHM_EXPOSURE
        )
        if window is None:
            return
        self._out.append(self._messages.grant(slot, epoch, peer, session, window))

    def _send_abort(self, slot: int, epoch: int) -> None:
        peer = self._peer_of(slot)
        if peer is None or not self._ctx.is_current(slot, epoch):
            return
        self._out.append(self._messages.abort(slot, epoch, peer))


def _other_version(message: msg.Foreign) -> str:
    ours = " or ".join(str(version) for version in msg.ACCEPTED_VERSIONS)
    return f"speaks version {message.envelope.version} of the protocol, this node {ours}; run the same embridge on both"
