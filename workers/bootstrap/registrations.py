"""Encode side of the bootstrap: which language nodes it serves, and how rows travel to each.

A registration is refused with a reason that says what to change. One that is accepted gives the node an entry in the
peer table. A node that registers again had taken this one for dead, so what it had granted before is no longer valid
(R14, D2).

Rows travel through shared memory to a node that listens, on this host, at the run socket that it names. The bootstrap
asks who listens there, because another node may listen at that path where each has a /tmp of its own. The registration
waits for the answer; nothing else does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from embridge.allocator.errors import FailureCode
from embridge.allocator.metrics import Metric
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Peer
from embridge.allocator.rings import Kick
from embridge.workers import messages as msg
from embridge.workers.addresses import host_of, numeric
from embridge.workers.engine_kind import EngineKind
from embridge.workers.log_limit import LogLimit
from embridge.workers.poller.peer_watch import COPIED, WAS_COPIED
from embridge.workers.role import RoleContext
from embridge.workers.run_socket import Question
from embridge.workers.timing import NS
from embridge.workers.transfer import engines

log = logging.getLogger(__name__)

MAX_QUESTIONS = 64  # open at one time; a node beyond them registers again in a moment
QUESTION_NS = 4 * NS  # to wait for an answer: less than a language node waits; a busy launcher answers late
LOOK_NS = NS // 1000  # between two looks for an answer
# what rows are: the same on both nodes
SHARED_GEOMETRY = ("hidden_size", "block_size", "dtype", "deepstack_layers", "fill_ids", "mrope_positions")


def why_not_numeric(message: msg.Register | msg.Registered) -> str:
    """Why we connect to no address of this node; empty if all are numbers, which nobody has to look up."""
    for name in ("bootstrap_addr", "poller_addr"):
        try:
            numeric(getattr(message, name))
        except ValueError as error:
            return f"{name}: {error}"
    return ""


class Answer(NamedTuple):
    """What a language node is told; and its entry in the peer table, if it begins again."""

    message: msg.Registered | msg.Refused
    begins_again: int | None = None


@dataclass(slots=True)
class Waiting:
    """A registration that waits for the answer of its run socket."""

    question: Question
    since_ns: int
    message: msg.Register
    key: str
    connection: bytes
    run_socket: str


class Registrations:
    """The language nodes that this encode node serves."""

    def __init__(self, ctx: RoleContext, limit: LogLimit) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._peers = ctx.control.peers
        self._limit = limit
        self._waiting: dict[tuple[int, int, str], Waiting] = {}  # by node id, incarnation and key

    def take(
        self, message: msg.Register, key: str, connection: bytes, now_ns: int, in_use: Callable[[], set[int]]
    ) -> Answer | None:
        """Answer a registration. None if it waits; `due` gives it back then.

        `key` is the one that its connection has proved. `in_use` are entries that no other node may take, even if dead.
        """
        answer = self._judge(message, key, connection, now_ns, in_use)
        if answer is not None:  # whatever the answer is, no question about this node is open any more
            self._drop((message.envelope.node_id, message.envelope.incarnation, key))
        return answer

    def _judge(
        self, message: msg.Register, key: str, connection: bytes, now_ns: int, in_use: Callable[[], set[int]]
    ) -> Answer | None:
        envelope = message.envelope
        why_not = self._why_not(message, key)
        if why_not:
            return self._refuse(message, now_ns, why_not)
        for older in self._others(envelope):
            self._ctx.to("poller").send(Kick.PEER_DEAD, older, self._peers.get(older, Peer.INCARNATION))
        peer = self._peers.find(envelope.node_id, envelope.incarnation)
        if peer is None:
            engine = self._engine_for(message, key, connection, now_ns)
            if engine is None:
                return None
            if isinstance(engine, str):
                return self._refuse(message, now_ns, engine)
            record = PeerRecord(
                node_id=envelope.node_id,
                incarnation=envelope.incarnation,
                window_blocks=message.window_blocks,
                num_blocks=message.num_blocks,
                num_slots=message.num_slots,
                engine=engine.number,
                bootstrap_addr=message.bootstrap_addr,
                poller_addr=message.poller_addr,
                offer=message.offers[engine.name],
                registration=message.registration,
                key=key,
            )
            if self._peers.register(record, now_ns, in_use()) is None:
                return self._refuse(
                    message, now_ns, f"all {self._peers.num_peers} peer entries are taken; raise max_peers"
                )
            log.info("registered language %s; rows travel through %s", record, engine.name)
            return Answer(self._welcome(envelope, engine))
        begins_again = message.registration > self._peers.get(peer, Peer.REGISTRATION)
        if begins_again:
            # before the answer: its door is open to us only after that
            self._peers.put(peer, Peer.REGISTRATION, message.registration)
        chosen = self._ctx.engine_of(peer)
        assert chosen is not None, f"peer {peer} is registered, and no engine was agreed with it"
        return Answer(self._welcome(envelope, chosen), peer if begins_again else None)

    def due(self, now_ns: int) -> list[Waiting]:
        """Remove and return the registrations that have waited, and are to be taken now."""
        return [
            it
            for it in self._waiting.values()
            if it.question.answer() is not None or now_ns - it.since_ns > QUESTION_NS
        ]

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def refuse_version(self, message: msg.Foreign) -> msg.Refused | None:
        """The answer to a frame of another protocol version, if it is a registration: no other sender waits for one."""
        if message.tag != msg.Register.__struct_config__.tag:
            return None
        theirs, ours = message.envelope.version, " or ".join(str(version) for version in msg.ACCEPTED_VERSIONS)
        versions = f"the language node speaks {theirs}, this encode node {ours}"
        reason = f"protocol version: {versions}; run the same embridge on both"
        return msg.Refused(self._ctx.envelope(message.envelope.incarnation), FailureCode.REFUSED, msg.clip(reason))

    # ---- why a node is not served

    def _why_not(self, message: msg.Register, key: str) -> str:
        """Why a registration is refused; empty if nothing speaks against it."""
        envelope, geometry = message.envelope, self._control.geometry
        for name, ours in (
            *((name, getattr(geometry, name)) for name in SHARED_GEOMETRY),
            ("verify", self._control.verify),
        ):
            theirs = getattr(message, name)
            if theirs != ours:
                return f"{name}: language {theirs}, encode {ours}; launch both with the same"
        if wrong := why_not_numeric(message):
            return wrong
        limit = self._control.limits.max_peer_slots
        if message.num_slots > limit:
            return f"num_slots: {message.num_slots} > max_peer_slots {limit} of this node"
        if self._peers.belongs_to_another(envelope.node_id, envelope.incarnation, key):
            self._ctx.count(Metric.MESSAGES_FORGED)
            return "this node id is known with another key; one node has one key and one run directory"
        return self._why_not_that_node(message)

    def _why_not_that_node(self, message: msg.Register) -> str:
        """Why not, if two nodes run from copies of one run directory; empty otherwise.

        Each would end the other's requests, so both are told.
        """
        envelope, peers = message.envelope, self._peers
        if envelope.node_id == self._control.node_id:
            return f"node id {envelope.node_id:x} is this encode node's own: {COPIED}"
        twin = peers.find(envelope.node_id, envelope.incarnation)
        if twin is not None and peers.record(twin).poller_addr != message.poller_addr:
            return f"that start of its node is registered from elsewhere: {COPIED}"
        newest = max((peers.get(other, Peer.INCARNATION) for other in self._others(envelope)), default=0)
        if newest <= envelope.incarnation:
            return ""
        return f"incarnation {envelope.incarnation} is older than {newest}; {WAS_COPIED}"

    def _others(self, envelope: msg.Envelope) -> list[int]:
        """The living entries of other incarnations of this node."""
        return [
            peer
            for peer in self._peers.alive()
            if self._peers.get(peer, Peer.NODE_ID) == envelope.node_id
            and self._peers.get(peer, Peer.INCARNATION) != envelope.incarnation
        ]

    # ---- how rows travel

    def _engine_for(self, message: msg.Register, key: str, connection: bytes, now_ns: int) -> EngineKind | str | None:
        """The first engine that both nodes offer and that reaches the language node; else why there is none, in words.

        None while its run socket is asked.
        """
        own = self._ctx
        ours, theirs = host_of(own.addresses.poller_addr), host_of(message.poller_addr)
        whys = []
        for engine in own.engines:
            offer = message.offers.get(engine.name)
            if offer is None:
                whys.append(f"it offers no {engine.title}")
                continue
            why: str | None = engine.why_refused(offer, ours, theirs)
            if not why and engine.is_local:
                why = self._why_elsewhere(offer, message, key, connection, now_ns)
            if why is None:
                return None
            if not why:
                return engine
            whys.append(why)
        named = {engine.name for engine in own.engines}
        whys += [f"this encode node offers no {engine.title}" for engine in engines.ENGINES if engine.name not in named]
        return f"no engine in common: {'; '.join(whys)}"

    def _why_elsewhere(
        self, run_socket: str, message: msg.Register, key: str, connection: bytes, now_ns: int
    ) -> str | None:
        """Why that node is not on this host; empty if it is, None while its run socket is asked."""
        envelope = message.envelope
        identity = (envelope.node_id, envelope.incarnation, key)
        it = self._waiting.get(identity)
        if it is None or it.run_socket != run_socket:
            if it is None and len(self._waiting) >= MAX_QUESTIONS:
                return None
            self._drop(identity)
            question = self._ctx.ask_at(run_socket, envelope.node_id, envelope.incarnation)
            it = self._waiting[identity] = Waiting(question, now_ns, message, key, connection, run_socket)
        it.message, it.connection = message, connection
        answer = it.question.answer()
        if answer is None and now_ns - it.since_ns > QUESTION_NS:
            answer = "its run socket does not say whose it is"
        return answer

    def _drop(self, identity: tuple[int, int, str]) -> None:
        it = self._waiting.pop(identity, None)
        if it is not None:
            it.question.close()

    # ---- answers

    def _welcome(self, envelope: msg.Envelope, engine: EngineKind) -> msg.Registered:
        own, control = self._ctx.addresses, self._control
        to = self._ctx.envelope(envelope.incarnation)
        return msg.Registered(
            envelope=to,
            bootstrap_addr=own.bootstrap_addr,
            poller_addr=own.poller_addr,
            engine=engine.name,
            num_blocks=control.geometry.num_blocks,
            window_blocks=control.limits.window_blocks,
            run_socket=own.run_socket if control.has_shelf else "",
        )

    def _refuse(self, message: msg.Register, now_ns: int, reason: str) -> Answer:
        envelope = message.envelope
        self._ctx.count(Metric.MESSAGES_REFUSED)
        self._limit.log(
            log, logging.WARNING, envelope.node_id, now_ns, "language node %x refused: %s", envelope.node_id, reason
        )
        return Answer(msg.Refused(self._ctx.envelope(envelope.incarnation), FailureCode.REFUSED, msg.clip(reason)))
