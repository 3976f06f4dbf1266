"""The history of a storm: one JSON line an event, appended by every process that saw something, in monotonic
nanoseconds.

What the events are, and who writes them (`runner`: the process that raises the storm):

    event       by        fields
    begin       runner    seed, engine, kinds, block_size, deadline_s, peer_timeout_s
    node_up     runner    node, generation, addr, processes {name: pid}
    node_down   runner    node, generation, why: "killed", "by itself", "the end"
    gone        runner    node, generation, ns: from its kill until none of its processes is left
    not_up      runner    node, why: a launch that was refused
    client_up   runner    client, pid
    joined      client    client, node
    client_down runner    client, why
    asked       runner    room, encoder, scheduler, encode, language: who is to open it, and on which nodes
    opened      client    room, side, client, deadline_s
    refused     client    room, side, client, why: nothing was accepted
    phase       client    room, side, client, phase, sent
    grant       client    room, tokens, blocks
    aborting    client    room, side, why
    ended       client    room, side, client, phase, error, reason, tokens, difference
    fault       runner    kind, victim, node, pid, and what the kind needs; `id` is its number
    eased       runner    id: the end of a fault that lasts
    recovered   runner    id, held: blocks of the dead client, ns: until none of them was held by it; exit_ns: until it
                          was a zombie
    restarted   runner    id, ns: until the process that was killed was READY again
    word        observer  node, what: a status word that did what none may do
    observed    observer  node, looks, changes
    final       runner    node, counts, blocks, in_flight, dead_lanes
    left        runner    what: what the storm left behind
    torn        reader    lines that were not written to their end: their writer was killed

Of fetches of published items (`storm.items`), by clients:

    fetch       number, client, key, addr, deadline_s
    fetched     number (0: it was looked at once more), client, where, error, reason, difference,
                kept: bytes that a retry need not fetch
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Recorder:
    """Appends events.

    Every process opens the file itself; a line is one `write`, so lines of several writers do not mix.
    """

    def __init__(self, path: Path, *, without: frozenset[str] = frozenset()) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._without = without

    def __call__(self, event: str, **fields: Any) -> int:
        """Returns the time that was written."""
        now = time.monotonic_ns()
        if event not in self._without:
            line = json.dumps({"t": now, "event": event, **fields}, separators=(",", ":"))
            os.write(self._fd, f"\n{line}".encode())  # a line begins with its end, so one that was torn spoils no other
        return now

    def close(self) -> None:
        os.close(self._fd)


def messages_of(history: Path) -> Path:
    """Where the messages of a storm's nodes and clients are."""
    return history.with_suffix(".log")


def speak_into(path: Path) -> None:
    """What this process writes on standard error goes to the end of a file from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(file, 2)
    os.close(file)


def read(path: Path) -> list[Event]:
    """All events in the order of their times."""
    events, torn = [], 0
    for line in path.read_text(errors="replace").splitlines():
        if not line:
            continue
        try:
            events.append(json.loads(line))
        except ValueError:
            torn += 1
    events.sort(key=lambda event: event["t"])
    if torn:
        events.append({"t": events[-1]["t"] if events else 0, "event": "torn", "lines": torn})
    return events
