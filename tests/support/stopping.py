"""Stopping processes, so that they do nothing more from a known moment on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.waiting import wait_until


def stop(*pids: int) -> None:
    """SIGSTOP, and wait until every thread has stopped.

    The signal goes to one thread, which stops the others when it is next scheduled: on a busy machine they go on for
    some 10 ms, in which a transfer of megabytes succeeds.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(is_stopped(pid) for pid in pids), 20, lambda: f"all threads of {pids} stopped")


def is_stopped(pid: int) -> bool:
    """Whether no thread of the process runs, or will run before SIGCONT; one that has ended is none."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return bool(states) and all(state in "TtZX" for state in states)


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes do nothing for the length of a block."""
    try:
        stop(*pids)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
