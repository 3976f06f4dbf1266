"""Whole nodes in one thread: the real roles and the real clients under one clock, one seed and a network that misbehaves.

A `World` holds nodes, each with its two segments, its roles (`step(now, inbox) -> outbox`) and its clients, whose library turns
are called here and not by a thread. Whoever could run now (its doorbell was rung, something came, or its time is up: what the
real loops wait for) is drawn by the seed, makes one step, and the clock moves on; when nobody can, it jumps to the next time that
somebody wants. So a lost wake-up is a hang here, too.

The network carries encoded messages and may lose, double, delay and so reorder them. A role may be killed between any two
changes of shared memory, before its messages left, or before it committed its ring records: a new one over the same segment takes
its place. What must hold is looked at after every step (`World.check`), and by the engine at every write.
"""

from __future__ import annotations

import functools
import heapq
import os
import random
import socket
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping
from embridge.allocator.blocks import QUARANTINED
from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.checksums import RowSums
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import AUX_WORDS, SLOTS_PER_PAGE, Geometry, Limits, Role
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import LIBRARY_VIEW, Destination, Engine, Lane, NodeState, SegmentHeader, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.sessions import NO_SESSION, LiveSession
from embridge.allocator.status import split
from embridge.pipeline.client.client import Client
from embridge.pipeline.node.recovery import Dead, Recovery
from embridge.workers import messages as msg
from embridge.workers.addresses import Found
from embridge.workers.bootstrap.encode import Admission
from embridge.workers.bootstrap.language import GrantSender
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.language import StatusReceiver
from embridge.workers.role import Addresses, Arrival, Desk, Disconnect, Inbox, Out, Renew, Reply, Send, Step
from embridge.workers.run_socket import Welcome
from embridge.workers.timing import NS, Timing
from embridge.workers.transfer.encode import TransferWorker
from embridge.workers.transfer.engines.base import EngineError, Moves, Outcome
from embridge.workers.transfer.language import TargetWorker

MS = NS // 1000
LIBRARY_WAIT_NS, STARVING_WAIT_NS = 100 * MS, 5 * MS
ROWS_A_ROOM = 4096  # what a row's id tells: room * ROWS_A_ROOM + row

# Idle peers beat faster than in life, so that a lossy network does not look like a dead peer.
TIMING = Timing(idle_heartbeat_s=0.25, connect_timeout_s=20.0, request_timeout_s=120.0)
LIMITS = Limits(
    num_slots=128,
    max_clients=2,
    num_workers=1,
    max_destinations=2,
    window_blocks=16,
    max_peers=4,
    max_peer_slots=128,
    ring_records=16,
)


class Killed(BaseException):
    """A process dies here."""


