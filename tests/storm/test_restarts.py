"""The judgement of what processes had while others came and went."""

from __future__ import annotations

from storm.restarts import growth
from storm.soak import Held

HELD = Held(24, 5, 300, 50 << 20)
SOCKETS = 4  # that a worker keeps of each session, until it renews itself


def life(begins: int, requests: int = 100) -> list[Held]:
    return [HELD._replace(descriptors=begins + SOCKETS * i) for i in range(requests)]


def test_a_worker_that_fills_and_begins_anew_does_not_grow() -> None:
    """P23: also where its last lives were first looked at after a request, and its first ones before."""
    assert growth([life(24)] * 4 + [life(24 + SOCKETS - 1)] * 2) == []
    assert growth([life(25), life(24)]) == []


def test_an_engine_that_the_first_request_of_a_life_brings_is_no_growth() -> None:
    """P23: the first lives were looked at before it, the last ones after."""
    before = [HELD._replace(threads=2, mappings=200, resident_bytes=20 << 20, descriptors=16), *life(24)]
    assert growth([before] * 4 + [life(24)] * 4) == []


def test_what_every_life_begins_with_more_of_is_growth() -> None:
    """P23: one descriptor more in each."""
    (found,) = growth([life(24 + i) for i in range(12)])
    assert found.startswith("descriptors: ")


def test_one_life_is_judged_by_its_least() -> None:
    steady = [HELD] * 90
    assert growth([[HELD._replace(descriptors=1)] * 10 + steady]) == []
    (found,) = growth([steady + [HELD._replace(threads=6)] * 60])
    assert found.startswith("threads: 5, then 6")
    assert growth([steady[:5]]) == ["5 samples are too few to judge"]
