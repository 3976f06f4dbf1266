"""A network between two real nodes that loses, doubles, delays and so reorders their control messages.

It stands before the three ports that they talk to, in a thread of its own. Each message is decoded, the addresses in it
are replaced by its own, so that answers come this way, too, and then the seed says what becomes of it.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import zmq

from embridge.workers import messages as msg
from support.nodes import Station

LOST, DOUBLED, DELAYED = 0.15, 0.15, 0.3
MOST_DELAY_S = 0.04
TURN_MS = 20


class BadNetwork:
    """Between one encode node and one language node; a context manager."""

    def __init__(self, encode: Station, language: Station) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._fronts: list[tuple[zmq.Socket[bytes], str]] = []
        self._addresses: dict[str, str] = {}  # a port's own address -> ours before it
        self._backs: dict[tuple[int, bytes], zmq.Socket[bytes]] = {}  # (front, connection) -> ours to the port
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._number = 0
        self._rng = random.Random(0)
        self.faults = {"lost": 0, "doubled": 0, "delayed": 0, "passed": 0}
        for address in (encode.node.bootstrap_addr, encode.node.poller_addr, language.node.poller_addr):
            front = self._context.socket(zmq.ROUTER)
            front.setsockopt(zmq.LINGER, 0)
            port = front.bind_to_random_port("tcp://127.0.0.1")
            self._addresses[address] = f"tcp://127.0.0.1:{port}"
            self._fronts.append((front, address))
        self.addr = self._addresses[encode.node.bootstrap_addr]
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="bad-network", daemon=True)

    def begin(self, seed: int) -> None:
        """From here on what happens to messages is drawn from this seed."""
        self._rng = random.Random(seed)

    def __enter__(self) -> BadNetwork:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(10)
        for socket in (*(front for front, _ in self._fronts), *self._backs.values()):
            socket.close(0)
        self._context.term()

    def _run(self) -> None:
        while not self._stop:
            poller = zmq.Poller()
            for socket in (*(front for front, _ in self._fronts), *self._backs.values()):
                poller.register(socket, zmq.POLLIN)
            wait_ms = (
                TURN_MS if not self._due else min(TURN_MS, max(0, int((self._due[0][0] - time.monotonic()) * 1000)))
            )
            poller.poll(wait_ms)
            self._take()
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()

    def _take(self) -> None:
        for i, (front, address) in enumerate(self._fronts):
            for connection, data in _received(front):
                back = self._backs.get((i, connection))
                if back is None:
                    back = self._backs[i, connection] = self._context.socket(zmq.DEALER)
                    back.setsockopt(zmq.LINGER, 0)
                    back.connect(address)
                self._pass(data, partial(back.send, flags=zmq.NOBLOCK))
        for (i, connection), back in self._backs.items():
            front = self._fronts[i][0]
            for (data,) in _received(back):
                self._pass(data, partial(_send_to, front, connection))

    def _pass(self, data: bytes, send: Callable[[bytes], Any]) -> None:
        data = self._readdressed(data)
        if self._draw("lost", LOST):
            return
        for _ in range(1 + self._draw("doubled", DOUBLED)):
            delay_s = self._rng.uniform(0, MOST_DELAY_S) if self._draw("delayed", DELAYED) else 0.0
            self._number += 1
            heapq.heappush(self._due, (time.monotonic() + delay_s, self._number, lambda: send(data)))
        self.faults["passed"] += 1

    def _draw(self, fault: str, probability: float) -> bool:
        happens = self._rng.random() < probability
        self.faults[fault] += happens
        return happens

    def _readdressed(self, data: bytes) -> bytes:
        message = msg.decode(data, "a node")
        addresses = {name: getattr(message, name, None) for name in ("bootstrap_addr", "poller_addr", "endpoint")}
        ours = {name: self._addresses[address] for name, address in addresses.items() if address in self._addresses}
        return msg.encode(msgspec.structs.replace(message, **ours)) if ours else data


def _send_to(front: zmq.Socket[bytes], connection: bytes, data: bytes) -> None:
    front.send_multipart([connection, data], zmq.NOBLOCK)


def _received(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    messages = []
    while True:
        try:
            messages.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return messages
