"""What whole nodes are given to do in a simulation: clients, rooms, rows, and one kind of disturbance, all drawn by the
seed; and how each request has to end. `retries` has the one kind that needs more than this.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Lane, LaneState
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers.timing import NS
from support.simulation.node import SimulatedNode
from support.simulation.rooms import Rooms, Transfer
from support.simulation.settings import Faults
from support.simulation.world import World

LIMIT_S = 400.0

CALM = Faults()
LOSSY = Faults(lost=0.15, doubled=0.15, delayed=0.3, failed_attempt=0.1)
DEADLY = Faults(lost=0.05, doubled=0.1, delayed=0.2, kill_role=0.01, stall=0.003, failed_attempt=0.1)
FAULTS = {"calm": CALM, "lossy": LOSSY, "deadly": DEADLY}
PAUSE, PAUSE_OFTEN, KILL_WRITER, GIVE_UP = 0.1, 0.4, 0.05, 0.1
DISTURBANCES = ("none", "aborts", "absences", "clients", "nodes", "cuts", "retries")
# Retries come last, so that the others keep their seeds.
MIXTURES = sorted(itertools.product(FAULTS, DISTURBANCES), key=lambda mixture: mixture[1] == "retries")
DIRECT_MIXTURES = list(itertools.product(FAULTS, (*DISTURBANCES, "writers", "near", "several")))
ENGINES = ("shm", "network")


def is_in_every_run(faults: str, disturbance: str) -> bool:
    """Half of all mixtures, with each kind of faults and each disturbance; a storm has all of them."""
    number = DIRECT_MIXTURES.index((faults, disturbance))
    num_disturbances = len(DIRECT_MIXTURES) // len(FAULTS)
    return (number // num_disturbances + number % num_disturbances) % 2 == 0


class Scenario(Rooms):
    """Nodes, clients and rooms, drawn by the seed, and one kind of disturbance."""

    def __init__(self, world: World, disturbance: str) -> None:
        super().__init__(world, disturbance)
        rng = self.rng
        now = world.now_ns
        if self.is_near:
            self._plan(now)  # the nodes register, and doors are opened
            now += 2 * NS
        for _ in range(rng.randint(*((4, 8) if self.is_dense else (1, 6)))):
            self._plan(now + rng.randint(0, NS // 5 if self.is_dense else NS), disturbance)
        getattr(self, f"_plan_{disturbance}")()

    # ---- what disturbs them

    def _soon(self) -> int:
        return self.world.now_ns + self.rng.randint(NS // 10, NS if self.is_dense else 2 * NS)

    def _plan_none(self) -> None:
        pass

    _plan_absences = _plan_none

    def _plan_aborts(self) -> None:
        for transfer in self.transfers:
            if self.rng.random() < 0.6:
                transfer.may_fail = True
                for _ in range(self.rng.randint(1, 2)):
                    side = self.rng.randint(-1, self.num_languages - 1)
                    label = f"party {side} aborts room {transfer.room}"
                    self.world.at(self._soon(), label, partial(self._abort, transfer, side))

    def _abort(self, transfer: Transfer, side: int) -> None:
        if side < 0 and transfer.sender is not None and transfer.encoder is not None:
            transfer.encoder.call_beside(transfer.sender.abort)
        elif 0 <= side < len(transfer.requests):
            request = transfer.requests[side]
            transfer.owners[request].actor.call_beside(request.abort)

    def _plan_clients(self) -> None:
        """One client dies, at any change of shared memory that it makes; another one takes its seat."""
        for transfer in self.transfers:
            transfer.may_fail, transfer.timeout_s = True, self.rng.uniform(2.0, 12.0)
        when = self._soon()
        if self.rng.random() < 0.5:
            self.world.at(when, "an encoder dies", self._encoder_dies)
        else:
            self.world.at(when, "a scheduler dies", self._scheduler_dies)
        for _ in range(2):
            self._plan(when + 3 * NS)

    def _encoder_dies(self) -> None:
        victim = self.rng.choice(self.encoders)
        victim.fuse.left = self.rng.randint(1, 60)
        self.world.after(1.0, "it is dead by now", victim.die)
        if len(self.encode.clients) == 1:
            self.world.after(2.5, "another encoder", lambda: self.encoders.append(self._client(self.encode)))

    def _scheduler_dies(self) -> None:
        i = self.rng.randrange(len(self.schedulers))
        victim = self.schedulers[i]
        victim.actor.fuse.left = self.rng.randint(1, 60)

        def follow() -> None:
            self.schedulers[i] = self._attend(victim.node)

        self.world.after(1.0, "it is dead by now", victim.actor.die)
        self.world.after(2.5, "another scheduler", follow)

    def _plan_writers(self) -> None:
        """Encoders die in the middle of direct writes, and requests are aborted meanwhile; others take their seats."""
        for transfer in self.transfers:
            transfer.may_fail, transfer.timeout_s = True, self.rng.uniform(1.0, 3.0)
        self._plan_aborts()
        self._reseat()
        self.world.faults = replace(self.world.faults, pause=PAUSE_OFTEN, kill_writer=KILL_WRITER)
        when = self._soon() + NS // 2
        self.world.at(when, "no writer dies any more", self._spare_writers)
        for _ in range(2):
            self._plan(when + 3 * NS)

    def _plan_several(self) -> None:
        """Rooms of two destinations, which may fail while one of them has all rows and the other has not."""
        if self.rng.random() < 0.8:
            self._plan_writers()
            self.world.faults = replace(self.world.faults, give_up=GIVE_UP)
            self.world.give_up = self._give_up

    def _give_up(self, node: SimulatedNode, slot: int) -> None:
        for scheduler in self.schedulers:
            transfers = self.transfers if scheduler.node is node else []
            for transfer, request in [(t, r) for t in transfers for r in t.requests if t.owners[r] is scheduler]:
                if request.receiver is not None and request.receiver.slot == slot and transfer.may_fail:
                    self.world.note(f"room {transfer.room} is given up when it is whole")
                    scheduler.actor.call_beside(request.abort)

    def _plan_near(self) -> None:
        """Requests of which their nodes need not hear; some are aborted, a client dies, a node goes, or nothing."""
        amiss = self.rng.choice(("nothing", "aborts", "writers", "clients", "nodes"))
        for transfer in self.transfers:
            transfer.gap_ns = NS // 100
            if amiss != "nothing":
                transfer.may_fail, transfer.timeout_s = True, self.rng.uniform(1.0, 3.0)
        if amiss == "aborts":
            self._plan_aborts()
        elif amiss == "writers":
            self.world.faults = replace(self.world.faults, pause=PAUSE_OFTEN, kill_writer=KILL_WRITER)
            self.world.after(4.0, "no writer dies any more", self._spare_writers)
            self._reseat()
        elif amiss == "clients":
            dies = self.rng.choice((self._encoder_dies, self._scheduler_dies))
            self.world.after(2.0 + self.rng.uniform(0.0, 0.3), "a client dies", dies)
        elif amiss == "nodes":
            self.world.after(2.0 + self.rng.uniform(0.0, 0.3), "a node goes", self._node_goes)
        for _ in range(3):
            self._plan(self.world.now_ns + 16 * NS)

    def _spare_writers(self) -> None:
        self.world.faults = replace(self.world.faults, pause=PAUSE, kill_writer=0.0)

    def _reseat(self) -> None:
        """For each encoder that has died another one, as soon as there is a lane for it."""
        lanes = self.encode.control.lanes
        for i, actor in enumerate(self.encoders):
            is_free = any(lanes.get(lane, Lane.STATE) == LaneState.FREE for lane in range(lanes.num_lanes))
            if actor.is_dead and is_free:
                self.encoders[i] = self._client(self.encode)
        self.world.after(0.5, "", self._reseat)

    def _plan_nodes(self) -> None:
        """A node goes, all at once, and comes back at the same address as another incarnation."""
        for transfer in self.transfers:
            transfer.may_fail, transfer.timeout_s = True, self.rng.uniform(2.0, 12.0)
        when = self._soon()
        self.world.at(when, "a node goes", self._node_goes)
        for _ in range(2):
            self._plan(when + 12 * NS)

    def _node_goes(self) -> None:
        i = self.rng.randint(-1, self.num_languages - 1)
        node = self.encode if i < 0 else self.schedulers[i].node
        for actor in node.clients:
            if self.world.is_direct and i < 0 and self.rng.random() < 0.5:
                self.world.orphans.append(actor)
            else:
                actor.is_dead = True
        self.world.close_node(node)

        def back() -> None:
            if i < 0:
                self.encode = self._encode_node(2)
                self.encoders = [self._client(self.encode)]
            else:
                self.schedulers[i] = self._scheduler(i, 2)

        self.world.after(self.rng.uniform(0.0, 10.0), "it comes back", back)

    def _plan_cuts(self) -> None:
        """Messages go one way only, or neither, for some seconds; both sides may or may not take that for death."""
        for transfer in self.transfers:
            transfer.may_fail, transfer.timeout_s = True, self.rng.uniform(2.0, 12.0)
        language = f"language{self.rng.randrange(self.num_languages)}"
        both = {("encode", language), (language, "encode")}
        cut = both if self.rng.random() < 0.4 else {self.rng.choice(sorted(both))}
        when = self._soon()
        length_ns = self.rng.randint(2 * NS, 9 * NS)
        self.world.at(when, f"cut {sorted(cut)}", lambda: self.world.network.cut.update(cut))
        self.world.at(when + length_ns, "mended", self.world.network.cut.clear)
        for _ in range(self.rng.randint(0, 4)):
            extra = self._plan(when + self.rng.randint(0, 14 * NS))
            extra.may_fail, extra.timeout_s = True, self.rng.uniform(2.0, 12.0)
        for _ in range(2):
            self._plan(when + length_ns + 14 * NS)

    # ---- how it ended

    def is_done(self) -> bool:
        keeps = any(scheduler.kept and not self._is_lost(scheduler.actor) for scheduler in self.schedulers)
        return self.is_over() and not keeps and self.world.is_clean()

    def run(self) -> None:
        self.world.run(self.is_done, limit_s=LIMIT_S)
        self.world.checked(self._check_end)

    def _has_been_direct(self) -> bool:
        """Whether encoders have written all rows themselves, and both nodes have lived."""
        rows, nodes = self.encode.control.metrics.all(), self.world.nodes
        is_lost = len(nodes) != 1 + self.num_languages or any(node.control.incarnation > 1 for node in nodes)
        return not is_lost and not any(row["tokens_written"] for name, row in rows.items() if name != "clients")

    def _check_end(self) -> None:
        for transfer in self.transfers:
            sender = transfer.sender
            if not transfer.may_fail:
                assert list(transfer.outcomes.values()) == ["Success"] * self.num_languages, transfer
            if sender is None or self._is_lost(transfer.encoder):
                continue
            if "Success" in transfer.outcomes.values():
                assert sender.poll() == Phase.Success, transfer
            if sender.poll() == Phase.Success and self._has_been_direct():
                assert {*transfer.outcomes.values()} <= {"Success"}, transfer  # R36
            if sender.poll() == Phase.Failed:
                failure = sender.failure_exception()
                assert failure is not None
                assert str(failure)
                assert failure.code != FailureCode.INTERNAL, failure
        for scheduler in self.schedulers:
            if not scheduler.actor.is_dead:
                library_of(scheduler.actor.client).turn()
                assert scheduler.queue.memory.reserved_bytes == 0


def run_seed(
    seed: int,
    faults: str,
    disturbance: str = "none",
    engine: str = "shm",
    *,
    verify: bool = False,
    scenario: type[Scenario] = Scenario,
) -> World:
    """One run; `engine` is shm, network, or direct. Raises AssertionError, with the end of its trace."""
    world = World(
        seed,
        faults=replace(FAULTS[faults], pause=PAUSE) if engine == "direct" else FAULTS[faults],
        late_writes=engine == "network",
        is_direct=engine == "direct",
        verify=verify,
    )
    try:
        scenario(world, disturbance).run()
    finally:
        world.close()
    return world
