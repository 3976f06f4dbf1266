"""The loop of a process with sockets: a ROUTER to which other nodes connect, and a DEALER to each address it talks to.

The launcher has opened the listening socket and lends it. So the port outlives a restart of this process (connections
wait in its backlog meanwhile) and closes when the node is gone: therefore "connection refused" proves that the node is
dead.

With keys, every connection is CURVE: encrypted, and both ends proved. A node that connects must have its key in the
allow-list (`zap.py`). A node to which this one connects must prove the key that the list has for its address, or the
key with which it registered. Messages under a key that was taken off the list are refused.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Collection, Container, Iterator, Sequence

import zmq

from embridge.allocator.errors import ProtocolError
from embridge.allocator.plain_enums import Metric
from embridge.workers import messages as msg
from embridge.workers.keys import KEY_LENGTH
from embridge.workers.log_limit import LogLimit
from embridge.workers.process_spec import ProcessSpec, begin
from embridge.workers.role import Arrival, Denied, Inbox, Out, Reply, RoleContext, Send, Step
from embridge.workers.timing import NS
from embridge.workers.wire.dealers import Dealer, Dealers, Keyring, set_limits
from embridge.workers.wire.port import TURN_AWAY_EVERY_S, Port
from embridge.workers.wire.reader import Reader
from embridge.workers.wire.zap import Gatekeeper

log = logging.getLogger(__name__)

NOTHING: tuple[Sequence[Arrival], Sequence[str], Sequence[Denied]] = ((), (), ())  # has come


class Wire:
    """The sockets of one process."""

    def __init__(self, spec: ProcessSpec, ctx: RoleContext) -> None:
        assert spec.listen is not None
        self._ctx = ctx
        self._limit = LogLimit()
        self.denied: dict[str, Denied] = {}
        """Those of which the role is told with the next inbox."""
        self._keys = Keyring(spec.keys, spec.allow_file) if spec.keys and spec.allow_file else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._gatekeeper: Gatekeeper | None = None
        self._router = self._context.socket(zmq.ROUTER)
        set_limits(self._router)
        if self._keys is not None:
            self._gatekeeper = Gatekeeper(self._context, self._keys.allow)
            self._poller.register(self._gatekeeper.socket, zmq.POLLIN)
            self._keys.apply(self._router)
        self._port = Port(self._router, spec.listen.fd, spec.bind_addr)
        self._reader = Reader(self._router, 2, ctx)
        self._resting: list[Reader] = []
        self._dealers = Dealers(
            self._context,
            self._keys,
            ctx,
            made=self._watch_dealer,
            dropped=self._leave_dealer,
            denied=self._note_denied,
        )
        self._poller.register(self._router, zmq.POLLIN)

    @property
    def must_look(self) -> bool:
        """Whether the next inbox may have something for the role though no socket is readable."""
        return self._keys is not None or bool(self.denied)

    def watch(self, fd: int) -> None:
        self._poller.register(fd, zmq.POLLIN)

    def wait(self, timeout_s: float) -> set[object]:
        """The sockets and descriptors that are readable after at most that time, rounded up to a millisecond."""
        now_ns = time.monotonic_ns()
        if self._resting:
            timeout_s = self._end_rests(now_ns, timeout_s)
        if self._port.look(now_ns):
            self._say_of_descriptors(now_ns)
        if self._port.is_short:
            self._port.turn_away()
            timeout_s = min(timeout_s, TURN_AWAY_EVERY_S)
        try:
            return set(dict(self._poller.poll(max(0, round(timeout_s * 1000 + 0.5)))))
        except zmq.ZMQError as error:
            if error.errno == errno.EINTR:
                return set()
            raise

    def _end_rests(self, now_ns: int, timeout_s: float) -> float:
        """Look again at sockets whose rest is over. Returns the time, or what is left of the next rest."""
        for reader in list(self._resting):
            if reader.rests_until_ns <= now_ns:
                self._resting.remove(reader)
                self._poller.register(reader.socket, zmq.POLLIN)
            else:
                timeout_s = min(timeout_s, (reader.rests_until_ns - now_ns) / NS)
        return timeout_s

    def _say_of_descriptors(self, now_ns: int) -> None:
        """Log that few descriptors are left, or that there are enough again."""
        port, few = self._port, "few descriptors are left: nobody is let in; raise `ulimit -n`"
        news = (
            few
            if port.is_short
            else f"there are descriptors again; {port.num_turned_away} connections were turned away"
        )
        self._limit.log(log, logging.WARNING, "port", now_ns, "port %s: %s", port.address, news)

    def receive(
        self, readable: Collection[object]
    ) -> tuple[Sequence[Arrival], Sequence[str], Sequence[Denied]]:
        """The messages that came, the addresses where nobody listens, and those where the handshake fails.

        `readable` is what `wait` has returned: looking at the other sockets costs more than most steps of a role.
        """
        if self._keys is not None and self._gatekeeper is not None:
            self._keys.refresh()
            self._ctx.count(Metric.CONNECTIONS_REFUSED, self._gatekeeper.answer())
        arrivals: list[Arrival] = []
        if self._router in readable:
            self._receive_connected(arrivals)
        refused: list[str] = []
        if self._keys is not None or not self._dealers.ends.isdisjoint(readable):
            self._look_at_dealers(readable, arrivals, refused)
        self._ctx.count(Metric.MESSAGES_IN, len(arrivals))
        if not self.denied:
            return arrivals, refused, ()
        denied, self.denied = self.denied, {}
        return arrivals, refused, list(denied.values())

    def _look_at_dealers(self, readable: Container[object], arrivals: list[Arrival], refused: list[str]) -> None:
        for address, dealer in list(self._dealers.by_address.items()):
            if dealer.socket in readable:
                self._receive_answers(address, dealer, arrivals)
            events = dealer.events() if dealer.monitor in readable else set()
            if zmq.EVENT_CLOSED in events:
                refused.append(address)
            self._dealers.look(address, events)

    def _receive_connected(self, arrivals: list[Arrival]) -> None:
        for connection, body in self._messages(self._reader):
            identity = _user_id(body) if self._keys is not None else ""
            if not self._may_speak(identity) or not self._decode(
                body.bytes, arrivals, connection.bytes, None, identity
            ):
                self._reader.refuse()

    def _receive_answers(self, address: str, dealer: Dealer, arrivals: list[Arrival]) -> None:
        for (body,) in self._messages(dealer.reader):
            if not self._decode(body.bytes, arrivals, None, address, dealer.key):
                dealer.reader.refuse()

    def _messages(self, reader: Reader) -> Iterator[list[zmq.Frame]]:
        """The messages that have come on a socket.

        A socket that is to rest after them is not looked at until `wait` finds that its rest is over.
        """
        yield from reader.messages()
        if reader.is_resting():
            self._poller.unregister(reader.socket)
            self._resting.append(reader)

    def _may_speak(self, identity: str) -> bool:
        """Whether this key is still listed: a connection may outlive the line of the allow-list that let it in."""
        return self._keys is None or (len(identity) == KEY_LENGTH and self._keys.is_listed(identity))

    def _decode(
        self, data: bytes, arrivals: list[Arrival], connection: bytes | None, address: str | None, identity: str
    ) -> bool:
        """Add a message to the arrivals; False for one that is refused.

        A message of another version is refused, and the role is told of it all the same.
        """
        message: msg.Message | msg.Foreign | None
        try:
            message = msg.decode(data, address or "a connected peer")
        except ProtocolError as error:
            message = msg.decode_foreign(data)
            level = logging.WARNING if error.field == "version" else logging.DEBUG
            self._limit.log(
                log, level, identity or address or connection, time.monotonic_ns(), "message refused: %s", str(error)
            )
        if message is not None:
            arrivals.append(Arrival(message, connection, address, identity))
        return message is not None and not isinstance(message, msg.Foreign)

    def send(self, out: list[Out]) -> None:
        """Hand messages to the sockets; never waits. A message that does not fit is dropped; heartbeats repair that."""
        for item in out:
            try:
                if isinstance(item, Send):
                    self._dealers.send(item)
                elif isinstance(item, Reply):
                    self._router.send_multipart([item.connection, msg.encode(item.message)], zmq.NOBLOCK)
                else:
                    self._dealers.drop(item.address)
            except zmq.ZMQError as error:
                where = item.address if not isinstance(item, Reply) else item.connection
                self._limit.log(log, logging.WARNING, where, time.monotonic_ns(), "message not sent: %s", str(error))
        self._ctx.count(Metric.MESSAGES_OUT, len(out))

    def _watch_dealer(self, dealer: Dealer) -> None:
        self._poller.register(dealer.socket, zmq.POLLIN)
        self._poller.register(dealer.monitor, zmq.POLLIN)

    def _leave_dealer(self, dealer: Dealer) -> None:
        if dealer.reader in self._resting:
            self._resting.remove(dealer.reader)
        else:
            self._poller.unregister(dealer.socket)
        self._poller.unregister(dealer.monitor)

    def _note_denied(self, denied: Denied) -> None:
        self.denied[denied.address] = denied

    def close(self) -> None:
        self._dealers.close()
        self._port.close()
        self._router.close(0)
        if self._gatekeeper is not None:
            self._gatekeeper.close()
        self._context.destroy(0)


def _user_id(frame: zmq.Frame) -> str:
    """The key that the sender of this frame has proved; "" without proof, which `ZAP_ENFORCE_DOMAIN` excludes."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def run_on_wire(spec: ProcessSpec, ctx: RoleContext, role: Step) -> None:
    """Run a role until the process is told to stop.

    Each turn takes what came in, has the role do a step, and sends what goes out; then it sleeps on the sockets and the
    armed eventfd.
    """
    control, event_fd = ctx.control, spec.event_fds[spec.name].fd
    inbox, bell = control.inbox(spec.name), control.bell(spec.name)
    wire = Wire(spec, ctx)
    wire.watch(event_fd)
    wire.watch(spec.death.fd)
    begin(spec, control)
    readable: set[object] = set()
    death_fd, beat, clock = spec.death.fd, control.processes.own_beat(ctx.index), time.monotonic_ns
    try:
        while not spec.stop and death_fd not in readable:
            seen = bell.sequence()
            now = clock()
            beat(now)
            arrivals, refused, denied = wire.receive(readable) if readable or wire.must_look else NOTHING
            records = inbox.take()
            if out := role.step(now, Inbox(records, arrivals, refused, denied)):
                wire.send(out)
            ctx.flush()
            if records:
                inbox.done()
                ctx.count(Metric.RECORDS, len(records))
            now = clock()
            wait_s = ctx.nap_s(min(spec.timing.beat_s, max(0.0, (role.next_step_ns(now) - now) / NS)))
            if wire.denied or (wait_s > 0 and (inbox.pending() or not bell.arm(seen))):
                wait_s = 0.0
            readable = wire.wait(wait_s)
            bell.disarm()
            if event_fd in readable:
                readable.discard(event_fd)
                try:
                    os.eventfd_read(event_fd)
                except BlockingIOError:
                    continue
    finally:
        wire.close()
