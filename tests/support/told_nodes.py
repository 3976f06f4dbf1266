"""Nodes that are control segments made by hand, and what `/status.json` tells of them, which the status page shows."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination, DiscoveryState, NodeState, Process, SegmentHeader, Slot
from embridge.allocator.routes import DiscoveryRecord, RouteRecord
from embridge.allocator.status import Phase
from embridge.workers.discovery.messages import RouteReport
from embridge.workers.discovery.registry import Registry
from embridge.workers.discovery.status import status as of_discovery
from embridge.workers.process_spec import READY
from embridge.workers.timing import NS, Timing
from embridge.workers.web.routes import routes
from embridge.workers.web.server import Asked
from embridge.workers.web.view import View
from support.simulation import segment

NOW_NS = 1000 * NS
MAX_BYTES = 1 << 20  # of what is told of one node, whatever it has
GEOMETRY = Geometry(hidden_size=8, num_blocks=6, block_size=128)


def node(role: Role, **limits: int) -> Control:
    """A node that is READY, whose processes have all beaten just now; its first client is there, with four pages."""
    few = {"num_slots": 256, "max_clients": 2, "num_workers": 1, "max_peer_slots": 64, "ring_records": 16, "has_web": 1}
    of = Limits(**few | limits)
    mapping = segment(ControlLayout.of(role, GEOMETRY, of).size)
    format_control(mapping, role, GEOMETRY, of, node_id=0xAB, incarnation=7, now_ns=NOW_NS - 60 * NS)
    control = Control(mapping)
    control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
    for name in control.processes.names:
        control.processes.set(name, Process.BEAT_NS, NOW_NS)
        control.processes.set(name, Process.STATE, READY)
    assert control.lanes.take(4711, NOW_NS - 5 * NS) == 0
    for _ in range(4):
        assert control.lanes.lease_page(0) is not None
    return control


def open_request(control: Control, slot: int, room: int, *, age_s: float = 1.0, total: int = 0) -> int:
    opened_ns = NOW_NS - int(age_s * NS)
    epoch = control.status.open(slot, opened_ns)
    words = {Slot.EPOCH: epoch, Slot.ROOM: room, Slot.OPENED_NS: opened_ns, Slot.TOTAL: total}
    for word, value in (words | {Slot.DEADLINE_NS: NOW_NS + 30 * NS}).items():
        control.slots.set(slot, word, value)
    return epoch


def told(control: Control) -> dict[str, Any]:
    answer = routes(View(control, Timing(), lambda: NOW_NS))["/status.json"](Asked("/status.json", {}, {}))
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert len(answer.body) <= MAX_BYTES
    found: dict[str, Any] = json.loads(answer.body)
    return found


def full_node(role: Role) -> dict[str, Any]:
    """What is told of a node with something of everything: peers, routes, requests that wait and that failed."""
    control = node(role, max_routes=2, max_peers=2)
    peer = PeerRecord(0xCD, 1, 1, 8, 64, 0, "tcp://10.0.0.8:4000", "tcp://10.0.0.8:4001", "")
    assert control.peers.register(peer, NOW_NS - 20 * NS, ()) == 0
    writer = control.route_writer
    writer.put_discovery(
        DiscoveryRecord(DiscoveryState.REFUSED, NOW_NS - NS, NOW_NS - NS, 1, "http://10.0.0.5:8998", "409 it is late")
    )
    other = RouteRecord(
        0xEF, 1, NodeState.DRAINING, False, "poller silent 3.0 s", "tcp://10.0.0.9:1", "", 5, 1, 3, 8, NOW_NS - NS
    )
    writer.put_all([other])
    for slot, room in enumerate((7, (1 << 62) + 1)):
        open_request(control, slot, room, age_s=9 - slot, total=2000)
        control.slots.set(slot, Slot.PEER, 1)
        if role == Role.ENCODE:
            control.slots.set(slot, Slot.NUM_DESTINATIONS, 1)
            control.destinations.set(slot, 0, Destination.PEER, 1)
    control.slots.claim_failure(0, FailureCode.TIMEOUT, "silent for 5 s")
    assert control.status.advance(0, 1, Phase.Failed, 300, NOW_NS - NS)
    control.header.set_bits(SegmentHeader.FAILING, 1 << control.processes.names.index("poller"))
    return told(control)


def full_discovery() -> dict[str, Any]:
    """What the discovery server tells of two nodes, of which one is in trouble."""
    registry = Registry(0)
    common = {
        "incarnation": 1,
        "bootstrap_addr": "tcp://10.0.0.7:4000",
        "poller_addr": "tcp://10.0.0.7:4001",
        "outstanding_tokens": 300,
        "outstanding_requests": 1,
        "free_blocks": 5,
        "num_blocks": 8,
        "sequence": 1,
        "ttl_s": 5.0,
    }
    sick = [
        {"process": "poller", "silent_s": 3.0},
        {"process": "worker0", "silent_s": 0.0, "reason": "killed by SIGKILL"},
    ]
    for its in (
        {"role": "encode", "node_id": "a1", "state": "READY", "unhealthy": []},
        {"role": "language", "node_id": "b2", "state": "DRAINING", "unhealthy": sick},
    ):
        registry.put(msgspec.convert({**common, **its}, RouteReport), NS)
    found: dict[str, Any] = json.loads(msgspec.json.encode(of_discovery(registry, 2 * NS)))
    return found
