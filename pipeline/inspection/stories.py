"""The story of a request: when it entered each phase, how far it came, how it ended, or what it waits for.

A slot keeps the record and the stamps of its last request until the next one is opened in it. So a node remembers some
of the requests that have ended, without anybody writing anything down for that: of a client that has few in flight the
last dozens, of a busy one those of its last moments.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from embridge.allocator._core import Words
from embridge.allocator.control import Control
from embridge.allocator.errors import known_code
from embridge.allocator.geometry import Role
from embridge.allocator.records import SLOT_BYTES, Destination, Peer, Slot
from embridge.allocator.status import Phase, phase_path, split
from embridge.pipeline.inspection.open_readonly import look
from embridge.pipeline.inspection.paths import known_paths
from embridge.workers.inspection.explain import Explanation, explain
from embridge.workers.inspection.scene import Scene, view_of
from embridge.workers.inspection.views import EncodeView
from embridge.workers.timing import NS


class Stage(NamedTuple):
    """One phase of a request, from its entry to the next one's; monotonic ns. `end_ns` is 0 while it lasts."""

    phase: Phase
    begin_ns: int
    end_ns: int


class Story(NamedTuple):
    """One request on one side, as it was seen at `seen_ns` (monotonic). Rows are counted from 0; 0: not known.

    `stages` are the phases before the end. `ended_ns` is 0 for one that has not ended. `waits` says who owes the next
    step, None where nobody does any more: then the slot is released.
    """

    room: int
    slot: int
    epoch: int
    phase: Phase
    seen_ns: int
    opened_ns: int
    ended_ns: int
    stages: tuple[Stage, ...]
    sent: int
    ready: int
    granted: int
    total: int
    rounds: int
    paths: list[str]
    others: list[str]
    failure: str
    reason: str
    waits: Explanation | None

    @property
    def took_ns(self) -> int:
        """From its opening to its end, or until it was seen."""
        return (self.ended_ns or self.seen_ns) - self.opened_ns

    @property
    def waits_since_ns(self) -> int:
        """Since when it waits: from its opening or end on, though who owes the step may be in trouble for longer."""
        return max(self.waits.since_ns if self.waits else 0, self.ended_ns or self.opened_ns)

    def told(self) -> dict[str, Any]:
        """It as plain data; times in seconds since it was opened."""
        return {
            "room": self.room,
            "slot": self.slot,
            "epoch": self.epoch,
            "phase": self.phase.name,
            "took_s": self._since(self.opened_ns + self.took_ns),
            "has_ended": bool(self.ended_ns),
            "stages": [
                {
                    "phase": stage.phase.name,
                    "at_s": self._since(stage.begin_ns),
                    "for_s": round(((stage.end_ns or self.seen_ns) - stage.begin_ns) / NS, 6),
                    "lasts": not stage.end_ns,
                }
                for stage in self.stages
            ],
            "sent": self.sent,
            "ready": self.ready,
            "granted": self.granted,
            "total": self.total,
            "rounds": self.rounds or None,
            "paths": self.paths,
            "others": self.others,
            "failure": self.failure,
            "reason": self.reason,
            "waits_for": str(self.waits.process) if self.waits else None,
            "waits_s": round((self.seen_ns - self.waits_since_ns) / NS, 6) if self.waits else None,
            "why": self.waits.reason if self.waits else None,
        }

    def _since(self, at_ns: int) -> float:
        return round((at_ns - self.opened_ns) / NS, 6)


def stories(control: Control, now_ns: int, *, sees_pids: bool = False) -> list[Story]:
    """Every request that the node's slots still tell of, in flight or ended, by the time of its opening.

    `sees_pids`: the node's pids mean the same here.
    """
    scene = Scene(control, now_ns, sees_pids=sees_pids)
    found = (story_of(scene, slot, epoch) for slot, epoch in _told_of(control))
    return sorted((story for story in found if story is not None), key=lambda story: story.opened_ns)


