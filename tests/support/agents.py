"""Processes that do what a test tells them: encoders, schedulers and observers in address spaces of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
"""Agents are forked from a process that has imported what they need and done nothing else: each would need two seconds
of a core for torch, and half a second for the rest.
"""


class AgentError(AssertionError):
    """A function failed in an agent; the text is its traceback there."""


def start_fork_server(modules: Iterable[str] = ("torch", "embridge.pipeline")) -> None:
    """It lives as long as this process, and has imported these modules, from where this process finds them."""
    FORKED.set_forkserver_preload(list(modules))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


class Agent:
    """A process of its own that calls module-level functions, one at a time: `function(state, *arguments)`.

    `state` is a namespace that lives as long as the process.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._number = 0
        self._connection, theirs = FORKED.Pipe()
        self.process = FORKED.Process(target=_serve, args=(theirs, dict(os.environ)), name=name, daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0, **named: Any) -> Any:
        """What the function returns there. Raises AgentError for what it raises."""
        self.start(function, *arguments, **named)
        return self.result(timeout_s)

    def start(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Have it called, and do not wait: `result` does."""
        self._number += 1
        self._connection.send((self._number, function, arguments, named))

    def result(self, timeout_s: float = 60.0) -> Any:
        number = 0
        while number < self._number:  # what a test before has not waited for is nobody's any more
            if not self._connection.poll(timeout_s):
                raise AgentError(f"{self.name}: no answer within {timeout_s:g} s")
            try:
                number, ok, value = self._connection.recv()
            except EOFError:
                raise AgentError(f"{self.name}: it died") from None
        if not ok:
            raise AgentError(f"{self.name}: {value}")
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.process.join()

    def close(self) -> None:
        """End it, in the way of a process that exits; then, if need be, by force."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self.process.join(10)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self._connection.close()
        self.process.close()


@contextmanager
def running(name: str) -> Iterator[Agent]:
    """An agent for the length of a block."""
    agent = Agent(name)
    try:
        yield agent
    finally:
        agent.close()


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)  # those of the test, not those in which the fork server began
    state = SimpleNamespace()
    while True:
        try:
            command = connection.recv()
        except (EOFError, OSError):
            return
        if command is None:
            return
        number, function, arguments, named = command
        try:
            answer = (number, True, function(state, *arguments, **named))
        except BaseException:
            answer = (number, False, traceback.format_exc())
        connection.send(answer)
