"""The load and health of a node, for others: what is in flight, which processes do not beat or cannot be kept alive.

The functions read words of the control segment. They take no lock, change nothing, and touch no payload (B13).
"""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

from embridge.allocator.control import Control
from embridge.allocator.records import Process, Slot
from embridge.allocator.status import TERMINAL, split
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS

NOT_ESSENTIAL: Final = {"registrar": "discovery", "web": "the HTTP port"}
"""Processes without which requests go on, and what does not."""


_SIGNALS: Final = frozenset(signal.Signals)


class Load(NamedTuple):
    """What is in flight. `outstanding_tokens`: rows that are announced and not sent yet."""

    outstanding_tokens: int
    outstanding_requests: int
    free_blocks: int


def load_of(ctx: RoleContext) -> Load:
    """The load of this node: over its live slots the sum of total - sent, and their number; and the free blocks."""
    tokens = requests = 0
    for slot, _ in ctx.control.open_slots():
        word = split(ctx.status.load(slot))
        if word.phase < TERMINAL:
            requests += 1
            tokens += max(0, ctx.slots.get(slot, Slot.TOTAL) - word.sent)
    return Load(tokens, requests, ctx.control.blocks.counts().free)


def silent_processes(control: Control, now_ns: int, bound_s: float) -> list[tuple[str, float]]:
    """Every process of the node that has not beaten for longer than `bound_s` (D4).

    Each is (name, seconds since its last beat).
    """
    found = []
    for name in control.processes.names:
        silent_s = round((now_ns - control.processes.get(name, Process.BEAT_NS)) / NS, 3)
        if silent_s > bound_s:
            found.append((name, silent_s))
    return found


def exit_reason(code: int | None) -> str:
    """How a process ended, in words; `code` as `multiprocessing` has it."""
    if code is None:
        return "still running"
    if code < 0:
        return f"killed by {signal.Signals(-code).name if -code in _SIGNALS else f'signal {-code}'}"
    return f"exited with {code}"


def last_exit(control: Control, name: str) -> str:
    """How a process ended the last time; empty where it never has."""
    get, word = control.processes.get, control.processes.get(name, Process.LAST_EXIT)
    if not word and not get(name, Process.NUM_RESTARTS):
        return ""
    return exit_reason(word - (1 << 32) if word >> 31 else word)


def failing_processes(control: Control) -> list[tuple[str, str]]:
    """(name, how it ended last) of every process that cannot be kept alive and that requests need."""
    return [(name, last_exit(control, name)) for name in control.failing() if name not in NOT_ESSENTIAL]


def why_unhealthy(control: Control) -> str:
    """In words, which processes cannot be kept alive; empty while there is none, which costs one load."""
    said = [
        f"process {name} cannot be kept alive ({last_exit(control, name)})"
        f"{f': requests go on without it, {NOT_ESSENTIAL[name]} does not' if name in NOT_ESSENTIAL else ''}"
        for name in control.failing()
    ]
    return "; ".join(said)


def why_refusing(control: Control) -> str:
    """Why the node takes no new requests: as `why_unhealthy`, of the processes that requests need."""
    failing = failing_processes(control)
    said = [f"process {name} cannot be kept alive ({reason}); it is tried again" for name, reason in failing]
    return "; ".join(said)
