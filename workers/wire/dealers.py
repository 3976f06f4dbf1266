"""A node's connections to others: a DEALER to each address it talks to, and the keys that both ends prove.

With keys, every connection is CURVE. A node to which this one connects must prove the key that the allow-list has for
its address, or the key with which it registered.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Collection
from pathlib import Path

import zmq

from embridge.workers import messages as msg
from embridge.workers.addresses import numeric
from embridge.workers.keys import AllowFile, KeyPair
from embridge.workers.log_limit import LogLimit
from embridge.workers.role import Denied, RoleContext, Send
from embridge.workers.timing import NS
from embridge.workers.wire.reader import Reader
from embridge.workers.wire.zap import DOMAIN

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
NOBLOCK = int(zmq.NOBLOCK)  # a plain number: a flag is one of Python's own classes, and is asked for with each message

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


class Dealer:
    """A DEALER to one address, and a monitor, which tells when nobody listens there or the handshake fails."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keyring | None, key: str, ctx: RoleContext
    ) -> None:
        self.key = key
        self.socket = context.socket(zmq.DEALER)
        self.send = super(zmq.Socket, self.socket).send
        """Its send without the options that no message of ours has."""
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


def _ignore(_: object) -> None:
    pass


class Dealers:
    """The dealers of one process, by address; each is made when there is something to say there, and kept."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keyring | None,
        ctx: RoleContext,
        *,
        made: Callable[[Dealer], None] = _ignore,
        dropped: Callable[[Dealer], None] = _ignore,
        denied: Callable[[Denied], None] = _ignore,
    ) -> None:
        """`made` and `dropped` are told of each dealer, `denied` of an address to which there is no connection."""
        self._context = context
        self._keys = keys
        self._ctx = ctx
        self._limit = LogLimit()
        self._made, self._dropped, self._denied = made, dropped, denied
        self.by_address: dict[str, Dealer] = {}
        self.ends: set[object] = set()
        """The sockets of all dealers, and their monitors."""

    def send(self, item: Send) -> None:
        """Hand a message to the socket of its address; never waits. Raises ZMQError if there is no room for it."""
        dealer = self._dealer_to(item.address, item.key, item.asked)
        if dealer is not None:
            dealer.send(msg.encode(item.message), NOBLOCK)

    def look(self, address: str, events: Collection[int]) -> None:
        """Take what a dealer's monitor has told, and see whether its node may be spoken to still."""
        dealer = self.by_address[address]
        for event in FAILED_HANDSHAKES.keys() & events:
            reason, is_final = FAILED_HANDSHAKES[event]
            self._deny(address, reason if self._keys is not None or is_final else PLAIN_ENDED, is_final)
        if self._keys is not None and not self._keys.is_listed(dealer.key):
            self._deny(address, "its key is not in the allow-list any more", True)

    def _dealer_to(self, address: str, key: str, asked: str) -> Dealer | None:
        """The dealer to an address, made if there is none; None where the address holds a name or has no listed key."""
        dealer = self.by_address.get(address)
        if dealer is not None and (not key or key == dealer.key):
            return dealer
        self.drop(address)  # another node has that address now
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
        dealer = self.by_address[address] = Dealer(self._context, address, self._keys, expected, self._ctx)
        self.ends |= {dealer.socket, dealer.monitor}
        self._made(dealer)
        return dealer

    def _expected_key(self, address: str, key: str, asked: str) -> str | None:
        """The key that must be proved at this address: "" where this node has no keys, None where no key is listed."""
        if self._keys is None:
            return ""
        found = self._keys.key_of(address, key)
        return found or (self._keys.key_of(asked, "") if asked and not key else None)

    def _deny(self, address: str, reason: str, is_final: bool) -> None:
        """Say that there is no connection. libzmq does not try again after a final failure: the dealer is dropped."""
        self._denied(Denied(address, reason, is_final))
        level = logging.WARNING if is_final else logging.INFO  # a node that stops ends handshakes in this way, too
        self._limit.log(log, level, address, time.monotonic_ns(), "no connection to %s: %s", address, reason)
        if is_final:
            self.drop(address)

    def drop(self, address: str) -> None:
        """Close the connection to an address, with what is queued for it."""
        dealer = self.by_address.pop(address, None)
        if dealer is not None:
            self._dropped(dealer)
            self.ends -= {dealer.socket, dealer.monitor}
            dealer.close()

    def close(self) -> None:
        for address in list(self.by_address):
            self.drop(address)
