"""Requests as a Chrome trace: JSON that https://ui.perfetto.dev and chrome://tracing load.

A node is a process of it and a request a thread, which has one slice for the whole request, one in it for each phase,
and one for the step that is owed, with who owes it and why. Times are microseconds since the first request was opened;
`otherData` has that time of day. Nodes of one host have one clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from embridge.pipeline.inspection.stories import NodeStories, Story
from embridge.workers.timing import NS

_ARGS: Final = (
    *("slot", "epoch", "phase", "sent", "ready", "granted", "total", "rounds", "paths", "others", "failure", "reason"),
)


def chrome_trace(nodes: Sequence[NodeStories]) -> dict[str, Any]:
    """The trace of what these nodes of one host tell."""
    opened = [story.opened_ns for node in nodes for story in node.stories]
    begin_ns = min(opened, default=0)
    to_wall = next((node.seen_wall_ns - story.seen_ns for node in nodes for story in node.stories), 0)
    events: list[dict[str, Any]] = []
    for pid, node in enumerate(nodes, 1):
        events.append(_named("process_name", node.name, pid))
        for tid, story in enumerate(node.stories, 1):
            events.append(_named("thread_name", f"room {story.room}", pid, tid))
            events += _events(story, begin_ns, pid, tid)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"begins": _time_of_day(begin_ns + to_wall) if opened else ""},
    }


def _events(story: Story, begin_ns: int, pid: int, tid: int) -> Iterable[dict[str, Any]]:
    def slice_(name: str, since_ns: int, until_ns: int, **args: Any) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": "request",
            "name": name,
            "pid": pid,
            "tid": tid,
            "args": args,
            "ts": (since_ns - begin_ns) / 1000,
            "dur": max(0, until_ns - since_ns) / 1000,
        }

    end_ns = story.ended_ns or story.seen_ns
    told = story.told()
    yield slice_(f"room {story.room}: {story.phase.name}", story.opened_ns, end_ns, **{key: told[key] for key in _ARGS})
    for stage in story.stages:
        yield slice_(stage.phase.name, stage.begin_ns, stage.end_ns or end_ns)
    if story.waits is not None:  # of one that has ended, what its slot waits for
        name = f"waits for {story.waits.process}"
        yield slice_(name, story.waits_since_ns, story.seen_ns, why=story.waits.reason, pid=story.waits.process.pid)


def _named(what: str, name: str, pid: int, tid: int | None = None) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, **({} if tid is None else {"tid": tid}), "args": {"name": name}}


def _time_of_day(wall_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ns / NS)) + f".{wall_ns % NS // 1000:06}"
