"""Picking an encode node by load, from what stands in shared memory."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge import NoRouteError
from embridge.allocator.records import DiscoveryState, NodeState
from embridge.allocator.routes import DiscoveryRecord, RouteRecord
from embridge.pipeline.client.routing import RoutePicker
from embridge.workers.timing import NS


class Table:
    """A route table as a client sees it, and its clock: a test sets both."""

    def __init__(self, *loads: int) -> None:
        self.now_ns = 100 * NS
        self.nodes = [node(number, load, self.now_ns) for number, load in enumerate(loads, 1)]
        self.record = DiscoveryRecord(DiscoveryState.REGISTERED, 1, 1, 0, "http://127.0.0.1:8998", "")

    def routes(self) -> list[RouteRecord]:
        return list(self.nodes)

    def discovery(self) -> DiscoveryRecord:
        return self.record

    def clock(self) -> int:
        return self.now_ns

    def picker(self) -> RoutePicker:
        return RoutePicker(self, self.clock)  # type: ignore[arg-type]


def node(number: int, tokens: int = 0, reported_ns: int = 0, **changes: object) -> RouteRecord:
    made = RouteRecord(
        number,
        1,
        NodeState.READY,
        True,
        "",
        f"tcp://127.0.0.1:{number}",
        "tcp://127.0.0.1:9",
        tokens,
        0,
        8,
        8,
        reported_ns,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def test_the_node_with_the_least_to_do_is_picked_and_ties_go_round() -> None:
    table = Table(500, 0, 0, 0)
    picker = table.picker()
    assert [picker.pick(0).node_id for _ in range(6)] == [2, 3, 4, 2, 3, 4]


def test_a_request_that_is_retried_goes_to_another_node_than_the_one_that_it_failed_on() -> None:
    """R26: discovery may still take that one for healthy, and for idle."""
    table = Table(0, 500)
    picker = table.picker()
    assert picker.pick(0, "tcp://127.0.0.1:1").node_id == 2
    table.nodes = table.nodes[:1]
    with pytest.raises(NoRouteError, match=r"none of 1 is READY and healthy and other than tcp://127.0.0.1:1"):
        picker.pick(0, "tcp://127.0.0.1:1")


def test_what_was_just_sent_counts_until_a_report_can_show_it() -> None:
    """Else all that comes between two reports would go to the node that was idle at the first."""
    table = Table(0, 1000)
    picker = table.picker()
    assert [picker.pick(600).node_id for _ in range(4)] == [1, 1, 2, 1]
    # long enough for the encoder to have opened the rooms; but this report is of before the picks
    table.now_ns += 3 * NS
    assert picker.pick(600).node_id == 2
    table.nodes = [node(1, 100, table.now_ns), node(2, 5000, table.now_ns)]
    assert picker.pick(0).node_id == 1  # 1800 + 100 would still be less: what counts is that they are not counted twice
    table.nodes = [node(1, 1800, table.now_ns), node(2, 1900, table.now_ns)]
    assert picker.pick(0).node_id == 1


def test_what_was_sent_to_an_incarnation_does_not_count_against_the_next() -> None:
    """D3: a node that comes back begins anew."""
    table = Table(0, 10)
    picker = table.picker()
    assert picker.pick(1000).node_id == 1
    assert picker.pick(0).node_id == 2
    table.nodes[0] = table.nodes[0]._replace(incarnation=2)
    assert picker.pick(0).node_id == 1


@pytest.mark.parametrize(
    "why", [{"state": NodeState.DRAINING}, {"healthy": False, "unhealthy": "worker0 silent 3.0 s"}]
)
def test_a_node_that_drains_or_is_unhealthy_is_never_picked(why: dict[str, object]) -> None:
    """D4, P18: and where there is no other, the error says how each of them is."""
    table = Table(0, 1000)
    table.nodes[0] = table.nodes[0]._replace(**why)  # type: ignore[arg-type]
    picker = table.picker()
    assert {picker.pick(100).node_id for _ in range(10)} == {2}
    table.nodes[1] = table.nodes[1]._replace(**why)  # type: ignore[arg-type]
    seen = why.get("unhealthy") or "DRAINING"
    with pytest.raises(NoRouteError, match=f"none of 2 is READY and healthy: node 1 at tcp://127.0.0.1:1 is {seen}"):
        picker.pick(0)


def test_no_node_at_all_says_how_discovery_fares() -> None:
    table = Table()
    with pytest.raises(NoRouteError, match="none of 0 is READY and healthy; discovery is REGISTERED at http"):
        table.picker().pick(0)
    table.record = table.record._replace(
        state=DiscoveryState.UNREACHABLE, reason="http://127.0.0.1:8998: no answer within 2 s"
    )
    with pytest.raises(NoRouteError, match="no answer within 2 s"):
        table.picker().pick(0)


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.integers(1, 1000), min_size=1, max_size=60), num_nodes=st.integers(1, 5))
def test_between_two_reports_the_work_is_spread_evenly(tokens: list[int], num_nodes: int) -> None:
    """No node has more than another by more than one request."""
    picker, given_to = Table(*[0] * num_nodes).picker(), Counter[int](dict.fromkeys(range(1, num_nodes + 1), 0))
    for count in tokens:
        given_to[picker.pick(count).node_id] += count
    assert max(given_to.values()) - min(given_to.values()) <= max(tokens)
