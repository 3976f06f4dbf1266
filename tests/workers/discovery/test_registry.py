"""The registry of the discovery server: identity is (node, incarnation), and what is overtaken is refused with the
reason.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from embridge.workers.discovery.messages import Leave, RouteReport, Silent
from embridge.workers.discovery.registry import (
    LATE_REPORT_S,
    LEFT_KEPT_S,
    MARK_KEPT_S,
    Registry,
    RegistryFull,
    RouteConflict,
)
from embridge.workers.timing import NS


def report(node: str = "a", incarnation: int = 1, sequence: int = 0, **changes: Any) -> RouteReport:
    fields: dict[str, Any] = {
        "role": "encode",
        "node_id": node,
        "incarnation": incarnation,
        "bootstrap_addr": "tcp://127.0.0.1:1",
        "poller_addr": "tcp://127.0.0.1:2",
        "state": "READY",
        "unhealthy": [],
        "outstanding_tokens": 0,
        "outstanding_requests": 0,
        "free_blocks": 0,
        "num_blocks": 8,
        "sequence": sequence,
        "ttl_s": 5.0,
    }
    return RouteReport(**{**fields, **changes})


def test_an_older_incarnation_never_replaces_a_newer_one() -> None:
    """D5: not while that is registered, not after it has run out; and the refusal says which it was."""
    registry = Registry(0)
    assert registry.put(report(incarnation=7), 0) == "registered"
    with pytest.raises(RouteConflict, match="incarnation: 6 of node a < 7, which is registered"):
        registry.put(report(incarnation=6), 1)
    with pytest.raises(RouteConflict, match="incarnation: 6 of node a < 7, which is registered"):
        registry.leave(Leave(node_id="a", incarnation=6), 1)
    assert registry.entries(6 * NS) == []
    with pytest.raises(RouteConflict, match="incarnation: 6 of node a < 7; it has left, or was replaced"):
        registry.put(report(incarnation=6), 6 * NS)
    assert registry.put(report(incarnation=7), 6 * NS) == "registered"  # it was only slow
    assert registry.put(report(incarnation=8), 6 * NS) == "replaced"


def test_a_report_of_before_a_leave_does_not_bring_an_incarnation_back() -> None:
    """P18: one that was on its way when the node left would have requests routed to it."""
    registry = Registry(0)
    registry.put(report(incarnation=7), 0)
    assert registry.leave(Leave(node_id="a", incarnation=7), 1)
    assert not registry.leave(Leave(node_id="a", incarnation=7), 2)
    with pytest.raises(RouteConflict, match="has left"):
        registry.put(report(incarnation=7, sequence=9), 3)
    with pytest.raises(RouteConflict, match="has left, or was replaced"):
        registry.put(report(incarnation=6, sequence=9), 3)
    assert registry.put(report(incarnation=8), 4) == "registered"
    registry.leave(Leave(node_id="a", incarnation=8), 5)
    assert registry.put(report(incarnation=1), int((MARK_KEPT_S + 1) * NS)) == "registered"  # the mark has run out


def test_a_leave_that_is_not_the_nodes_own_hides_it_until_its_next_report_and_no_longer() -> None:
    """P16, D5: without a token anybody on the host may send one, again and again."""
    registry = Registry(0)

    def made_at(now_ns: int) -> RouteReport:
        return report(incarnation=7, sequence=100 * NS + now_ns)  # its host has been up for longer than the server

    registry.put(made_at(0), 0)
    for now_ns in range(2 * NS, 20 * NS, 2 * NS):
        assert registry.leave(Leave(node_id="a", incarnation=7), now_ns)
        assert not registry.leave(Leave(node_id="a", incarnation=7), now_ns)
        with pytest.raises(RouteConflict, match="has left"):
            registry.put(made_at(now_ns), now_ns + 1)
        again_ns = now_ns + NS + 1
        assert registry.put(made_at(again_ns), again_ns) == "registered"


def test_a_forged_report_from_far_ahead_and_a_leave_after_it_hide_a_node_no_longer_than_its_late_reports_last() -> None:
    """P16, D5: the sequence of whoever is not the node may be any."""
    registry = Registry(0)
    registry.put(report(incarnation=7, sequence=1 * NS), 0)
    registry.put(report(incarnation=7, sequence=1 << 50), 1 * NS)
    assert registry.leave(Leave(node_id="a", incarnation=7), 2 * NS)
    with pytest.raises(RouteConflict, match="has left"):
        registry.put(report(incarnation=7, sequence=4 * NS), 3 * NS)
    assert not registry.leave(Leave(node_id="a", incarnation=7), 11 * NS)  # who says it again makes it no longer
    back_ns = int((2 + LEFT_KEPT_S) * NS) + 1
    assert registry.put(report(incarnation=7, sequence=14 * NS), back_ns) == "registered"


@pytest.mark.parametrize("incarnation", [8, 1 << 52])
def test_a_leave_of_an_incarnation_that_is_not_there_touches_no_other(incarnation: int) -> None:
    """P16, D5: neither the one that is registered, nor the next."""
    registry = Registry(0)
    registry.put(report(incarnation=7), 0)
    assert not registry.leave(Leave(node_id="a", incarnation=incarnation), 1)
    assert [entry.incarnation for entry in registry.entries(2)] == [7]
    assert registry.put(report(incarnation=7, sequence=2), 2) == "renewed"
    assert registry.put(report(incarnation=9), 3) == "replaced"


def test_an_earlier_report_does_not_undo_a_later_one() -> None:
    """READY, late, after DRAINING."""
    registry = Registry(0)
    registry.put(report(sequence=5, state="DRAINING"), 0)
    with pytest.raises(RouteConflict, match="sequence: 4 < 5"):
        registry.put(report(sequence=4), 1)
    assert registry.put(report(sequence=5, state="DRAINING"), 2) == "renewed"
    assert [entry.state for entry in registry.entries(3)] == ["DRAINING"]


@pytest.mark.parametrize("name", ["role", "bootstrap_addr", "poller_addr"])
def test_two_nodes_that_share_an_identity_are_told_so(name: str) -> None:
    """D5: one incarnation is one place; else each would take the other's requests, second by second."""
    registry = Registry(0)
    registry.put(report(), 0)
    changes: dict[str, Any] = {name: "language" if name == "role" else "tcp://127.0.0.1:3"}
    other = report(sequence=1, **changes)
    with pytest.raises(RouteConflict, match=f"{name}: .* two nodes share one identity file"):
        registry.put(other, 1)


