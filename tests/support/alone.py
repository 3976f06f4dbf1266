"""One node whose peers are played by the test, message by message; its roles and its clients are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from embridge.allocator._core import MAX_EPOCH
from embridge.allocator.errors import TransferError
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.layout import PayloadLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination, Slot
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Progress, split
from embridge.pipeline.client.client import Client
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.workers import messages as msg
from embridge.workers.engine_kind import EngineKind
from embridge.workers.poller.room_lists import END_OF_SLOTS, HeardRooms
from embridge.workers.role import Arrival, Out, Reply, Send
from embridge.workers.timing import NS
from embridge.workers.transfer.engines import ENGINES
from embridge.workers.transfer.engines.base import Moves, Outcome
from support.closing import at_end
from support.rows import rows_of
from support.simulation import Answered, RoleActor, SimulatedNode, World

BLOCK_SIZE = 4
ENCODE_ADDRESS = "tcp://10.0.0.20:1"

Kind = TypeVar("Kind", bound=msg.Message)


class Wire:
    """Stands for the network: keeps what the roles send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Out]] = []

    def post(self, actor: RoleActor, out: list[Out]) -> None:
        self.sent += [(actor.role_name, item) for item in out]

    def forget(self, actor: RoleActor) -> None:
        pass

    def node_closed(self, node: SimulatedNode) -> None:
        pass


