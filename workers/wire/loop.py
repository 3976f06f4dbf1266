"""The loop of a process with sockets: a ROUTER to which other nodes connect, and a DEALER to each address it talks to.

The launcher has opened the listening socket and lends it. So the port outlives a restart of this process (connections
wait in its backlog meanwhile) and closes when the node is gone: therefore "connection refused" proves that the node is
dead.

With keys, every connection is CURVE: encrypted, and both ends proved. A node that connects must have its key in the
allow-list (`zap.py`). A node to which this one connects must prove the key that the list has for its address, or the
key with which it registered. Messages under a key that was taken off the list are refused.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import zmq

from embridge.allocator.errors import ProtocolError
from embridge.allocator.metrics import Metric
from embridge.workers import messages as msg
from embridge.workers.addresses import numeric
from embridge.workers.keys import KEY_LENGTH, AllowFile, KeyPair
from embridge.workers.log_limit import LogLimit
from embridge.workers.process_spec import ProcessSpec, begin
from embridge.workers.role import Arrival, Denied, Disconnect, Inbox, Out, Reply, RoleContext, Send, Step
from embridge.workers.timing import NS
from embridge.workers.wire.port import TURN_AWAY_EVERY_S, Port
from embridge.workers.wire.reader import Reader
from embridge.workers.wire.zap import DOMAIN, Gatekeeper

log = logging.getLogger(__name__)

HIGH_WATER = 20_000  # messages queued for one peer; further ones are dropped, and heartbeats repair that
# messages that came over one connection and wait for this process; further ones wait at the sender
RECEIVE_HIGH_WATER = 512
RECONNECT_MS = 50
HANDSHAKE_MS = 5000  # a connection whose handshake takes longer ends
# number and value of an event of ZeroMQ's monitor; pyzmq's own parser would import asyncio
_MONITOR_EVENT = struct.Struct("=hi")
KEEPALIVE_S = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 30, zmq.TCP_KEEPALIVE_INTVL: 10, zmq.TCP_KEEPALIVE_CNT: 3}
LOOK_AT_LIST_NS = NS

# By libzmq's event of a failed handshake: the reason, as far as it is known, and whether the failure is final.
FAILED_HANDSHAKES: dict[int, tuple[str, bool]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: ("it does not list this node's key; add its line there", True),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: ("one of both nodes has keys and the other has none, or it is no node", True),
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: ("its key is another than listed here, or it is no node", False),
}

PLAIN_ENDED = "it ends the handshake: it is starting or stopping, or is no node"


class Keyring:
    """A node's own key and its allow-list."""

    def __init__(self, pair: KeyPair, allow_file: Path) -> None:
        self.pair = pair
        self.allow = AllowFile(allow_file)
        self._looked_ns = time.monotonic_ns()

    def refresh(self) -> None:
        """Look at the allow-list, once a second at most."""
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns >= LOOK_AT_LIST_NS:
            self._looked_ns = now_ns
            self.allow.refresh()

    def is_listed(self, key: str) -> bool:
        return key in self.allow.list.keys

    def key_of(self, address: str, key: str) -> str | None:
        """The key that must be proved at an address: the peer's if it is known, else the one beside the address."""
        self.allow.refresh()
        if key:
            return key if self.is_listed(key) else None
        return self.allow.list.key_of(address)

    def apply(self, socket: zmq.Socket[bytes], server_key: str | None = None) -> None:
        """Make a socket CURVE: the listening end, or with `server_key` the connecting one."""
        socket.curve_secretkey = self.pair.secret.encode()
        socket.curve_publickey = self.pair.public.encode()
        if server_key is not None:
            socket.curve_serverkey = server_key.encode()
            return
        socket.curve_server = True
        socket.zap_domain = DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without the handler libzmq refuses everybody then


