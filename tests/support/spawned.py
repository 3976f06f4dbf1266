"""Functions for the processes that `spawn` starts, and what a process does that spawns them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from embridge import spawn

if TYPE_CHECKING:
    import torch  # where a process has not been given a tensor it begins without


def mark(index: int, folder: Path, rows: torch.Tensor) -> None:
    """Leave a file, and a mark in memory that all share."""
    rows[index] += index + 1
    (folder / f"{index}").write_text(str(os.getpid()))


def leave(index: int, status: int) -> None:
    """End with this exit status."""
    sys.exit(status)


def wait(index: int, folder: Path) -> None:
    """Until SIGTERM, of which a file is left; process 1 does not heed it."""
    if index == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (folder / f"{index}.new").write_text(str(os.getpid()))
    (folder / f"{index}.new").rename(folder / f"{index}")
    try:
        while True:
            time.sleep(600)
    finally:
        (folder / f"{index}.ended").touch()


def fail_or_wait(index: int, folder: Path, how: str) -> None:
    """Process 2 fails as soon as the others wait."""
    if index < 2:
        wait(index, folder)
    while not all((folder / str(other)).exists() for other in (0, 1)):
        time.sleep(0.01)
    if how == "raises":
        raise ValueError(f"no such picture {'x' * 100_000}")
    if how == "exits":
        sys.exit(7)
    if os.fork() == 0:  # who holds all that process 2 has open, and lives on
        (folder / "forked").write_text(str(os.getpid()))
        time.sleep(600)
    while not (folder / "forked").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def program(folder: Path, grace_s: float) -> None:
    """Spawn two processes, which wait."""
    spawn(wait, 2, (folder,), grace_s=grace_s)
