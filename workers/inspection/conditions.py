"""What stops a process from running, as the kernel tells."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEAD: Final = "it is dead"


def condition_of(pid: int) -> str:
    """What stops a process from running; empty where nothing does. One file of /proc is read."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return DEAD
    return {
        "T": "it is stopped by a signal",
        "t": "it is stopped by a debugger",
        "Z": DEAD,
        "X": DEAD,
    }.get(state, "")
