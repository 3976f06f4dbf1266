"""Many requests at once through little memory, with a process that watches every status word all the while (P5, P6,
D8).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import encoding, observer, scheduling
from support.agents import Agent, running
from support.encoding import Outcome
from support.nodes import Settings, Station, station
from support.remains import run_dirs

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

REQUESTS, LONGEST = 64, 20_000
TIMEOUT_S = 240.0  # seconds on an idle machine; minutes where many tests run at once
ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


STORM = pytest.mark.storm


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Station, Station]]:
    """Two nodes with pools of that many blocks of 128 tokens, hidden 64."""
    geometry: Settings = {
        "num_blocks": request.param,
        "deepstack_layers": 1,
        "log_level": "WARNING",
        "request_timeout_s": TIMEOUT_S,
    }
    with (
        run_dirs() as path,
        station("encode", path / "e", **geometry) as e,
        station("language", path / "l", **geometry) as lang,
    ):
        yield e, lang


@pytest.fixture(scope="module")
def watcher() -> Iterator[Agent]:
    with running("observer") as agent:
        yield agent


@contextmanager
def watched(watcher: Agent, *stations: Station) -> Iterator[None]:
    """P5: meanwhile no status word decreases, and no terminal phase changes within its epoch."""
    watcher.call(observer.watch, [it.run_dir for it in stations])
    violations: list[str] = ["not asked"]
    try:
        yield
    finally:
        violations, looks, changes = watcher.call(observer.report)
    assert violations == []
    assert looks > changes > 0


def lengths(num_blocks: int, destinations: int, rooms: Iterator[int]) -> dict[int, int]:
    """64 requests of 1 to 20 000 tokens: any length as likely as any other, or, where that takes long, any order of
    magnitude.
    """
    rng = random.Random(10 * num_blocks + destinations)
    if num_blocks > destinations == 1:
        totals = [rng.randint(1, LONGEST) for _ in range(REQUESTS - 2)]
    else:
        totals = [int(math.exp(rng.uniform(0, math.log(LONGEST)))) for _ in range(REQUESTS - 2)]
    totals += [1, LONGEST]
    rng.shuffle(totals)
    return {next(rooms): total for total in totals}


@pytest.mark.parametrize(
    ("pair", "destinations"),
    [(16, 2), *(pytest.param(*pools, marks=STORM) for pools in ((1, 1), (16, 1), (1, 2)))],
    ids=["16 blocks a side-2", "one block a side-1", "16 blocks a side-1", "one block a side-2"],
    indirect=["pair"],
    scope="module",
)
def test_64_requests_at_once_all_arrive_with_every_byte(
    pair: tuple[Station, Station],
    encoder: Agent,
    scheduler: Agent,
    other_scheduler: Agent,
    watcher: Agent,
    rooms: Iterator[int],
    destinations: int,
) -> None:
    """D8, R21, P5, P6: 1 to 20 000 tokens each, through pools that hold a fraction of one of them."""
    encode, language = pair
    num_blocks = language.geometry.num_blocks
    totals = lengths(num_blocks, destinations, rooms)
    agents, numbers = [scheduler, other_scheduler][:destinations], list(totals)
    with watched(watcher, encode, language):
        for agent in agents:
            agent.call(scheduling.request_many, language.run_dir, encode.addr, numbers, required=destinations)
        for agent in agents:
            agent.start(scheduling.take_many, language.run_dir, numbers, TIMEOUT_S)
        encoder.start(encoding.send_many, encode.run_dir, totals)
        encoder.result(TIMEOUT_S)
        received = [agent.result(TIMEOUT_S) for agent in agents]
        sent = encoder.call(encoding.outcomes, numbers)
    for room, total in totals.items():
        assert sent[room].path in (ONE_ROUND, RESUMED)
        assert sent[room]._replace(path=[]) == Outcome([], total, "", "")
        for arrived in received:
            it = arrived[room]
            assert (it.error, it.difference, it.total, it.path) == ("", "", total, sent[room].path)
            assert scheduling.aux_is_right(it)
    encode.wait_idle()
    language.wait_idle()


@pytest.mark.parametrize(
    "pair",
    [1, pytest.param(16, marks=STORM)],
    ids=["one block a side", "16 blocks a side"],
    indirect=True,
    scope="module",
)
def test_requests_given_up_at_any_moment_end_once_and_leave_no_block_behind(
    pair: tuple[Station, Station], encoder: Agent, scheduler: Agent, watcher: Agent, rooms: Iterator[int]
) -> None:
    """P5, D6, D12, B12: half of 48 requests are aborted somewhere on their way, from either side; the others arrive
    whole.

    Which of them arrive before their abort is the machine's affair; what an aborted one ends as is not.
    """
    encode, language = pair
    rng = random.Random(7)
    totals = {next(rooms): rng.randint(1, 3000) for _ in range(48)}
    numbers = list(totals)
    doomed = {room: rng.choice(["encoder", "scheduler"]) for room in numbers[::2]}
    with watched(watcher, encode, language):
        scheduler.call(scheduling.request_many, language.run_dir, encode.addr, numbers)
        encoder.call(encoding.send_many, encode.run_dir, totals)
        for room, side in doomed.items():
            if side == "encoder":
                encoder.call(encoding.abort, room, "the encoder has other plans")
            else:
                scheduler.call(scheduling.abort, language.run_dir, room, "the scheduler has other plans")
        received = scheduler.call(scheduling.take_many, language.run_dir, numbers)
        sent = encoder.call(encoding.outcomes, numbers)
    for room, total in totals.items():
        if received[room].error:
            reason = f"the {doomed[room]} has other plans"
            # its init came after the end
            late = f"room {room} failed here before: {reason}; a room number is used once"
            assert received[room].error == "TransferAborted"
            assert received[room].reason in (reason, late)
            assert sent[room].path[-1] == "Success" or sent[room].reason == reason  # it may have crossed the last row
        else:
            assert (received[room].difference, received[room].total) == ("", total)
            assert sent[room].error == ""
    encode.wait_idle()
    language.wait_idle()


def test_a_request_of_full_size_rows_arrives_with_every_byte(
    own_dir: Path, encoder: Agent, scheduler: Agent, room: int
) -> None:
    """Scenario 2 at the size of a real model: hidden 3584, 3000 tokens through 24 blocks, of which 1024 tokens are
    granted at first.
    """
    geometry: Settings = {"hidden_size": 3584, "num_blocks": 24, "default_allocate_tokens": 1024}
    with (
        station("encode", own_dir / "e", **geometry) as encode,
        station("language", own_dir / "l", **geometry) as language,
    ):
        scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
        assert scheduler.call(scheduling.wait_granted, language.run_dir, room, 1024) == 1024
        encoder.call(encoding.send, encode.run_dir, room, 3000)
        received = scheduler.call(scheduling.take, language.run_dir, room)
        assert (received.error, received.difference, received.total, received.path) == ("", "", 3000, RESUMED)
        assert encoder.call(encoding.outcome, room).path == RESUMED
        for agent, part, place in ((encoder, encoding, encode), (scheduler, scheduling, language)):
            agent.call(part.leave, place.run_dir)
