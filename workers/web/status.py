"""`/status.json`: a node at one moment, for the status page; what `embridge status` tells, bounded.

What has the name of a field of `embridge status --json` is the same, with one exception: `room` is text here, for a
browser's numbers end at 2**53. Nothing is looked at, and nothing kept, while nobody asks.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import msgspec

from embridge.allocator.geometry import Role
from embridge.allocator.records import NodeState, SegmentHeader
from embridge.allocator.status import TERMINAL, Phase
from embridge.workers.health import silent_processes, why_unhealthy
from embridge.workers.inspection import parts
from embridge.workers.inspection.open_slots import OpenSlot
from embridge.workers.inspection.requests import requests_of
from embridge.workers.inspection.scene import Scene
from embridge.workers.timing import NS
from embridge.workers.version import version
from embridge.workers.web.probes import why_not_ready
from embridge.workers.web.server import Answer, Asked
from embridge.workers.web.view import View

MAX_REQUESTS: Final = 50
MAX_NODES: Final = 64  # of peers, and of routes
MAX_DESTINATIONS: Final = 4  # of one request


def status(view: View, _asked: Asked) -> Answer:
    """The node as JSON: some 30 KB, and 1 MiB with all that there may be and texts as long as they may be."""
    return Answer(msgspec.json.encode(_told(view)), "application/json")


def _told(view: View) -> dict[str, Any]:
    control, now_ns = view.control, view.clock()
    scene, slots = Scene(control, now_ns, sees_pids=True), view.open_slots.look()
    oldest = heapq.nsmallest(MAX_REQUESTS, slots, key=attrgetter("opened_ns"))
    lanes = control.lanes
    return {
        "kind": "node",
        "version": version(),
        "role": control.role.name.lower(),
        "node_id": f"{control.node_id:x}",
        "incarnation": control.incarnation,
        "at_s": round(now_ns / NS, 3),
        "up_s": round((now_ns - control.header.load(SegmentHeader.STARTED_NS)) / NS, 1),
        "state": control.state.name,
        "ready": not why_not_ready(view),
        "troubles": _troubles(view, now_ns),
        "load": _load(slots) | {"waiting": lanes.num_waiting(), "slots": control.limits.num_slots},
        "blocks": scene.blocks._asdict(),
        "payload_bytes": control.header.load(SegmentHeader.PAYLOAD_BYTES),
        **(
            {
                "unsent_bytes": lanes.unsent_bytes(),
                "unsent_max_bytes": control.header.load(SegmentHeader.UNSENT_MAX_BYTES),
            }
            if control.role == Role.ENCODE
            else {}
        ),
        "ended": _ended(view),
        "processes": parts.processes(scene),
        "clients": parts.clients(scene),
        "num_peers": len(control.peers.alive()),
        "peers": list(islice(parts.peers(scene), MAX_NODES)),
        "discovery": parts.discovery(control, now_ns),
        **_routes(view, now_ns),
        "num_requests": len(slots),
        "requests": [_shown(it) for it in requests_of(scene, ((it.slot, it.epoch) for it in oldest))],
    }


def _troubles(view: View, now_ns: int) -> list[str]:
    """What is wrong with the node, in words; also what its requests can do without."""
    state = view.control.state
    found = [] if state == NodeState.READY else [f"the node is {state.name}"]
    if unhealthy := why_unhealthy(view.control):
        found.append(unhealthy)
    silent = silent_processes(view.control, now_ns, view.timing.health_s)
    return [*found, *(f"process {name} has been silent for {silent_s:.1f} s" for name, silent_s in silent)]


def _load(slots: Iterable[OpenSlot]) -> dict[str, Any]:
    """What is in flight, as `workers.health.load_of` counts it, and the phases of all that is not released."""
    phases = Counter(it.phase for it in slots)
    live = [it for it in slots if it.phase < TERMINAL]
    return {
        "outstanding_requests": len(live),
        "outstanding_tokens": sum(max(0, it.total - it.sent) for it in live),
        "phases": {phase.name: phases[phase] for phase in Phase},
    }


def _ended(view: View) -> dict[str, Any]:
    """How requests have ended since the node was launched."""
    ended = view.control.ends.read()
    tokens = sum(of.tokens for of in ended.delivered.values())
    return {
        "succeeded": ended.succeeded,
        "failed": {code.name: count for code, count in ended.failed.items() if count},
        "delivered_tokens": tokens,
        "delivered_bytes": tokens * view.control.geometry.token_bytes,
    }


def _routes(view: View, now_ns: int) -> dict[str, Any]:
    """The nodes that discovery has told of, those in trouble first."""
    known = sorted(view.routes.routes(), key=attrgetter("healthy")) if view.routes else []
    return {"num_routes": len(known), "routes": [parts.route(it, now_ns) for it in known[:MAX_NODES]]}


def _shown(request: dict[str, Any]) -> dict[str, Any]:
    """A request, with its room as text, and no more than `MAX_DESTINATIONS` of its destinations, the slowest first."""
    shown = request | {"room": str(request["room"])}
    if "destinations" in request:
        slowest = heapq.nsmallest(MAX_DESTINATIONS, request["destinations"], key=lambda it: it["sent"])
        shown |= {"num_destinations": len(request["destinations"]), "destinations": slowest}
    return shown
