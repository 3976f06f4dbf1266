"""Look at a node from outside, through a read of its control segment: for `embridge status` and for tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from embridge.allocator import layout as lay
from embridge.allocator.control import Control
from embridge.allocator.layout import Header, Lane, LaneState, Process, Slot
from embridge.allocator.pinning import lock_note
from embridge.allocator.routes import RouteRecord
from embridge.allocator.status import Phase, split
from embridge.pipeline.joining import open_control
from embridge.workers.load import last_exit, why_unhealthy
from embridge.workers.timing import NS


def observe(run_dir: Path) -> dict[str, Any]:
    """The node as plain data (see `client.node_status`)."""
    control, now = open_control(run_dir), time.monotonic_ns()
    geometry = control.geometry
    return {
        "role": control.role.name.lower(),
        "state": control.state.name,
        "health": f"UNHEALTHY: {unhealthy}" if (unhealthy := why_unhealthy(control)) else "ok",
        "node_id": f"{control.node_id:x}",
        "incarnation": control.incarnation,
        "up_s": round((now - control.header.load(Header.STARTED_NS)) / NS, 1),
        "geometry": {name: getattr(geometry, name) for name in geometry.__slots__},
        "payload_bytes": control.header.load(Header.PAYLOAD_BYTES),
        "memory": _memory(control),
        "blocks": control.blocks.counts()._asdict(),
        "processes": [_process(control, name, now) for name in control.processes.names],
        "clients": [
            {"lane": lane, "pid": control.lanes.get(lane, Lane.PID), "silent_s": _silent_s(control.lanes.get(lane, Lane.BEAT_NS), now)}
            for lane in range(control.lanes.num_lanes)
            if control.lanes.get(lane, Lane.STATE) == LaneState.ATTACHED
        ],
        "peers": [
            {
                "node": f"{record.node_id:x}",
                "incarnation": record.incarnation,
                "bootstrap_addr": record.bootstrap_addr,
                "silent_s": round((now - control.peers.get(peer, lay.Peer.HEARD_NS)) / NS, 2),
            }
            for peer in control.peers.alive()
            for record in [control.peers.record(peer)]
        ],
        "discovery": _discovery(control, now),
        "routes": [_route(route, now) for route in control.routes.routes()] if control.has_discovery else [],
        "requests": list(requests(control, now)),
        "metrics": control.metrics.all(),
    }


def _memory(control: Control) -> str:
    word = control.header.load(Header.LOCKED)
    return lock_note(word >> 8) if word else "not locked"


def _process(control: Control, name: str, now_ns: int) -> dict[str, Any]:
    get = control.processes.get
    return {
        "name": name,
        "pid": get(name, Process.PID),
        "silent_s": round((now_ns - get(name, Process.BEAT_NS)) / NS, 2),
        "restarts": get(name, Process.NUM_RESTARTS),
        "killed_silent": get(name, Process.NUM_SILENT),
        "last_exit": last_exit(control, name),
    }


def _silent_s(beat_ns: int, now_ns: int) -> float:
    """Since the last sign of life; 0 before the first."""
    return round((now_ns - beat_ns) / NS, 2) if beat_ns else 0.0


def _discovery(control: Control, now_ns: int) -> str | dict[str, Any]:
    """How the registrar fares, or that there is none."""
    if not control.has_discovery:
        return "not configured"
    record = control.routes.discovery()
    if record is None:
        return "being written; look again"
    return {
        "state": record.state.name,
        "server": record.url,
        "for_s": round((now_ns - record.since_ns) / NS, 1) if record.since_ns else 0.0,
        "heard_s_ago": round((now_ns - record.heard_ns) / NS, 1) if record.heard_ns else "never",
        "failures": record.num_failures,
        "reason": record.reason,
    }


def _route(route: RouteRecord, now_ns: int) -> dict[str, Any]:
    return {
        "name": route.bootstrap_addr,
        "node": f"{route.node_id:x}",
        "incarnation": route.incarnation,
        "state": route.state.name,
        "health": "ok" if route.healthy else route.unhealthy,
        "outstanding_tokens": route.outstanding_tokens,
        "outstanding_requests": route.outstanding_requests,
        "free_blocks": route.free_blocks,
        "reported_s_ago": round((now_ns - route.reported_ns) / NS, 1),
    }


def requests(control: Control, now_ns: int) -> list[dict[str, Any]]:
    """What is in flight, slot by slot."""
    found = []
    for page in range(control.lanes.num_pages):
        if control.lanes.page_lane(page) is None:
            continue
        for slot in range(page * lay.SLOTS_PER_PAGE, (page + 1) * lay.SLOTS_PER_PAGE):
            word = split(control.status.load(slot))
            get = control.slots.get
            if not word.epoch or get(slot, Slot.EPOCH) != word.epoch or get(slot, Slot.RELEASED_EPOCH) >= word.epoch:
                continue
            found.append(
                {
                    "room": get(slot, Slot.ROOM),
                    "slot": slot,
                    "epoch": word.epoch,
                    "phase": Phase(word.phase).name,
                    "sent": word.sent,
                    "total": get(slot, Slot.TOTAL),
                    "age_s": round((now_ns - get(slot, Slot.OPENED_NS)) / NS, 2),
                    "reason": control.slots.reason(slot),
                }
            )
    return found
