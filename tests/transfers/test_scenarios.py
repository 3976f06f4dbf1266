"""The documents' scenarios 1 to 4 across real processes: an encoder, a scheduler, and a node for each of them.

Every test names the exact path of phases on both sides and compares every byte: embeddings, ids, positions, deepstack,
aux.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import encoding, scheduling
from support.agents import Agent
from support.nodes import Station, every_engine
from support.scheduling import Received

pytestmark = [pytest.mark.process, every_engine]

ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


def check(received: Received, total: int, path: list[str]) -> None:
    """The request arrived whole, on that path."""
    assert received.error == ""
    assert received.path == path
    assert received.total == total
    assert received.difference == ""
    assert scheduling.aux_is_right(received)


@pytest.fixture
def idle_after(encode: Station, language: Station) -> Iterator[None]:
    """Every block and every slot is back after each test (D6)."""
    yield
    encode.wait_idle()
    language.wait_idle()


@pytest.mark.usefixtures("idle_after")
@pytest.mark.parametrize(
    ("total", "path", "rounds"),
    [(500, ONE_ROUND, 1), (1024, ONE_ROUND, 1), (2000, RESUMED, 2), (10_000, RESUMED, 9)],
    ids=["scenario 1", "scenario 3", "scenario 2", "scenario 4"],
)
def test_a_request_arrives_through_the_queues_whatever_its_length(
    encode: Station,
    language: Station,
    encoder: Agent,
    scheduler: Agent,
    room: int,
    total: int,
    path: list[str],
    rounds: int,
) -> None:
    """Scenarios 1, 2, 3, 4, D20: the default of 1024 tokens is granted before the length is known, the rest as blocks
    come free.
    """
    scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
    assert scheduler.call(scheduling.wait_granted, language.run_dir, room, 1024) == 1024
    encoder.call(encoding.send, encode.run_dir, room, total)
    received = scheduler.call(scheduling.take, language.run_dir, room)
    check(received, total, path)
    assert received.rounds >= rounds
    assert received.rounds == rounds or rounds > 1
    sent = encoder.call(encoding.outcome, room)
    assert (sent.path, sent.sent, sent.error) == (path, total, "")


@pytest.mark.usefixtures("idle_after")
@pytest.mark.parametrize(
    ("total", "grants"),
    [
        (500, [(8, 1024)]),
        (1024, [(8, 1024)]),
        (2000, [(8, 1024), (8, 976)]),
        (10_000, [(8, 1024)] * 9 + [(7, 784)]),
        (1, [(1, 1)]),
        (300, [(1, 128), (1, 128), (1, 44)]),
    ],
    ids=["scenario 1", "scenario 3", "scenario 2", "scenario 4", "one token", "a block a round"],
)
def test_a_request_arrives_in_exactly_the_rounds_that_are_granted(
    encode: Station,
    language: Station,
    encoder: Agent,
    scheduler: Agent,
    room: int,
    total: int,
    grants: list[tuple[int, int]],
) -> None:
    """Scenarios 1, 2, 3, 4, B1, B2, D20: by hand, each round lands before the next is granted, and only the last is
    Success.

    The status word of the language side is read all the while and never decreases.
    """
    encoder.call(encoding.send, encode.run_dir, room, total)
    received, phases = scheduler.call(scheduling.by_hand, language.run_dir, encode.addr, room, total, grants)
    path = ONE_ROUND if len(grants) == 1 else RESUMED
    check(received, total, path)
    assert received.rounds == len(grants)
    assert phases[:-1] == ["Transferring"] * (len(grants) - 1)
    sent = encoder.call(encoding.outcome, room)
    assert (sent.path, sent.sent, sent.error) == (path, total, "")


@pytest.mark.parametrize("total", [1024, 2000, 10_000])
def test_a_request_arrives_through_a_pool_of_eight_blocks(
    encode: Station, other_language: Station, encoder: Agent, scheduler: Agent, room: int, total: int
) -> None:
    """Scenarios 2, 4: with 1024 tokens of memory in all, and a default of half of it."""
    scheduler.call(scheduling.request, other_language.run_dir, encode.addr, room)
    assert scheduler.call(scheduling.wait_granted, other_language.run_dir, room, 512) == 512
    encoder.call(encoding.send, encode.run_dir, room, total)
    received = scheduler.call(scheduling.take, other_language.run_dir, room)
    check(received, total, RESUMED)
    assert received.rounds >= -(-total // 1024)
    assert encoder.call(encoding.outcome, room).path == RESUMED
    other_language.wait_idle()
    encode.wait_idle()


@pytest.mark.usefixtures("idle_after")
def test_an_announced_length_is_granted_whole_and_takes_one_round(
    encode: Station, language: Station, encoder: Agent, scheduler: Agent, room: int
) -> None:
    """B3: what is granted follows from the request's own length, not from a default of 1024 tokens; B7: known before
    any row.
    """
    encoder.call(encoding.open_room, encode.run_dir, room, 700, announce=True)
    scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
    scheduler.call(scheduling.wait_granted, language.run_dir, room, 700)
    encoder.call(encoding.send_all, room)
    received = scheduler.call(scheduling.take, language.run_dir, room)
    check(received, 700, ONE_ROUND)
    assert encoder.call(encoding.outcome, room).path == ONE_ROUND


@pytest.mark.usefixtures("idle_after")
def test_rows_written_a_few_at_a_time_arrive_as_they_are_written(
    encode: Station, language: Station, encoder: Agent, scheduler: Agent, room: int
) -> None:
    """D13: encoding does not wait for the grant, nor the grant for the encoding; rows end where no block does."""
    total, ends = 2500, [1, 127, 128, 300, 1100, 2499, 2500]
    encoder.call(encoding.open_room, encode.run_dir, room, total)
    scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
    first = 0
    for end in ends:
        assert encoder.call(encoding.write, room, first, end)
        scheduler.call(scheduling.wait_transferred, language.run_dir, room, end)
        first = end
    received = scheduler.call(scheduling.take, language.run_dir, room)
    check(received, total, RESUMED)
    assert encoder.call(encoding.outcome, room).path == RESUMED