def set_limits(socket: zmq.Socket[bytes]) -> None:
    """Set the options that both kinds of sockets share.

    They bound queues, messages and handshakes, and end connections to a host that is gone (keepalive).
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, msg.MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)
    for option, value in KEEPALIVE_S.items():
        socket.setsockopt(option, value)


class _Dealer:
    """A DEALER to one address, and a monitor, which tells when nobody listens there or the handshake fails."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keyring | None, key: str, ctx: RoleContext
    ) -> None:
        self.key = key
        self.socket = context.socket(zmq.DEALER)
        set_limits(self.socket)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 10 * RECONNECT_MS)
        if keys is not None:
            keys.apply(self.socket, key)
        self.reader = Reader(self.socket, 1, ctx)
        self.monitor = self.socket.get_monitor_socket(sum(FAILED_HANDSHAKES, zmq.EVENT_CLOSED))
        try:
            self.socket.connect(address)
        except zmq.ZMQError:
            self.close()
            raise

    def events(self) -> set[int]:
        """What the monitor has told since the last call."""
        events = set()
        while self.monitor.poll(0):
            told, _ = self.monitor.recv_multipart()
            events.add(_MONITOR_EVENT.unpack(told)[0])
        return events

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


class Wire:
    """The sockets of one process."""

    def __init__(self, spec: ProcessSpec, ctx: RoleContext) -> None:
        assert spec.listen is not None
        self._ctx = ctx
        self._limit = LogLimit()
        self._denied: dict[str, Denied] = {}
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
        self._dealers: dict[str, _Dealer] = {}
        self._poller.register(self._router, zmq.POLLIN)

    def has_news(self) -> bool:
        """Whether the next inbox has something for the role though no socket is readable."""
        return bool(self._denied)

    def watch(self, fd: int) -> None:
        self._poller.register(fd, zmq.POLLIN)

    def wait(self, timeout_s: float) -> set[object]:
        """The sockets and descriptors that are readable after at most that time, rounded up to a millisecond."""
        now_ns = time.monotonic_ns()
        for reader in list(self._resting):
            if reader.rests_until_ns <= now_ns:
                self._resting.remove(reader)
                self._poller.register(reader.socket, zmq.POLLIN)
            else:
                timeout_s = min(timeout_s, (reader.rests_until_ns - now_ns) / NS)
        if self._port.look(now_ns):
            self._say_of_descriptors(now_ns)
        if self._port.is_short:
            self._port.turn_away()
            timeout_s = min(timeout_s, TURN_AWAY_EVERY_S)
        try:
            return {source for source, _ in self._poller.poll(max(0, round(timeout_s * 1000 + 0.5)))}
        except zmq.ZMQError as error:
            if error.errno == errno.EINTR:
                return set()
            raise

    def _say_of_descriptors(self, now_ns: int) -> None:
        """Log that few descriptors are left, or that there are enough again."""
        port, few = self._port, "few descriptors are left: whoever knocks is turned away; raise `ulimit -n`"
        news = (
            few
            if port.is_short
            else f"there are descriptors again; {port.num_turned_away} connections were turned away"
        )
        self._limit.log(log, logging.WARNING, "port", now_ns, "port %s: %s", port.address, news)

    def receive(self, readable: Container[object]) -> tuple[list[Arrival], list[str], Sequence[Denied]]:
        """The messages that came, the addresses where nobody listens, and those where the handshake fails.

        `readable` is what `wait` has returned: looking at the other sockets costs more than most steps of a role.
        """
        if self._keys is not None and self._gatekeeper is not None:
            self._keys.refresh()
            self._ctx.count(Metric.CONNECTIONS_REFUSED, self._gatekeeper.answer())
        arrivals: list[Arrival] = []
        if self._router in readable:
            self._receive_connected(arrivals)
        refused = []
        for address, dealer in list(self._dealers.items()):
            if dealer.socket in readable:
                self._receive_answers(address, dealer, arrivals)
            events = dealer.events() if dealer.monitor in readable else set()
            if zmq.EVENT_CLOSED in events:
                refused.append(address)
            for event in events & FAILED_HANDSHAKES.keys():
                reason, is_final = FAILED_HANDSHAKES[event]
                self._deny(address, reason if self._keys is not None or is_final else PLAIN_ENDED, is_final)
            if self._keys is not None and not self._keys.is_listed(dealer.key):
                self._deny(address, "its key is not in the allow-list any more", True)
        denied, self._denied = self._denied, {}
        self._ctx.count(Metric.MESSAGES_IN, len(arrivals))
        return arrivals, refused, list(denied.values())

    def _receive_connected(self, arrivals: list[Arrival]) -> None:
        for connection, body in self._messages(self._reader):
            identity = _user_id(body) if self._keys is not None else ""
            if not self._may_speak(identity) or not self._decode(
                body.bytes, arrivals, connection.bytes, None, identity
            ):
                self._reader.refuse()

    def _receive_answers(self, address: str, dealer: _Dealer, arrivals: list[Arrival]) -> None:
        for (body,) in self._messages(dealer.reader):
            if not self._decode(body.bytes, arrivals, None, address, dealer.key):
                dealer.reader.refuse()

    def _messages(self, reader: Reader) -> Iterator[list[zmq.Frame]]:
        """The messages that have come on a socket.

        A socket that is to rest after them is not looked at until `wait` finds that its rest is over.
        """
        yield from reader.messages()
        if reader.rests_until_ns > time.monotonic_ns():
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
                match item:
                    case Send(address, message, key, asked):
                        dealer = self._dealer_to(address, key, asked)
                        if dealer is not None:
                            dealer.socket.send(msg.encode(message), zmq.NOBLOCK)
                    case Reply(connection, message):
                        self._router.send_multipart([connection, msg.encode(message)], zmq.NOBLOCK)
                    case Disconnect(address):
                        self._drop(address)
            except zmq.ZMQError as error:
                where = item.address if not isinstance(item, Reply) else item.connection
                self._limit.log(log, logging.WARNING, where, time.monotonic_ns(), "message not sent: %s", str(error))
        self._ctx.count(Metric.MESSAGES_OUT, len(out))

    def _dealer_to(self, address: str, key: str, asked: str) -> _Dealer | None:
        """The dealer to an address, made if there is none; None where the address holds a name or has no listed key."""
        dealer = self._dealers.get(address)
        if dealer is not None and (not key or key == dealer.key):
            return dealer
        self._drop(address)  # another node has that address now
        try:
            numeric(address)  # a name would be looked up in libzmq's one I/O thread, and everybody would wait
        except ValueError as error:
            self._deny(address, f"address {error}", True)
            return None
        expected = self._expected_key(address, key, asked)
        if expected is None:
            why = (
                "its key is not in the allow-list any more"
                if key
                else "no key for it in this node's allow-list; add its line"
            )
            self._deny(address, why, True)
            return None
        dealer = self._dealers[address] = _Dealer(self._context, address, self._keys, expected, self._ctx)
        self._poller.register(dealer.socket, zmq.POLLIN)
        self._poller.register(dealer.monitor, zmq.POLLIN)
        return dealer

    def _expected_key(self, address: str, key: str, asked: str) -> str | None:
        """The key that must be proved at this address: "" where this node has no keys, None where no key is listed."""
        if self._keys is None:
            return ""
        found = self._keys.key_of(address, key)
        return found or (self._keys.key_of(asked, "") if asked and not key else None)

    def _deny(self, address: str, reason: str, is_final: bool) -> None:
        """Tell the role, with the next inbox, that there is no connection.

        After a final failure libzmq does not try again, so the dealer is dropped.
        """
        self._denied[address] = Denied(address, reason, is_final)
        level = logging.WARNING if is_final else logging.INFO  # a node that stops ends handshakes in this way, too
        self._limit.log(log, level, address, time.monotonic_ns(), "no connection to %s: %s", address, reason)
        if is_final:
            self._drop(address)

    def _drop(self, address: str) -> None:
        dealer = self._dealers.pop(address, None)
        if dealer is not None:
            if dealer.reader in self._resting:
                self._resting.remove(dealer.reader)
            else:
                self._poller.unregister(dealer.socket)
            self._poller.unregister(dealer.monitor)
            dealer.close()

    def close(self) -> None:
        for address in list(self._dealers):
            self._drop(address)
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
    try:
        while not spec.stop and spec.death.fd not in readable:
            seen = bell.sequence()
            now = time.monotonic_ns()
            control.processes.beat(ctx.index, now)
            arrivals, refused, denied = wire.receive(readable)
            records = inbox.take()
            wire.send(role.step(now, Inbox(records, arrivals, refused, denied)))
            ctx.flush()
            inbox.done()
            ctx.count(Metric.RECORDS, len(records))
            now = time.monotonic_ns()
            wait_s = ctx.nap_s(min(spec.timing.beat_s, max(0.0, (role.next_step_ns(now) - now) / NS)))
            if wire.has_news() or (wait_s > 0 and (inbox.pending() or not bell.arm(seen))):
                wait_s = 0.0
            readable = wire.wait(wait_s)
            bell.disarm()
            if event_fd in readable:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(event_fd)
    finally:
        wire.close()
