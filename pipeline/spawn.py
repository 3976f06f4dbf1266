"""`spawn()`: the caller's own encoder or scheduler processes, started together and ended together.

It is `torch.multiprocessing.spawn` for processes that attach to a node: the same context, so tensors among the
arguments go over in shared memory, the same errors, and besides

- a process whose parent is dead ends at once (the kernel's parent-death signal);
- SIGTERM and SIGHUP go on to the processes, and only then to whoever spawned them;
- a process has ended when it has (a pidfd says so), though a process that it forked lives on;
- nothing is left that was started: what does not end when it is told to is killed.

    if __name__ == "__main__":
        spawn(encode, nprocs=4, args=(run_dir,))  # encode(0, run_dir) to encode(3, run_dir)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final

from embridge.allocator._core import set_parent_death_signal
from embridge.workers.health import exit_reason

GRACE_S: Final = 10.0
LOOK_S: Final = 0.2  # how soon a signal's deadline is seen
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED: Final = 130  # exit status after Ctrl-C, which reaches the whole terminal
_RETURNED: Final = b"\0"  # what a process says when its function has returned; else the traceback


@dataclass(slots=True)
class _Child:
    """One process: who it is, and what it has said."""

    index: int
    process: Any
    connection: Connection | None
    pidfd: int
    said: bytes = b""

    @property
    def has_succeeded(self) -> bool:
        """Whether it ended well. The exit status is None where somebody else here has waited for it."""
        return self.process.exitcode == 0 or (self.process.exitcode is None and self.said == _RETURNED)


def spawn(fn: Callable[..., object], nprocs: int = 1, args: Sequence[Any] = (), *, grace_s: float = GRACE_S) -> None:
    """Call `fn(index, *args)` in each of `nprocs` new processes, and return when all of them have returned.

    If one fails, the others are ended: SIGTERM, and SIGKILL after `grace_s`. The module that runs as the main one is
    imported again in each process, so a call from it stands below `if __name__ == "__main__":`. Signals are forwarded
    when it is called by the main thread.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a function raised; the text holds its traceback.
        torch.multiprocessing.ProcessExitedException: a process ended before its function had returned.
        ValueError: `nprocs` or `grace_s` is out of its range.
        OSError: a process cannot be started.
    """
    if nprocs < 1:
        raise ValueError(f"nprocs: {nprocs} < 1; start at least one process")
    if grace_s < 0:
        raise ValueError(f"grace_s: {grace_s} s < 0; give the time in which a process may end by itself")
    group = _Group(fn, args, nprocs, grace_s)
    with _forwarding(group) as arrived:
        try:
            for index in range(nprocs):
                group.start(index)
            group.wait()
        finally:
            group.close()
    if arrived:
        os.kill(os.getpid(), arrived[0])  # as if it had come now
    elif group.failed is not None:
        group.raise_failure(group.failed)


class _Group:
    """The processes of one call."""

    def __init__(self, fn: Callable[..., object], args: Sequence[Any], nprocs: int, grace_s: float) -> None:
        # not above: a process imports it when its function does, or has been given a tensor
        from torch import multiprocessing

        self._context = multiprocessing.get_context("spawn")
        self._target = (fn, tuple(args))
        self._nprocs = nprocs
        self._grace_s = grace_s
        self._alive: list[_Child] = []
        self._ended_by_us_s = 0.0  # since when; on the monotonic clock
        self.failed: _Child | None = None

    def start(self, index: int) -> None:
        """Start one. Raises OSError."""
        if self._ended_by_us_s:
            return  # a signal came
        ours, theirs = self._context.Pipe(duplex=False)
        try:
            process = self._context.Process(
                target=_run, args=(*self._target, index, theirs, os.getpid()), name=f"embridge-{index}"
            )
            process.start()
            try:
                assert process.pid is not None
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.join()
                raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._alive.append(_Child(index, process, ours, pidfd))
        if self._ended_by_us_s:
            process.terminate()  # the signal came while it was started

    def end(self, number: int = signal.SIGTERM) -> None:
        """Tell all to end; who does not within `grace_s` is killed by `wait`."""
        self._ended_by_us_s = self._ended_by_us_s or time.monotonic()
        for child in list(self._alive):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, number)

    def wait(self) -> None:
        """Wait until all have ended."""
        while self._alive:
            if self._ended_by_us_s and time.monotonic() - self._ended_by_us_s >= self._grace_s:
                self.end(signal.SIGKILL)
            waiting = select.poll()
            for child in self._alive:
                waiting.register(child.pidfd, select.POLLIN)
                if child.connection is not None:
                    waiting.register(child.connection.fileno(), select.POLLIN)
            readable = {fd for fd, _ in waiting.poll(LOOK_S * 1000)}
            for child in list(self._alive):
                if child.connection is not None and child.connection.fileno() in readable:
                    _hear(child)
                if child.pidfd in readable:
                    self._buried(child)

    def _buried(self, child: _Child) -> None:
        child.process.join()
        if child.connection is not None:
            _hear(child)
        self._alive.remove(child)
        os.close(child.pidfd)
        if not child.has_succeeded and not self._ended_by_us_s:
            self.failed = child
            self.end()

    def close(self) -> None:
        """End whatever still runs, and wait for it."""
        self.end()
        try:
            self.wait()
        except BaseException:  # Ctrl-C once more
            self.end(signal.SIGKILL)
            self.wait()
            raise

    def raise_failure(self, child: _Child) -> None:
        from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

        what = f"process {child.index} of {self._nprocs} (pid {child.process.pid})"
        if child.said not in (b"", _RETURNED):
            text = f"{what} raised:\n\n{child.said.decode(errors='replace')}"
            raise ProcessRaisedException(text, child.index, child.process.pid)
        code = child.process.exitcode
        how = exit_reason(code) if code is not None else "ended (somebody else has waited for it)"
        raise ProcessExitedException(
            f"{what} {how} before its function had returned",
            error_index=child.index,
            error_pid=child.process.pid,
            exit_code=code if code is not None else -1,
            signal_name=signal.Signals(-code).name if code is not None and code < 0 else None,
        )


def _hear(child: _Child) -> None:
    """Read, once, what a process has to say; before it has ended, for a traceback may be longer than a pipe."""
    assert child.connection is not None
    with contextlib.suppress(OSError, EOFError):
        if child.connection.poll():
            child.said = child.connection.recv_bytes()
    child.connection.close()
    child.connection = None


@contextlib.contextmanager
def _forwarding(group: _Group) -> Iterator[list[int]]:
    """For a block: let signals that would end this process end the group first. Gives those that have arrived.

    SIGCHLD is not ignored meanwhile, or nobody would know how a process has ended.
    """
    arrived: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        group.end(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for forwarded in FORWARDED:
            if signal.getsignal(forwarded) != signal.SIG_IGN:  # `nohup`
                before[forwarded] = signal.signal(forwarded, tell)
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _run(fn: Callable[..., object], args: tuple[Any, ...], index: int, connection: Connection, parent: int) -> None:
    """Live the life of one process."""
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        fn(index, *args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception:
        connection.send_bytes(traceback.format_exc().encode(errors="replace"))
        sys.exit(1)
    connection.send_bytes(_RETURNED)
