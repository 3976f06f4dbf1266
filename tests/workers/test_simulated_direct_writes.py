"""Direct writes under a seed: encoders write into blocks of a language node while others abort, die and go on between
any two of their steps.

A failing seed prints the end of its trace, as in `test_simulation`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator

import pytest
from support.simulation import Faults, World
from support.simulation.scenario import DIRECT_MIXTURES, Scenario, is_in_every_run, run_seed

from embridge.allocator.claims import HELD, Claim, ClaimState, ClaimTable, WriterId
from embridge.pipeline.client.client import library_of
from embridge.workers.poller.base import Poller
from embridge.workers.timing import NS

SOME = range(400_020, 400_026)
MORE = range(400_000, 400_024)
SEVERAL = range(42, 44)
MIX = [mixture for mixture in DIRECT_MIXTURES if mixture[1] != "retries"]
SHARE = [pytest.param(*it, marks=[] if is_in_every_run(*it) else [pytest.mark.storm]) for it in MIX]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths and refusals that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("faults", "disturbance"), SHARE)
def test_rows_that_encoders_write_themselves_arrive_whole_and_every_block_is_given_back(
    faults: str, disturbance: str
) -> None:
    """R28 to R33, R36, P5, P6, P7, P8: what `World.check`, each step of a write and `Scenario` say."""
    run_seed(210_000 + DIRECT_MIXTURES.index((faults, disturbance)), faults, disturbance, "direct")


@pytest.mark.storm
@pytest.mark.parametrize("ten", range(4))
@pytest.mark.parametrize(("faults", "disturbance"), MIX)
def test_rows_that_encoders_write_themselves_arrive_whole_under_a_thousand_seeds(
    faults: str, disturbance: str, ten: int
) -> None:
    """The same as above, for forty more seeds of every mixture."""
    for seed in range(10 * ten, 10 * ten + 10):
        run_seed(300_000 + 1000 * DIRECT_MIXTURES.index((faults, disturbance)) + seed, faults, disturbance, "direct")


def run_writers(seeds: range) -> list[World]:
    """Runs in which encoders die in the middle of writes, and requests end there."""
    return [run_seed(seed, "calm", "writers", "direct") for seed in seeds]


def test_writers_die_and_stand_still_in_the_middle_of_what_they_write() -> None:
    """R30, R33: so these seeds have what they are for."""
    worlds = run_writers(SOME)
    assert sum(world.num_landed for world in worlds) > 12
    assert sum(world.num_writers_killed for world in worlds) > 2
    assert sum(world.num_revoked for world in worlds) > 0


def run_several(seeds: range) -> list[World]:
    """Runs of rooms with two destinations, of which schedulers give up some that are whole."""
    return [run_seed(seed, "calm", "several", "direct") for seed in seeds]


def test_destinations_that_are_whole_are_given_up_and_end_as_all_do() -> None:
    """R36: so these seeds have what they are for; `Scenario` says that no room ends in Success here, and not there."""
    worlds = run_several(SEVERAL)
    assert sum(world.num_landed for world in worlds) > 10
    assert sum(world.num_given_up for world in worlds) > 1


def test_a_seed_of_direct_writes_makes_the_same_steps_again() -> None:
    """P19."""
    first, second = (_digest(run_seed(7, "deadly", "writers", "direct")) for _ in range(2))
    assert first == second


def _digest(world: World) -> tuple[int, int, str]:
    return world.num_steps, world.now_ns, hashlib.sha256("\n".join(world.trace).encode()).hexdigest()


def test_where_nobody_is_let_in_rows_go_through_the_workers() -> None:
    """P8: an encoder whose knock finds a full backlog does not wait for ever to know who writes."""
    world = World(11, is_direct=True)
    try:
        scenario = Scenario(world, "none")
        for scheduler in scenario.schedulers:
            scheduler.node.is_backlog_full = True
        scenario.run()
        assert world.num_landed == 0
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(2))
def test_of_two_nodes_one_may_let_nobody_in_so_that_the_workers_write_to_it(seed: int) -> None:
    """R28, R8, P8: rows are staged for that one, kept until both have them, and both have the same end."""
    world = World(500_000 + seed, faults=Faults(pause=0.1), is_direct=True)
    try:
        scenario = Scenario(world, "several")
        scenario.schedulers[seed % 2].node.is_backlog_full = True
        scenario.run()
        rows = scenario.encode.control.metrics.all()
        by_workers = sum(row["tokens_written"] for name, row in rows.items() if name != "clients")
        assert world.num_landed > 0
        assert by_workers > 0
    finally:
        world.close()


def test_a_client_that_outlives_its_node_lets_go_of_its_doors_and_knocks_nowhere() -> None:
    """P9: what it wrote there has an end, and no launcher hears of it again."""
    world = World(13, is_direct=True)
    try:
        scenario = Scenario(world, "none")
        scenario.run()
        actor = scenario.encoders[0]
        doors = library_of(actor.client).doors
        assert doors is not None
        assert len(doors) == scenario.num_languages
        actor.close()
        for _ in range(4):
            world.now_ns += NS
            assert not library_of(actor.client).turn()
        assert (len(doors), doors._knocks) == (0, {})
    finally:
        world.close()


# ---- without its rules


def _leave_the_claim(patch: pytest.MonkeyPatch) -> None:
    """A request ends, and its claim stays as it is."""
    patch.setattr(ClaimTable, "revoke", lambda *_: True)


def _wait_for_no_writer(patch: pytest.MonkeyPatch) -> None:
    """Blocks are free although their writer has not given the claim back."""
    revoke = ClaimTable.revoke
    patch.setattr(ClaimTable, "revoke", lambda *at: revoke(*at) or True)


def _end_every_claim(patch: pytest.MonkeyPatch) -> None:
    """A death ends the claims of the living, too."""

    def mutant(claims: ClaimTable, writer: WriterId) -> int:
        held = [(slot, now) for slot in range(claims.num_slots) if (now := claims.get(slot)).state in HELD]
        return sum(claims._move(slot, now, Claim(now.epoch, ClaimState.ENDED)) for slot, now in held)

    patch.setattr(ClaimTable, "end_writer", mutant)


def _end_no_claim(patch: pytest.MonkeyPatch) -> None:
    """A death ends no claim."""
    patch.setattr(ClaimTable, "end_writer", lambda *_: 0)


def _fail_whole_ones(patch: pytest.MonkeyPatch) -> None:
    """A destination that is whole fails like any other."""
    rise = Poller._raise

    def mutant(poller: Poller, *word: int, is_told: bool = False) -> bool:
        return rise(poller, *word, is_told=True)

    patch.setattr(Poller, "_raise", mutant)


@pytest.mark.storm
def test_without_the_rule_of_whole_destinations_these_seeds_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """R36: the runs above would see it."""
    _fail_whole_ones(monkeypatch)
    with pytest.raises(AssertionError, match="Success"):
        run_several(SEVERAL)


MUTANTS = [
    pytest.param(_leave_the_claim, id="R30"),
    pytest.param(_wait_for_no_writer, id="R30-quarantine"),
    pytest.param(_end_every_claim, id="R33"),
    pytest.param(_end_no_claim, id="R33-none"),
]


@pytest.mark.storm
@pytest.mark.parametrize("mutate", MUTANTS)
def test_without_the_rules_of_direct_writes_these_seeds_fail(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs above would see it if one of their rules were not kept."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run_writers(MORE)
