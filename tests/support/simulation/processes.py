"""Who takes steps: the roles of a node, each as its loop has it, and the library threads of its clients."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embridge.allocator import layout as lay
from embridge.allocator.checksums import RowSums
from embridge.allocator.geometry import SLOTS_PER_PAGE, Role
from embridge.allocator.records import LIBRARY_VIEW, Process
from embridge.allocator.rings import Kick
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.client.doors import Doors
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.refusals import Refusals
from embridge.workers.bootstrap.encode import Admission
from embridge.workers.bootstrap.language import GrantSender
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.language import StatusReceiver
from embridge.workers.role import Arrival, Inbox, Renew, RoleContext, Step
from embridge.workers.run_socket import Welcome
from embridge.workers.timing import NS
from embridge.workers.transfer.encode import TransferWorker
from embridge.workers.transfer.language import LanguageTransferWorker
from support.simulation.doors import Line, SimulatedKnock
from support.simulation.engine import SimulatedEngine
from support.simulation.fuse import Fuse, FusedControl, Guarded, Killed
from support.simulation.network import brief
from support.simulation.settings import MS

if TYPE_CHECKING:
    from support.simulation.node import SimulatedNode

LIBRARY_WAIT_NS, STARVING_WAIT_NS = 100 * MS, 5 * MS


class NoRefusals(Refusals):
    """No host of a simulation refuses a connection: there is none to be had."""

    def is_refused(self, address: str, now_ns: int) -> bool:
        return False


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
        self.is_busy = False  # in the middle of a step, while others go on

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
        self.fuse.is_blown = False
        self.arrivals: deque[Arrival] = deque()
        self.refused: list[str] = []
        self.control = FusedControl(self.node.control_map, self.fuse)
        self.ctx = RoleContext(
            self.control,
            self.role_name,
            self.world.timing,
            self.node.own_addresses,
            engines=self.world.engines,
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
            return Admission(self.ctx, self.node.shelf) if encode else GrantSender(self.ctx)
        if self.role_name == "poller":
            return Publisher(self.ctx) if encode else StatusReceiver(self.ctx)
        worker = self.ctx.index - lay.first_worker()
        sums = RowSums(self.node.payload, self.node.geometry, self.node.shelf) if self.control.verify else None
        if not encode:
            return LanguageTransferWorker(self.ctx, worker, self.node.begin_session(worker), sums)
        writers = self.node.make_writers()
        self.engine = writers[self.world.engine.number]
        return TransferWorker(self.ctx, worker, writers, sums)

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
        self.node.graves.append(self.role)  # what it held in native objects is not given back by its death
        self.world.network.forget(self)
        processes = self.node.control.processes
        restarts = processes.get(self.role_name, Process.NUM_RESTARTS)
        processes.set(self.role_name, Process.NUM_RESTARTS, restarts + 1)
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
            came = " ".join(brief(a.message) for a in arrivals)
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
            self.ctx.flush()
            if place < 1.0:
                self.kill("before it committed its records")
                return
        except Killed:
            self.kill("in the middle of a step")
            return
        except Renew as reason:
            world.note(f"{self.name} begins again: {reason}")
            self.fuse.left = 0
            self.ctx.flush()
            self._die()
            return
        self.records.done()
        wait_ns = min(int(world.timing.beat_s * NS), max(0, self.role.next_step_ns(now) - now))
        self.due_ns = now + wait_ns


class ClientActor(Actor):
    """A client's library thread, one turn at a time; the user's calls come from the test's script.

    Where a world is `direct`, an encoder's client has doors. In the middle of a direct write others go on, the other
    thread of this client, too.
    """

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
        attachment = Attachment(
            Path(), control, node.payload, sock, welcome, lambda: self.world.now_ns, event_fds={}, owns_memory=False,
            shelf=node.shelf,
        )
        library = Library(attachment)
        self.lines: list[Line] = []  # of its doors
        self.num_writing = 0  # threads that write through one
        self._calls: deque[Callable[[], None]] = deque()
        self._is_calling = False
        if self.world.is_direct and control.role == Role.ENCODE:
            library.doors = Doors(attachment, partial(SimulatedKnock, self))
            self.fuse.pause = self._between
        if control.role == Role.ENCODE:
            library.requests._opener = Guarded(library.requests._opener, self.fuse, "open")  # type: ignore[assignment]
        if self.world.is_direct:
            library.requests.untold.late_ns = self.world.late_ns
        self.client: Client = Client(library)
        if control.role == Role.LANGUAGE:
            self.client._all_fetches()._refusals = NoRefusals()
        self.bell = control.bell(f"library{lane}")
        self.seen = -1

    def is_runnable(self, now_ns: int) -> bool:
        if self.is_dead or self.is_busy or now_ns < self.stalled_ns:
            return False
        return now_ns >= self.due_ns or self.bell.sequence() != self.seen

    def _between(self) -> None:
        """Let others go on between two steps of a direct write, or let it be the last."""
        if self.num_writing and not self.is_dead:
            if self.world.chance(self.world.faults.kill_writer):
                self.world.num_writers_killed += 1
                self.fuse.left = 1
                return
            self.world.pause()
        if self.is_dead:
            raise Killed

    def step(self) -> None:
        self.seen = self.bell.sequence()
        if self.world.chance(self.world.faults.lost_marks):
            self.lose_marks(LIBRARY_VIEW)
        self.is_busy = True
        try:
            starving = library_of(self.client).turn()
        except Killed:
            self.die()
            return
        except Exception:
            if not self.fuse.is_blown:
                raise
            self.die()
            return
        finally:
            self.is_busy = False
        wait_s = (STARVING_WAIT_NS if starving else LIBRARY_WAIT_NS) / NS
        wait_s = library_of(self.client).requests.untold.wait_s(wait_s)
        self.due_ns = self.world.now_ns + int(wait_s * NS)

    def lose_marks(self, view: int) -> None:
        """Whoever set these dirty bits died just before, as it were."""
        lease = library_of(self.client).requests.lease
        out = np.empty(SLOTS_PER_PAGE * max(len(lease.pages), 1), np.uint32)
        self.node.control.status.changed(view, lease.pages, len(lease.pages), out)

    def call(self, user: Callable[[], None]) -> None:
        """A call of the user's own thread, unless the process is dead: one after the other."""
        self._calls.append(user)
        if self._is_calling:  # it is in the middle of one, and others go on
            return
        self._is_calling = True
        try:
            while self._calls and not self.is_dead:
                self._calls.popleft()()
        except Killed:
            self.die()
        except Exception:
            if not self.fuse.is_blown:  # else nobody hears of it: it is dead
                raise
            self.die()
        finally:
            self._is_calling = False

    def call_beside(self, user: Callable[[], None]) -> None:
        """A call of another thread of the user's, which may come in the middle of one."""
        try:
            if not self.is_dead:
                user()
        except Killed:
            self.die()

    def die(self) -> None:
        """The process is gone; the launcher sees it and buries its lane."""
        if self.is_dead:
            return
        self.is_dead = True
        self.fuse.left, self.fuse.is_blown = 0, True
        self.world.note(f"{self.name} DIED")
        self.node.bury_lane(self.lane)
        self.end_doors()

    def end_doors(self) -> None:
        """The process is gone: the launchers that have let it in see that, each at its time."""
        for line in self.lines:
            line.close()

    def close(self) -> None:
        self.sock.close()
        self._theirs.close()
