"""Fetches between two whole nodes under a seed: whatever the network, the scheduling and the deaths of processes do,
each has the rows of one publication, or an error that may be, and nothing stays pinned.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest
from support.simulation import World
from support.simulation.fetching import KINDS, Fetches
from support.simulation.scenario import FAULTS

ENGINES = ("shm", "network")
MIX = list(itertools.product(FAULTS, KINDS))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths and refusals that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(seed: int, faults: str, kind: str, engine: str, *, verify: bool = False) -> int:
    """How many items came. Raises AssertionError, with the end of the trace."""
    world = World(seed, faults=FAULTS[faults], late_writes=engine == "network", verify=verify)
    try:
        fetches = Fetches(world, kind)
        fetches.run()
        return fetches.num_items
    finally:
        world.close()


@pytest.mark.parametrize(("faults", "kind"), MIX)
def test_a_fetch_has_the_rows_of_one_publication_and_nothing_stays_pinned(faults: str, kind: str) -> None:
    """R50 to R59, R85, P5, P6, P7, P8, P11: a seed of every mixture; each engine has half of them."""
    number = MIX.index((faults, kind))
    assert run(100 * number, faults, kind, ENGINES[number % len(ENGINES)]) > 0


def test_some_retries_go_on_behind_what_has_come() -> None:
    """R57: else nothing was shown of them above."""
    kept = 0
    for seed in range(4):
        world = World(seed, faults=FAULTS["calm"])
        try:
            fetches = Fetches(world, "retries")
            fetches.run()
            kept += fetches.kept_bytes
        finally:
            world.close()
    assert kept > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("faults", FAULTS)
def test_a_fetch_is_checked_on_receipt_where_nodes_verify(faults: str, engine: str) -> None:
    """R27: of the bytes of the item, from the shelf to the blocks."""
    assert run(5000, faults, "none", engine, verify=True) > 0


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(3))
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("faults", "kind"), MIX)
def test_fetches_under_a_thousand_seeds(faults: str, kind: str, engine: str, ten: int) -> None:
    """The same for thirty more seeds of every mixture and engine; every third has its nodes verify."""
    for seed in range(10 * ten, 10 * ten + 10):
        run(100_000 + 1000 * MIX.index((faults, kind)) + seed, faults, kind, engine, verify=seed % 3 == 0)
