"""`/status.json`: what it tells of a node, which is a control segment made by hand here, and how much of it."""

from __future__ import annotations

import json
import re

import pytest
from support.told_nodes import NOW_NS, full_node, node, open_request, told

from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import (
    ADDRESS_BYTES,
    Destination,
    DiscoveryState,
    NodeState,
    Process,
    SegmentHeader,
    Slot,
    Told,
)
from embridge.allocator.request_tables import TOLD_BITS
from embridge.allocator.routes import DiscoveryRecord, RouteRecord
from embridge.allocator.status import Phase
from embridge.pipeline.inspection.observe import requests
from embridge.workers.inspection.open_slots import OpenSlots
from embridge.workers.timing import NS, Timing
from embridge.workers.web.routes import routes
from embridge.workers.web.server import Asked
from embridge.workers.web.status import MAX_DESTINATIONS, MAX_NODES, MAX_REQUESTS
from embridge.workers.web.view import View

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>\\"


def test_an_idle_node_tells_who_it_is_and_how_it_fares() -> None:
    """D4, P8."""
    told_of = told(node(Role.LANGUAGE))
    shown = {key: told_of[key] for key in ("kind", "role", "node_id", "incarnation", "at_s", "up_s", "state", "ready")}
    assert shown == {
        "kind": "node", "role": "language", "node_id": "ab", "incarnation": 7, "at_s": 1000.0, "up_s": 60.0,
        "state": "READY", "ready": True,
    }  # fmt: skip
    assert told_of["load"] == {
        "outstanding_requests": 0, "outstanding_tokens": 0, "waiting": 0, "slots": 256,
        "phases": dict.fromkeys((phase.name for phase in Phase), 0),
    }  # fmt: skip
    assert told_of["blocks"] == {"free": 6, "owned": 0, "exposed": 0, "quarantined": 0}
    assert told_of["ended"] == {"succeeded": 0, "failed": {}, "delivered_tokens": 0, "delivered_bytes": 0}
    assert told_of["troubles"] == []
    assert [it["name"] for it in told_of["processes"]] == ["launcher", "bootstrap", "poller", "worker0", "web"]
    assert [(it["lane"], it["pid"], it["attached_s"]) for it in told_of["clients"]] == [(0, 4711, 5.0)]
    assert (told_of["num_peers"], told_of["num_routes"], told_of["num_requests"]) == (0, 0, 0)
    assert told_of["discovery"] == "not configured"


def test_a_request_that_waits_says_for_whom_and_why_and_its_room_is_whole() -> None:
    """P8: as `embridge status` tells it, whatever a browser does to large numbers."""
    control = node(Role.ENCODE)
    open_request(control, 70, (1 << 62) + 1, age_s=12.5, total=2000)
    (request,) = told(control)["requests"]
    (same,) = requests(control, NOW_NS, sees_pids=True)
    del same["paths"]  # which takes the engines
    assert request == json.loads(json.dumps(same)) | {"room": "4611686018427387905", "num_destinations": 0}
    assert (request["age_s"], request["deadline_in_s"], request["phase"]) == (12.5, 30.0, "Bootstrapping")
    assert request["why"].endswith("(0 of 2000 rows are ready)")


def test_the_oldest_requests_are_told_and_how_many_there_are() -> None:
    """P12: an answer has its bound, whatever is in flight."""
    control = node(Role.LANGUAGE)
    for slot in range(200):
        open_request(control, slot, slot, age_s=(slot * 37) % 200 / 10, total=100)
    told_of = told(control)
    assert told_of["num_requests"] == 200
    assert (told_of["load"]["outstanding_requests"], told_of["load"]["outstanding_tokens"]) == (200, 20000)
    ages = [it["age_s"] for it in told_of["requests"]]
    assert ages == [(199 - i) / 10 for i in range(MAX_REQUESTS)]


def test_what_is_released_is_not_told_by_whichever_side_and_what_has_ended_is_no_load() -> None:
    """R78: the slots are those that `Control.open_slots` has."""
    control = node(Role.ENCODE)
    epochs = [open_request(control, slot, slot, total=10) for slot in range(6)]
    control.slots.set(1, Slot.RELEASED_EPOCH, epochs[1])
    control.slots.set(2, Slot.TOLD, epochs[2] << TOLD_BITS | Told.RELEASED)
    control.slots.set(3, Slot.TOLD, epochs[3] << TOLD_BITS | Told.UNTOLD)
    control.slots.set(4, Slot.EPOCH, epochs[4] + 1)
    assert control.status.advance(5, epochs[5], Phase.Failed, 3, NOW_NS)
    found = [(it.slot, it.epoch) for it in OpenSlots(control).look()]
    assert found == list(control.open_slots()) == [(0, 1), (3, 1), (5, 1)]
    told_of = told(control)
    assert [it["room"] for it in told_of["requests"]] == ["0", "3", "5"]
    assert told_of["load"]["outstanding_requests"] == 2
    assert told_of["load"]["outstanding_tokens"] == 20
    assert told_of["load"]["phases"]["Failed"] == 1
    scraped = routes(View(control, Timing(), lambda: NOW_NS))["/metrics"](Asked("/metrics", {}, {})).body.decode()
    flight = dict(re.findall(r'^embridge_requests_in_flight\{phase="(\w+)"\} (\d)', scraped, re.MULTILINE))
    assert {phase for phase, count in flight.items() if count != "0"} == {"bootstrapping", "failed"}
    assert (flight["bootstrapping"], flight["failed"]) == ("2", "1")


