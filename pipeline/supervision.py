"""The processes of a node: born, watched by pidfd, restarted, stopped.

A process that dies is reported with its name and how it ended, and started again, with a pause that grows; one that keeps dying
makes the node give up, loudly. Its unfinished ring records are still in its rings, and what it was about stands in the control
segment, so the new one goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.layout import Process
from embridge.workers.timing import NS
from embridge.workers.worker import READY, RENEWED, Seat, run

log = logging.getLogger(__name__)

RESTART_PAUSE_S = (0.0, 0.1, 0.5, 1.0, 2.0)
RESTARTS_A_MINUTE = 30


@dataclass(slots=True)
class Child:
    """One process of the node, and its births in the last minute."""

    seat: Seat
    process: Any = None
    pidfd: int = -1
    born_ns: list[int] = field(default_factory=list)
    restart_ns: int = 0


def exit_reason(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "still running"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with {code}"


class Supervisor:
    """Owns the children. `context` is a spawn context; `give_up(text)` is called when one cannot be kept alive."""

    def __init__(
        self, context: Any, control: Control, selector: selectors.BaseSelector, give_up: Callable[[str], None]
    ) -> None:
        self._context = context
        self._control = control
        self._selector = selector
        self._give_up = give_up
        self._children: list[Child] = []
        self._stopping = False
        self.is_up = False  # until then a process that ends is not started again, but `first_failure`

    def start(self, seat: Seat) -> None:
        """Start a process of the node. Raises OSError where that is not possible; there is none of it then."""
        child = Child(seat)
        self._children.append(child)
        self._spawn(child)

    def _spawn(self, child: Child) -> None:
        name = child.seat.name
        self._control.processes.set(name, Process.STATE, 0)
        process = self._context.Process(target=run, args=(child.seat,), name=f"embridge-{name}", daemon=True)
        process.start()
        child.process = process
        try:
            child.pidfd = os.pidfd_open(process.pid)
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._died(child))
        except OSError:  # nobody would see its end
            process.kill()
            process.join()
            if child.pidfd >= 0:
                os.close(child.pidfd)
                child.pidfd = -1
            raise
        child.born_ns.append(time.monotonic_ns())
        self._control.processes.set(name, Process.PID, process.pid)
        self._control.processes.set(name, Process.STARTED_NS, time.monotonic_ns())

    def _died(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        child.process.join()
        code, name = child.process.exitcode, child.seat.name
        self._control.processes.set(name, Process.LAST_EXIT, (code or 0) & 0xFFFF_FFFF)
        if self._stopping or not self.is_up:
            return
        now = time.monotonic_ns()
        if code == RENEWED:
            log.info("process %s (pid %d) begins again, as it asked to", name, child.process.pid)
            child.born_ns.pop()
            child.restart_ns = now
            self.tick(now)
            return
        child.born_ns = [born for born in child.born_ns if now - born < 60 * NS]
        if len(child.born_ns) > RESTARTS_A_MINUTE:
            self._give_up(f"{name} {exit_reason(code)}; it was started {len(child.born_ns)} times within a minute")
            return
        recent = sum(1 for born in child.born_ns if now - born < 5 * NS)
        pause_s = RESTART_PAUSE_S[min(max(recent - 1, 0), len(RESTART_PAUSE_S) - 1)]
        log.warning("process %s (pid %d) %s; restarting it in %g s", name, child.process.pid, exit_reason(code), pause_s)
        self._control.processes.set(name, Process.NUM_RESTARTS, self._control.processes.get(name, Process.NUM_RESTARTS) + 1)
        child.restart_ns = now + int(pause_s * NS)
        self.tick(now)

    def tick(self, now_ns: int) -> int | None:
        """Start what is due; returns when the next is."""
        due = None
        for child in self._children:
            if child.pidfd >= 0 or not child.restart_ns or self._stopping:
                continue
            if child.restart_ns <= now_ns:
                child.restart_ns = 0
                try:
                    self._spawn(child)
                    continue
                except OSError as error:
                    pause_s = RESTART_PAUSE_S[-1]
                    log.error("process %s cannot be started: %s; trying again in %g s", child.seat.name, error.strerror, pause_s)
                    child.restart_ns = now_ns + int(pause_s * NS)
            due = min(due or child.restart_ns, child.restart_ns)
        return due

    def not_ready(self) -> list[str]:
        """Names of the processes that have not said READY."""
        get = self._control.processes.get
        return [c.seat.name for c in self._children if get(c.seat.name, Process.STATE) != READY]

    def first_failure(self) -> str | None:
        """Before READY: the first process that ended, and how."""
        for child in self._children:
            if child.process.exitcode is not None:
                return f"{child.seat.name} {exit_reason(child.process.exitcode)} before it was ready; its messages are on standard error"
        return None

    def stop(self, timeout_s: float) -> None:
        """SIGTERM to all, wait, SIGKILL to what is left. A stopped process is continued by the kill."""
        self._stopping = True
        alive = [child for child in self._children if child.process is not None and child.process.exitcode is None]
        for child in alive:
            child.process.terminate()
        deadline = time.monotonic() + timeout_s
        for child in alive:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.exitcode is None:
                log.warning("process %s does not stop; killing it", child.seat.name)
                child.process.kill()
                child.process.join()
        for child in self._children:
            if child.pidfd >= 0:
                self._selector.unregister(child.pidfd)
                os.close(child.pidfd)
                child.pidfd = -1
