"""More requests than a node has slots for: none is refused, none waits for a deadline, every byte arrives (P8, P12,
D8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import crowds
from support.agents import Agent
from support.crowds import Crowd
from support.nodes import LIMITS, Station, station
from support.remains import run_dirs

from embridge import Limits

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

FEW = replace(LIMITS, num_slots=128, max_peer_slots=128)
TOTAL = 3


def nodes(path: Path, limits: Limits, **settings: Any) -> Iterator[tuple[Station, Station]]:
    settings = {"limits": limits, "log_level": "WARNING", "request_timeout_s": 300.0, **settings}
    with station("encode", path / "e", **settings) as e, station("language", path / "l", **settings) as lang:
        yield e, lang


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    with run_dirs() as path:
        yield from nodes(path, FEW)


def go(
    pair: tuple[Station, Station], encoder: Agent, scheduler: Agent, opened: range, sent: range, at_once: int
) -> tuple[Crowd, Crowd]:
    """Both sides open their rooms at once, in these orders."""
    encode, language = pair
    timeout_s = 120.0
    scheduler.start(crowds.receive, language.run_dir, encode.addr, opened, TOTAL, at_once, timeout_s)
    encoder.start(crowds.send, encode.run_dir, sent, TOTAL, at_once, timeout_s)
    sending, receiving = encoder.result(2 * timeout_s), scheduler.result(2 * timeout_s)
    encode.wait_idle()
    language.wait_idle()
    return sending, receiving


def test_rooms_that_are_opened_in_opposite_orders_all_arrive(
    pair: tuple[Station, Station], encoder: Agent, scheduler: Agent
) -> None:
    """P8, D8: three times as many as either side has slots for; two full tables do not wait for each other."""
    count = 3 * FEW.num_slots
    for crowd in go(pair, encoder, scheduler, range(count), range(count)[::-1], count):
        assert (crowd.num_arrived, crowd.failures) == (count, [])
        assert crowd.most_waiting > FEW.num_slots


def test_slots_that_are_used_again_and_again_lose_no_request(
    pair: tuple[Station, Station], encoder: Agent, scheduler: Agent
) -> None:
    """P8: four times through all slots, with as many in flight as there are."""
    count = 4 * FEW.num_slots
    rooms = range(10_000, 10_000 + count)  # others than before
    for crowd in go(pair, encoder, scheduler, rooms, rooms, FEW.num_slots):
        assert (crowd.num_arrived, crowd.failures) == (count, [])


@pytest.mark.storm
@pytest.mark.parametrize(
    ("count", "at_once", "is_opposite"),
    [(20_000, 512, False), (5000, 5000, True)],
    ids=["20 000, 512 in flight", "5000 in opposite orders"],
)
def test_thousands_of_small_requests_all_arrive(
    encoder: Agent, scheduler: Agent, count: int, at_once: int, is_opposite: bool
) -> None:
    """P8, P12, D8: at the limits that a node has by default."""
    with run_dirs() as path:
        for pair in nodes(path, Limits(), num_blocks=64):
            sending, receiving = go(
                pair, encoder, scheduler, range(count), range(count)[:: -1 if is_opposite else 1], at_once
            )
    print(
        f"{count} with {at_once} at once: {receiving.seconds:.1f} s, waiting at most {sending.most_waiting}, "
        f"{receiving.most_waiting}"
    )
    for crowd in (sending, receiving):
        assert (crowd.num_arrived, crowd.failures) == (count, [])
