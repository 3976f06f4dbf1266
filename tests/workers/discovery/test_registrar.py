"""What a registrar says of its node and makes of the answers; words in, words out."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.discovery import fields_of
from support.simulation import segment

from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import SLOTS_PER_PAGE, Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import DiscoveryState, NodeState, Process, SegmentHeader, Slot
from embridge.allocator.status import Phase
from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.http import DiscoveryError
from embridge.workers.discovery.registrar import Backoff, Reporter
from embridge.workers.discovery.services import open_service
from embridge.workers.health import load_of, silent_processes
from embridge.workers.role import Addresses, RoleContext
from embridge.workers.timing import NS, Timing

LIMITS = Limits(num_slots=128, max_clients=2, ring_records=16, max_peers=1, max_peer_slots=64, max_routes=2)
GEOMETRY = Geometry(hidden_size=8, num_blocks=4)


@pytest.fixture
def ctx() -> RoleContext:
    """A language node's control segment, with every process just born, as its registrar has it."""
    mapping = segment(ControlLayout.of(Role.LANGUAGE, GEOMETRY, LIMITS).size)
    format_control(mapping, Role.LANGUAGE, GEOMETRY, LIMITS, node_id=0xAB, incarnation=7, now_ns=1)
    control = Control(mapping)
    control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
    for index in range(len(control.processes.names)):
        control.processes.beat(index, NS)
    return RoleContext(control, "registrar", Timing(), Addresses("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "here.sock"))


def entry(node: int, **changes: Any) -> msg.RouteEntry:
    return msg.RouteEntry(**fields_of(node, **{"healthy": True, "age_s": 0.5, **changes}))


@settings(max_examples=20, deadline=None)
@given(failures=st.integers(1, 2000), seed=st.integers())
def test_pauses_double_up_to_a_limit_and_half_of_each_is_chance(failures: int, seed: int) -> None:
    """Also after thousands of failures; the first success ends it."""
    backoff = Backoff(1.0, 5.0, random.Random(seed))
    pauses = [backoff.failed() for _ in range(failures)]
    for pause, full in zip(pauses, [1, 2, 4, *[5] * failures], strict=False):
        assert full / 2 <= pause <= full
    assert backoff.num_failures == failures
    assert backoff.succeeded() == 1.0
    assert backoff.failed() <= 1.0


def test_load_counts_what_is_announced_and_not_sent_of_the_live_requests_only(ctx: RoleContext) -> None:
    control = ctx.control
    page = control.lanes.lease_page(0)
    assert page is not None
    requests = [
        (1000, Phase.Transferring, 300),
        (50, Phase.WaitingForInput, 0),
        (0, Phase.Bootstrapping, 0),
        (70, Phase.Success, 70),
        (80, Phase.Failed, 0),
    ]
    for number, (total, phase, sent) in enumerate(requests):
        slot = page * SLOTS_PER_PAGE + number
        epoch = control.status.open(slot, 1)
        control.slots.set(slot, Slot.EPOCH, epoch)
        control.slots.set(slot, Slot.TOTAL, total)
        if phase:
            assert control.status.advance(slot, epoch, phase, sent, 1)
    released = page * SLOTS_PER_PAGE + 10
    control.slots.set(released, Slot.EPOCH, control.status.open(released, 1))
    control.slots.set(released, Slot.TOTAL, 10_000)
    control.slots.set(released, Slot.RELEASED_EPOCH, 1)
    assert load_of(ctx) == (700 + 50, 3, 4)


def test_every_process_that_does_not_beat_is_named_the_launcher_and_the_registrar_too(ctx: RoleContext) -> None:
    """D4."""
    control = ctx.control
    assert silent_processes(control, 3 * NS, 2.0) == []
    assert silent_processes(control, 3 * NS + NS // 2, 2.0) == [(name, 2.5) for name in control.processes.names]
    for index in range(len(control.processes.names)):
        control.processes.beat(index, 10 * NS)
    control.processes.set("worker1", Process.BEAT_NS, 4 * NS)
    report = Reporter(ctx, "http://127.0.0.1:1").report(10 * NS)
    assert report is not None
    assert [(silent.process, silent.silent_s) for silent in report.unhealthy] == [("worker1", 6.0)]


@pytest.mark.parametrize(("state", "said"), [(0, None), (1, "READY"), (2, "DRAINING"), (3, None)])
def test_a_node_is_published_while_it_is_ready_or_drains(ctx: RoleContext, state: int, said: str | None) -> None:
    """P18."""
    ctx.control.header.store(SegmentHeader.NODE_STATE, state)
    report = Reporter(ctx, "http://127.0.0.1:1").report(NS)
    assert (report.state if report else None) == said
    if report:
        assert (report.node_id, report.incarnation, report.role, report.sequence) == ("ab", 7, "language", NS)


def test_what_a_young_server_does_not_list_is_kept_and_what_an_old_one_does_not_list_is_gone(ctx: RoleContext) -> None:
    """D3: also when the registrar itself was started again in between. Young is who is up for less than the longest
    pause of a node and the time that its request may take.
    """
    reporter, reader = Reporter(ctx, "http://127.0.0.1:1"), ctx.control.routes

    def listed() -> dict[int, int]:
        return {route.node_id: route.incarnation for route in reader.routes()}

    reporter.take(msg.RouteAnswer(routes=[entry(1), entry(2)], server_up_s=100.0), 10 * NS)
    assert listed() == {1: 1, 2: 1}
    assert {route.reported_ns for route in reader.routes()} == {10 * NS - NS // 2}
    reporter = Reporter(ctx, "http://127.0.0.1:1")
    reporter.take(msg.RouteAnswer(routes=[entry(2, incarnation=2)], server_up_s=6.9), 11 * NS)
    assert listed() == {1: 1, 2: 2}
    reporter.take(msg.RouteAnswer(routes=[entry(2, incarnation=2)], server_up_s=7.0), 12 * NS)
    assert listed() == {2: 2}


def test_more_nodes_than_the_table_holds_are_left_out_and_told_of_once(
    ctx: RoleContext, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = Reporter(ctx, "http://127.0.0.1:1")
    for _ in range(3):
        reporter.take(msg.RouteAnswer(routes=[entry(n) for n in (1, 2, 3)], server_up_s=100.0), NS)
    assert len(ctx.control.routes.routes()) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "1 nodes found no room among 2 routes; raise max_routes"
    ]


def test_a_reason_is_logged_when_it_changes_and_shown_all_the_time(
    ctx: RoleContext, caplog: pytest.LogCaptureFixture
) -> None:
    reporter, reader = Reporter(ctx, "http://127.0.0.1:1"), ctx.control.routes
    for failures, reason in enumerate(["no answer", "no answer", "no answer", "refused", "refused"], 1):
        reporter.say(DiscoveryState.UNREACHABLE, reason, failures, failures * NS)
    assert [record.getMessage() for record in caplog.records] == [
        "discovery: no answer; the node goes on without",
        "discovery: refused; the node goes on without",
    ]
    assert reader.discovery() == (DiscoveryState.UNREACHABLE, 4 * NS, 0, 5, "http://127.0.0.1:1", "refused")
    reporter.say(DiscoveryState.REGISTERED, "", 0, 9 * NS)
    assert reader.discovery() == (DiscoveryState.REGISTERED, 9 * NS, 9 * NS, 0, "http://127.0.0.1:1", "")


def test_a_name_that_is_slow_to_resolve_keeps_no_exchange_waiting_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """P21, P8: the exchange has its deadline, and the loop ends though the resolver has not answered."""
    answers, asked = threading.Event(), threading.Event()

    def never(*_: Any) -> None:
        asked.set()
        answers.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def exchange(timeout_s: float) -> None:
        timing = Timing(discovery_timeout_s=timeout_s)
        url = "http://slow.example:4000"
        service = open_service(url, token_file="", ca_file="", timing=timing, clock=lambda: 0, unreadable=print)
        try:
            await service.routes("encode")
        finally:
            await service.close()

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(DiscoveryError, match=r"http://slow.example:4000: no answer within 0.1 s"):
        asyncio.run(exchange(0.1))
    assert asked.is_set()
    answers.set()
    with pytest.raises(
        DiscoveryError, match=r"its name does not resolve: Name or service not known; is `embridge discovery` running"
    ):
        asyncio.run(exchange(10.0))
