"""What `embridge status` and the status page both tell: processes, clients, peers and discovery, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.records import Lane, LaneState, Peer, Process
from embridge.allocator.routes import RouteRecord
from embridge.workers.health import last_exit
from embridge.workers.inspection.scene import Scene
from embridge.workers.timing import NS


def processes(scene: Scene) -> list[dict[str, Any]]:
    """The node's processes: how long each has been silent, what it has been through, and what keeps it from working."""
    return [_process(scene, name) for name in scene.control.processes.names]


def _process(scene: Scene, name: str) -> dict[str, Any]:
    get = scene.control.processes.get
    return {
        "name": name,
        "pid": get(name, Process.PID),
        "silent_s": round((scene.now_ns - get(name, Process.BEAT_NS)) / NS, 2),
        "restarts": get(name, Process.NUM_RESTARTS),
        "killed_silent": get(name, Process.NUM_SILENT),
        "last_exit": last_exit(scene.control, name),
        "trouble": scene.process(name).trouble,
    }


def clients(scene: Scene) -> list[dict[str, Any]]:
    """The clients that have joined, lane by lane."""
    lanes, is_encode = scene.control.lanes, scene.control.role == Role.ENCODE
    return [
        {
            "lane": lane,
            "pid": lanes.get(lane, Lane.PID),
            "attached_s": round((scene.now_ns - lanes.get(lane, Lane.ATTACHED_NS)) / NS, 1),
            "silent_s": _silent_s(lanes.get(lane, Lane.BEAT_NS), scene.now_ns),
            "waiting": lanes.get(lane, Lane.NUM_WAITING),
            "trouble": scene.client(lane).trouble,
            **(
                {"unsent_bytes": lanes.get(lane, Lane.UNSENT_BYTES)}
                if is_encode
                else {"lent_blocks": lanes.get(lane, Lane.NUM_LENT)}
            ),
        }
        for lane in range(lanes.num_lanes)
        if lanes.get(lane, Lane.STATE) == LaneState.ATTACHED
    ]


def _silent_s(beat_ns: int, now_ns: int) -> float:
    """Seconds since the last beat; 0 before the first."""
    return round((now_ns - beat_ns) / NS, 2) if beat_ns else 0.0


def peers(scene: Scene) -> Iterator[dict[str, Any]]:
    """The nodes that are registered with this one, each by itself: to tell of one costs some 20 µs."""
    get, now_ns = scene.control.peers.get, scene.now_ns
    for peer in scene.control.peers.alive():
        record = scene.control.peers.record(peer)
        yield {
            "node": f"{record.node_id:x}",
            "incarnation": record.incarnation,
            "bootstrap_addr": record.bootstrap_addr,
            "registered_s": round((now_ns - get(peer, Peer.REGISTERED_NS)) / NS, 1),
            "silent_s": round((now_ns - get(peer, Peer.HEARD_NS)) / NS, 2),
            "trouble": scene.node(peer).trouble,
        }


def discovery(control: Control, now_ns: int) -> str | dict[str, Any]:
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


def route(record: RouteRecord, now_ns: int) -> dict[str, Any]:
    """A node of the other role, as discovery has told of it last."""
    return {
        "name": record.bootstrap_addr,
        "node": f"{record.node_id:x}",
        "incarnation": record.incarnation,
        "state": record.state.name,
        "health": "ok" if record.healthy else record.unhealthy,
        "outstanding_tokens": record.outstanding_tokens,
        "outstanding_requests": record.outstanding_requests,
        "free_blocks": record.free_blocks,
        "reported_s_ago": round((now_ns - record.reported_ns) / NS, 1),
    }
