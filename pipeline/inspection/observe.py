"""Looks at a node from outside, by reading its control segment: for `embridge status` and for tests."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.pinning import lock_note
from embridge.allocator.ranklog import RankLog
from embridge.allocator.records import Lane, LaneState, Peer, Process, SegmentHeader
from embridge.allocator.routes import RouteRecord
from embridge.allocator.status import Phase, phase_path, split
from embridge.pipeline.inspection.explain import explain
from embridge.pipeline.inspection.open_readonly import Look, look
from embridge.pipeline.inspection.paths import known_paths
from embridge.pipeline.inspection.scene import Scene, in_flight, view_of
from embridge.pipeline.inspection.views import DestinationView, EncodeView, LanguageView
from embridge.workers.health import last_exit, why_unhealthy
from embridge.workers.keys import KeyFileError, read_allow_list
from embridge.workers.timing import NS
from embridge.workers.wire.zap import FINGERPRINT


def observe(run_dir: Path) -> dict[str, Any]:
    """The node as plain data (see `node_status`)."""
    seen = look(run_dir)
    try:
        return _told(seen, time.monotonic_ns())
    finally:
        seen.close()


def _told(seen: Look, now: int) -> dict[str, Any]:
    control = seen.control
    geometry = control.geometry
    scene = Scene(control, now, sees_pids=seen.sees_pids)
    return {
        "role": control.role.name.lower(),
        "state": control.state.name,
        "health": f"UNHEALTHY: {unhealthy}" if (unhealthy := why_unhealthy(control)) else "ok",
        "node_id": f"{control.node_id:x}",
        "incarnation": control.incarnation,
        "up_s": round((now - control.header.load(SegmentHeader.STARTED_NS)) / NS, 1),
        **({"note": seen.note} if seen.note else {}),
        "geometry": {name: getattr(geometry, name) for name in geometry.__slots__},
        "payload_bytes": control.header.load(SegmentHeader.PAYLOAD_BYTES),
        "memory": _memory(control),
        "touched": _touched(control),
        "http": control.web_addr or "off",
        "keys": _keys(seen),
        "blocks": control.blocks.counts()._asdict(),
        "ended": _ended(control),
        **(_unsent(control) if control.role == Role.ENCODE else {}),
        **({"shelf": dataclasses.asdict(control.shelf.counts())} if control.has_shelf else {}),
        "quarantine": [entry for entry, _ in scene.quarantine],
        "processes": [_process(scene, name) for name in control.processes.names],
        "clients": [
            {
                "lane": lane,
                "pid": control.lanes.get(lane, Lane.PID),
                "attached_s": round((now - control.lanes.get(lane, Lane.ATTACHED_NS)) / NS, 1),
                "silent_s": _silent_s(control.lanes.get(lane, Lane.BEAT_NS), now),
                "rings_full": control.num_refused(f"lane{lane}"),
                "waiting": control.lanes.get(lane, Lane.NUM_WAITING),
                "trouble": scene.client(lane).trouble,
                **(
                    {"unsent_bytes": control.lanes.get(lane, Lane.UNSENT_BYTES)}
                    if control.role == Role.ENCODE
                    else {"lent_blocks": control.lanes.get(lane, Lane.NUM_LENT)}
                ),
            }
            for lane in range(control.lanes.num_lanes)
            if control.lanes.get(lane, Lane.STATE) == LaneState.ATTACHED
        ],
        "groups": [_rank(name, log, rank) for name, log in seen.logs.items() for rank in log.followers],
        "peers": [
            {
                "node": f"{record.node_id:x}",
                "incarnation": record.incarnation,
                "bootstrap_addr": record.bootstrap_addr,
                "registered_s": round((now - control.peers.get(peer, Peer.REGISTERED_NS)) / NS, 1),
                "silent_s": round((now - control.peers.get(peer, Peer.HEARD_NS)) / NS, 2),
                "writers": control.writers.pids(record.node_id, record.incarnation),
                "direct_writers": control.writers.pids(record.node_id, record.incarnation, has_claims=True),
                **({"shelf_readers": _readers(control, record)} if control.has_shelf else {}),
            }
            for peer in control.peers.alive()
            for record in [control.peers.record(peer)]
        ],
        "discovery": _discovery(control, now),
        "routes": [_route(route, now) for route in control.routes.routes()] if control.has_discovery else [],
        "requests": requests(control, now, sees_pids=seen.sees_pids),
        "metrics": control.metrics.all(),
    }


def _readers(control: Control, record: PeerRecord) -> list[int]:
    """The processes of a peer that read the shelf."""
    node = (record.node_id, record.incarnation)
    return [pid for *of, pid in control.shelf.readers() if tuple(of) == node]


def _ended(control: Control) -> dict[str, Any]:
    """How requests have ended since the node was launched, and what those that succeeded have carried on which path."""
    ended = control.ends.read()
    return {
        "succeeded": ended.succeeded,
        "failed": {code.name.lower(): count for code, count in ended.failed.items() if count},
        "delivered": {path.name.lower(): of._asdict() for path, of in ended.delivered.items() if of.requests},
    }


def _unsent(control: Control) -> dict[str, int]:
    """Host memory of all clients with rows that wait to be sent, and its limit."""
    return {
        "unsent_bytes": control.lanes.unsent_bytes(),
        "unsent_max_bytes": control.header.load(SegmentHeader.UNSENT_MAX_BYTES),
    }


def _memory(control: Control) -> str:
    word, touched = control.header.load(SegmentHeader.LOCKED), control.header.load(SegmentHeader.TOUCHED_BYTES)
    if not word:
        return "not locked"
    if word >> 8 or touched == control.header.load(SegmentHeader.PAYLOAD_BYTES):
        return lock_note(word >> 8)
    return f"being locked: {_touched(control)}"


def _touched(control: Control) -> str:
    """How much of the payload the launcher has touched. Pages are locked, if at all, as they are touched."""
    touched, size = control.header.load(SegmentHeader.TOUCHED_BYTES), control.header.load(SegmentHeader.PAYLOAD_BYTES)
    return f"{touched >> 20} of {size >> 20} MiB"


def _keys(seen: Look) -> dict[str, Any]:
    """How the node's messages are protected.

    The allow-list is read as it stands in its file now; the key file is not touched.
    """
    if seen.public_key is None:
        return {"messages": "unknown: the launcher does not answer"}
    if not seen.public_key:
        return {"messages": "plain"}
    try:
        listed: int | str = len(read_allow_list(Path(seen.allow_file or "")).keys)
    except KeyFileError as error:
        listed = f"unknown: {error}"
    return {"messages": "CURVE", "key_fingerprint": seen.public_key[:FINGERPRINT], "keys_allowed": listed}


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


def _rank(group: str, log: RankLog, rank: int) -> dict[str, Any]:
    """One follower of a group; rank 0 is its client."""
    attached = sum(log.state(other).name == "JOINED" for other in log.followers)
    return {
        "group": group,
        "leader": log.leader_pid,
        "attached": f"{attached + 1} of {log.num_ranks}",
        "rank": rank,
        "pid": log.pid(rank),
        "state": "CUT OFF" if log.is_cut(rank) else log.state(rank).name,
        "unread_records": log.unread(rank),
        "log_records": log.layout.ring_records,
        "released": log.num_released(rank),
    }


def _silent_s(beat_ns: int, now_ns: int) -> float:
    """Seconds since the last beat; 0 before the first."""
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


# ---- requests


def requests(control: Control, now_ns: int, *, sees_pids: bool = False) -> list[dict[str, Any]]:
    """The requests in flight, slot by slot, each with who owes its next step."""
    found, scene = [], Scene(control, now_ns, sees_pids=sees_pids)
    for slot, epoch in in_flight(control):
        view = view_of(scene, slot)
        if split(control.status.load(slot)).epoch != epoch:  # the slot has another request by now
            continue
        said = explain(view)
        entry = {
            "room": view.room,
            "slot": slot,
            "epoch": epoch,
            "phase": Phase(view.phase).name,
            "ready": view.ready,
            "granted": view.granted,
            "sent": view.sent,
            "total": view.total,
            "drained": view.drained if isinstance(view, LanguageView) else None,
            "age_s": round((now_ns - view.opened_ns) / NS, 2),
            "waits_for": str(said.process),
            "for_s": round((now_ns - said.since_ns) / NS, 2),
            "why": said.reason,
            "deadline_in_s": round((view.deadline_ns - now_ns) / NS, 2),
            "moved_s_ago": round((now_ns - view.moved_ns) / NS, 2),
            "reason": view.failure,
            "client": view.client.pid,
            "process": said.process.name,
            "pid": said.process.pid,
            "line": said.rule,
            "stamps_s": _stamps(control, slot, view.opened_ns),
            "paths": known_paths(control, slot, view.sent),
        }
        if isinstance(view, EncodeView):
            entry["required"] = view.required
            entry["destinations"] = [_destination(seen) for seen in view.destinations]
            entry["written_by"] = ", ".join(
                dict.fromkeys(seen.written_by.name.lower() for seen in view.destinations)
            )
        else:
            entry["encode_node"] = str(view.other)
            entry["blocks"] = {
                "granted": view.granted_blocks,
                "known_there": view.known_blocks,
                "drained": view.drained_blocks,
            }
            entry["claim"] = view.claim.name
            entry["claim_holder"] = view.writer.pid
        found.append(entry)
    return found


def _stamps(control: Control, slot: int, opened_ns: int) -> dict[str, float]:
    """When each phase was entered, in seconds since the request was opened."""
    stamps = control.status.stamps(slot)
    return {phase.name: round((stamps[phase] - opened_ns) / NS, 6) for phase in phase_path(stamps)}


def _destination(seen: DestinationView) -> dict[str, Any]:
    return {
        "node": str(seen.node),
        "granted": seen.granted,
        "sent": seen.sent,
        "issued": seen.issued,
        "staged": seen.staged,
        "closed": seen.is_closed,
        "written_by": seen.written_by.name.lower(),
        "trouble": "lost" if seen.is_lost else seen.node.trouble,
    }