def test_a_node_that_does_not_renew_is_unhealthy_first_and_then_gone() -> None:
    """D4: half of its time to live without a word is a sign of its own; nobody has to ask it."""
    registry = Registry(0)
    registry.put(report(unhealthy=[Silent("worker0", 3.0)]), 0)
    registry.put(report("b"), 0)
    assert [(entry.healthy, entry.unhealthy) for entry in registry.entries(1)] == [
        (False, [Silent("worker0", 3.0)]),
        (True, []),
    ]
    assert [entry.unhealthy[-1] for entry in registry.entries(3 * NS)] == [Silent("registrar", 3.0)] * 2
    assert registry.entries(5 * NS)
    assert not registry.entries(5 * NS + 1)
    assert registry.counts["expired"] == 2


def test_there_is_a_limit_on_nodes_and_those_that_are_registered_are_not_hurt_by_it() -> None:
    """P12: memory stays flat, whatever reports."""
    registry = Registry(0, max_nodes=2)
    for node in "ab":
        registry.put(report(node), 0)
    with pytest.raises(RegistryFull, match="nodes: 2 are registered"):
        registry.put(report("c"), 1)
    assert registry.put(report("a", sequence=1), 2) == "renewed"
    assert registry.put(report("b", 2), 2) == "replaced"


def test_roles_are_told_apart() -> None:
    registry = Registry(0)
    registry.put(report("a"), 0)
    registry.put(report("b", role="language"), 0)
    assert [entry.node_id for entry in registry.entries(1)] == ["a", "b"]
    assert [entry.node_id for entry in registry.entries(1, "language")] == ["b"]


@settings(max_examples=25, stateful_step_count=30, deadline=None)
class RegistryMachine(RuleBasedStateMachine):
    """Nodes that report, leave and fall silent in any order, against what a node's own history says."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(0)
        self.now_ns = 0
        self.listed: dict[str, tuple[int, int]] = {}  # node -> (incarnation, heard)
        self.least: dict[str, int] = {}  # node -> the least incarnation that may come
        # (node, incarnation) -> until when its reports are late, until when that is kept
        self.left: dict[tuple[str, int], tuple[int, int]] = {}

    nodes = st.sampled_from("abc")
    incarnations = st.integers(1, 4)

    def forget_silent(self) -> None:
        for node, (incarnation, heard_ns) in list(self.listed.items()):
            if self.now_ns - heard_ns > 5 * NS:
                del self.listed[node]
                self.least[node] = max(self.least.get(node, 0), incarnation)

    @rule(node=nodes, incarnation=incarnations)
    def reports(self, node: str, incarnation: int) -> None:
        self.forget_silent()
        held = self.listed.get(node, (0, 0))[0]
        try:
            self.registry.put(report(node, incarnation, self.now_ns), self.now_ns)
        except RouteConflict:
            assert incarnation < max(held, self.least.get(node, 0)) or self.now_ns <= self.left[node, incarnation][0]
        else:
            assert incarnation >= max(held, self.least.get(node, 0))
            assert self.now_ns > self.left.pop((node, incarnation), (-1, -1))[0]
            self.listed[node] = incarnation, self.now_ns

    @rule(node=nodes, incarnation=incarnations)
    def leaves(self, node: str, incarnation: int) -> None:
        self.forget_silent()
        held = self.listed.get(node, (0, 0))[0]
        try:
            left = self.registry.leave(Leave(node_id=node, incarnation=incarnation), self.now_ns)
        except RouteConflict:
            assert incarnation < held
        else:
            assert left == (incarnation == held)
            if left:
                del self.listed[node]
                self.least[node] = max(self.least.get(node, 0), incarnation)
            if self.now_ns > self.left.get((node, incarnation), (-1, -1))[1]:
                late_s = LATE_REPORT_S if left else LEFT_KEPT_S
                self.left[node, incarnation] = self.now_ns + int(late_s * NS), self.now_ns + int(LEFT_KEPT_S * NS)

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * NS

    @invariant()
    def lists_who_is_there(self) -> None:
        self.forget_silent()
        found = {entry.node_id: entry.incarnation for entry in self.registry.entries(self.now_ns)}
        assert found == {node: incarnation for node, (incarnation, _) in self.listed.items()}


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.__doc__ = (
    "D3, D5: whatever the order, the newest incarnation that reports and has not left is the one that is listed."
)


def test_a_report_reaches_the_registry_as_it_was_sent() -> None:
    sent = report(unhealthy=[Silent("worker0", 2.5)], state="DRAINING")
    assert msgspec.json.decode(msgspec.json.encode(sent), type=RouteReport) == sent
