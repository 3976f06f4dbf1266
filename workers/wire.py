"""The loop of a process with sockets: one ROUTER that others connect to, one DEALER to each address we talk to.

The listening socket was opened by the launcher and is only borrowed, so the port outlives a restart of this process, connections
wait in its backlog meanwhile, and it closes when the node is gone: that is what makes "connection refused" a proof of death.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time

import zmq
from zmq.utils.monitor import parse_monitor_message

from embridge.allocator.errors import ProtocolError
from embridge.allocator.layout import Process
from embridge.allocator.metrics import Metric
from embridge.workers import messages as msg
from embridge.workers.roles import Arrival, Desk, Disconnect, Inbox, Out, Reply, Send, Step
from embridge.workers.timing import NS
from embridge.workers.worker import READY, Seat

log = logging.getLogger(__name__)

HIGH_WATER = 20_000  # messages queued for one peer; what exceeds it is dropped and repaired by heartbeats
RECEIVE_AT_ONCE = 512
RECONNECT_MS = 50


class _Line:
    """A DEALER to one address, and the monitor that tells when nobody listens there."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, msg.MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 10 * RECONNECT_MS)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_CLOSED)
        try:
            self.socket.connect(address)
        except zmq.ZMQError:
            self.close()
            raise

    def was_refused(self) -> bool:
        refused = False
        while self.monitor.poll(0):
            refused |= parse_monitor_message(self.monitor.recv_multipart())["event"] == zmq.EVENT_CLOSED
        return refused

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


class Wire:
    """The sockets of one process."""

    def __init__(self, seat: Seat, desk: Desk) -> None:
        assert seat.listen is not None
        self._desk = desk
        self._told_version = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.USE_FD, os.dup(seat.listen.fd))
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._router.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._router.setsockopt(zmq.MAXMSGSIZE, msg.MAX_MESSAGE_BYTES)
        self._router.setsockopt(zmq.IPV6, 1)
        self._router.bind(seat.bind_addr)
        self._lines: dict[str, _Line] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)

    def watch(self, fd: int) -> None:
        self._poller.register(fd, zmq.POLLIN)

    def wait(self, timeout_s: float) -> set[object]:
        """What is readable after at most that time (a millisecond is the finest step)."""
        try:
            return {source for source, _ in self._poller.poll(max(0, round(timeout_s * 1000 + 0.5)))}
        except zmq.ZMQError as error:
            if error.errno == errno.EINTR:
                return set()
            raise

    def receive(self) -> tuple[list[Arrival], list[str]]:
        """Messages that came, and addresses where nobody listens."""
        arrivals: list[Arrival] = []
        for _ in range(RECEIVE_AT_ONCE):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if len(frames) == 2:
                self._decode(frames[1], arrivals, connection=frames[0], address=None)
            else:
                self._desk.count(Metric.MESSAGES_REFUSED)
        refused = []
        for address, line in self._lines.items():
            for _ in range(RECEIVE_AT_ONCE):
                try:
                    frames = line.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._decode(frames[-1], arrivals, connection=None, address=address)
            if line.was_refused():
                refused.append(address)
        self._desk.count(Metric.MESSAGES_IN, len(arrivals))
        return arrivals, refused

    def _decode(
        self, data: bytes, arrivals: list[Arrival], *, connection: bytes | None, address: str | None
    ) -> None:
        try:
            arrivals.append(Arrival(msg.decode(data, address or "a connected peer"), connection, address))
        except ProtocolError as error:
            self._desk.count(Metric.MESSAGES_REFUSED)
            level = logging.WARNING if error.field == "version" and not self._told_version else logging.DEBUG
            self._told_version |= level == logging.WARNING
            log.log(level, "message refused: %s", error)

    def send(self, out: list[Out]) -> None:
        """Hand messages to the sockets; never waits. One that does not fit is dropped, for heartbeats repair it."""
        for item in out:
            try:
                match item:
                    case Send(address, message):
                        self._line(address).socket.send(msg.encode(message), zmq.NOBLOCK)
                    case Reply(connection, message):
                        self._router.send_multipart([connection, msg.encode(message)], zmq.NOBLOCK)
                    case Disconnect(address):
                        self._drop(address)
            except zmq.ZMQError as error:
                log.warning("message not sent: %s", error)
        self._desk.count(Metric.MESSAGES_OUT, len(out))

    def _line(self, address: str) -> _Line:
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line(self._context, address)
            self._poller.register(line.socket, zmq.POLLIN)
            self._poller.register(line.monitor, zmq.POLLIN)
        return line

    def _drop(self, address: str) -> None:
        line = self._lines.pop(address, None)
        if line is not None:
            self._poller.unregister(line.socket)
            self._poller.unregister(line.monitor)
            line.close()

    def close(self) -> None:
        for address in list(self._lines):
            self._drop(address)
        self._router.close(0)
        self._context.destroy(0)


def run_on_wire(seat: Seat, desk: Desk, role: Step) -> None:
    """Until told to stop: what came in, a step, what goes out; then sleep on the sockets and the armed eventfd."""
    control, event_fd = desk.control, seat.event_fds[seat.name].fd
    inbox, bell = control.inbox(seat.name), control.bell(seat.name)
    wire = Wire(seat, desk)
    wire.watch(event_fd)
    wire.watch(seat.death.fd)
    control.processes.set(seat.name, Process.STATE, READY)
    readable: set[object] = set()
    try:
        while not seat.stop and seat.death.fd not in readable:
            seen = bell.sequence()
            now = time.monotonic_ns()
            control.processes.beat(desk.index, now)
            arrivals, refused = wire.receive()
            records = inbox.take()
            wire.send(role.step(now, Inbox(records, arrivals, refused)))
            desk.flush()
            inbox.done()
            desk.count(Metric.RECORDS, len(records))
            now = time.monotonic_ns()
            wait_s = min(seat.timing.beat_s, max(0.0, (role.next_step_ns(now) - now) / NS))
            if wait_s > 0 and (inbox.pending() or not bell.arm(seen)):
                wait_s = 0.0
            readable = wire.wait(wait_s)
            bell.disarm()
            if event_fd in readable:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(event_fd)
    finally:
        wire.close()