class Alone:
    """A node, stepped until nothing is left to do after everything that the test does to it."""

    def __init__(
        self,
        role: Role,
        *,
        num_blocks: int = 8,
        deepstack_layers: int = 0,
        late_writes: bool = False,
        engines: tuple[EngineKind, ...] = (),
        verify: bool = False,
        identities: dict[int, str] | None = None,
        **options: Any,
    ) -> None:
        self.identities = identities or {}  # node id -> the key that its connections prove
        self.world = World(0, late_writes=late_writes, engines=engines, verify=verify)
        at_end(self.world.close)
        self.wire = Wire()
        self.world.network = self.wire  # type: ignore[assignment]
        self.world.ask_at = self.who_listens  # type: ignore[method-assign]
        geometry = Geometry(
            hidden_size=2, block_size=BLOCK_SIZE, num_blocks=num_blocks, deepstack_layers=deepstack_layers
        )
        self.node = self.world.node("here", role, geometry, node_id=1, **options)
        self.control = self.node.control
        self.slots = self.control.slots

    def who_listens(self, run_socket: str, node_id: int, incarnation: int) -> Answered:
        """Every node of the test's is at `here.sock`."""
        return Answered("" if run_socket == "here.sock" else "its run socket does not answer here")

    # ---- time and steps

    @property
    def now_ns(self) -> int:
        return self.world.now_ns

    def settle(self) -> None:
        """Step whoever has something to do, until nobody has; the clock stands."""
        for _ in range(1000):
            actors = [actor for actor in self.node.actors if actor.is_runnable(self.now_ns)]
            actors = [actor for actor in actors if not self._only_waits(actor)]
            if not actors:
                return
            for actor in actors:
                actor.step()
                self.node.check()
                self.node.check_blocks()
        raise AssertionError("it does not settle")

    def _only_waits(self, actor: Any) -> bool:
        """Its due time alone makes it runnable, and it has stepped at this time already."""
        if getattr(actor, "_stepped_ns", -1) != self.now_ns:
            actor._stepped_ns = self.now_ns
            return False
        due, actor.due_ns = actor.due_ns, self.now_ns + 1
        try:
            return not actor.is_runnable(self.now_ns)
        finally:
            actor.due_ns = due

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, in steps of 20 ms."""
        end = self.now_ns + int(seconds * NS)
        while self.now_ns < end and not until():
            self.world.now_ns += NS // 50
            self.settle()

    def restart(self, role: str) -> None:
        self.actor(role).kill("by the test")

    def actor(self, role: str) -> RoleActor:
        return self.node.role(role)

    @contextmanager
    def killed_at(self, role: str, change: int) -> Iterator[list[str]]:
        """For a block that settles: this role dies before its change of shared memory number `change` in the block, or
        at the end of the step that makes fewer. Gives the places where it died.
        """
        actor, places = self.actor(role), list[str]()
        kill = type(actor).kill

        def noted(why: str) -> None:
            places.append(why)
            kill(actor, why)

        actor.kill = noted  # type: ignore[method-assign]
        actor.fuse.left = change
        yield places
        actor.fuse.left = 0

    # ---- messages

    def envelope(self, *, node_id: int = 10, incarnation: int = 1, for_incarnation: int | None = None) -> msg.Envelope:
        for_incarnation = self.control.incarnation if for_incarnation is None else for_incarnation
        return msg.Envelope(msg.VERSION, node_id, incarnation, for_incarnation)

    def hears(self, role: str, *messages: msg.Message, address: str | None = None, identity: str | None = None) -> None:
        """Messages come to a role: from who connected to it, or, with `address`, on its own connection to there.

        They come over a connection of the node that they name, unless `identity` says whose key it has proved.
        """
        for message in messages:
            message = msg.decode(msg.encode(message), "the test")
            node_id = message.envelope.node_id
            connection = None if address else f"peer{node_id}".encode()
            key = self.identities.get(node_id, "") if identity is None else identity
            self.actor(role).arrivals.append(Arrival(message, connection, address, key))
        self.settle()

    def is_refused(self, role: str, address: str) -> None:
        """Nobody listens there."""
        self.actor(role).refused.append(address)
        self.settle()

    def sent(self, kind: type[Kind]) -> list[Kind]:
        """What the node has sent of this kind since the last `forget_sent`."""
        return [
            item.message
            for _, item in self.wire.sent
            if isinstance(item, Send | Reply) and isinstance(item.message, kind)
        ]

    def forget_sent(self) -> None:
        self.wire.sent.clear()

    # ---- state

    def word(self, slot: int) -> Progress:
        return split(self.control.status.load(slot))

    def metric(self, role: str, name: str) -> int:
        return self.control.metrics.all()[role][name]

    def new_client(self) -> Client:
        client = self.node.new_client()
        self.settle()
        return client


class StubEngine:
    """An engine whose attempts end as the test says; what it is given to move it moves at the end, if it has
    where to.
    """

    name = "stub"
    worn = ""

    def __init__(self, *, late_writes: bool = False, outcome: Outcome = Outcome.DONE) -> None:
        self.late_writes = late_writes
        self.outcome = outcome
        self.outcomes: dict[int, Outcome] = {}  # of these attempts, by their numbers from 1
        self.submitted: list[tuple[int, list[list[int]]]] = []
        self.closed: list[int] = []
        self.on_submit: Callable[[], None] = lambda: None

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        return True

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        self.on_submit()
        self.submitted.append((peer, [list(move) for move in moves]))
        return len(self.submitted)

    def poll(self, ticket: int) -> Outcome:
        return self.outcomes.get(ticket, self.outcome)

    def close(self, peer: int) -> None:
        self.closed.append(peer)

    def wear(self) -> str:
        return self.worn

    def shutdown(self) -> None:
        pass


class EncodeAlone(Alone):
    """An encode node with one client; the test plays language nodes 10, 11, ... of 16 blocks."""

    def __init__(self, *, engine: StubEngine | None = None, num_blocks: int = 8, **options: Any) -> None:
        self.engine = engine or StubEngine()
        super().__init__(Role.ENCODE, num_blocks=num_blocks, late_writes=self.engine.late_writes, **options)
        self.new_worker()
        self.client = self.new_client()
        self.destinations = self.node.control_destinations
        self.register()

    def new_worker(self) -> None:
        """The transfer worker is born (again), with this engine."""
        self.node.make_engine = lambda: self.engine
        self.actor("worker0").start()

    def register(self, *, node_id: int = 10, incarnation: int = 1, **changes: Any) -> None:
        geometry = self.node.geometry
        values: dict[str, Any] = {
            "envelope": self.envelope(node_id=node_id, incarnation=incarnation, for_incarnation=0),
            "bootstrap_addr": f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:1",
            "poller_addr": f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:2",
            "offers": {it.name: it.offer("here.sock") for it in (*ENGINES, self.world.engine)},
            "hidden_size": geometry.hidden_size,
            "block_size": geometry.block_size,
            "num_blocks": 16,
            "dtype": geometry.dtype,
            "deepstack_layers": geometry.deepstack_layers,
            "fill_ids": geometry.fill_ids,
            "mrope_positions": geometry.mrope_positions,
            "num_slots": 64,
            "window_blocks": 16,
            "registration": 1,
            "verify": self.control.verify,
        }
        self.hears("bootstrap", msg.Register(**{**values, **changes}))

    def init(
        self,
        room: int,
        blocks: list[int],
        *,
        slot: int | None = None,
        epoch: int = 1,
        first: int = 0,
        tokens: int | None = None,
        required: int = 1,
        session: int = 1,
        node_id: int = 10,
        incarnation: int = 1,
        for_incarnation: int | None = None,
        registration: int = 1,
    ) -> None:
        """A first grant; the request's slot there is its room, if nothing else is said."""
        tokens = len(blocks) * BLOCK_SIZE if tokens is None else tokens
        envelope = self.envelope(node_id=node_id, incarnation=incarnation, for_incarnation=for_incarnation)
        key = msg.RequestKey(room if slot is None else slot, epoch, room)
        own, base = f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:2", session << 32
        self.hears(
            "bootstrap", msg.Init(envelope, key, own, 7, session, base, blocks, first, required, tokens, registration)
        )

    def resume(
        self,
        room: int,
        blocks: list[int],
        *,
        first: int,
        sent: int = 0,
        tokens: int | None = None,
        required: int = 1,
        session: int = 1,
        node_id: int = 10,
    ) -> None:
        tokens = len(blocks) * BLOCK_SIZE if tokens is None else tokens
        key = msg.RequestKey(room, 1, room)
        envelope = self.envelope(node_id=node_id)
        own, base = f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:2", session << 32
        self.hears("bootstrap", msg.Resume(envelope, key, own, 7, session, base, blocks, first, required, tokens, sent))

    def abort(self, room: int, *, epoch: int = 1, node_id: int = 10, reason: str = "given up there") -> None:
        key = msg.RequestKey(room, epoch, room)
        self.hears("bootstrap", msg.Abort(self.envelope(node_id=node_id), key, 3, reason))

    def close(self, room: int, *, node_id: int = 10) -> None:
        self.hears("poller", msg.Close(self.envelope(node_id=node_id), msg.RequestKey(room, 1, room)))

    def checked(self, room: int, tokens: int, *, node_id: int = 10) -> None:
        """A destination has checked so many rows."""
        rows = msg.CheckedRows(msg.RequestKey(room, 1, room), tokens)
        self.hears("poller", msg.Checked(self.envelope(node_id=node_id), [rows]))

    def sender(self, room: int, total: int, *, rows: int | None = None) -> EmbeddingSender:
        """Open a room and write its first `rows` (default: all)."""
        sender = self.client.sender(room, total)
        self.settle()
        if rows != 0:
            self.write(sender, 0, total if rows is None else rows)
        return sender

    def write(self, sender: EmbeddingSender, first: int, end: int) -> bool:
        written = sender.write(first, *rows_of(self.node.geometry, sender.room, first, end))
        self.settle()
        return written

    def get(self, sender: EmbeddingSender, field: Destination, d: int = 0) -> int:
        value: int = self.destinations.get(sender.slot, d, field)
        return value

    def blocks_written(self) -> list[list[int]]:
        """The destination blocks of each attempt, by the ids that moved."""
        there = PayloadLayout.of(Geometry(hidden_size=2, block_size=BLOCK_SIZE, num_blocks=16)).ids
        attempts = []
        for _, moves in self.engine.submitted:
            blocks: list[int] = []
            for to, _, size in moves:
                if to >= there and size % 4 == 0 and to < there + 16 * BLOCK_SIZE * 4:
                    blocks += range((to - there) // 4 // BLOCK_SIZE, (to - there + size - 1) // 4 // BLOCK_SIZE + 1)
            attempts.append(blocks)
        return attempts


class LanguageAlone(Alone):
    """A language node with one client; the test plays the encode node 20."""

    def __init__(self, *, num_blocks: int = 8, **options: Any) -> None:
        super().__init__(Role.LANGUAGE, num_blocks=num_blocks, **options)
        self.client = self.new_client()
        self.told = HeardRooms()  # what the test has told in the name of the encode node

    def registered(self, *, incarnation: int = 1, address: str = ENCODE_ADDRESS) -> None:
        envelope = self.envelope(node_id=20, incarnation=incarnation)
        answer = msg.Registered(envelope, address, "tcp://10.0.0.20:2", self.world.engine.name, 16, 16, "")
        self.hears("bootstrap", answer, address=address)

    def receiver(self, room: int, blocks: int | None = 2) -> EmbeddingReceiver:
        """Open a room, with the handshake done; grant it some blocks (None: do not even call init)."""
        receiver = self.client.receiver(ENCODE_ADDRESS, room)
        self.settle()
        if not receiver.handshake_done:
            self.registered()
        assert receiver.handshake_done
        if blocks is not None:
            receiver.init(receiver.allocate(blocks))
            self.settle()
        return receiver

    def state(self, receiver: EmbeddingReceiver, phase: int, sent: int, **changes: Any) -> msg.RoomState:
        """How the encode node sees the request."""
        values: dict[str, Any] = {
            "key": msg.RequestKey(receiver.slot, receiver.epoch, receiver.room),
            "phase": phase,
            "resumed": False,
            "sent_tokens": sent,
            "total_tokens": 16,
            "ready_tokens": changes.get("total_tokens") or 16,
            "known_blocks": receiver.granted_blocks,
            "session": self.slots.get(receiver.slot, Slot.SESSION),
            "tainted": 0,
            "code": 0,
            "reason": "",
            "checksum": 0,
        }
        return msg.RoomState(**{**values, **changes})

    def status(self, receiver: EmbeddingReceiver, phase: int, sent: int, **changes: Any) -> None:
        room = self.state(receiver, phase, sent, **changes)
        self.told.put(room)
        self.hears("poller", msg.Status(self.envelope(node_id=20), room))

    def heartbeat(self, *rooms: msg.RoomState, closed: Sequence[msg.RequestKey] = (), restarts: int = 0) -> None:
        """A heartbeat that tells these, and names those, with the digest of all that was told."""
        for room in rooms:
            self.told.put(room)
        for key in closed:
            self.told.drop(key)
        beat = msg.Heartbeat(self.envelope(node_id=20), list(rooms), list(closed), *self.told.digest, restarts)
        self.hears("poller", beat)

    def snapshot(self, *rooms: msg.RoomState, first_slot: int = 0, end_slot: int = END_OF_SLOTS) -> None:
        """All requests that the encode node has in flight in these slots."""
        for room in rooms:
            self.told.put(room)
        self.told.keep_only(first_slot, end_slot, list(rooms))
        self.hears("poller", msg.Snapshot(self.envelope(node_id=20), first_slot, end_slot, list(rooms)))

    def abort_ack(self, receiver: EmbeddingReceiver, *, tainted: int = 0) -> None:
        key = msg.RequestKey(receiver.slot, receiver.epoch, receiver.room)
        self.hears("poller", msg.AbortAck(self.envelope(node_id=20), key, tainted))

    def counts(self) -> dict[str, int]:
        """Blocks by state, those with none left out."""
        return {name: count for name, count in self.control.blocks.counts()._asdict().items() if count}

    def set_slot(self, receiver: EmbeddingReceiver, field: Slot, value: int) -> None:
        self.slots.set(receiver.slot, field, value)


def failure_of(handle: TransferHandle) -> TransferError:
    """Why it has failed; the test fails where it has not."""
    failure = handle.failure_exception()
    assert failure is not None, handle
    return failure


def leave_one_epoch(alone: Alone, slot: int) -> None:
    """Bring a slot that nobody has opened yet to its last epoch but one."""
    at = alone.control.layout.words + slot * 8
    np.frombuffer(alone.node.control_map, np.uint64, 1, at)[0] = (MAX_EPOCH - 1) << 36