@pytest.mark.parametrize("state", [NodeState.STARTING, NodeState.DRAINING])
def test_what_is_wrong_is_said_in_words(state: NodeState) -> None:
    """D4."""
    control = node(Role.ENCODE)
    control.header.store(SegmentHeader.NODE_STATE, state)
    control.processes.set("poller", Process.BEAT_NS, NOW_NS - 4 * NS)
    control.header.set_bits(SegmentHeader.FAILING, 1 << control.processes.names.index("web"))
    told_of = told(control)
    assert told_of["ready"] is False
    assert told_of["troubles"][0] == f"the node is {state.name}"
    assert told_of["troubles"][1].startswith("process web cannot be kept alive")
    assert told_of["troubles"][2:] == ["process poller has been silent for 4.0 s"]


def test_a_web_process_that_fails_is_a_trouble_and_the_node_is_ready() -> None:
    control = node(Role.ENCODE)
    control.header.set_bits(SegmentHeader.FAILING, 1 << control.processes.names.index("web"))
    told_of = told(control)
    assert (told_of["ready"], len(told_of["troubles"])) == (True, 1)


@pytest.mark.parametrize("role", Role)
def test_peers_routes_and_failures_are_told(role: Role) -> None:
    """P8, D4."""
    told_of = full_node(role)
    (peer,) = told_of["peers"]
    assert (peer["node"], peer["registered_s"], peer["trouble"]) == ("cd", 20.0, "nothing was heard of it for 20.0 s")
    (route,) = told_of["routes"]
    assert (route["node"], route["state"], route["health"]) == ("ef", "DRAINING", "poller silent 3.0 s")
    assert (told_of["discovery"]["state"], told_of["discovery"]["reason"]) == ("REFUSED", "409 it is late")
    failed, waiting = told_of["requests"]
    assert (failed["phase"], failed["reason"], failed["sent"]) == ("Failed", "silent for 5 s", 300)
    assert waiting["phase"] == "Bootstrapping"
    assert (told_of["ready"], len(told_of["troubles"])) == (False, 1)


def test_texts_of_others_stay_what_they_are() -> None:
    """P16: a reason, an address, what discovery has told: each is a text of the JSON, and ends nothing."""
    control = node(Role.ENCODE, max_routes=2)
    epoch = open_request(control, 0, 1)
    control.slots.claim_failure(0, FailureCode.ABORTED, HOSTILE)
    assert control.status.advance(0, epoch, Phase.Failed, 0, NOW_NS)
    writer = control.route_writer
    writer.put_discovery(DiscoveryRecord(DiscoveryState.REFUSED, NOW_NS, NOW_NS, 1, HOSTILE, HOSTILE))
    writer.put_all([RouteRecord(1, 1, NodeState.READY, False, HOSTILE, HOSTILE, HOSTILE, 0, 0, 1, 2, NOW_NS)])
    told_of = told(control)
    assert told_of["requests"][0]["reason"] == HOSTILE
    assert (told_of["discovery"]["server"], told_of["discovery"]["reason"]) == (HOSTILE, HOSTILE)
    assert (told_of["routes"][0]["name"], told_of["routes"][0]["health"]) == (HOSTILE, HOSTILE)


def test_the_largest_node_that_there_can_be_has_an_answer_within_its_bound() -> None:
    """P12: with all clients, peers, routes and destinations, and texts as long as they may be."""
    control = node(
        Role.ENCODE, max_clients=64, num_workers=16, max_destinations=64, window_blocks=64, max_peers=256,
        max_routes=1024,
    )
    for lane in range(1, 64):
        assert control.lanes.take(1 << 22, NOW_NS) == lane
    long = "\x01" * ADDRESS_BYTES  # what JSON makes longest
    for peer in range(256):
        record = PeerRecord(1 << 63 | peer, 1 << 52, 1, 1, 64, 0, long, long, "")
        assert control.peers.register(record, NOW_NS - 5 * NS, ()) == peer
    control.route_writer.put_all(
        RouteRecord(1 << 63 | i, 1 << 52, NodeState.READY, i > 9, long, long, long, 1 << 50, 1, 1, 2, 1)
        for i in range(1024)
    )
    for slot in range(64):
        open_request(control, slot, 1 << 62, total=1 << 31)
        control.slots.claim_failure(slot, FailureCode.ABORTED, long)
        control.slots.set(slot, Slot.NUM_DESTINATIONS, 64)
        for d in range(64):
            control.destinations.set(slot, d, Destination.PEER, 1 + d)
            control.destinations.set(slot, d, Destination.SENT, 1 << 30 | 64 - d)
    told_of = told(control)
    assert (len(told_of["peers"]), told_of["num_peers"]) == (MAX_NODES, 256)
    assert (len(told_of["routes"]), told_of["num_routes"]) == (MAX_NODES, 1024)
    assert [it["health"] == "ok" for it in told_of["routes"]] == [False] * 10 + [True] * (MAX_NODES - 10)
    request = told_of["requests"][0]
    assert request["num_destinations"] == 64
    assert [it["sent"] & 0xFF for it in request["destinations"]] == list(range(1, 1 + MAX_DESTINATIONS))
