"""The shell around a role: sockets, ring records, waiting, signs of life, and the end.

A process of a node goes STARTING -> READY -> STOPPED. It ends on SIGTERM from the launcher, or when the launcher is
gone: then the death pipe closes, and the kernel sends the parent-death signal besides. SIGINT and SIGHUP are the
launcher's business, who sends a SIGHUP on when it has stored another level of the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, set_parent_death_signal
from embridge.allocator.checksums import RowSums
from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.layout import HUGE_PAGE_BYTES
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Process, SegmentHeader
from embridge.allocator.segment import map_segment
from embridge.allocator.sessions import NO_SESSION, LiveSession
from embridge.allocator.shelf import shelf_size
from embridge.workers.addresses import Names
from embridge.workers.process_spec import RENEWED, STARTING, STOPPED, ProcessSpec, begin, is_launcher_gone
from embridge.workers.role import Inbox, Renew, RoleContext, Step
from embridge.workers.stderr import log_to_stderr
from embridge.workers.timing import NS
from embridge.workers.titles import set_title
from embridge.workers.transfer import engines
from embridge.workers.transfer.engine_log import EngineLog
from embridge.workers.transfer.engines.base import SessionEngine, TransferEngine

if TYPE_CHECKING:
    from embridge.workers.wire.teller import Teller

log = logging.getLogger(__name__)

SHORT_S = 0.002  # a nap between two looks at what is under way
LAUNCHER_LOOK_NS = NS // 100
TIMER_SLACK = Path("/proc/self/timerslack_ns")


Work = Callable[[ProcessSpec, RoleContext], None]
"""What one process of a node does until it is told to stop."""


def work_of(name: str, role: Role) -> Work:
    """The work of a process of a node, by its name. What that needs is imported now: the launcher calls this, before
    it forks the process.
    """
    if name == "registrar":
        from embridge.workers.discovery.registrar import run_registrar

        return run_registrar
    if name == "web":
        from embridge.workers.web.process import run_web

        return run_web
    make = _role_of(name, role)
    if name in ("bootstrap", "poller"):
        from embridge.workers.wire.loop import run_on_wire

        return lambda spec, ctx: run_on_wire(spec, ctx, make(spec, ctx))
    make_teller = _teller_of(role)
    return lambda spec, ctx: _run_on_rings(spec, ctx, make(spec, ctx), make_teller(spec, ctx))


def run(spec: ProcessSpec, work: Work) -> None:
    """Live the life of one process of a node (what a process runs as soon as it is forked)."""
    log_to_stderr(spec.log_level, spec.name, role=spec.role, node=spec.node, kind=spec.log_format)
    set_title(spec.role, spec.name)
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != spec.launcher_pid:
        return

    def stop(number: int, frame: FrameType | None) -> None:
        spec.stop = True

    signal.signal(signal.SIGTERM, stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    mapping = map_segment(spec.control.fd, spec.control_bytes)
    control = Control(mapping, {name: descriptor.fd for name, descriptor in spec.event_fds.items()})
    names = Names(lambda: os.eventfd_write(spec.event_fds["bootstrap"].fd, 1))  # only the bootstrap process asks
    offered = engines.named(spec.engines)
    ctx = RoleContext(
        control, spec.name, spec.timing, spec.addresses, engines=offered, find=names.find, forget=names.forget
    )

    def take_log_level(*_: object) -> None:
        logging.getLogger().setLevel(control.header.load(SegmentHeader.LOG_LEVEL))

    signal.signal(signal.SIGHUP, take_log_level)
    control.processes.set(spec.name, Process.STATE, STARTING)
    take_log_level()  # whoever changes it after this line sees the state, and sends the signal
    work(spec, ctx)
    control.processes.set(spec.name, Process.STATE, STOPPED)


def _role_of(name: str, role: Role) -> Callable[[ProcessSpec, RoleContext], Step]:
    if role == Role.ENCODE:
        if name == "bootstrap":
            from embridge.workers.bootstrap.encode import Admission

            return lambda spec, ctx: Admission(ctx, _shelf(spec, ctx, writable=False))
        if name == "poller":
            from embridge.workers.poller.encode import Publisher

            return lambda spec, ctx: Publisher(ctx)
        from embridge.workers.transfer.encode import TransferWorker

        return lambda spec, ctx: TransferWorker(ctx, ctx.index - lay.first_worker(), *_writers_and_sums(spec, ctx))
    if name == "bootstrap":
        from embridge.workers.bootstrap.language import GrantSender

        return lambda spec, ctx: GrantSender(ctx)
    if name == "poller":
        from embridge.workers.poller.language import StatusReceiver

        return lambda spec, ctx: StatusReceiver(ctx)
    from embridge.workers.transfer.language import LanguageTransferWorker

    return lambda spec, ctx: LanguageTransferWorker(
        ctx, ctx.index - lay.first_worker(), *_session_and_sums(spec, ctx)
    )


def _teller_of(role: Role) -> Callable[[ProcessSpec, RoleContext], Teller | None]:
    """What makes the sockets of a transfer worker whose rows go to other hosts: it tells those of a success (R83)."""
    if role != Role.ENCODE:
        return lambda spec, ctx: None
    from embridge.workers.wire.teller import Teller

    def make(spec: ProcessSpec, ctx: RoleContext) -> Teller | None:
        return None if all(engine.is_local for engine in engines.named(spec.engines)) else Teller(spec, ctx)

    return make


def _writers_and_sums(spec: ProcessSpec, ctx: RoleContext) -> tuple[dict[int, TransferEngine], RowSums | None]:
    """What a transfer worker of an encode node has besides."""
    _keep_engines_apart(spec)
    payload = map_segment(spec.payload.fd, spec.payload_bytes, alignment=HUGE_PAGE_BYTES)
    shelf = _shelf(spec, ctx)
    writers = engines.make_writers(
        engines.named(spec.engines),
        payload,
        shelf,
        node_id=ctx.control.node_id,
        incarnation=ctx.control.incarnation,
        host=spec.host,
        settings=spec.engine_settings,
    )
    return writers, RowSums(payload, ctx.control.geometry, shelf) if ctx.control.verify else None


def _session_and_sums(spec: ProcessSpec, ctx: RoleContext) -> tuple[LiveSession, RowSums | None]:
    """What a transfer worker of a language node has besides."""
    _keep_engines_apart(spec)
    session = _begin_session(spec, ctx) if ctx.has_sessions else NO_SESSION
    return session, _sums(spec, ctx) if ctx.control.verify else None


def _shelf(spec: ProcessSpec, ctx: RoleContext, *, writable: bool = True) -> Mapping | None:
    """The rows of published items; None where this node has no shelf. What an engine registers has to be writable."""
    if spec.shelf is None or not ctx.control.has_shelf:
        return None
    return map_segment(spec.shelf.fd, shelf_size(ctx.control.limits), writable=writable)


def _sums(spec: ProcessSpec, ctx: RoleContext) -> RowSums:
    payload = map_segment(spec.payload.fd, spec.payload_bytes, alignment=HUGE_PAGE_BYTES)
    return RowSums(payload, ctx.control.geometry)


def _keep_engines_apart(spec: ProcessSpec) -> None:
    """Have an engine's library that writes to standard error write to a file instead.

    Texts of this package stay on standard error.
    """
    global _engine_log
    loud = [engine.name for engine in engines.named(spec.engines) if engine.writes_to_stderr]
    if not loud:
        return
    _engine_log = EngineLog(Path(spec.addresses.run_socket).with_name(engines.log_name(spec.name, loud)))


def _begin_session(spec: ProcessSpec, ctx: RoleContext) -> LiveSession:
    """Begin a session: an engine with the payload registered, at an address and a port of its own (R10).

    The session lives as long as this process.
    """
    global _target
    (engine,) = (engine for engine in engines.named(spec.engines) if engine.has_sessions)
    sessions = ctx.control.sessions
    number = sessions.next_number()
    base = sessions.base_of(number, spec.payload_bytes)
    payload = map_segment(spec.payload.fd, spec.payload_bytes, alignment=HUGE_PAGE_BYTES, address=base)
    settings = spec.engine_settings.get(engine.name)
    _target = engine.make_session_engine(payload, host=spec.host, settings=settings, take_port=sessions.take_port)
    return LiveSession(number, _target.port, base)


_target: SessionEngine | None = None  # kept: its end is the end of the session
_engine_log: EngineLog | None = None


def _run_on_rings(spec: ProcessSpec, ctx: RoleContext, role: Step, teller: Teller | None) -> None:
    """Run a role of a process without a port, which sleeps on its doorbell, until the process is told to stop."""
    inbox, bell, glance = ctx.control.inbox(spec.name), ctx.control.bell(spec.name), getattr(role, "glance", None)
    with contextlib.suppress(OSError):
        TIMER_SLACK.write_text("1")  # of this thread; by default a short sleep lasts 50 us longer than asked for
    begin(spec, ctx.control)
    beat, looked_ns = ctx.control.processes.own_beat(ctx.index), 0
    while not spec.stop:
        seen = bell.sequence()
        now = time.monotonic_ns()
        beat(now)
        if now - looked_ns >= LAUNCHER_LOOK_NS:
            looked_ns = now
            if is_launcher_gone(spec):
                break
        if _engine_log is not None:
            _engine_log.look(now)
        records = inbox.take()
        try:
            out = role.step(now, Inbox(records, [], []))
        except Renew as reason:
            log.info("%s", reason)
            ctx.flush()
            sys.stderr.flush()
            os._exit(RENEWED)  # no engine's own threads or destructors in the way
        if out and teller is not None:
            teller.send(out)
        ctx.flush()
        if records:
            inbox.done()
            ctx.count(Metric.RECORDS, len(records))
        now = time.monotonic_ns()
        wait_s = ctx.nap_s(min(spec.timing.beat_s, (role.next_step_ns(now) - now) / NS))
        if wait_s > SHORT_S and not inbox.pending():
            bell.wait(seen, wait_s)
        elif wait_s > 0 and not inbox.pending():
            bell.wait(seen, wait_s, 0.0)  # an engine's own threads need the core
            while glance is not None and bell.sequence() == seen and not spec.stop and not glance(time.monotonic_ns()):
                bell.wait(seen, wait_s, 0.0)
    if teller is not None:
        teller.close()