def story_of(scene: Scene, slot: int, epoch: int) -> Story | None:
    """That of one request; None where the slot tells of another one by now."""
    control = scene.control
    get = control.slots.get
    view, stamps = view_of(scene, slot), control.status.stamps(slot)
    path = phase_path(stamps)
    phase = Phase(view.phase)
    is_open = control.is_open(slot, epoch)
    code = get(slot, Slot.FAILURE)
    story = Story(
        room=view.room,
        slot=slot,
        epoch=epoch,
        phase=phase,
        seen_ns=scene.now_ns,
        opened_ns=view.opened_ns,
        ended_ns=(view.ended_ns or view.moved_ns) if phase.is_terminal else 0,
        stages=_stages(path, stamps),
        sent=view.sent,
        ready=view.ready,
        granted=view.granted,
        total=view.total,
        rounds=get(slot, Slot.NUM_ROUNDS) if control.role == Role.LANGUAGE else 0,
        paths=known_paths(control, slot, view.sent),
        others=_destinations(control, slot)
        if isinstance(view, EncodeView)
        else [f"encode node at {control.slots.address(slot)}"],
        failure=known_code(code).name.lower() if code else "",
        reason=view.failure,
        waits=explain(view) if is_open else None,
    )
    is_same = split(control.status.load(slot)).epoch == epoch and get(slot, Slot.EPOCH) == epoch
    return story if is_same and view.opened_ns else None


def _told_of(control: Control) -> Iterator[tuple[int, int]]:
    """(slot, epoch) of all whose status word and record are about one request."""
    at, count = control.layout, control.limits.num_slots
    words = Words(control.mapping, at.words, count).load_many(0, count)
    epochs = Words(control.mapping, at.slots + 8 * Slot.EPOCH, count, SLOT_BYTES).load_many(0, count)
    for slot, (word, epoch) in enumerate(zip(words, epochs, strict=True)):
        if epoch and split(word).epoch == epoch:
            yield slot, epoch


def _stages(path: list[Phase], stamps: tuple[int, ...]) -> tuple[Stage, ...]:
    """A stamp may be missing, and two processes may have written two of them in either order."""
    stages = [Stage(phase, stamps[phase], max(stamps[phase], stamps[after])) for phase, after in pairwise(path)]
    if path and not path[-1].is_terminal:
        stages.append(Stage(path[-1], stamps[path[-1]], 0))
    return tuple(stages)


def _destinations(control: Control, slot: int) -> list[str]:
    """The language nodes of a request, also those that have gone since."""
    found = []
    for d in range(min(control.slots.get(slot, Slot.NUM_DESTINATIONS), control.limits.max_destinations)):
        peer = control.destinations.get(slot, d, Destination.PEER) - 1
        if peer < 0:
            continue
        incarnation = control.destinations.get(slot, d, Destination.INCARNATION)
        is_same = control.peers.get(peer, Peer.INCARNATION) == incarnation
        record = control.peers.record(peer)
        name = f"language node {record.node_id:x} at {record.bootstrap_addr}"
        found.append(name if is_same else "a language node that has gone")
    return found


# ---- a node, by its run directory


class NodeStories(NamedTuple):
    """What one node tells of its requests. `seen_wall_ns`: the time of day when they were read."""

    role: str
    node_id: str
    seen_wall_ns: int
    stories: list[Story]

    @property
    def name(self) -> str:
        return f"{self.role} node {self.node_id}"


def node_stories(run_dir: Path) -> NodeStories:
    """The stories of the node that runs in `run_dir`.

    Raises:
        AttachError, SegmentError: no node runs there, or it cannot be reached.
    """
    seen = look(run_dir)
    try:
        control = seen.control
        found = stories(control, time.monotonic_ns(), sees_pids=seen.sees_pids)
        return NodeStories(control.role.name.lower(), f"{control.node_id:x}", time.time_ns(), found)
    finally:
        seen.close()


def node_story(run_dir: Path, slot: int, epoch: int) -> Story | None:
    """One of them; None where the slot tells of another request. Raises as `node_stories`."""
    seen = look(run_dir)
    try:
        return story_of(Scene(seen.control, time.monotonic_ns(), sees_pids=seen.sees_pids), slot, epoch)
    finally:
        seen.close()
