"""Looks at a node from outside, by reading its control segment: for `embridge status` and for tests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.pinning import lock_note
from embridge.allocator.ranklog import RankLog
from embridge.allocator.records import SegmentHeader
from embridge.pipeline.inspection.open_readonly import Look, look
from embridge.pipeline.inspection.paths import known_paths
from embridge.workers.health import why_unhealthy
from embridge.workers.inspection import parts
from embridge.workers.inspection.requests import requests_of
from embridge.workers.inspection.scene import Scene
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
        "processes": parts.processes(scene),
        "clients": [
            {**client, "rings_full": control.num_refused(f"lane{client['lane']}")} for client in parts.clients(scene)
        ],
        "groups": [_rank(name, log, rank) for name, log in seen.logs.items() for rank in log.followers],
        "peers": [{**peer, **_mappers(control, peer)} for peer in parts.peers(scene)],
        "discovery": parts.discovery(control, now),
        "routes": [parts.route(it, now) for it in control.routes.routes()] if control.has_discovery else [],
        "requests": requests(control, now, sees_pids=seen.sees_pids),
        "metrics": control.metrics.all(),
    }


def _mappers(control: Control, peer: Mapping[str, Any]) -> dict[str, list[int]]:
    """The processes of a peer that have memory of this node mapped, by pid."""
    node = int(peer["node"], 16), peer["incarnation"]
    found = {
        "writers": control.writers.pids(*node),
        "direct_writers": control.writers.pids(*node, has_claims=True),
    }
    if control.has_shelf:
        found["shelf_readers"] = [pid for *of, pid in control.shelf.readers() if tuple(of) == node]
    return found


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


def requests(control: Control, now_ns: int, *, sees_pids: bool = False) -> list[dict[str, Any]]:
    """The requests in flight, slot by slot, each with who owes its next step; those, too, that only clients have."""
    found = requests_of(Scene(control, now_ns, sees_pids=sees_pids), control.open_slots())
    for entry in found:
        entry["paths"] = known_paths(control, entry["slot"], entry["sent"])
    return found
