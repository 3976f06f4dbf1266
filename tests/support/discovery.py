"""A discovery server as its own process, and one that answers as a test wants."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.leaks import MARK
from support.ports import port_to_keep

# Quick, but with room for a machine that is busy with other tests.
QUICK = {
    "discovery_interval_s": 0.2,
    "discovery_ttl_s": 6.0,
    "discovery_timeout_s": 2.0,
    "health_s": 1.5,
    "beat_s": 0.1,
    "ready_timeout_s": 100.0,
}


class Discovery:
    """`embridge discovery`, running; it can be stopped and started again at the same port."""

    def __init__(self) -> None:
        self._port = port_to_keep()
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "embridge", "discovery", "--port", str(self._port)],
            stdout=subprocess.PIPE,
            text=True,
            # it may outlive the test that restarts it
            env={name: value for name, value in os.environ.items() if name != MARK},
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert words[:1] == ["READY"], words
        self.url = words[1].removeprefix("discovery=")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        self._process.communicate(timeout=20)
        return self._process.returncode

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def nodes(self, role: str = "encode") -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.get(f"/nodes?role={role}")[1]["nodes"]
        return nodes

    def states(self, role: str = "encode") -> list[str]:
        return [node["state"] for node in self.nodes(role)]


def fields_of(node: int, **changes: Any) -> dict[str, Any]:
    """What a report of an encode node and an entry for it have in common, but for what is changed."""
    return {
        "role": "encode",
        "node_id": f"{node:x}",
        "incarnation": 1,
        "bootstrap_addr": f"tcp://127.0.0.1:{node}",
        "poller_addr": "tcp://127.0.0.1:9",
        "state": "READY",
        "unhealthy": [],
        "outstanding_tokens": 0,
        "outstanding_requests": 0,
        "free_blocks": 0,
        "num_blocks": 1,
        **changes,
    }


@contextmanager
def discovery() -> Iterator[Discovery]:
    """A server for the length of a block."""
    server = Discovery()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


class FakeServer:
    """Listens on one port, and treats each connection as `behave(connection)` does: slow, silent, or full of
    nonsense.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.behave: Callable[[socket.socket], None] = FakeServer.hang
        self.heard = b""
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._held.append(connection)
            connection.settimeout(5)
            try:
                self.behave(connection)
            except OSError:
                connection.close()

    @staticmethod
    def hang(connection: socket.socket) -> None:
        """Says nothing, and keeps the connection."""

    def answer(self, data: bytes) -> Callable[[socket.socket], None]:
        """Whatever is asked, this is said, and the connection closed."""

        def behave(connection: socket.socket) -> None:
            self.heard = connection.recv(65536)
            connection.sendall(data)
            connection.close()

        return behave

    def answer_by_method(self, connection: socket.socket, put: bytes, get: bytes) -> None:
        """As a server does: one answer for PUT, and DELETE, another for GET."""
        self.heard = connection.recv(65536)
        connection.sendall(get if self.heard.startswith(b"GET") else put)
        connection.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._held:
            connection.close()


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    try:
        yield server
    finally:
        server.close()


def json_answer(value: object, status: str = "200 OK") -> bytes:
    data = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data
