"""Where engines' libraries write what they say on standard error: a file of bounded size in the run directory.

When it is full, and when a process begins, it goes by another name, which ends in `.1`, in place of the one that was
there: what a process that has died said last is still to be had.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from embridge.workers.timing import NS

MOST_BYTES: Final = 4 << 20
STDERR: Final = 2
EARLIER: Final = ".1"


class EngineLog:
    """Takes the place of this process's standard error; `log_to_stderr` has kept what that was. One thread uses it."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        """Raises OSError: the file cannot be made."""
        self._path = path
        self._most_bytes = most_bytes
        self._due_ns = 0
        self._begin()

    def look(self, now_ns: int) -> None:
        """Begin a new file if this one is full; it looks once a second."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + NS
        with contextlib.suppress(OSError):  # no descriptor is free, say: the next look tries again
            if os.fstat(STDERR).st_size >= self._most_bytes:
                self._begin()

    def _begin(self) -> None:
        # whatever has that name: opening a FIFO would wait, and a link would be followed
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._path, f"{self._path}{EARLIER}")
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.dup2(fd, STDERR)
        finally:
            os.close(fd)
