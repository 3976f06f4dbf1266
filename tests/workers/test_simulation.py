"""Two and three whole nodes under a seed: whatever the network, the scheduling and the deaths of processes do, rows
arrive whole.

A failing seed prints the end of its trace; `run_seed` with the same arguments makes the same steps again (P19).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from support.rows import Rows, rows_of
from support.simulation import ROWS_A_ROOM, ClientActor, Faults, SimulatedNode, World

from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.language import StatusReceiver
from embridge.workers.poller.verifier import Verifier
from embridge.workers.timing import NS
from embridge.workers.transfer.attempt import Attempt
from embridge.workers.transfer.encode import TransferWorker

BLOCK_SIZE = 4
LIMIT_S = 400.0

CALM = Faults()
LOSSY = Faults(lost=0.15, doubled=0.15, delayed=0.3, failed_attempt=0.1)
DEADLY = Faults(lost=0.05, doubled=0.1, delayed=0.2, kill_role=0.01, stall=0.003, failed_attempt=0.1)
FAULTS = {"calm": CALM, "lossy": LOSSY, "deadly": DEADLY}
DISTURBANCES = ("none", "aborts", "absences", "clients", "nodes", "cuts", "retries")


def rows_for(geometry: Geometry, room: int, first: int, end: int) -> Rows:
    """Rows that say whose they are: see `ROWS_A_ROOM`."""
    ids = torch.arange(room * ROWS_A_ROOM + first, room * ROWS_A_ROOM + end, dtype=torch.int32)
    return rows_of(geometry, room, first, end)._replace(fill_ids=ids)


@dataclass(eq=False)
class Transfer:
    """One room: what its encoder and its schedulers do, and how it ended on each side."""

    room: int
    total: int
    timeout_s: float | None = None
    sender: EmbeddingSender | None = None
    encoder: ClientActor | None = None
    requests: list[EmbeddingRequest] = field(default_factory=list)
    owners: dict[EmbeddingRequest, Scheduler] = field(default_factory=dict)
    outcomes: dict[EmbeddingRequest, str] = field(default_factory=dict)
    may_fail: bool = False  # somebody aborts it, stays away, or dies
    gap_ns: int = NS // 5  # at most, between two writes
    num_due: int = 0  # calls of the script that have yet to open a side of it

    def __repr__(self) -> str:
        receivers = [(r.receiver, r.transferred_tokens, self.outcomes.get(r)) for r in self.requests]
        return f"room {self.room} of {self.total}: {self.sender} {receivers}"


@dataclass(eq=False)
class Scheduler:
    """A scheduler process on a language node."""

    node: SimulatedNode
    actor: ClientActor
    queue: TransferQueue


class Scenario:
    """Nodes, clients and rooms, drawn by the seed, and one kind of disturbance."""

    def __init__(self, world: World, disturbance: str) -> None:
        self.world = world
        self.rng = rng = world.rng
        self.layers = rng.choice((0, 0, 1))
        self.encode = self._encode_node(1)
        self.keeps = disturbance == "retries"
        self.num_kept = 0
        self.lost: dict[Transfer, list[EmbeddingRequest]] = {}  # failed with their encode node, to be retried
        self.num_languages = rng.choice((1, 1, 2))
        self.encoders = [self._client(self.encode) for _ in range(rng.choice((1, 1, 2)))]
        self.schedulers = [self._scheduler(i, 1) for i in range(self.num_languages)]
        self.transfers: list[Transfer] = []
        now = world.now_ns
        for _ in range(rng.randint(1, 6)):
            self._plan(now + rng.randint(0, NS), disturbance)
        getattr(self, f"_plan_{disturbance}")()

    # ---- nodes and clients

    def _geometry(self) -> Geometry:
        blocks = self.rng.randint(1, 8)
        return Geometry(hidden_size=2, block_size=BLOCK_SIZE, num_blocks=blocks, deepstack_layers=self.layers)

    def _encode_node(self, incarnation: int) -> SimulatedNode:
        return self.world.node("encode", Role.ENCODE, self._geometry(), node_id=1, incarnation=incarnation)

    def _client(self, node: SimulatedNode) -> ClientActor:
        node.new_client()
        return node.clients[-1]

    def _scheduler(self, i: int, incarnation: int) -> Scheduler:
        rng, geometry = self.rng, self._geometry()
        memory = rng.choice((1 << 30, 200 * geometry.token_bytes))
        settings = {"host_buffer_bytes": memory, "default_allocate_tokens": rng.randint(1, 40)}
        node = self.world.node(
            f"language{i}", Role.LANGUAGE, geometry, node_id=10 + i, incarnation=incarnation, settings=settings
        )
        return self._attend(node)

    def _attend(self, node: SimulatedNode) -> Scheduler:
        actor = self._client(node)
        scheduler = Scheduler(node, actor, TransferQueue(actor.client, adaptive=self.rng.random() < 0.5))
        self.world.at(self.world.now_ns, "", lambda: self._poll(scheduler))
        return scheduler

    # ---- what the clients do

    def _plan(self, start_ns: int, disturbance: str = "none") -> Transfer:
        world, rng = self.world, self.rng
        most = 40 if rng.random() < 0.3 else 8
        transfer = Transfer(len(self.transfers) + 1, rng.randint(1, most * BLOCK_SIZE))
        self.transfers.append(transfer)
        if disturbance != "none":
            transfer.gap_ns = 2 * NS  # so that what disturbs finds it on its way
        absent = None
        if disturbance == "absences" and rng.random() < 0.6:
            transfer.may_fail, transfer.timeout_s = True, rng.uniform(0.5, 5.0)
            absent = rng.randint(-1, self.num_languages - 1)
        transfer.num_due = 1 + self.num_languages
        for i in range(-1, self.num_languages):
            call = self._opener(transfer, i, is_absent=i == absent)
            world.at(start_ns + rng.randint(0, NS // 2), f"party {i} opens room {transfer.room}", call)
        return transfer

    def _opener(self, transfer: Transfer, i: int, *, is_absent: bool) -> Callable[[], None]:
        def call() -> None:
            transfer.num_due -= 1
            if is_absent:
                return
            if i < 0:
                self._send(transfer)
            else:
                self._receive(transfer, self.schedulers[i])

        return call

    def _send(self, transfer: Transfer) -> None:
        world, rng = self.world, self.rng
        alive = [actor for actor in self.encoders if not actor.is_dead]
        if not alive or self.encode not in world.nodes:
            transfer.may_fail = True
            return
        transfer.encoder = actor = rng.choice(alive)

        def user() -> None:
            transfer.sender = actor.client.sender(
                transfer.room, transfer.total, mrope_position_delta=-transfer.room, timeout_s=transfer.timeout_s
            )
            if rng.random() < 0.5:
                transfer.sender.announce()

        actor.call(user)
        cuts = sorted({0, transfer.total, *(rng.randint(0, transfer.total) for _ in range(rng.randint(0, 4)))})
        when = world.now_ns
        for first, end in itertools.pairwise(cuts):
            when += rng.choice((0, rng.randint(0, transfer.gap_ns)))
            label = f"room {transfer.room} gets rows {first} to {end}"
            world.at(when, label, partial(actor.call, partial(self._write, transfer, first, end)))

    def _write(self, transfer: Transfer, first: int, end: int) -> None:
        if transfer.sender is not None:
            rows = rows_for(self.encode.geometry, transfer.room, first, end)
            transfer.sender.write(first, *rows)
            for tensor in rows:  # it is the caller's again (P22)
                if tensor is not None:
                    tensor.zero_()

    def _receive(self, transfer: Transfer, scheduler: Scheduler) -> None:
        if scheduler.actor.is_dead or scheduler.node not in self.world.nodes:
            transfer.may_fail = True
            return
        request = EmbeddingRequest(
            room=transfer.room,
            bootstrap_addr=self.encode.own_addresses.bootstrap_addr,
            required_dst_info_num=self.num_languages,
            timeout_s=transfer.timeout_s,
            payload=transfer.room,
            keep_for_retry=self.keeps,
        )
        transfer.requests.append(request)
        transfer.owners[request] = scheduler
        self._send_elsewhere(transfer)
        scheduler.actor.call(lambda: scheduler.queue.add(request))

    def _poll(self, scheduler: Scheduler) -> None:
        """The scheduler's step, every 10 ms."""
        if scheduler.actor.is_dead or scheduler.node not in self.world.nodes:
            return
        scheduler.actor.call(lambda: self._take(scheduler))
        self.world.after(0.01, "", lambda: self._poll(scheduler))

    def _take(self, scheduler: Scheduler) -> None:
        scheduler.actor.client.poll()
        finished, failed = scheduler.queue.pop_transferred()
        for request in failed:
            if request.is_retryable:
                self.lost.setdefault(self._transfer_of(request), []).append(request)
            else:
                self._transfer_of(request).outcomes[request] = f"Failed: {request.failure}"
        for request in finished:
            self._check_result(request)
            self._transfer_of(request).outcomes[request] = "Success"
            request.release()
        for transfer in list(self.lost):
            self._retry(transfer)

    def _transfer_of(self, request: EmbeddingRequest) -> Transfer:
        return self.transfers[request.room - 1]

    def _check_result(self, request: EmbeddingRequest) -> None:
        """P6: the very bytes that were written."""
        transfer, result = self._transfer_of(request), request.result
        assert result is not None
        expected = rows_for(self.encode.geometry, transfer.room, 0, transfer.total)
        for name, rows in expected._asdict().items():
            got = getattr(result, name)
            assert (rows is None) == (got is None), name
            assert rows is None or torch.equal(rows.view(torch.uint8), got.view(torch.uint8)), (
                f"room {transfer.room}: {name}"
            )
        assert result.aux_datas[:2].tolist() == [transfer.total, -transfer.room]

    # ---- what disturbs them

    def _soon(self) -> int:
        return self.world.now_ns + self.rng.randint(NS // 10, 2 * NS)

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
        if side < 0 and transfer.sender is not None:
            transfer.sender.abort()
        elif 0 <= side < len(transfer.requests):
            transfer.requests[side].abort()

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
            actor.is_dead = True
        self.world.close_node(node)

        def back() -> None:
            if i < 0:
                self.encode = self._encode_node(2)
                self.encoders = [self._client(self.encode)]
            else:
                self.schedulers[i] = self._scheduler(i, 2)

        self.world.after(self.rng.uniform(0.0, 10.0), "it comes back", back)

    def _plan_retries(self) -> None:
        """The encode node goes for good; another one is there, to which whatever failed with it is sent."""
        self.world.at(self._soon(), "the encode node goes", self._encode_goes)

    def _encode_goes(self) -> None:
        for actor in self.encode.clients:
            actor.is_dead = True
        self.world.close_node(self.encode)
        self.encode = self.world.node("spare", Role.ENCODE, self._geometry(), node_id=2)
        self.encoders = [self._client(self.encode)]

    def _retry(self, transfer: Transfer) -> None:
        """As a router does: once it is known who has all rows, and who is to get them from the other node."""
        lost, addr = self.lost[transfer], self.encode.own_addresses.bootstrap_addr
        waiting = [
            r for r in transfer.requests if r not in transfer.outcomes and r not in lost and r.bootstrap_addr == addr
        ]
        finished = [r for r in transfer.requests if transfer.outcomes.get(r) == "Success"]
        if transfer.num_due or len(lost) + len(waiting) + len(finished) < self.num_languages:
            return
        assert not (waiting and finished), f"{transfer}: two encode nodes at once"
        del self.lost[transfer]
        self._send_elsewhere(transfer)
        for request in lost:
            scheduler = transfer.owners[request]
            self.num_kept += request.transferred_tokens // BLOCK_SIZE
            prealloc = PreallocQueue(scheduler.actor.client, scheduler.queue)
            prealloc.retry(request, addr, required_dst_info_num=len(lost) + len(waiting))

    def _send_elsewhere(self, transfer: Transfer) -> None:
        if self.keeps and transfer.encoder is not None and transfer.encoder not in self.encoders:
            self._send(transfer)

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

    def _is_over(self, transfer: Transfer) -> bool:
        sender = transfer.sender
        if transfer.num_due:
            return False
        if sender is not None and not self._is_lost(transfer.encoder) and sender._final is None:
            return False
        return all(r in transfer.outcomes or self._is_lost(s.actor) for r, s in transfer.owners.items())

    def _is_lost(self, actor: ClientActor | None) -> bool:
        return actor is None or actor.is_dead

    def is_over(self) -> bool:
        """Every request has ended, for all who have asked for it."""
        return all(self._is_over(transfer) for transfer in self.transfers)

    def is_done(self) -> bool:
        return self.is_over() and self.world.is_clean()

    def run(self) -> None:
        self.world.run(self.is_done, limit_s=LIMIT_S)
        self.world.checked(self._check_end)

    def _check_end(self) -> None:
        for transfer in self.transfers:
            sender = transfer.sender
            if not transfer.may_fail:
                assert list(transfer.outcomes.values()) == ["Success"] * self.num_languages, transfer
            if sender is None or self._is_lost(transfer.encoder):
                continue
            if "Success" in transfer.outcomes.values():
                assert sender.poll() == Phase.Success, transfer
            if sender.poll() == Phase.Failed:
                assert sender.failure_exception() is not None
                assert str(sender.failure_exception())
        for scheduler in self.schedulers:
            if not scheduler.actor.is_dead:
                library_of(scheduler.actor.client).turn()
                assert scheduler.queue.memory.reserved_bytes == 0


def run_seed(seed: int, faults: str, disturbance: str = "none", engine: str = "shm", *, verify: bool = False) -> World:
    """One run. Raises AssertionError, with the end of its trace."""
    world = World(seed, faults=FAULTS[faults], late_writes=engine == "network", verify=verify)
    try:
        Scenario(world, disturbance).run()
    finally:
        world.close()
    return world


SEEDS_A_TEST = 1
# so that the others keep their seeds
MIX = sorted(itertools.product(FAULTS, DISTURBANCES), key=lambda mixture: mixture[1] == "retries")
ENGINES = ("shm", "network")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths and refusals that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("faults", "disturbance"), MIX)
def test_rows_arrive_whole_and_everything_is_given_back(faults: str, disturbance: str, engine: str) -> None:
    """R24, P5, P6, P7, P8, P11, P17, D8, D12: what `World.check`, the engine and `Scenario` say, for some seeds of
    every mixture.
    """
    for seed in range(SEEDS_A_TEST):
        run_seed(1000 * MIX.index((faults, disturbance)) + seed, faults, disturbance, engine)


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(3))
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("faults", "disturbance"), MIX)
def test_rows_arrive_whole_under_a_thousand_seeds(faults: str, disturbance: str, engine: str, ten: int) -> None:
    """The same as above, for thirty more seeds of every mixture and engine; every third has its nodes verify (R27)."""
    for seed in range(10 * ten, 10 * ten + 10):
        number = 100_000 + 1000 * MIX.index((faults, disturbance)) + seed
        run_seed(number, faults, disturbance, engine, verify=seed % 3 == 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("faults", FAULTS)
def test_rows_arrive_whole_where_nodes_verify(faults: str, engine: str) -> None:
    """R27, P5, P6, P8, P11: what is lost, doubled and killed fails no check of rows that came as they were sent."""
    for seed, disturbance in enumerate(("none", "cuts") if faults == "lossy" else ("none", "aborts")):
        run_seed(30_000 + seed, faults, disturbance, engine, verify=True)


# What these seeds found once, in the words of what was wrong.
FOUND = [
    (248, "calm", "none", "two blocks of a request in one staging entry, its destinations being a window apart"),
    (139, "lossy", "none", "two language nodes waiting for each other's host memory"),
    (15, "calm", "aborts", "a write into a request that has failed was the encoder's mistake"),
]


@pytest.mark.parametrize(
    ("seed", "faults", "disturbance"), [found[:3] for found in FOUND], ids=[found[3] for found in FOUND]
)
def test_what_a_seed_has_found_stays_away(seed: int, faults: str, disturbance: str) -> None:
    run_seed(seed, faults, disturbance)


@pytest.mark.parametrize(
    ("faults", "disturbance", "engine"),
    [("calm", "none", "shm"), ("deadly", "cuts", "shm"), ("deadly", "clients", "network")],
)
def test_a_seed_makes_the_same_steps_again(faults: str, disturbance: str, engine: str) -> None:
    """P19: so a failure that a seed has found can be looked at."""
    first, second = (_digest(run_seed(7, faults, disturbance, engine)) for _ in range(2))
    assert first == second


def _digest(world: World) -> tuple[int, int, str]:
    return world.num_steps, world.now_ns, hashlib.sha256("\n".join(world.trace).encode()).hexdigest()


def test_a_failure_comes_with_its_seed_and_the_end_of_its_trace() -> None:
    """P19."""
    world = World(11)
    scenario = Scenario(world, "none")
    world.at(world.now_ns + NS, "damage", lambda: _damage(scenario.encode))
    with pytest.raises(AssertionError, match=r"(?s)script: damage.*seed 11: AssertionError: encode: slot"):
        scenario.run()
    world.close()


def _damage(node: SimulatedNode) -> None:
    """What no role does: lower a status word."""
    node._words[np.nonzero(node._words)[0][0]] -= 1


def run_retries(seeds: range, engine: str) -> tuple[int, int]:
    """Runs in which the encode node goes for good.

    Returns how many blocks were kept for the other one, and in how many runs.
    """
    kept = []
    for seed in seeds:
        world = World(seed, faults=CALM, late_writes=engine == "network", verify=seed % 2 == 0)
        try:
            scenario = Scenario(world, "retries")
            scenario.run()
            kept.append(scenario.num_kept)
        finally:
            world.close()
    return sum(kept), sum(map(bool, kept))


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_whose_encode_node_dies_are_finished_by_another_one_which_sends_what_is_missing(engine: str) -> None:
    """R26, P6, P7: none fails, though what had come is kept and its old blocks may be written late."""
    num_blocks, num_runs = run_retries(range(6000, 6008), engine)
    assert num_blocks > 8
    assert num_runs > 1


FAILING = Faults(failed_attempt=0.3, lost=0.05, doubled=0.1, delayed=0.2, kill_role=0.01)


def run_failing(seeds: range) -> int:
    """Runs over a network on which many writes fail and land late. Returns how many landed so."""
    num_late = 0
    for seed in seeds:
        world = World(seed, faults=FAILING, late_writes=True)
        try:
            Scenario(world, ("none", "aborts", "nodes")[seed % 3]).run()
            num_late += world.num_late
        finally:
            world.close()
    return num_late


def test_a_write_that_lands_after_it_was_given_up_hits_only_blocks_that_are_kept_for_it() -> None:
    """P7, R6, R7, R8, R10, R11: what it may hit is quarantined until a fence, and every block is free in the end."""
    assert run_failing(range(5000, 5012)) > 20


def _taint_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TransferWorker, "_taint", lambda *_: None)


