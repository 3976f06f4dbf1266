"""The explorer finds what is wrong, by the shortest way, and says when it cannot know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from explorer import explore


def counting(state: int) -> Iterator[tuple[str, int]]:
    if state < 5:
        yield "one more", state + 1
        yield "two more", state + 2


def test_a_state_that_must_never_be_comes_with_the_shortest_trace() -> None:
    finding = explore(0, counting, violated=lambda state: "four" if state == 4 else None)
    assert finding.fault == "four"
    assert finding.trace == ["two more", "two more"]


def test_a_state_that_cannot_reach_the_goal_is_stuck() -> None:
    finding = explore(0, counting, goal=lambda state: state == 5)
    assert finding.fault == "stuck in 6"
    assert explore(0, counting, goal=lambda state: state >= 5).fault is None


def test_a_model_that_is_too_large_is_an_error_and_no_proof() -> None:
    with pytest.raises(RuntimeError, match="more than 10 states"):
        explore(0, lambda state: [("on", state + 1)], max_states=10)
