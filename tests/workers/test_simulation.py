"""Two and three whole nodes under a seed: whatever the network, the scheduling and the deaths of processes do, rows
arrive whole.

A failing seed prints the end of its trace; `run_seed` with the same arguments makes the same steps again (P19).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.simulation import Faults, SimulatedNode, World
from support.simulation.rooms import Transfer
from support.simulation.scenario import ENGINES, FAULTS, MIXTURES, Scenario, is_in_every_run, run_seed

from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.language import StatusReceiver
from embridge.workers.poller.quarantine import Quarantine
from embridge.workers.poller.verifier import Verifier
from embridge.workers.timing import NS
from embridge.workers.transfer.attempt import Attempt
from embridge.workers.transfer.encode import TransferWorker
from embridge.workers.transfer.taints import Taints

MIX = [mixture for mixture in MIXTURES if mixture[1] != "retries"]
SHARE = [pytest.param(*it, marks=[] if is_in_every_run(*it) else [pytest.mark.storm]) for it in MIX]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths and refusals that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("faults", "disturbance"), SHARE)
def test_rows_arrive_whole_and_everything_is_given_back(faults: str, disturbance: str) -> None:
    """R24, R35, P5, P6, P7, P8, P11, P17, D8, D12: what `World.check`, the engine and `Scenario` say, for a seed of
    each; each engine has half of them.
    """
    number = MIXTURES.index((faults, disturbance))
    run_seed(1000 * number, faults, disturbance, ENGINES[number // 2 % len(ENGINES)])


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(3))
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("faults", "disturbance"), MIX)
def test_rows_arrive_whole_under_a_thousand_seeds(faults: str, disturbance: str, engine: str, ten: int) -> None:
    """The same as above, for thirty more seeds of every mixture and engine; every third has its nodes verify (R27)."""
    for seed in range(10 * ten, 10 * ten + 10):
        number = 100_000 + 1000 * MIXTURES.index((faults, disturbance)) + seed
        run_seed(number, faults, disturbance, engine, verify=seed % 3 == 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("faults", FAULTS)
def test_rows_arrive_whole_where_nodes_verify(faults: str, engine: str) -> None:
    """R27, P5, P6, P8, P11: what is lost, doubled and killed fails no check of rows that came as they were sent."""
    run_seed(30_000, faults, "none" if engine == "shm" else "aborts", engine, verify=True)


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
    [
        ("calm", "none", "shm"),
        pytest.param("deadly", "cuts", "shm", marks=pytest.mark.storm),
        pytest.param("deadly", "clients", "network", marks=pytest.mark.storm),
        ("deadly", "none", "network"),
    ],
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
    assert run_failing(range(5000, 5003)) > 4


def _taint_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Taints, "taint", lambda *_: None)


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
    look = Quarantine.look

    def mutant(quarantine: Quarantine, now_ns: int) -> None:
        for worker in range(quarantine._sessions.num_workers):
            quarantine._free_fenced(worker, quarantine._sessions.number(worker) + 1)
        look(quarantine, now_ns)

    patch.setattr(Quarantine, "look", mutant)


MUTANTS = [
    pytest.param(_taint_nothing, id="R6"),
    pytest.param(_quarantine_nothing, id="R7"),
    pytest.param(_go_on_without_renewal, id="R8"),
    pytest.param(_free_before_the_fence, id="R10"),
]


@pytest.mark.parametrize("mutate", MUTANTS)
def test_what_those_rules_are_is_where_it_was(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6, R7, R8, R10: the next test, which takes long, breaks them there."""
    mutate(monkeypatch)


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
    num_damaged, num_corrupt = run_damaged(range(40_000, 40_004), faults)
    assert num_damaged >= num_corrupt > 1


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
        run_damaged(range(40_000, 40_020), "calm")
