"""The requests in flight as plain data, each with who owes its next step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.status import Phase, phase_path, split
from embridge.workers.inspection.explain import explain
from embridge.workers.inspection.scene import Scene, view_of
from embridge.workers.inspection.views import DestinationView, EncodeView, LanguageView
from embridge.workers.timing import NS


def requests_of(scene: Scene, slots: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
    """The requests of these (slot, epoch), each with who owes its next step; without those that have ended meanwhile.

    Rows are counts, `_s` are seconds. Some 60 µs a request.
    """
    found: list[dict[str, Any]] = []
    control, now_ns = scene.control, scene.now_ns
    for slot, epoch in slots:
        view = view_of(scene, slot)
        if split(control.status.load(slot)).epoch != epoch:  # the slot has another request by now
            continue
        said = explain(view)
        entry: dict[str, Any] = {
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
