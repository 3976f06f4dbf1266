"""The shell around a role: sockets, ring records, waiting, signs of life, and the end.

A process of a node goes STARTING -> READY -> STOPPED. It ends on SIGTERM from the launcher, or when the launcher is gone: then the
death pipe closes, and the kernel sends the parent-death signal besides. SIGINT is the launcher's business.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from embridge.allocator import layout as lay
from embridge.allocator._core import set_parent_death_signal
from embridge.allocator.control import Control
from embridge.allocator.layout import HUGE_PAGE_BYTES, Process, Role
from embridge.allocator.metrics import Metric
from embridge.allocator.segment import Descriptor, map_segment
from embridge.workers.roles import Addresses, Desk, Inbox, Step
from embridge.workers.timing import NS, Timing

log = logging.getLogger(__name__)

STARTING: Final = 1
READY: Final = 2
STOPPED: Final = 3


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
    engine: str = "auto"
    stop: bool = field(default=False, init=False)


def run(seat: Seat) -> None:
    """The life of one process of a node (the target of a spawned process)."""
    logging.basicConfig(level=seat.log_level, format=f"%(asctime)s %(levelname)s embridge[{seat.name}] %(message)s")
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != seat.launcher_pid:
        return

    def stop(number: int, frame: FrameType | None) -> None:
        seat.stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mapping = map_segment(seat.control.fd, seat.control_bytes)
    control = Control(mapping, {name: descriptor.fd for name, descriptor in seat.event_fds.items()})
    desk = Desk(control, seat.name, seat.timing, seat.addresses)
    control.processes.set(seat.name, Process.STATE, STARTING)
    if seat.name in ("bootstrap", "poller"):
        from embridge.workers.wire import run_on_wire

        run_on_wire(seat, desk, _role(seat, desk))
    else:
        _run_on_rings(seat, desk, _role(seat, desk))
    control.processes.set(seat.name, Process.STATE, STOPPED)


def _role(seat: Seat, desk: Desk) -> Step:
    encode = desk.control.role == Role.ENCODE
    if seat.name == "bootstrap":
        if encode:
            from embridge.workers.admitting import Admission

            return Admission(desk)
        from embridge.workers.granting import GrantSender

        return GrantSender(desk)
    if seat.name == "poller":
        if encode:
            from embridge.workers.publishing import Publisher

            return Publisher(desk)
        from embridge.workers.receiving import StatusReceiver

        return StatusReceiver(desk)
    from embridge.workers import transfer
    from embridge.workers.engines import make_engine

    if not encode:
        return transfer.TargetWorker(desk)
    payload = map_segment(seat.payload.fd, seat.payload_bytes, alignment=HUGE_PAGE_BYTES)
    engine = make_engine(seat.engine, payload, desk.control.node_id, desk.control.incarnation)
    return transfer.TransferWorker(desk, desk.index - lay.first_worker(), engine)


def _run_on_rings(seat: Seat, desk: Desk, role: Step) -> None:
    """The loop of a process without sockets: it sleeps on its doorbell."""
    inbox, bell = desk.control.inbox(seat.name), desk.control.bell(seat.name)
    desk.control.processes.set(seat.name, Process.STATE, READY)
    while not seat.stop and not is_launcher_gone(seat):
        seen = bell.sequence()
        now = time.monotonic_ns()
        desk.control.processes.beat(desk.index, now)
        records = inbox.take()
        role.step(now, Inbox(records, [], []))
        desk.flush()
        inbox.done()
        desk.count(Metric.RECORDS, len(records))
        now = time.monotonic_ns()
        wait_s = min(seat.timing.beat_s, (role.next_step_ns(now) - now) / NS)
        if wait_s > 0 and not inbox.pending():
            bell.wait(seen, wait_s)


def is_launcher_gone(seat: Seat) -> bool:
    """Whether the other end of the death pipe is closed."""
    readable, _, _ = select.select([seat.death.fd], [], [], 0)
    return bool(readable)
