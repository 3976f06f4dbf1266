"""Ends a running node from outside: finds its launcher by the run directory, tells it, and waits for its end.

The launcher is held by a pidfd from its run socket, so a signal never reaches another process that has got its number.
A launcher that is still starting has no socket yet, and is found by the lock that it holds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from embridge.allocator.errors import AttachError, EmbridgeError
from embridge.allocator.records import NodeState
from embridge.pipeline.inspection.open_readonly import Look, launcher_of, look
from embridge.pipeline.join import check_run_dir
from embridge.pipeline.node.launch import STOP_AT_ONCE
from embridge.pipeline.run_dir import RunDirError
from embridge.workers import run_socket
from embridge.workers.health import num_in_flight
from embridge.workers.run_socket import SOCKET_NAME

LOOK_S: Final = 0.2
CONNECT_S: Final = 2.0


class RunningNode:
    """The launcher of a node that runs in a run directory. A context manager."""

    def __init__(self, run_dir: Path) -> None:
        """Raises AttachError where no node of this user runs there."""
        self.run_dir = run_dir
        self.pidfd, self.pid = _launcher(run_dir)
        self._look: Look | None = None
        with contextlib.suppress(EmbridgeError):  # it is starting, or has just ended
            self._look = look(run_dir)

    def drain(self) -> None:
        """Have accepted requests end and new ones refused; then it ends. Of a node that drains already, nothing more.

        A second signal would stop it at once.
        """
        if self._look is None or self._look.control.state < NodeState.DRAINING:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def stop(self) -> None:
        """Have it end at once: requests in flight fail on the other side."""
        for number in STOP_AT_ONCE:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout_s: float, progress: Callable[[int], None]) -> bool:
        """Whether the launcher has ended, with all its processes, within that time.

        `progress` is called with the number of requests in flight whenever that changes.
        """
        deadline, before = time.monotonic() + timeout_s, None
        while True:
            in_flight = self.in_flight()
            if in_flight != before and in_flight is not None:
                progress(in_flight)
            before = in_flight
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self.pidfd], [], [], max(0.0, min(left, LOOK_S)))
            if readable or left <= 0:
                return bool(readable)

    def in_flight(self) -> int | None:
        """Requests for which a drain waits; None where the node cannot be looked at."""
        return num_in_flight(self._look.control) if self._look is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._look is not None:
            self._look.close()
            self._look = None
        os.close(self.pidfd)


def _launcher(run_dir: Path) -> tuple[int, int]:
    """(pidfd, pid) of the launcher. Raises AttachError."""
    try:
        check_run_dir(run_dir)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(CONNECT_S)
            sock.connect(str(run_dir / SOCKET_NAME))
            pid, uid = run_socket.peer_credentials(sock)
            if uid != os.geteuid():
                raise AttachError(f"node in {run_dir}: it belongs to user {uid}, this process to user {os.geteuid()}")
            return run_socket.peer_pidfd(sock, pid), pid
    except RunDirError as error:
        raise AttachError(str(error)) from error
    except OSError as error:
        pid = launcher_of(run_dir)
        try:
            if pid:
                return os.pidfd_open(pid), pid
        except ProcessLookupError:
            pass  # it ended meanwhile
        raise AttachError(f"node in {run_dir}: {error.strerror or error}; no node runs there") from error
