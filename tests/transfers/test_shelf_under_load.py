"""A shelf under load, in processes that publish and read side by side, and are killed at any moment."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support import fetching, publishing
from support.agents import Agent, running
from support.nodes import LIMITS, Station, station
from support.waiting import wait_until

from embridge import attach
from embridge.allocator.geometry import SHELF_BLOCK_BYTES

pytestmark = pytest.mark.process

NUM_BLOCKS = 24
LEAST_READ = 10  # by each, however busy the machine is


@pytest.fixture(scope="module")
def shelved(shared_dir: Path) -> Iterator[Station]:
    """An encode node with a shelf of 1.5 MiB, so that items are evicted all the time."""
    limits = replace(LIMITS, shelf_bytes=NUM_BLOCKS * SHELF_BLOCK_BYTES)
    with station("encode", shared_dir / "loaded", limits=limits, deepstack_layers=3) as it:
        yield it


def is_settled(shelved: Station) -> None:
    """Whether nobody holds anything of it any more, and all of it can be used again."""
    with attach(shelved.run_dir) as client:
        wait_until(lambda: not client.shelf.counts().readers, 10.0, shelved.log)
        wait_until(lambda: not client.shelf.counts().filling, 10.0, shelved.log)
        client.shelf.clear()
        counts = client.shelf.counts()
        assert (counts.items, counts.filling, counts.retired, counts.pinned) == (0, 0, 0, 0)
        whole = publishing.rows_of_version(1, NUM_BLOCKS, SHELF_BLOCK_BYTES // 4)
        assert client.publish("whole", whole).generation
        client.shelf.clear()


@pytest.mark.parametrize("seconds", [0.7, pytest.param(60.0, marks=[pytest.mark.storm, pytest.mark.timeout(300)])])
def test_rows_are_whole_and_never_older_than_before(shelved: Station, language: Station, seconds: float) -> None:
    """P6, R39 to R49, R84."""
    with ExitStack() as stack:
        publishers = [stack.enter_context(running(f"publisher {n}")) for n in range(2)]
        readers = [stack.enter_context(running(f"reader {n}")) for n in range(2)]
        for it in publishers:
            it.call(publishing.join, shelved.run_dir)
        for it in readers:
            it.call(fetching.join, language.run_dir)
            it.call(fetching.read_for, 0.0, shelved.addr)
        for number, it in enumerate(publishers):
            it.start(publishing.publish_for, seconds, number)
        for it in readers:
            it.start(fetching.read_for, seconds, shelved.addr, LEAST_READ)
        assert [it.result(seconds + 60) for it in publishers] == [[], []]
        for it in readers:
            found, faults = it.result(seconds + 60)
            assert faults == []
            assert found >= LEAST_READ
    is_settled(shelved)


@pytest.mark.storm
@pytest.mark.timeout(600)
def test_whoever_is_killed_leaves_nothing_that_is_not_whole(shelved: Station, language: Station) -> None:
    """P1, P6, R42 to R45: publishers and readers, one every quarter of a second or so."""
    rng, stack, found = random.Random(84), ExitStack(), 0
    until = time.monotonic() + 90

    def start(kind: str) -> Agent:
        it = stack.enter_context(running(kind))
        if kind == "publisher":
            it.call(publishing.join, shelved.run_dir)
            it.start(publishing.publish_for, 600.0, rng.randrange(5))
        else:
            it.call(fetching.join, language.run_dir)
            it.start(fetching.read_for, 600.0, shelved.addr)
        return it

    with stack:
        judge = stack.enter_context(running("judge"))
        judge.call(fetching.join, language.run_dir)
        doomed = [start("publisher"), start("publisher"), start("reader")]
        while time.monotonic() < until:
            judge.start(fetching.read_for, rng.random() / 2, shelved.addr)
            more, faults = judge.result(60)
            found += more
            assert faults == []
            index = rng.randrange(len(doomed))
            kind = doomed[index].name
            doomed[index].kill()
            doomed[index] = start(kind)
    assert found > 100
    is_settled(shelved)
