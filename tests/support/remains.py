"""What nodes of tests have outside of their memory: processes, and run directories in a place of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

RUN_DIR_PREFIX = "eb-"  # in /tmp: a socket's path has 107 bytes at most


@contextmanager
def run_dirs() -> Iterator[Path]:
    """A short, empty folder for run directories, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"{RUN_DIR_PREFIX}{os.getpid()}-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def alive(pids: list[int]) -> list[int]:
    """Those that still run: a zombie that nobody has waited for does not."""
    running = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
        except psutil.NoSuchProcess:
            continue
    return running


def children_of(*pids: int) -> list[int]:
    """Of these processes, as the kernel lists them now."""
    return [int(word) for pid in pids for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
