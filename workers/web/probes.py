"""`/livez` and `/readyz`: what an orchestrator asks before it restarts a node, or sends work to it.

A node lives while its launcher beats, for the launcher mends everything else by itself: a restart of the whole node
would fail requests that a restart of one process does not. A node is ready while it takes new requests.
"""

from __future__ import annotations

from embridge.allocator.records import NodeState
from embridge.workers.health import NOT_ESSENTIAL, silent_processes, why_refusing
from embridge.workers.web.server import Answer, Asked
from embridge.workers.web.view import View


def live(view: View, _asked: Asked) -> Answer:
    """200 while the launcher beats; 503 when it has been silent for as long as a process that it would kill."""
    silent_s = dict(_silent(view, view.timing.silent_after_s)).get("launcher")
    return _answer([] if silent_s is None else [f"launcher: silent for {silent_s} s"])


def ready(view: View, _asked: Asked) -> Answer:
    """200 while the node takes new requests; 503 with the reasons while it starts, drains, or lacks a process."""
    return _answer(why_not_ready(view))


def why_not_ready(view: View) -> list[str]:
    """Why the node takes no new requests, in words; empty while it does."""
    why = [] if view.control.state == NodeState.READY else [f"the node is {view.control.state.name}"]
    if refusing := why_refusing(view.control):
        why.append(refusing)
    silent = _silent(view, view.timing.health_s)
    return [*why, *(f"{name}: silent for {s} s" for name, s in silent if name not in NOT_ESSENTIAL)]


def _silent(view: View, bound_s: float) -> list[tuple[str, float]]:
    return silent_processes(view.control, view.clock(), bound_s)


def _answer(why_not: list[str]) -> Answer:
    text = "\n".join(why_not) or "ok"
    return Answer(f"{text}\n".encode(), status=503 if why_not else 200)
