"""`embridge` commands in processes that are forked from one that has imported torch: each would need two seconds of a
core for that. Else they are as a terminal would start them.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple, TextIO

from support.agents import FORKED


class Command(NamedTuple):
    """One that runs: it leads a session of its own, and what it prints can be read while it does."""

    process: ForkServerProcess
    output: TextIO
    error_path: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def errors(self) -> str:
        """What it has written on standard error."""
        return self.error_path.read_text()

    def end(self, timeout_s: float) -> tuple[int, str]:
        """The exit status, and the rest of what it prints. Raises AssertionError where it does not end."""
        said = self.output.read()
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"it runs after {timeout_s:g} s: {said}"
        return self.process.exitcode, said


@contextmanager
def started(words: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """`embridge` with these words, for the length of a block at most; `folder` takes its standard error."""
    error_path = folder / "standard_error"
    ours, theirs = FORKED.Pipe(duplex=False)
    told = {**os.environ, **(environment or {})}
    process = FORKED.Process(target=_live, args=(list(words), told, theirs, error_path))
    try:
        process.start()
    finally:
        theirs.close()
    try:
        with ours, open(ours.fileno(), closefd=False) as output:
            yield Command(process, output, error_path)
    finally:
        process.kill()
        process.join()
        process.close()


def _live(words: list[str], environment: dict[str, str], output: Connection, error_path: Path) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):  # which a shell's background job inherits ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    errors = os.open(error_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(output.fileno(), 1)
    os.dup2(errors, 2)
    os.close(errors)
    output.close()
    sys.argv[1:] = words
    runpy.run_module("embridge", run_name="__main__", alter_sys=True)
