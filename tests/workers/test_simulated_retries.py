"""Requests under a seed that are finished by another encode node than the one that has begun to send them.

A failing seed prints the end of its trace, as in `test_simulation`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from support.simulation import World
from support.simulation.retries import Retries
from support.simulation.scenario import CALM, DIRECT_MIXTURES, ENGINES, FAULTS, MIXTURES, run_seed

every_kind_of_faults = pytest.mark.parametrize("faults", FAULTS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths and refusals that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@every_kind_of_faults
def test_rows_arrive_whole_and_everything_is_given_back(faults: str) -> None:
    """R24, R35, P5, P6, P7, P8, P11, P17, D8, D12: what `World.check`, the engine and `Scenario` say; each engine has
    half of them.
    """
    number = MIXTURES.index((faults, "retries"))
    run_seed(1000 * number, faults, "retries", ENGINES[number % len(ENGINES)], scenario=Retries)


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(3))
@pytest.mark.parametrize("engine", ENGINES)
@every_kind_of_faults
def test_rows_arrive_whole_under_a_thousand_seeds(faults: str, engine: str, ten: int) -> None:
    """The same as above, for thirty more seeds of every mixture and engine; every third has its nodes verify (R27)."""
    for seed in range(10 * ten, 10 * ten + 10):
        number = 100_000 + 1000 * MIXTURES.index((faults, "retries")) + seed
        run_seed(number, faults, "retries", engine, verify=seed % 3 == 0, scenario=Retries)


@every_kind_of_faults
def test_rows_that_encoders_write_themselves_arrive_whole_and_every_block_is_given_back(faults: str) -> None:
    """R28 to R33, R36, P5, P6, P7, P8: what `World.check`, each step of a write and `Scenario` say."""
    seed = 200_000 + DIRECT_MIXTURES.index((faults, "retries"))
    run_seed(seed, faults, "retries", "direct", scenario=Retries)


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(4))
@every_kind_of_faults
def test_rows_that_encoders_write_themselves_arrive_whole_under_a_thousand_seeds(faults: str, ten: int) -> None:
    """The same as above, for forty more seeds of every mixture."""
    for seed in range(10 * ten, 10 * ten + 10):
        number = 300_000 + 1000 * DIRECT_MIXTURES.index((faults, "retries")) + seed
        run_seed(number, faults, "retries", "direct", scenario=Retries)


def run_retries(seeds: range, engine: str) -> tuple[int, int]:
    """Runs in which the encode node goes for good.

    Returns how many blocks were kept for the other one, and in how many runs.
    """
    kept = []
    for seed in seeds:
        world = World(seed, faults=CALM, late_writes=engine == "network", verify=seed % 2 == 0)
        try:
            scenario = Retries(world)
            scenario.run()
            kept.append(scenario.num_kept)
        finally:
            world.close()
    return sum(kept), sum(map(bool, kept))


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_whose_encode_node_dies_are_finished_by_another_one_which_sends_what_is_missing(engine: str) -> None:
    """R26, P6, P7: none fails, though what had come is kept and its old blocks may be written late."""
    num_blocks, num_runs = run_retries(range(6007, 6009), engine)
    assert num_blocks > 2
    assert num_runs > 0
