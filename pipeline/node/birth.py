"""How a process of a node is born: the launcher, which has imported what it needs, forks it.

So it begins within milliseconds, at the launch and whenever it is started again, and the processes of a node share the
memory of their modules. What is started again is the code that the node was launched with, whatever has been installed
since.

A child has of the launcher's descriptors those that its spec names, and the first three. What else it inherits ends
before its own work begins: mappings, which no process is to have that does not need them; streams, whose threads are
the launcher's; the descriptor to which the launcher's signals go. Signals wait until the child has its own handlers.
Objects of the launcher stay as they are, for one that is collected later would close a descriptor that is another
file's by then. The launcher's own threads write texts to standard error, and touch memory: no lock of theirs is needed
in a child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import signal
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from embridge.allocator import _core
from embridge.allocator.segment import Descriptor
from embridge.workers.process_spec import ProcessSpec
from embridge.workers.start import Work, run
from embridge.workers.stderr import bare_streams

PIPE_ENDS: Final = 4  # that `multiprocessing` opens for a process, and no other thread of a launcher opens any

Files = Mapping[int, tuple[int, int]]
"""Open descriptors, each with what tells its file from others."""


class Birth:
    """Where the processes of a launcher come from."""

    def __init__(self, context: Any, mappings: Sequence[_core.Mapping]) -> None:
        """`context` is `multiprocessing`'s for forking; `mappings` are those that the launcher has."""
        self._context = context
        self._mappings = mappings

    def begin(self, spec: ProcessSpec, work: Work) -> Any:
        """Start a process; returns it (multiprocessing.Process). Raises OSError."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            inherited = open_files()
            process = self._context.Process(
                target=self._live, args=(spec, work, inherited), name=f"embridge-{spec.name}", daemon=True
            )
            try:
                with bare_streams():
                    process.start()
            except OSError:
                close_pipes_since(inherited)
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return process

    def _live(self, spec: ProcessSpec, work: Work, inherited: Files) -> None:
        gc.freeze()
        signal.set_wakeup_fd(-1)
        logging.getLogger().handlers.clear()  # the thread behind them is the launcher's
        for mapping in self._mappings:
            mapping.abandon()
        close_but(inherited, {0, 1, 2, *descriptors_of(spec)})
        run(spec, work)


def open_files() -> Files:
    """The open descriptors of this process."""
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # by which they were listed
            status = os.fstat(fd)
            found[fd] = status.st_dev, status.st_ino
    return found


def close_pipes_since(files: Files) -> None:
    """Close the pipes that were opened since: `multiprocessing` leaves its own open where it cannot fork.

    No descriptor is needed for that: new ones have the least numbers that were free.
    """
    for fd in range(max(files, default=0) + 1 + PIPE_ENDS):
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISFIFO(status.st_mode) and files.get(fd) != (status.st_dev, status.st_ino):
                os.close(fd)


def close_but(files: Files, kept: Iterable[int]) -> None:
    """Close those of `files` that are still open, and are the files they were."""
    for fd, known in files.items():
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if fd not in kept and (status.st_dev, status.st_ino) == known:
                os.close(fd)


def descriptors_of(spec: ProcessSpec) -> list[int]:
    """Those that a spec names."""
    values = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
    given = [*values, *spec.event_fds.values()]
    return [it.fd for it in given if isinstance(it, Descriptor)]
