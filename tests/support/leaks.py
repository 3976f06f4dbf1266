"""What a test may leave behind: nothing (P9).

Before a test, what is there is noted, and a mark is put into the environment, which every process started from then on
inherits, orphans included. After it: no marked process runs, no memory has a name, no run directory stands, and this
process has the descriptors and the mappings of shared memory that it had.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import secrets
import time
from collections import Counter
from pathlib import Path

from embridge.allocator.segment import remove_left_names
from support.remains import RUN_DIR_PREFIX, alive
from support.waiting import wait_until

MARK = "EB_TEST_MARK"
SETTLE_S = 3.0  # for what was told to end to be gone


class LeakCheck:
    """Made before a test; `problems` after it."""

    def __init__(self) -> None:
        self._segments = _segments()
        self._run_dirs = _run_dirs()
        self._descriptors = open_descriptors()
        self._mappings = _mappings()
        self._forked = _forked()
        self._pids = _pids()
        self._outer = os.environ.get(MARK)
        self._mark = secrets.token_hex(8)
        os.environ[MARK] = self._mark

    def restore(self) -> None:
        if self._outer is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = self._outer

    def problems(self) -> list[str]:
        """What is left, in words, after it had a moment to go away."""
        if not self._left():
            return []
        gc.collect()
        try:
            wait_until(lambda: not self._left(), SETTLE_S)
        except AssertionError:
            return self._left()
        return []

    def _left(self) -> list[str]:
        left = [f"process {pid} ({_read(pid, 'cmdline')[:120]!r})" for pid in self.processes()]
        left += [f"/dev/shm/{name}" for name in _segments() - self._segments]
        left += [f"run directory {path}" for path in _run_dirs() - self._run_dirs]
        left += [f"descriptor of {target} ({n} more)" for target, n in (open_descriptors() - self._descriptors).items()]
        left += [f"mapping of {target} ({n} more)" for target, n in (_mappings() - self._mappings).items()]
        return left

    def processes(self) -> list[int]:
        """The processes that this test has started and that still run."""
        mark = f"{MARK}={self._mark}".encode()
        marked = [pid for pid in _pids() - self._pids if mark in _read(pid, "environ")]
        return alive(marked + sorted(_forked() - self._forked))


def _pids() -> set[int]:
    """Every process of the machine, this one among them."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def _read(pid: int, name: str) -> bytes:
    """A file of another process; empty when it is gone, or not ours."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _forked() -> set[int]:
    """The agents of this process: what is forked has the environment of whom it is forked from."""
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def _segments() -> set[str]:
    """Those with a name. An empty one may be left where a creator was killed: the next node removes it (P9)."""
    remove_left_names()
    return {name for name in os.listdir("/dev/shm") if "embridge" in name}


def _run_dirs() -> set[str]:
    """Those of this process: `run_dirs` makes them, other workers of the same run have theirs."""
    return {name for name in os.listdir("/tmp") if name.startswith(f"{RUN_DIR_PREFIX}{os.getpid()}-")}


def open_descriptors() -> Counter[str]:
    """What this process has open: by file, for numbers are used again; sockets and pipes by kind, for they have no
    names.
    """
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that lists them
        found[target.split(":")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return found


def left_since(before: Counter[str]) -> str:
    """Which descriptors this process has more than before, in words, after those had a moment to go; empty for none."""
    deadline = time.monotonic() + SETTLE_S
    while left := open_descriptors() - before:
        gc.collect()
        if time.monotonic() > deadline:
            return "left behind: " + ", ".join(f"{target} ({n} more)" for target, n in left.items())
        time.sleep(0.01)
    return ""


def _mappings() -> Counter[str]:
    """Mappings of segments and memfds, by kind."""
    found: Counter[str] = Counter()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/dev/shm/" not in line and "/memfd:" not in line:
            continue  # most of a thousand lines, which are looked at twice a test
        name = line.split(maxsplit=5)[5]
        if is_shared_memory(name):
            found[name.split("-")[0].split("#")[0] + "..."] += 1
    return found


def is_shared_memory(name: str) -> bool:
    """Whether what a line of `maps` names is memory of ours.

    A library is not, whatever the folder is called in which it lies.
    """
    prefix = next((prefix for prefix in ("/dev/shm/", "/memfd:") if name.startswith(prefix)), None)
    file = name.removeprefix(prefix or "")
    return prefix is not None and "/" not in file and ("embridge" in file or file.startswith("#"))
