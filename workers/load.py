"""What a node tells others of itself: how much it has to do, and which of its processes do not beat.

All of it is read from words of the control segment: it takes no lock, changes nothing, and touches no payload (B13).
"""

from __future__ import annotations

from typing import NamedTuple

from embridge.allocator.control import Control
from embridge.allocator.layout import Process, Slot
from embridge.allocator.status import TERMINAL, split
from embridge.workers.roles import Desk
from embridge.workers.timing import NS


class Load(NamedTuple):
    """What is in flight. `outstanding_tokens`: rows that are announced and not sent yet."""

    outstanding_tokens: int
    outstanding_requests: int
    free_blocks: int


def load_of(desk: Desk) -> Load:
    """Over the live slots: the sum of total - sent, and their number; and the free blocks."""
    tokens = requests = 0
    for slot, _ in desk.current_slots():
        word = split(desk.status.load(slot))
        if word.phase < TERMINAL:
            requests += 1
            tokens += max(0, desk.slots.get(slot, Slot.TOTAL) - word.sent)
    return Load(tokens, requests, desk.control.blocks.counts().free)


def silent_processes(control: Control, now_ns: int, bound_s: float) -> list[tuple[str, float]]:
    """(name, seconds since its last beat) of every process of the node that has not beaten for longer than the bound (D4)."""
    found = []
    for name in control.processes.names:
        silent_s = round((now_ns - control.processes.get(name, Process.BEAT_NS)) / NS, 3)
        if silent_s > bound_s:
            found.append((name, silent_s))
    return found
