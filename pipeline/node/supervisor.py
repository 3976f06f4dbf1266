"""Starts, watches, restarts and stops the processes of a node, and kills those that fall silent.

A process that dies is logged with its name and how it ended, and started again after a pause that grows. The records
that it had not finished are still in its rings, and the state of its requests stands in the control segment, so its
successor goes on where it stopped (`docs/design/recovery.md` says what each process leaves).

A process that lives and does not beat (it hangs, or somebody has stopped it) is killed by SIGKILL, which ends a stopped
process, too. Only its death makes it certain that it writes no more, so that a successor may take its place.

A process that keeps dying makes the node *unhealthy*: the log, `embridge status` and discovery say so, requests that
need the process fail with the reason, and new ones are refused with it. The process is started again at a slow pace;
once it has held for a while, the node is healthy again.

    born --READY--> watched --died--> pause, born again --too often--> failing: born again each `retry_s`
      |                +-- silent: killed --> died                        |
      +-- not READY in time: killed --> died        watched <-- READY for `retry_s`
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.records import Process, SegmentHeader
from embridge.pipeline.node.birth import Birth
from embridge.pipeline.node.recovery import Recovery
from embridge.workers.health import NOT_ESSENTIAL, exit_reason
from embridge.workers.process_spec import READY, RENEWED, STOPPED, ProcessSpec
from embridge.workers.start import Work, work_of
from embridge.workers.timing import NS, Timing

log = logging.getLogger(__name__)

RESTART_PAUSE_S = (0.0, 0.1, 0.5, 1.0, 2.0)
STALLED_NS = NS  # a gap between two looks after which no silence is held against anybody


class Silences:
    """Measures how long others have not beaten, as far as this process was there to see it.

    This process looks several times a second. When it has not looked for longer than `STALLED_NS` (it was stopped, the
    machine was suspended, its container throttled), the others may not have run either, so everybody's time begins
    anew.
    """

    def __init__(self) -> None:
        self._heard: dict[Hashable, tuple[object, int]] = {}
        self._looked_ns = 0

    def begin(self, now_ns: int) -> None:
        """Begin one look at everybody."""
        if now_ns - self._looked_ns > STALLED_NS:
            self._heard.clear()
        self._looked_ns = now_ns

    def silent_ns(self, who: Hashable, mark: object, now_ns: int) -> int:
        """How long this `mark` has been the same, in ns. Only a change of the mark counts, not its value."""
        seen, since_ns = self._heard.get(who, (None, now_ns))
        if seen != mark:
            since_ns = now_ns
        self._heard[who] = (mark, since_ns)
        return now_ns - since_ns

    def forget(self, who: Hashable) -> None:
        self._heard.pop(who, None)


@dataclass(slots=True)
class Child:
    """One process of the node, and its births in the last minute."""

    spec: ProcessSpec
    work: Work
    process: Any = None
    pidfd: int = -1
    born_ns: list[int] = field(default_factory=list)
    restart_ns: int = 0
    killed: str = ""  # why we have killed it
    steady_ns: int = 0  # since when it has been READY, where it is failing
    is_failing: bool = False
    is_missed: bool = False  # it died, and has not been READY since

    @property
    def name(self) -> str:
        return self.spec.name


class Supervisor:
    """Owns the processes of a node.

    `birth` starts them. `max_restarts` is how often one process may start again within a minute before the
    node is unhealthy.
    """

    def __init__(
        self,
        birth: Birth,
        control: Control,
        selector: selectors.BaseSelector,
        recovery: Recovery,
        timing: Timing,
        max_restarts: int,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        open_pidfd: Callable[[int], int] = os.pidfd_open,
    ) -> None:
        self._birth = birth
        self._control = control
        self._processes = control.processes
        self._selector = selector
        self._recovery = recovery
        self._timing = timing
        self._max_restarts = max_restarts
        self._clock = clock
        self._open_pidfd = open_pidfd
        self._children: list[Child] = []
        self._silences = Silences()
        self._launch_failure = ""
        self._is_launched = False
        self._stopping = False

    # ---- births

    def start(self, spec: ProcessSpec) -> None:
        """Start a process of the node. Raises OSError where that is not possible; nothing of it is left then."""
        child = Child(spec, work_of(spec.name, self._control.role))
        self._children.append(child)
        self._begin(child)

    def _begin(self, child: Child) -> None:
        name = child.name
        self._processes.set(name, Process.STATE, 0)
        child.killed, child.steady_ns, child.restart_ns = "", 0, 0
        child.process = process = self._birth.begin(child.spec, child.work)
        try:
            child.pidfd = self._open_pidfd(process.pid)
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._died(child))
        except OSError:  # nobody would see its end
            process.kill()
            process.join()
            if child.pidfd >= 0:
                os.close(child.pidfd)
                child.pidfd = -1
            raise
        now = self._clock()
        child.born_ns.append(now)
        self._processes.set(name, Process.PID, process.pid)
        self._processes.set(name, Process.STARTED_NS, now)

    def launched(self) -> None:
        """Say that all have been READY: from now on, a process that dies is started again."""
        self._is_launched = True

    # ---- deaths

    def _died(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        child.process.join()
        self._silences.forget(child.name)
        code, name, pid = child.process.exitcode, child.name, child.process.pid
        self._processes.set(name, Process.LAST_EXIT, (code or 0) & 0xFFFF_FFFF)
        if self._stopping:
            return
        reason = f"{exit_reason(code)}{f' because {child.killed}' if child.killed else ''}"
        if not self._is_launched:
            self._launch_failure = (
                self._launch_failure or f"{name} {reason} before it was ready; its messages are on standard error"
            )
            return
        now = self._clock()
        if code == RENEWED:
            log.info("process %s (pid %d) begins again, as it asked to", name, pid)
            child.born_ns.pop()
            child.restart_ns = now
            self.tick(now)
            return
        self._processes.set(name, Process.NUM_RESTARTS, self._processes.get(name, Process.NUM_RESTARTS) + 1)
        child.born_ns = [born for born in child.born_ns if now - born < 60 * NS]
        if child.is_failing or len(child.born_ns) > self._max_restarts:
            self._fail(child, reason, pid)
            pause_s = self._timing.retry_s
        else:
            recent = sum(1 for born in child.born_ns if now - born < 5 * NS)
            pause_s = RESTART_PAUSE_S[min(max(recent - 1, 0), len(RESTART_PAUSE_S) - 1)]
            child.is_missed = True
            when = f"in {pause_s:g} s" if pause_s else "at once"
            log.warning("process %s (pid %d) %s; restarting it %s", name, pid, reason, when)
        child.restart_ns = now + int(pause_s * NS)
        self.tick(now)

    def _fail(self, child: Child, reason: str, pid: int) -> None:
        """Say that a process keeps dying, and fail the requests that need it, newly opened ones, too."""
        first, child.is_failing = not child.is_failing, True
        index = self._processes.names.index(child.name)
        self._control.header.set_bits(SegmentHeader.FAILING, 1 << index)
        text = f"process {child.name} cannot be kept alive ({reason})"
        num_failed = self._recovery.fail_requests_of(child.name, text, poller_is_dead=self._is_dead("poller"))
        if self._control.has_discovery and child.name != "registrar":
            self._control.bell("registrar").ring()
        if first:
            effect = (
                f"{NOT_ESSENTIAL[child.name]} is without it, requests go on"
                if child.name in NOT_ESSENTIAL
                else "the node is UNHEALTHY"
            )
            log.error(
                "process %s (pid %d) %s; it was started %d times within a minute: %s, %d requests fail; "
                "it is tried again every %g s",
                *(child.name, pid, reason, len(child.born_ns), effect, num_failed, self._timing.retry_s),
            )
        else:
            said = (child.name, pid, reason, num_failed, self._timing.retry_s)
            log.error("process %s (pid %d) %s; %d requests fail; it is tried again in %g s", *said)

    def _is_dead(self, name: str) -> bool:
        return all(child.pidfd < 0 for child in self._children if child.name == name)

    # ---- several times a second

    def tick(self, now_ns: int) -> int | None:
        """Start the processes that are due, and kill those that are silent. Returns when the next start is due."""
        due = None
        if self._stopping:
            return None
        self._silences.begin(now_ns)
        for child in self._children:
            if child.pidfd >= 0:
                self._watch(child, now_ns)
            elif child.restart_ns:
                if not child.is_failing:
                    self._processes.beat_for(child.name, now_ns)
                if child.restart_ns <= now_ns:
                    self._try_begin(child, now_ns)
                if child.restart_ns:
                    due = min(due or child.restart_ns, child.restart_ns)
        return due

    def _try_begin(self, child: Child, now_ns: int) -> None:
        try:
            self._begin(child)
        except OSError as error:
            pause_s = RESTART_PAUSE_S[-1]
            log.error("process %s cannot be started: %s; trying again in %g s", child.name, error.strerror, pause_s)
            child.restart_ns = now_ns + int(pause_s * NS)

    def _watch(self, child: Child, now_ns: int) -> None:
        state = self._processes.get(child.name, Process.STATE)
        pid, beat = child.process.pid, self._processes.get(child.name, Process.BEAT_NS)
        if state in (READY, STOPPED):
            silent_ns, most_s = self._silences.silent_ns(child.name, (pid, beat), now_ns), self._timing.silent_after_s
            why = f"it was silent for {silent_ns / NS:.1f} s"
            if child.is_missed and state == READY and not child.is_failing:
                child.is_missed = False
                log.info("process %s is up again (pid %d)", child.name, pid)
        else:
            silent_ns, most_s = self._silences.silent_ns(child.name, pid, now_ns), self._timing.ready_timeout_s
            why = f"it was not READY within {silent_ns / NS:.1f} s"
            if not child.is_failing:
                self._processes.beat_for(child.name, now_ns)
        if silent_ns > most_s * NS and not child.killed:
            child.killed = why
            self._processes.set(child.name, Process.NUM_SILENT, self._processes.get(child.name, Process.NUM_SILENT) + 1)
            log.error("process %s (pid %d) is killed: %s", child.name, pid, why)
            child.process.kill()
        elif child.is_failing and state == READY:
            child.steady_ns = child.steady_ns or now_ns
            if now_ns - child.steady_ns >= self._timing.retry_s * NS:
                self._recover(child)

    def _recover(self, child: Child) -> None:
        child.is_failing = False
        before = self._control.header.clear_bits(SegmentHeader.FAILING, 1 << self._processes.names.index(child.name))
        left = before & ~(1 << self._processes.names.index(child.name))
        log.warning(
            "process %s (pid %d) has held for %g s%s",
            *(child.name, child.process.pid, self._timing.retry_s, "" if left else "; the node is healthy again"),
        )
        if self._control.has_discovery:
            self._control.bell("registrar").ring()

    # ---- what was reloaded

    def take_log_level(self) -> None:
        """Have every process take over the level of the log that stands in the header."""
        for child in self._children:
            # who has no state yet has no handler, and reads the level when it has
            if child.pidfd >= 0 and self._processes.get(child.name, Process.STATE):
                with contextlib.suppress(ProcessLookupError):  # it has just died
                    signal.pidfd_send_signal(child.pidfd, signal.SIGHUP)

    # ---- the launch

    def not_ready(self) -> list[str]:
        """Names of the processes that have not said READY."""
        return [child.name for child in self._children if self._processes.get(child.name, Process.STATE) != READY]

    def first_failure(self) -> str:
        """The first process that ended before all were READY, and how; empty while none has."""
        return self._launch_failure

    # ---- the end

    def stop(self, timeout_s: float) -> None:
        """Send SIGTERM to all, wait, and SIGKILL what is left, which ends a stopped process, too.

        Who sleeps is woken: a process that waits on sockets sleeps on after a signal, until its next beat.
        """
        self._stopping = True
        alive = [child for child in self._children if child.process is not None and child.process.exitcode is None]
        for child in alive:
            child.process.terminate()
            self._control.bell(child.name).ring()
        deadline = time.monotonic() + timeout_s
        for child in alive:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.exitcode is None:
                log.warning("process %s does not stop; killing it", child.name)
                child.process.kill()
                child.process.join()
        for child in self._children:
            if child.pidfd >= 0:
                self._selector.unregister(child.pidfd)
                os.close(child.pidfd)
                child.pidfd = -1