@dataclass
class Fuse:
    """Kills its process before the n-th change of shared memory from now (0: never)."""

    left: int = 0

    def burn(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Killed

    def guard(self, target: Any, *names: str) -> None:
        """Burn at every call of these methods."""
        for name in names:
            method = getattr(target, name)

            def guarded(*args: Any, _method: Callable[..., Any] = method, **options: Any) -> Any:
                self.burn()
                return _method(*args, **options)

            setattr(target, name, guarded)


class _Guarded:
    """A native object (which takes no attributes) with some of its methods behind a fuse."""

    def __init__(self, target: Any, fuse: Fuse, *names: str) -> None:
        for name in dir(target):
            if not name.startswith("_"):
                setattr(self, name, getattr(target, name))
        fuse.guard(self, *names)


class FusedControl(Control):
    """A process's view of its control segment: every change it makes may be its last."""

    def __init__(self, mapping: Mapping, fuse: Fuse) -> None:
        super().__init__(mapping)
        self._fuse = fuse
        fuse.guard(self.slots, "set", "raise_to", "claim_failure", "set_reason")
        fuse.guard(self.peers, "put", "bury", "raise_tombstone")
        fuse.guard(self.lanes, "lease_page", "return_page", "free")
        self.status: Any = _Guarded(self.status, fuse, "advance", "open", "mark")
        self.blocks.cells = _Guarded(  # type: ignore[assignment]
            self.blocks.cells, fuse, "acquire", "expose", "release", "quarantine", "reclaim", "end_quarantine", "end_exposure"
        )

    @property
    def destinations(self) -> Any:
        table = super().destinations
        self._fuse.guard(table, "set", "raise_to", "set_grant")
        return table

    @property
    def staging(self) -> Any:
        table = super().staging
        self._fuse.guard(table, "replace")
        return table

    @property
    def windows(self) -> Any:
        table = super().windows
        self._fuse.guard(table, "set")
        return table

    def sender(self, source: str, target: str) -> Any:
        sender = super().sender(source, target)
        self._fuse.guard(sender, "send")
        return sender


def segment(size: int, *, alignment: int = 4096) -> Mapping:
    """Shared memory of this process alone."""
    fd = os.memfd_create("embridge-simulation")
    try:
        os.ftruncate(fd, size)
        return Mapping(fd, size, alignment=alignment)
    finally:
        os.close(fd)


Piece = tuple[int, int, int]  # offset there, offset here, bytes


class Late(NamedTuple):
    """A write that was given up and may land: read from its engine's payload then, or, if that has died, as it was read before."""

    target: SimulatedNode
    session: int
    to: int
    engine: SimulatedEngine | None
    start: int
    size: int
    data: bytes = b""


class SimulatedEngine:
    """Copies between the payloads of two nodes, in as many polls as the seed says, and checks every block that it writes (P7).

    As shared memory it ends with its process, and so do its attempts. As a network (`world.late_writes`) it writes into a session of its
    peer; what an attempt that failed has not written yet it may still read and write for as long as it lives, and what a dead one had in
    its connections may land as long as the session lives.
    """

    name = "simulated"
    worn = ""

    def __init__(self, node: SimulatedNode, *, late_writes: bool = False) -> None:
        self.late_writes = late_writes
        self._node = node
        self._world = node.world
        self._targets: dict[int, tuple[SimulatedNode, int]] = {}  # peer -> (node, our entry in its writers)
        self._attempts: dict[int, tuple[SimulatedNode, int, deque[Piece], bool]] = {}
        self._ticket = 0

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        if peer in self._targets and self._targets[peer][0].control.incarnation == record.incarnation:
            return True
        self.close(peer)
        if self.late_writes:
            return self._open_session(peer, record, session)
        target = self._world.node_at(record.run_socket)
        if target is None or target.control.incarnation != record.incarnation:
            raise EngineError(f"{record} is not reachable")
        if self._world.chance(0.3):  # its answer is not there yet
            return False
        own = self._node.control
        entry = target.control.writers.add(ForeignWriter(own.node_id, own.incarnation, 1))
        assert entry is not None
        self._targets[peer] = (target, entry)
        return True

    def _open_session(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        role = self._world.role_at(record.bootstrap_addr)
        if role is None or not role.node.is_in_session(session.number) or self._world.chance(0.3):
            return False
        self._targets[peer] = (role.node, -1)
        return True

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        target, _ = self._targets[peer]
        self._ticket += 1
        fails = self._world.chance(self._world.faults.failed_attempt)
        pieces = deque((int(a), int(b), int(c)) for a, b, c in moves)
        self._attempts[self._ticket] = (target, session.number, pieces, fails)
        self._world.note(f"{self._node.name} engine: attempt {self._ticket} of {len(pieces)} moves to {target.name}")
        return self._ticket

    def poll(self, ticket: int) -> Outcome:
        target, session, pieces, fails = self._attempts[ticket]
        if self.late_writes and not target.is_in_session(session):
            return self._end(ticket, "its session is gone")
        several = 1 + int(self._world.chance(self._world.faults.slow_attempt)) * 4
        for _ in range(-(-len(pieces) // several)):
            to, start, size = pieces.popleft()
            target.write(to, self.read(start, size))
            if self._world.chance(self._world.faults.damage):
                target.damage(to + self._world.rng.randrange(size))
        if fails and self._world.chance(0.5):
            if self.late_writes:
                self._world.late += [Late(target, session, to, self, start, size) for to, start, size in pieces]
            return self._end(ticket, "it fails")
        if pieces:
            return Outcome.PENDING
        del self._attempts[ticket]
        return Outcome.DONE

    def _end(self, ticket: int, why: str) -> Outcome:
        del self._attempts[ticket]
        self._world.note(f"{self._node.name} engine: attempt {ticket} FAILED: {why}")
        return Outcome.FAILED

    def read(self, start: int, size: int) -> bytes:
        return np.frombuffer(self._node.payload, np.uint8, size, start).tobytes()

    def close(self, peer: int) -> None:
        if peer in self._targets:
            target, entry = self._targets.pop(peer)
            if entry >= 0:
                target.writer_gone(entry)

    def wear(self) -> str:
        return self.worn

    def shutdown(self) -> None:
        """Its process ends: it reads nothing any more; about half of what it had yet to write is in its connections, and lands."""
        for peer in list(self._targets):
            self.close(peer)
        if not self.late_writes:
            return
        world = self._world
        for target, session, pieces, _ in self._attempts.values():
            world.late += [Late(target, session, to, self, start, size) for to, start, size in pieces]
        self._attempts.clear()
        ours = [late for late in world.late if late.engine is self]
        world.late = [late for late in world.late if late.engine is not self]
        for late in ours:
            if world.chance(0.5):
                world.late.append(late._replace(engine=None, data=self.read(late.start, late.size)))


class Answered:
    """A question at a run socket whose answer is known, though it may be late."""

    def __init__(self, text: str, is_late: Callable[[], bool] = lambda: False) -> None:
        self._text = text
        self._is_late = is_late

    def answer(self) -> str | None:
        if not self._is_late():
            self._is_late = lambda: False
            return self._text
        return None

    def close(self) -> None:
        pass


class Actor:
    """Who takes steps: a role or a client's library thread."""

    def __init__(self, node: SimulatedNode, name: str) -> None:
        self.node = node
        self.world = node.world
        self.name = f"{node.name}.{name}"
        self.fuse = Fuse()
        self.due_ns = 0
        self.stalled_ns = 0

    def is_runnable(self, now_ns: int) -> bool:
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError


class RoleActor(Actor):
    """The loop around a role, as `worker.py` and `wire.py` have it, one turn at a time."""

    def __init__(self, node: SimulatedNode, role_name: str) -> None:
        super().__init__(node, role_name)
        self.role_name = role_name
        self.generation = 0
        self.address = node.addresses.get(role_name, "")
        self.engine: SimulatedEngine | None = None
        self.start()

    def start(self) -> None:
        """The process is born, over the segment as it is."""
        self.generation += 1
        self.fuse.left = 0
        self.arrivals: deque[Arrival] = deque()
        self.refused: list[str] = []
        self.control = FusedControl(self.node.control_map, self.fuse)
        self.desk = Desk(
            self.control,
            self.role_name,
            self.world.timing,
            self.node.own_addresses,
            engines=(self.world.engine,),
            ask_at=lambda *asked: self.world.ask_at(*asked),
            find=lambda address: self.world.find(address),
            forget=lambda endpoint: self.world.forget(endpoint),
        )
        self.records = self.control.inbox(self.role_name)
        self.bell = self.control.bell(self.role_name)
        self.seen = -1
        self.due_ns = 0
        self.role = self._role()

    def _role(self) -> Step:
        encode = self.control.role == Role.ENCODE
        if self.role_name == "bootstrap":
            return Admission(self.desk) if encode else GrantSender(self.desk)
        if self.role_name == "poller":
            return Publisher(self.desk) if encode else StatusReceiver(self.desk)
        worker = self.desk.index - lay.first_worker()
        sums = RowSums(self.node.payload, self.node.geometry) if self.control.verify else None
        if not encode:
            return TargetWorker(self.desk, worker, self.node.begin_session(worker), sums)
        self.engine = self.node.make_engine()
        return TransferWorker(self.desk, worker, {self.world.engine: self.engine}, sums)

    @property
    def connection_prefix(self) -> str:
        return f"{self.name}#{self.generation}>"

    def kill(self, why: str) -> None:
        """The process dies and is started again; what was on its sockets is gone, what is in its rings is not."""
        self.world.note(f"{self.name} KILLED {why}")
        self.world.num_kills += 1
        self._die()

    def _die(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()
        self.world.network.forget(self)
        self.start()

    def is_runnable(self, now_ns: int) -> bool:
        if now_ns < self.stalled_ns:
            return False
        return (
            now_ns >= self.due_ns
            or bool(self.arrivals)
            or bool(self.refused)
            or self.bell.sequence() != self.seen
            or self.records.pending()
        )

    def step(self) -> None:
        world = self.world
        now = world.now_ns
        kill = world.chance(world.faults.kill_role)
        if kill:
            self.fuse.left = world.rng.randint(1, 30)
        self.seen = self.bell.sequence()
        arrivals, refused = list(self.arrivals), self.refused
        self.arrivals.clear()
        self.refused = []
        records = self.records.take()
        if world.tracing and (arrivals or records or refused):
            kicks = " ".join(f"{Kick(r.kick).name}({r.slot}.{r.epoch}){r.value or ''}" for _, r in records)
            came = " ".join(_brief(a.message) for a in arrivals)
            world.note(f"{self.name} step: {kicks} {came} {refused or ''}".rstrip())
        try:
            out = self.role.step(now, Inbox(records, arrivals, refused))
            place = world.rng.random() if self.fuse.left else 1.0
            if place < 0.6:
                world.network.post(self, out[: world.rng.randint(0, len(out))])
                self.kill("before its messages left")
                return
            world.network.post(self, out)
            if place < 0.8:
                self.kill("before it flushed its rings")
                return
            self.fuse.left = 0
            self.desk.flush()
            if place < 1.0:
                self.kill("before it committed its records")
                return
        except Killed:
            self.kill("in the middle of a step")
            return
        except Renew as reason:
            world.note(f"{self.name} begins again: {reason}")
            self.fuse.left = 0
            self.desk.flush()
            self._die()
            return
        self.records.done()
        wait_ns = min(int(world.timing.beat_s * NS), max(0, self.role.next_step_ns(now) - now))
        self.due_ns = now + wait_ns


class ClientActor(Actor):
    """A client's library thread, one turn at a time; the user's calls come from the test's script."""

    def __init__(self, node: SimulatedNode, number: int) -> None:
        super().__init__(node, f"client{number}")
        lane = node.control.lanes.take(1000 + number, self.world.now_ns)
        assert lane is not None
        self.lane = lane
        self.is_dead = False
        self._theirs, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        welcome = Welcome(
            control_bytes=node.control_map.size,
            payload_bytes=node.payload.size,
            lane=lane,
            descriptors=[],
            bootstrap_addr=node.own_addresses.bootstrap_addr,
            request_timeout_s=self.world.timing.request_timeout_s,
            settings=dict(node.settings),
        )
        self.sock = sock
        control = FusedControl(node.control_map, self.fuse)
        self.client = Client.over(control, node.payload, sock, welcome, lambda: self.world.now_ns)
        self.bell = control.bell(f"library{lane}")
        self.seen = -1

    def is_runnable(self, now_ns: int) -> bool:
        if self.is_dead or now_ns < self.stalled_ns:
            return False
        return now_ns >= self.due_ns or self.bell.sequence() != self.seen

    def step(self) -> None:
        self.seen = self.bell.sequence()
        if self.world.chance(self.world.faults.lost_marks):
            self.lose_marks(LIBRARY_VIEW)
        try:
            starving = self.client._turn()
        except Killed:
            self.die()
            return
        self.due_ns = self.world.now_ns + (STARVING_WAIT_NS if starving else LIBRARY_WAIT_NS)

    def lose_marks(self, view: int) -> None:
        """Whoever set these dirty bits died just before, as it were."""
        lease = self.client._lease
        out = np.empty(SLOTS_PER_PAGE * max(len(lease.pages), 1), np.uint32)
        self.node.control.status.changed(view, lease.pages, len(lease.pages), out)

    def call(self, user: Callable[[], None]) -> None:
        """A call of the user's own thread, unless the process is dead."""
        if not self.is_dead:
            try:
                user()
            except Killed:
                self.die()

    def die(self) -> None:
        """The process is gone; the launcher sees it and buries its lane."""
        if self.is_dead:
            return
        self.is_dead = True
        self.fuse.left = 0
        self.world.note(f"{self.name} DIED")
        self.node.bury_lane(self.lane)

    def close(self) -> None:
        self.sock.close()
        self._theirs.close()


class SimulatedNode:
    """One node: its segments, its roles, its clients, and the little that its launcher does."""

    def __init__(
        self,
        world: World,
        name: str,
        role: Role,
        geometry: Geometry,
        *,
        node_id: int,
        incarnation: int = 1,
        limits: Limits = LIMITS,
        settings: dict[str, int] | None = None,
        key: str = "",
    ) -> None:
        self.key = key  # what its connections prove
        self.world = world
        self.name = name
        self.may_leak = False  # a test takes a block on purpose
        self.geometry = geometry
        self.settings = settings or {"host_buffer_bytes": 1 << 30, "default_allocate_tokens": 4 * geometry.block_size}
        self.control_map = segment(ControlLayout.of(role, geometry, limits).size)
        self.payload = segment(PayloadLayout.of(geometry).size)
        format_control(
            self.control_map,
            role,
            geometry,
            limits,
            node_id=node_id,
            incarnation=incarnation,
            now_ns=world.now_ns,
            verify=world.verify,
        )
        self.control = Control(self.control_map)  # the launcher's and the test's own look
        self.control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
        host = ".".join(str(byte) for byte in (10, *zlib.crc32(name.encode()).to_bytes(4, "big")[1:]))
        self.addresses = {"bootstrap": f"tcp://{host}:1", "poller": f"tcp://{host}:2"}
        self.own_addresses = Addresses(self.addresses["bootstrap"], self.addresses["poller"], f"{name}.sock")
        self._recovery = Recovery(self.control, lambda: world.now_ns)
        self.clients: list[ClientActor] = []
        at = self.control.layout
        self._words = np.frombuffer(self.control_map, np.uint64, limits.num_slots, at.words)
        self._seen_words = self._words.copy()
        self._pools = pools(geometry)
        self.make_engine: Callable[[], Any] = lambda: SimulatedEngine(self, late_writes=world.late_writes)
        self._sessions: dict[int, int] = {}  # worker -> the session of its engine
        self.roles = [RoleActor(self, process) for process in self.control.processes.names[1:]]

    @property
    def actors(self) -> list[Actor]:
        return [*self.roles, *self.clients]

    def role(self, name: str) -> RoleActor:
        return next(actor for actor in self.roles if actor.role_name == name)

    def new_client(self) -> Client:
        actor = ClientActor(self, len(self.clients))
        self.clients.append(actor)
        self.world.actors_changed()
        return actor.client

    # ---- the launcher

    def bury_lane(self, lane: int) -> None:
        self._recovery.client_died(lane)

    def writer_gone(self, entry: int) -> None:
        self._recovery.died(Dead.WRITER, entry)

    # ---- its network engines

    def begin_session(self, worker: int) -> LiveSession:
        """The engine of the process that is born now; that of the one before it died with it."""
        if not self.world.late_writes:
            return NO_SESSION
        number = self._sessions[worker] = self.control.sessions.next_number()
        return LiveSession(number, 10_000 + number, number << 32)

    def is_in_session(self, number: int) -> bool:
        return self in self.world.nodes and number in self._sessions.values()

    # ---- what must hold

    def check(self) -> None:
        """P5, D12: words never decrease and terminal ones absorb. Every block that is not free belongs to an open request."""
        changed = np.nonzero(self._words != self._seen_words)[0]
        for slot in changed.tolist():
            old, new = split(int(self._seen_words[slot])), split(int(self._words[slot]))
            assert new > old, f"{self.name}: slot {slot} went from {old} to {new}"
            assert new.epoch > old.epoch or old.phase < 3, f"{self.name}: slot {slot} left its end {old} for {new}"
            released = self.control.slots.get(slot, Slot.RELEASED_EPOCH)
            assert new.epoch == old.epoch or old.epoch in (0, released), f"{self.name}: slot {slot} reused before it was released"
            self._seen_words[slot] = self._words[slot]
            self.world.note(f"{self.name} word {slot}: {new}")
        if self.control.role == Role.ENCODE:
            self._check_watermarks()

    def _check_watermarks(self) -> None:
        slots, destinations = self.control.slots, self.control_destinations
        for slot, _ in self.open_slots():
            ready = slots.get(slot, Slot.READY)
            for d in range(slots.get(slot, Slot.NUM_DESTINATIONS)):
                sent = destinations.get(slot, d, Destination.SENT)
                granted = destinations.get(slot, d, Destination.GRANTED_TOKENS)
                begin = destinations.get(slot, d, Destination.BEGIN)
                may = max(begin, min(ready, granted))
                assert begin <= sent <= may, f"{self.name}: slot {slot}.{d} begin {begin} sent {sent} ready {ready} granted {granted}"

    @functools.cached_property
    def control_destinations(self) -> Any:
        return self.control.destinations

    def check_blocks(self) -> None:
        """Conservation: the states add up, and what is not free is held by a request that has not been released."""
        self.control.blocks.check()
        for block in range(self.geometry.num_blocks):
            state, slot, epoch, _ = self.control.blocks.cells.cell(block)
            if state and not (state == QUARANTINED and self.world.late_writes):
                assert split(self.control.status.load(slot)).epoch == epoch, f"{self.name}: block {block} is of an older epoch"
                released = self.control.slots.get(slot, Slot.RELEASED_EPOCH)
                assert released < epoch or self.may_leak, f"{self.name}: block {block} leaked by slot {slot}.{epoch}"

    def open_slots(self) -> Iterator[tuple[int, int]]:
        for slot in np.nonzero(self._words)[0].tolist():
            epoch = int(self._words[slot]) >> 36
            if self.control.slots.get(slot, Slot.RELEASED_EPOCH) < epoch == self.control.slots.get(slot, Slot.EPOCH):
                yield slot, epoch

    def write(self, to: int, data: bytes) -> None:
        """Bytes of another node land here."""
        for block in self._blocks_at(to, len(data)):
            self._check_write(block, to, data)
        np.frombuffer(self.payload, np.uint8, len(data), to)[:] = np.frombuffer(data, np.uint8)

    def damage(self, at: int) -> None:
        """A byte of the payload is not what was written."""
        self.world.num_damaged += 1
        self.world.note(f"{self.name} byte {at} is damaged")
        np.frombuffer(self.payload, np.uint8, 1, at)[:] ^= 1 << self.world.rng.randrange(8)

    def _check_write(self, block: int, to: int, data: bytes) -> None:
        """P7, B10, D2: they hit only a block that is exposed (or quarantined) for the very request whose rows they are."""
        state, slot, epoch, _ = self.control.blocks.cells.cell(block)
        if state == QUARANTINED and self.world.late_writes:
            return  # that is what it is for
        assert state >= 2, f"{self.name}: a write hit block {block} in state {state}"
        assert split(self.control.status.load(slot)).epoch == epoch, f"{self.name}: a write hit block {block} of an old epoch"
        at = PayloadLayout.of(self.geometry)
        if at.ids <= to < at.aux:
            self._check_rows(slot, block, (to - at.ids) // 4, np.frombuffer(data, np.int32).tolist())

    def _blocks_at(self, to: int, size: int) -> Iterator[int]:
        aux = aux_offset(self.geometry, 0)
        if to >= aux:
            yield (to - aux) // (4 * AUX_WORDS)
            return
        pool = next(p for p in sorted(self._pools, key=lambda p: p.offset, reverse=True) if p.offset <= to)
        block_bytes = pool.row_bytes * self.geometry.block_size
        yield from range((to - pool.offset) // block_bytes, (to + size - 1 - pool.offset) // block_bytes + 1)

    def _check_rows(self, slot: int, block: int, first: int, ids: list[int]) -> None:
        """The ids say whose rows these are, and which: they belong exactly there."""
        room, bs = self.control.slots.get(slot, Slot.ROOM), self.geometry.block_size
        for place, value in enumerate(ids, first):
            if place // bs != block:
                continue
            assert value // ROWS_A_ROOM == room, f"{self.name}: a row of room {value // ROWS_A_ROOM} in a block of room {room}"
            row = value % ROWS_A_ROOM
            assert row % bs == place % bs, f"{self.name}: row {row} of room {room} at place {place % bs} of block {block}"
            held = self.control_windows.get(slot, row // bs)
            is_drained = row // bs < self.control.slots.get(slot, Slot.DRAINED_BLOCKS)  # only a late write comes then
            assert is_drained or held == block, f"{self.name}: row {row} of room {room} in block {block}, its block is {held}"

    @functools.cached_property
    def control_windows(self) -> Any:
        return self.control.windows

    def close(self) -> None:
        for client in self.clients:
            client.close()


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities: of a message, of a step, of an attempt."""

    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    delay_ms: int = 50
    kill_role: float = 0.0
    stall: float = 0.0
    failed_attempt: float = 0.0
    slow_attempt: float = 0.5
    damage: float = 0.0  # of a byte of what an engine writes
    lost_marks: float = 0.0  # of a turn of a library thread: the dirty bits that it would take are gone, and not the bell


@dataclass(order=True)
class Flight:
    """A message on its way."""

    due_ns: int
    number: int
    target: str = field(compare=False)  # an address, or a connection
    data: bytes = field(compare=False)
    origin: str = field(compare=False)  # "" or the connection on which it travels
    address: str = field(compare=False)  # where the connection leads


class Network:
    """Carries encoded messages between roles; the seed says how badly."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._flights: list[Flight] = []
        self._number = 0
        self._lines: dict[str, set[str]] = {}  # address -> connections to it
        self.cut: set[tuple[str, str]] = set()  # (from, to): names of nodes; nothing goes that way
        self.num_delivered = 0

    def post(self, actor: RoleActor, out: list[Out]) -> None:
        for item in out:
            match item:
                case Send(address, message):
                    connection = actor.connection_prefix + address
                    self._lines.setdefault(address, set()).add(connection)
                    self._launch(actor, address, message, connection, address)
                case Reply(connection, message):
                    self._launch(actor, connection.decode(), message, "", actor.address)
                case Disconnect(address):
                    connection = actor.connection_prefix + address
                    self._lines.get(address, set()).discard(connection)
                    self._flights = [f for f in self._flights if f.origin != connection]
                    heapq.heapify(self._flights)

    def _launch(self, actor: RoleActor, target: str, message: msg.Message, origin: str, address: str) -> None:
        world, faults = self._world, self._world.faults
        if world.chance(faults.lost):
            world.note(f"network LOST {_brief(message)}")
            return
        data = msg.encode(message)
        for _ in range(1 + world.chance(faults.doubled)):
            delay_ns = world.rng.randint(50_000, 300_000)
            if world.chance(faults.delayed):
                delay_ns += world.rng.randint(0, faults.delay_ms * MS)
            self._number += 1
            heapq.heappush(self._flights, Flight(world.now_ns + delay_ns, self._number, target, data, origin, address))

    def next_due_ns(self) -> int | None:
        return self._flights[0].due_ns if self._flights else None

    def deliver(self, now_ns: int) -> None:
        while self._flights and self._flights[0].due_ns <= now_ns:
            self._deliver(heapq.heappop(self._flights))

    def _deliver(self, flight: Flight) -> None:
        world = self._world
        message = msg.decode(flight.data, flight.address)
        if flight.origin:
            target, sender = world.role_at(flight.address), world.role_of(flight.origin)
            if target is None:
                if sender is not None:
                    sender.refused.append(flight.address)
                return
            if sender is not None and self._is_cut(sender, target):
                return
            key = sender.node.key if sender is not None else ""
            target.arrivals.append(Arrival(message, flight.origin.encode(), None, key))
        else:
            target = world.role_of(flight.target)
            sender = world.role_at(flight.address)
            if target is None or sender is None or self._is_cut(sender, target):
                return
            if flight.target not in self._lines.get(flight.address, ()):
                return
            target.arrivals.append(Arrival(message, None, flight.address, sender.node.key))
        self.num_delivered += 1

    def _is_cut(self, sender: RoleActor, target: RoleActor) -> bool:
        return (sender.node.name, target.node.name) in self.cut

    def forget(self, actor: RoleActor) -> None:
        """A process died: its connections end, and about half of what was on the way to or from it with them."""
        world, prefix = self._world, actor.connection_prefix
        keep = []
        for flight in self._flights:
            ours = flight.target == actor.address or flight.origin.startswith(prefix) or flight.target.startswith(prefix)
            if not ours or world.chance(0.5):
                keep.append(flight)
        self._flights = keep
        heapq.heapify(self._flights)
        for lines in self._lines.values():
            lines.difference_update([line for line in lines if line.startswith(prefix)])

    def node_closed(self, node: SimulatedNode) -> None:
        """Its ports are closed: everybody who was connected is refused."""
        for address in node.addresses.values():
            for connection in sorted(self._lines.pop(address, ())):
                actor = self._world.role_of(connection)
                if actor is not None:
                    actor.refused.append(address)


class World:
    """The nodes, the clock, the seed, the faults, and what has happened."""

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        timing: Timing = TIMING,
        late_writes: bool = False,
        verify: bool = False,
        trace_length: int = 300,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.timing = timing
        self.late_writes = late_writes
        self.engine = Engine.MOONCAKE if late_writes else Engine.SHM
        self.late: list[Late] = []
        self.num_late = 0
        self.verify = verify
        self.num_damaged = 0
        self.now_ns = 1000 * NS
        self.started_ns = self.now_ns
        self.nodes: list[SimulatedNode] = []
        self.network = Network(self)
        self.trace: deque[str] = deque(maxlen=trace_length)
        self.tracing = trace_length > 0
        self.num_steps = 0
        self.num_kills = 0
        self._script: list[tuple[int, int, str, Callable[[], None]]] = []
        self._script_number = 0
        self._actors: list[Actor] = []

    # ---- what tests build with

    def node(self, name: str, role: Role, geometry: Geometry, **options: Any) -> SimulatedNode:
        node = SimulatedNode(self, name, role, geometry, **options)
        self.nodes.append(node)
        self.actors_changed()
        return node

    def close_node(self, node: SimulatedNode) -> None:
        """Every process of it is gone at once, its sockets with them."""
        self.note(f"{node.name} GONE")
        self.nodes.remove(node)
        for actor in node.roles:
            self.network.forget(actor)
            if actor.engine is not None:
                actor.engine.shutdown()
        node.close()
        self.actors_changed()
        self.network.node_closed(node)

    def at(self, when_ns: int, label: str, call: Callable[[], None]) -> None:
        """Do something at a time; the calls of one time come in the order in which they were asked for."""
        self._script_number += 1
        heapq.heappush(self._script, (when_ns, self._script_number, label, call))

    def after(self, delay_s: float, label: str, call: Callable[[], None]) -> None:
        self.at(self.now_ns + int(delay_s * NS), label, call)

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def note(self, text: str) -> None:
        if self.tracing:
            self.trace.append(f"{(self.now_ns - self.started_ns) / NS:10.6f} {text}")

    def actors_changed(self) -> None:
        self._actors = [actor for node in self.nodes for actor in node.actors]

    def node_at(self, run_socket: str) -> SimulatedNode | None:
        return next((node for node in self.nodes if node.own_addresses.run_socket == run_socket), None)

    def find(self, address: str) -> Found | None:
        """What has come of a name."""
        raise AssertionError(f"{address} holds a name; nodes of a world have numbers")

    def forget(self, endpoint: str) -> None:
        """Nobody answers there; no name has led there."""

    def ask_at(self, run_socket: str, node_id: int, incarnation: int) -> Any:
        """Which node listens there, and is it this one? In time the answer is there."""
        node = self.node_at(run_socket)
        if node is None:
            return Answered("its run socket does not answer here")
        is_meant = (node.control.node_id, node.control.incarnation) == (node_id, incarnation)
        return Answered("" if is_meant else "another node answers at its run socket here", lambda: self.chance(0.3))

    def role_at(self, address: str) -> RoleActor | None:
        return next((a for node in self.nodes for a in node.roles if a.address == address), None)

    def role_of(self, connection: str) -> RoleActor | None:
        prefix = connection.split(">", 1)[0] + ">"
        return next((a for node in self.nodes for a in node.roles if a.connection_prefix == prefix), None)

    # ---- running

    def run(self, done: Callable[[], bool], *, limit_s: float, max_steps: int = 400_000) -> None:
        """Until `done`. Raises AssertionError, with the end of the trace, when something is wrong or it takes too long."""
        end_ns = self.now_ns + int(limit_s * NS)

        def until_done() -> None:
            while not done():
                assert self.now_ns < end_ns, f"not done within {limit_s} s: {self.describe()}"
                assert self.num_steps < max_steps, f"not done within {max_steps} steps: {self.describe()}"
                self.turn()

        self.checked(until_done)

    def checked(self, call: Callable[[], None]) -> None:
        """What goes wrong in it comes with the seed and the end of the trace."""
        try:
            call()
        except Exception as error:
            tail = "\n".join(self.trace)
            raise AssertionError(f"{tail}\nseed {self.seed}: {type(error).__name__}: {error}") from error

    def turn(self) -> None:
        """One step of somebody who can make one, or the clock jumps."""
        now = self.now_ns
        while self._script and self._script[0][0] <= now:
            _, _, label, call = heapq.heappop(self._script)
            if label:
                self.note(f"script: {label}")
            call()
        self.network.deliver(now)
        if self.late and self.rng.random() < 0.02:
            late = self.late.pop(self.rng.randrange(len(self.late)))
            if late.target.is_in_session(late.session):
                self.num_late += 1
                self.note(f"a late write lands in {late.target.name}")
                late.target.write(late.to, late.data if late.engine is None else late.engine.read(late.start, late.size))
        runnable = [actor for actor in self._actors if actor.is_runnable(now)]
        if not runnable:
            self.now_ns = max(now + 1, self._next_ns())
            return
        actor = self.rng.choice(runnable)
        if self.chance(self.faults.stall):
            actor.stalled_ns = now + self.rng.randint(MS, 700 * MS)
            self.note(f"{actor.name} stalls")
            return
        self.num_steps += 1
        actor.step()
        self.now_ns += self.rng.randint(2_000, 60_000)
        self.check()

    def _next_ns(self) -> int:
        times = [max(actor.due_ns, actor.stalled_ns) for actor in self._actors if not getattr(actor, "is_dead", False)]
        times += [actor.stalled_ns for actor in self._actors if actor.stalled_ns > self.now_ns]
        due = self.network.next_due_ns()
        if due is not None:
            times.append(due)
        if self._script:
            times.append(self._script[0][0])
        return min(times)

    def check(self) -> None:
        for node in self.nodes:
            node.check()
            node.check_blocks()

    def is_clean(self) -> bool:
        """All blocks free and all slots released, on every node."""
        return all(
            node.control.blocks.cells.num_free(node.geometry.num_blocks) == node.geometry.num_blocks
            and not any(True for _ in node.open_slots())
            for node in self.nodes
        )

    def describe(self) -> str:
        """What is still open, for people."""
        lines = [f"at {(self.now_ns - self.started_ns) / NS:.3f} s after {self.num_steps} steps, {self.num_kills} kills"]
        for node in self.nodes:
            slots = node.control.slots
            lines.append(f"{node.name}: {node.control.blocks.counts()} lanes {_lanes(node)}")
            for slot, epoch in node.open_slots():
                words = {f.name: slots.get(slot, f) for f in Slot if slots.get(slot, f)}
                lines.append(f"  slot {slot}.{epoch} {split(node.control.status.load(slot))} {words} {slots.reason(slot)!r}")
                if node.control.role == Role.ENCODE:
                    for d in range(slots.get(slot, Slot.NUM_DESTINATIONS)):
                        get = node.control_destinations.get
                        lines.append(f"    {d}: " + str({f.name: get(slot, d, f) for f in Destination if get(slot, d, f)}))
        return "\n".join(lines)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _lanes(node: SimulatedNode) -> str:
    lanes = node.control.lanes
    return str([lanes.get(lane, Lane.STATE) for lane in range(lanes.num_lanes)])


def _brief(message: msg.Message | msg.Foreign) -> str:
    kind = type(message).__name__
    match message:
        case msg.Init() | msg.Resume():
            key = message.key
            return f"{kind}({key.slot}.{key.epoch} {message.first_block}+{message.dst_embedding_indices}={message.allocated_tokens})"
        case msg.Status(room=room):
            return f"{kind}({room.key.slot}.{room.key.epoch} {room.phase} sent {room.sent_tokens} known {room.known_blocks})"
        case msg.Heartbeat(rooms=rooms):
            return f"{kind}({[(r.key.slot, r.key.epoch, r.phase, r.sent_tokens) for r in rooms]})"
    about: msg.RequestKey | None = getattr(message, "key", None)
    return f"{kind}({about.slot}.{about.epoch})" if about is not None else kind
