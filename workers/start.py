"""The shell around a role: sockets, ring records, waiting, signs of life, and the end.

A process of a node goes STARTING -> READY -> STOPPED. It ends on SIGTERM from the launcher, or when the launcher is gone: then the
death pipe closes, and the kernel sends the parent-death signal besides. SIGINT and SIGHUP are the launcher's business.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from embridge.allocator import layout as lay
from embridge.allocator._core import set_parent_death_signal
from embridge.allocator.checksums import RowSums
from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.layout import HUGE_PAGE_BYTES
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Process
from embridge.allocator.segment import Descriptor, map_segment
from embridge.allocator.sessions import NO_SESSION, LiveSession
from embridge.workers.addresses import Names
from embridge.workers.keys import KeyPair
from embridge.workers.role import Addresses, Desk, Inbox, Renew, Step
from embridge.workers.stderr import log_to_stderr
from embridge.workers.timing import NS, Timing
from embridge.workers.transfer import engines
from embridge.workers.transfer.engines.base import SessionEngine

log = logging.getLogger(__name__)

STARTING: Final = 1
READY: Final = 2
STOPPED: Final = 3

RENEWED: Final = 75
"""Exit status of a process that ended to begin again at once (`roles.Renew`)."""


@dataclass(kw_only=True)
class Seat:
    """What a process of a node is born with. Descriptors survive the way into a spawned process."""

    name: str
    control: Descriptor
    control_bytes: int
    payload: Descriptor
    payload_bytes: int
    event_fds: dict[str, Descriptor]
    death: Descriptor
    listen: Descriptor | None
    bind_addr: str
    addresses: Addresses
    timing: Timing
    launcher_pid: int
    log_level: str = "WARNING"
    engines: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    engine_settings: Mapping[str, object] = field(default_factory=dict)
    keys: KeyPair | None = None
    allow_file: Path | None = None
    discovery: str = ""
    discovery_token_file: str = ""
    stop: bool = field(default=False, init=False)


def run(seat: Seat) -> None:
    """The life of one process of a node (the target of a spawned process)."""
    log_to_stderr(seat.log_level, seat.name)
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != seat.launcher_pid:
        return

    def stop(number: int, frame: FrameType | None) -> None:
        seat.stop = True

    signal.signal(signal.SIGTERM, stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mapping = map_segment(seat.control.fd, seat.control_bytes)
    control = Control(mapping, {name: descriptor.fd for name, descriptor in seat.event_fds.items()})
    names = Names(lambda: os.eventfd_write(seat.event_fds["bootstrap"].fd, 1))  # only the bootstrap process asks
    offered = engines.named(seat.engines)
    desk = Desk(control, seat.name, seat.timing, seat.addresses, engines=offered, find=names.find, forget=names.forget)
    control.processes.set(seat.name, Process.STATE, STARTING)
    if seat.name in ("bootstrap", "poller"):
        from embridge.workers.wire.loop import run_on_wire

        run_on_wire(seat, desk, _role(seat, desk))
    elif seat.name == "registrar":
        from embridge.workers.discovery.registrar import run_registrar

        run_registrar(seat, desk)
    else:
        _run_on_rings(seat, desk, _role(seat, desk))
    control.processes.set(seat.name, Process.STATE, STOPPED)


def _role(seat: Seat, desk: Desk) -> Step:
    encode = desk.control.role == Role.ENCODE
    if seat.name == "bootstrap":
        if encode:
            from embridge.workers.bootstrap.encode import Admission

            return Admission(desk)
        from embridge.workers.bootstrap.language import GrantSender

        return GrantSender(desk)
    if seat.name == "poller":
        if encode:
            from embridge.workers.poller.encode import Publisher

            return Publisher(desk)
        from embridge.workers.poller.language import StatusReceiver

        return StatusReceiver(desk)
    index = desk.index - lay.first_worker()
    offered = engines.named(seat.engines)
    if loud := [engine.name for engine in offered if engine.writes_to_stderr]:
        _keep_engine_messages_apart(Path(seat.addresses.run_socket).with_name(engines.log_name(seat.name, loud)))
    if not encode:
        from embridge.workers.transfer.language import TargetWorker

        session = _begin_session(seat, desk) if desk.has_sessions else NO_SESSION
        return TargetWorker(desk, index, session, _sums(seat, desk) if desk.control.verify else None)
    from embridge.workers.transfer.encode import TransferWorker

    payload = map_segment(seat.payload.fd, seat.payload_bytes, alignment=HUGE_PAGE_BYTES)
    writers = engines.make_writers(
        offered,
        payload,
        node_id=desk.control.node_id,
        incarnation=desk.control.incarnation,
        host=seat.host,
        settings=seat.engine_settings,
    )
    return TransferWorker(desk, index, writers, RowSums(payload, desk.control.geometry) if desk.control.verify else None)


def _sums(seat: Seat, desk: Desk) -> RowSums:
    payload = map_segment(seat.payload.fd, seat.payload_bytes, alignment=HUGE_PAGE_BYTES)
    return RowSums(payload, desk.control.geometry)


def _keep_engine_messages_apart(path: Path) -> None:
    """What the engine's library writes on standard error goes to a file of this process's life; what this package says stays there."""
    path.unlink(missing_ok=True)  # whatever stands there: a FIFO would be waited at, a link followed
    theirs = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(theirs, 2)  # `log_to_stderr` has kept what it was
    os.close(theirs)


def _begin_session(seat: Seat, desk: Desk) -> LiveSession:
    """A network engine with the payload registered, at an address and a port of its own (R10). It lives as long as this process."""
    global _target
    (engine,) = (engine for engine in engines.named(seat.engines) if engine.has_sessions)
    sessions = desk.control.sessions
    number = sessions.next_number()
    base = sessions.base_of(number, seat.payload_bytes)
    payload = map_segment(seat.payload.fd, seat.payload_bytes, alignment=HUGE_PAGE_BYTES, address=base)
    settings = seat.engine_settings.get(engine.name)
    _target = engine.make_session_engine(payload, host=seat.host, settings=settings, take_port=sessions.take_port)
    return LiveSession(number, _target.port, base)


_target: SessionEngine | None = None  # kept: its end is the end of the session


def _run_on_rings(seat: Seat, desk: Desk, role: Step) -> None:
    """The loop of a process without sockets: it sleeps on its doorbell."""
    inbox, bell = desk.control.inbox(seat.name), desk.control.bell(seat.name)
    begin(seat, desk.control)
    while not seat.stop and not is_launcher_gone(seat):
        seen = bell.sequence()
        now = time.monotonic_ns()
        desk.control.processes.beat(desk.index, now)
        records = inbox.take()
        try:
            role.step(now, Inbox(records, [], []))
        except Renew as reason:
            log.info("%s", reason)
            desk.flush()
            sys.stderr.flush()
            os._exit(RENEWED)  # no engine's own threads or destructors in the way
        desk.flush()
        inbox.done()
        desk.count(Metric.RECORDS, len(records))
        now = time.monotonic_ns()
        wait_s = desk.nap_s(min(seat.timing.beat_s, (role.next_step_ns(now) - now) / NS))
        if wait_s > 0 and not inbox.pending():
            bell.wait(seen, wait_s)


def begin(seat: Seat, control: Control) -> None:
    """READY. What has been imported is there for good: a collection of garbage looks at it no more, which took it 10 ms and more."""
    gc.freeze()
    control.processes.set(seat.name, Process.STATE, READY)


def is_launcher_gone(seat: Seat) -> bool:
    """Whether the other end of the death pipe is closed."""
    readable, _, _ = select.select([seat.death.fd], [], [], 0)
    return bool(readable)
