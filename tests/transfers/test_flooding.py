"""P21: a peer that floods a node's ports is the trouble of nobody else: every other request arrives meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
import zmq
from support import wires
from support.carrying import carried, joined
from support.frames import FrameMaker
from support.nodes import Station, station
from support.remains import run_dirs

from embridge.workers import messages as msg
from embridge.workers.addresses import split_address
from embridge.workers.run_socket import SOCKET_NAME

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

REQUESTS = 8
FIRST_ROOM = 1000  # those of the flood are below


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    with run_dirs() as path, station("encode", path / "e") as encode, station("language", path / "l") as language:
        yield encode, language


class Flood:
    """Threads of this process that send as fast as they can, for the length of a block. `num_sent` by kind."""

    def __init__(self, encode: Station, language: Station) -> None:
        self._encode = encode
        self._ports = (encode.addr, encode.node.poller_addr, language.node.poller_addr, language.addr)
        self._language = language
        self._is_over = threading.Event()
        self.num_sent = {"frames": 0, "registrations": 0, "connections": 0}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=each) for each in (self._frames, self._registrations, self._connections)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _frames(self) -> None:
        """Noise, and messages that lie, to every port."""
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(wires.dealer(address)) for address in self._ports]
            maker = FrameMaker(random.Random(1), self._encode.control.incarnation, [(99, 1), (98, 7)])
            for frame, sock in zip(maker.frames(1 << 30), itertools.cycle(socks), strict=False):
                if self._is_over.is_set():
                    return
                self._send(sock, frame, "frames")

    def _registrations(self) -> None:
        """One node after another, well formed: at the run socket of another, with a port at which nobody listens."""
        geometry = self._encode.geometry
        plain = msgspec.structs.replace(
            msg.decode(wires.register(), "the test"),
            hidden_size=geometry.hidden_size,
            block_size=geometry.block_size,
            offers={"shm": str(self._language.run_dir / SOCKET_NAME)},
        )
        with wires.dealer(self._encode.addr) as sock:
            for node_id in itertools.count(10_000):
                if self._is_over.is_set():
                    return
                envelope = msgspec.structs.replace(plain.envelope, node_id=node_id)
                self._send(sock, msg.encode(msgspec.structs.replace(plain, envelope=envelope)), "registrations")

    def _connections(self) -> None:
        """Connections that say nothing, or half a greeting, and end."""
        for address in itertools.cycle(self._ports):
            if self._is_over.is_set():
                return
            with contextlib.suppress(OSError), socket.create_connection(split_address(address), timeout=5) as sock:
                sock.send(b"\xff\0\0")
                self.num_sent["connections"] += 1

    def _send(self, sock: zmq.Socket[bytes], frame: bytes, kind: str) -> None:
        try:
            sock.send(frame, zmq.NOBLOCK)
            self.num_sent[kind] += 1
        except zmq.Again:  # its queue is full: the node reads a flood slowly
            self._is_over.wait(0.001)


def test_every_request_arrives_while_a_peer_floods_all_ports(pair: tuple[Station, Station]) -> None:
    """P21, P16: and no process of the nodes has ended."""
    encode, language = pair
    restarts = encode.restarts(), language.restarts()
    flood = Flood(encode, language)
    with joined(encode, language) as (sending, queues), flood.running():
        for room in range(FIRST_ROOM, FIRST_ROOM + REQUESTS):
            received = carried(queues, encode.addr, sending, room, 300, 30)
            assert received.difference == "", received.reason
        assert min(flood.num_sent.values()) > 0, flood.num_sent
    assert (encode.restarts(), language.restarts()) == restarts
