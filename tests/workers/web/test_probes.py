"""What a node's HTTP port answers to whoever asks whether the node lives, and whether it is ready."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import NodeState, Process, SegmentHeader
from embridge.allocator.segment import create_segment, map_segment
from embridge.workers.timing import NS, Timing
from embridge.workers.web.routes import ROUTES, routes
from embridge.workers.web.server import Asked
from embridge.workers.web.view import View

GEOMETRY = Geometry(hidden_size=8, num_blocks=2)
LIMITS = Limits(num_slots=64, max_clients=1, num_workers=1, max_peer_slots=64, ring_records=16, has_web=1)
NOW_NS = 1000 * NS


@pytest.fixture
def control() -> Iterator[Control]:
    """Of a node that is READY and whose processes have all beaten just now."""
    size = ControlLayout.of(Role.ENCODE, GEOMETRY, LIMITS).size
    segment = create_segment("control", size)
    try:
        mapping = map_segment(segment.fd, size)
        format_control(mapping, Role.ENCODE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
        control = Control(mapping)
        control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
        for name in control.processes.names:
            control.processes.set(name, Process.BEAT_NS, NOW_NS)
        yield control
        control.close()
    finally:
        segment.close()


def asked(control: Control, path: str, *, later_s: float = 0.0, host: str = "") -> tuple[int, str]:
    view = View(control, Timing(health_s=2.0, silent_after_s=10.0), lambda: NOW_NS + int(later_s * NS))
    answer = routes(view, {"encode-7.cluster"})[path](Asked(path, {}, {"host": host}))
    return answer.status, answer.body.decode()


def test_a_node_whose_processes_beat_lives_and_is_ready(control: Control) -> None:
    assert asked(control, "/livez") == asked(control, "/readyz") == (200, "ok\n")


@pytest.mark.parametrize("state", [NodeState.STARTING, NodeState.DRAINING, NodeState.STOPPED])
def test_a_node_that_starts_or_drains_lives_and_is_not_ready(control: Control, state: NodeState) -> None:
    control.header.store(SegmentHeader.NODE_STATE, state)
    assert asked(control, "/livez") == (200, "ok\n")
    assert asked(control, "/readyz") == (503, f"the node is {state.name}\n")


def test_a_process_that_is_silent_makes_a_node_unready_and_only_the_launcher_makes_it_dead(control: Control) -> None:
    control.processes.set("poller", Process.BEAT_NS, NOW_NS - 11 * NS)
    assert asked(control, "/livez")[0] == 200
    assert asked(control, "/readyz") == (503, "poller: silent for 11.0 s\n")
    control.processes.set("poller", Process.BEAT_NS, NOW_NS)
    control.processes.set("launcher", Process.BEAT_NS, NOW_NS - 9 * NS)
    assert asked(control, "/livez")[0] == 200
    assert asked(control, "/livez", later_s=1.5) == (503, "launcher: silent for 10.5 s\n")


def test_a_process_that_cannot_be_kept_alive_makes_a_node_unready_if_requests_need_it(control: Control) -> None:
    names = control.processes.names
    control.header.set_bits(SegmentHeader.FAILING, 1 << names.index("web"))
    assert asked(control, "/readyz") == (200, "ok\n")
    control.header.set_bits(SegmentHeader.FAILING, 1 << names.index("worker0"))
    status, body = asked(control, "/readyz")
    assert status == 503
    assert body.startswith("process worker0 cannot be kept alive")
    assert asked(control, "/livez")[0] == 200


def test_a_web_process_that_is_silent_does_not_count_against_its_node(control: Control) -> None:
    control.processes.set("web", Process.BEAT_NS, NOW_NS - 60 * NS)
    assert asked(control, "/readyz") == (200, "ok\n")


@pytest.mark.parametrize("path", ROUTES)
def test_what_tells_of_requests_and_processes_is_answered_by_a_name_of_the_node_alone(
    control: Control, path: str
) -> None:
    """D15: a page of a stranger's whose name leads here reads what Prometheus and a kubelet may read by any name."""
    assert asked(control, path)[0] == asked(control, path, host="encode-7.cluster:9464")[0] == 200
    status, told = asked(control, path, host="evil.example:9464")
    if path in ("/metrics", "/livez", "/readyz"):
        assert status == 200
    else:
        assert (status, told) == (
            403,
            "this node does not answer to the name 'evil.example': ask it by its IP address, or list the name in "
            "web_hosts\n",
        )
