"""Whether the launcher of a node watches as many threads as it will of everybody who is connected.

It watches two threads of each (`dying`): those it finds, and another some time later in place of one that was not there
yet or has ended. Whoever counts the launcher's descriptors begins when it has them all: one that comes later is late,
and no leak.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from embridge.pipeline.node.death_watch import PIDFD_THREAD, WATCHED_THREADS
from support.nodes import Station


def can_watch_threads() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid(), PIDFD_THREAD))
    except OSError:
        return False
    return True


def is_all_watched(station: Station) -> bool:
    """Of a node that this process has launched; True where the kernel has no pidfd of a thread (Linux 6.9)."""
    if not can_watch_threads():
        return True
    try:
        processes, num_threads = _pidfds(station.pid_of("launcher"))
        # its parent, its own
        processes.subtract([os.getpid(), *(pid for name, pid in station.pids().items() if name != "launcher")])
        due = [
            num * min(WATCHED_THREADS, len(os.listdir(f"/proc/{pid}/task")) - 1)
            for pid, num in processes.items()
            if num
        ]
    except (FileNotFoundError, ProcessLookupError):  # something was closed, or somebody died, meanwhile
        return False
    return num_threads == sum(due)


def _pidfds(pid: int) -> tuple[Counter[int], int]:
    """The processes of which a process has a pidfd, and how many of threads it has."""
    processes: Counter[int] = Counter()
    num_threads = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(link) != "anon_inode:[pidfd]":
            continue
        info = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().splitlines())
        if int(info["flags"], 8) & PIDFD_THREAD:
            num_threads += 1
        else:
            processes[int(info["Pid"])] += 1
    return processes, num_threads
