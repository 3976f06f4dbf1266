"""The nodes under one clock and one seed, and who of their processes takes the next step."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.records import Destination, Lane, Slot
from embridge.allocator.status import split
from embridge.workers.addresses import Found
from embridge.workers.engine_kind import EngineKind
from embridge.workers.timing import NS, Timing
from embridge.workers.transfer.engines.mooncake import MOONCAKE
from embridge.workers.transfer.engines.shm import SHARED_MEMORY
from support.simulation.engine import Late
from support.simulation.network import Network
from support.simulation.node import SimulatedNode
from support.simulation.processes import Actor, Answered, ClientActor, RoleActor
from support.simulation.settings import MS, TIMING, Faults

MOST_PAUSED: Final = 2
LATE_NS: Final = (50 * MS, NS, 10 * NS)
PAUSES_NS: Final = (MS // 10, MS, 5 * MS, 50 * MS, 1500 * MS)


class Broken(BaseException):
    """What must hold does not, in the middle of somebody's step: its cause says what."""


class World:
    """The nodes, the clock, the seed, the faults, and what has happened."""

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        timing: Timing = TIMING,
        late_writes: bool = False,
        engine: EngineKind | None = None,
        engines: tuple[EngineKind, ...] = (),
        verify: bool = False,
        is_direct: bool = False,
        trace_length: int = 300,
    ) -> None:
        """`engine` is the one through which rows travel; `engines`, if there are more, are all that a node offers.

        `is_direct`: encoders write rows themselves, where the nodes have one language node of this host.
        """
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.timing = timing
        self.engine = engine or (MOONCAKE if late_writes else SHARED_MEMORY)
        self.engines = engines or (self.engine,)
        self.late_writes = self.engine.has_sessions
        self.late: list[Late] = []
        self.num_late = 0
        self.verify = verify
        self.is_direct = is_direct
        self.late_ns = self.rng.choice(LATE_NS) if is_direct else 0  # when clients tell their nodes of requests
        self.num_untold = 0  # requests of which a node was never told
        self._num_paused = 0  # processes in the middle of a step, one within the other
        self.num_damaged = 0
        self.num_landed = 0  # pieces of rows that clients have written directly
        self.num_revoked = 0  # of them, under a claim that was revoked meanwhile
        self.num_writers_killed = 0
        self.num_given_up = 0  # requests that were whole
        self.give_up: Callable[[SimulatedNode, int], None] = lambda node, slot: None
        """Have a request aborted by its scheduler, by its slot."""
        self.now_ns = 1000 * NS
        self.started_ns = self.now_ns
        self.nodes: list[SimulatedNode] = []
        self.orphans: list[ClientActor] = []  # clients that have outlived their node
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
        for client in node.clients:
            if client.is_dead:
                client.end_doors()
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
        self._actors = [*(actor for node in self.nodes for actor in node.actors), *self.orphans]

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
        """Until `done`. Raises AssertionError, with the end of the trace, when something is wrong or it takes
        too long.
        """
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
        except (Exception, Broken) as found:
            error = found.__cause__ if isinstance(found, Broken) else found
            tail = "\n".join(self.trace)
            raise AssertionError(f"{tail}\nseed {self.seed}: {type(error).__name__}: {error}") from error

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """What goes wrong in it is found by whoever runs the world, whatever product code stands between."""
        try:
            yield
        except Exception as error:
            raise Broken from error

    def pause(self) -> None:
        """Let others go on between two steps of a process, for a moment or long, if the seed says so."""
        if self._num_paused >= MOST_PAUSED or not self.chance(self.faults.pause):
            return
        until_ns = self.now_ns + self.rng.choice(PAUSES_NS)
        self.note(f"a writer pauses for {(until_ns - self.now_ns) / MS:g} ms")
        self._num_paused += 1
        try:
            with self.insisting():
                while self.now_ns < until_ns:
                    self.turn()
        finally:
            self._num_paused -= 1

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
                late.target.write(
                    late.to, late.data if late.engine is None else late.engine.read(late.start, late.size)
                )
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
        awake = [actor for actor in self._actors if not getattr(actor, "is_dead", False) and not actor.is_busy]
        times = [max(actor.due_ns, actor.stalled_ns) for actor in awake]
        times += [actor.stalled_ns for actor in self._actors if actor.stalled_ns > self.now_ns]
        due = self.network.next_due_ns()
        if due is not None:
            times.append(due)
        if self._script:
            times.append(self._script[0][0])
        return min(times)

    def check(self) -> None:
        for node in self.nodes:
            node.check_if_changed()

    def is_clean(self) -> bool:
        """All blocks free and all slots released, on every node."""
        return all(
            node.control.blocks.cells.num_free(node.geometry.num_blocks) == node.geometry.num_blocks
            and not any(True for _ in node.open_slots())
            and not node.num_posts()
            for node in self.nodes
        )

    def describe(self) -> str:
        """What is still open, for people."""
        lines = [
            f"at {(self.now_ns - self.started_ns) / NS:.3f} s after {self.num_steps} steps, {self.num_kills} kills"
        ]
        for node in self.nodes:
            slots = node.control.slots
            lines.append(f"{node.name}: {node.control.blocks.counts()} lanes {_lanes(node)}")
            for slot, epoch in node.open_slots():
                words = {f.name: slots.get(slot, f) for f in Slot if slots.get(slot, f)}
                lines.append(
                    f"  slot {slot}.{epoch} {split(node.control.status.load(slot))} {words} {slots.reason(slot)!r}"
                )
                if node.control.role == Role.ENCODE:
                    for d in range(slots.get(slot, Slot.NUM_DESTINATIONS)):
                        get = node.control_destinations.get
                        lines.append(
                            f"    {d}: " + str({f.name: get(slot, d, f) for f in Destination if get(slot, d, f)})
                        )
        return "\n".join(lines)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _lanes(node: SimulatedNode) -> str:
    lanes = node.control.lanes
    return str([lanes.get(lane, Lane.STATE) for lane in range(lanes.num_lanes)])