def _quarantine_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StatusReceiver, "_is_tainted", lambda *_: False)
    patch.setattr(EmbeddingReceiver, "is_tainted", property(lambda _: False))


def _go_on_without_renewal(patch: pytest.MonkeyPatch) -> None:
    """The source blocks of a failed attempt go back while its engine lives."""
    failed = TransferWorker._failed

    def mutant(worker: TransferWorker, attempt: Attempt) -> None:
        failed(worker, attempt)
        worker._renewing_ns = 0
        worker._may_read.clear()
        for block in attempt.blocks:
            worker._staged.release(attempt.slot, block)

    patch.setattr(TransferWorker, "_failed", mutant)


def _free_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    look = StatusReceiver._look_at_quarantine

    def mutant(poller: StatusReceiver) -> None:
        for worker in range(poller._sessions.num_workers):
            poller._free_fenced(worker, poller._sessions.number(worker) + 1)
        look(poller)

    patch.setattr(StatusReceiver, "_look_at_quarantine", mutant)


MUTANTS = [
    pytest.param(_taint_nothing, id="R6"),
    pytest.param(_quarantine_nothing, id="R7"),
    pytest.param(_go_on_without_renewal, id="R8"),
    pytest.param(_free_before_the_fence, id="R10"),
]


@pytest.mark.storm
@pytest.mark.parametrize("mutate", MUTANTS)
def test_without_the_rules_for_late_writes_these_seeds_fail(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs above would see it if one of their rules were not kept."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run_failing(range(5000, 5040))


# ---- rows that are damaged on their way

DAMAGING = {
    "calm": Faults(damage=0.02),
    "deadly": Faults(damage=0.02, lost=0.05, doubled=0.1, delayed=0.2, kill_role=0.01, failed_attempt=0.1),
}


def run_damaged(seeds: range, faults: str) -> tuple[int, int]:
    """Runs in which bytes of what an engine writes are changed.

    Returns how many were, and how many requests failed for it.
    """
    num_damaged = num_corrupt = 0
    for seed in seeds:
        world = World(seed, faults=DAMAGING[faults], late_writes=seed % 2 == 1, verify=True)
        try:
            scenario = Scenario(world, "none")
            for transfer in scenario.transfers:
                transfer.may_fail = True
            scenario.run()
            num_corrupt += sum(_check_agreement(transfer) for transfer in scenario.transfers)
            num_damaged += world.num_damaged
        finally:
            world.close()
    return num_damaged, num_corrupt


def _check_agreement(transfer: Transfer) -> bool:
    """Whether rows were found to be damaged; then the request has failed for all, and all are told why (D11)."""
    said = [*transfer.outcomes.values(), str(transfer.sender and transfer.sender.failure_exception())]
    is_corrupt = any("on receipt" in text for text in said)
    assert all("on receipt" in text for text in said) or not is_corrupt, transfer
    return is_corrupt


@pytest.mark.parametrize("faults", DAMAGING)
def test_a_damaged_row_fails_its_request_on_both_sides_and_never_arrives(faults: str) -> None:
    """R27, P6, D11: what succeeds has the very bytes that were written, though engines changed some."""
    num_damaged, num_corrupt = run_damaged(range(40_000, 40_006), faults)
    assert num_damaged >= num_corrupt > 3


def _check_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Verifier, "report", lambda verifier, slot, epoch, room, now_ns: verifier._advance(slot, epoch, room))


def _succeed_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Publisher, "_is_verified", lambda *_: True)


@pytest.mark.parametrize("mutate", [_check_nothing, _succeed_unchecked])
def test_without_the_rule_for_damaged_rows_these_seeds_fail(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R27: the runs above would see it."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run_damaged(range(40_000, 40_006), "calm")
