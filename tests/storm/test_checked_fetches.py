"""What the checker holds against fetches of published items, on histories that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from storm.checked_fetches import figures_of_fetches
from storm.checker import check
from storm.history import Event

S = 1_000_000_000
END = 100.0


def event(t: float, name: str, **fields: Any) -> Event:
    return {"t": int(t * S), "event": name, **fields}


def fetch(t: float, number: int = 1, addr: str = "tcp://e:1") -> Event:
    return event(t, "fetch", number=number, client="scheduler-0.1", key=3, addr=addr, deadline_s=30.0)


def node_up(t: float, node: str, addr: str) -> Event:
    return event(t, "node_up", node=node, generation=1, addr=addr, processes={})


def fetched(t: float, number: int = 1, **fields: Any) -> Event:
    told = {"where": "", "error": "", "reason": "", "difference": "", "kept": 0}
    return event(t, "fetched", number=number, client="scheduler-0.1", **told | fields)


def rules(*events: Event) -> list[str]:
    """The labels of what the checker finds, with both nodes up from the beginning."""
    up = [node_up(0, "e", "tcp://e:1"), node_up(0, "l", "")]
    faults = [e for e in events if e["event"] == "fault"]
    ended = [event(END, "eased", id=fault["id"]) for fault in faults]
    return [found.rule for found in check([*up, *events, *ended, event(END, "end")])]


FAILED: dict[str, Any] = {"error": "FetchFailed", "reason": "for nothing"}
DEATH = event(1.5, "fault", id=1, kind="kill client", victim="scheduler-0.1", node="l", pid=7)


def test_fetches_that_end_as_they_may_are_held_against_nobody() -> None:
    """P11: what was evicted, what had no slot, what was given up, what comes."""
    errors = ("", "NotPublished", "Busy", "GenerationGone", "given up")
    for error in errors:
        assert rules(fetch(1), fetched(2, error=error)) == []


def test_a_fetch_may_fail_where_no_node_is_any_more_and_nowhere_else() -> None:
    """P11: its client hears of the next address a moment later, on a busy machine some seconds."""
    moved = [node_up(10, "e", "tcp://e:2")]
    assert rules(*moved, fetch(20, addr="tcp://e:1"), fetched(21, **FAILED)) == []
    assert rules(*moved, fetch(20, addr="tcp://e:2"), fetched(21, **FAILED)) == ["P11"]


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        ([fetch(1), fetched(2, **FAILED)], "P11"),
        ([fetch(1), fetched(2, difference="item 3: it has the rows of 4")], "P6"),
        ([fetched(2, number=0, difference="item 3: it has the rows of 4")], "P6"),
        ([fetch(1), fetched(40)], "P5"),
        ([fetch(1)], "P5"),
        ([event(2, "final", node="e", counts={"free": 1, "owned": 0, "exposed": 0}, blocks=1, in_flight=[],
                dead_lanes=[], items=[1, 0, 0])], "P1"),
    ],
)  # fmt: skip
def test_each_fault_of_a_fetch_is_found(found: list[Event], rule: str) -> None:
    """P1, P5, P6, P11."""
    assert rules(*found) == [rule]


def test_a_death_explains_what_comes_of_it() -> None:
    """P11: and a fetch of a dead client need not end."""
    down = event(1.6, "client_down", client="scheduler-0.1", why="killed")
    assert "P5" not in rules(fetch(1), DEATH, down)
    gone = event(1.5, "node_down", node="e", generation=1, why="killed")
    assert "P11" not in rules(fetch(1), gone, fetched(2, **FAILED))


def test_the_figures_tell_what_came_and_how() -> None:
    found = [fetched(1), fetched(2, where="in place"), fetched(3, **FAILED, kept=7), fetched(4, error="NotPublished")]
    shown = {"fetched": 2, "fetched_in_place": 1, "fetches_failed": 1, "fetches_gone_on": 1}
    assert figures_of_fetches(found) == shown
