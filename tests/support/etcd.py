"""An etcd as its own process, and a gateway that answers as a test wants."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from embridge.workers.discovery import messages as msg
from support.discovery import fields_of
from support.leaks import MARK
from support.ports import port_to_keep
from support.remains import run_dirs
from support.waiting import wait_until

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None, reason="etcd is not installed (Debian: apt-get install etcd-server)"
)
PREFIX = "/tests/embridge"


class Etcd:
    """One member with a data directory of its own; it can be stopped, and started again at the same ports.

    With `tls` it has a certificate, which is its own authority (`ca_file`). Beyond `quota_bytes` it takes no values.
    It is its cluster, and started, unless somebody says what others are (`cluster`) and starts it.
    """

    def __init__(self, folder: Path, *, tls: bool = False, quota_bytes: int = 0) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._log = folder / "etcd.log"
        self._port, self._peer_port = port_to_keep(), port_to_keep()
        self.peer = f"http://127.0.0.1:{self._peer_port}"
        self.name = f"member{self._peer_port}"
        self.cluster = f"{self.name}={self.peer}"
        self.ca_file, self._key_file = folder / "certificate.pem", folder / "key.pem"
        self._context = ssl.create_default_context(cafile=self._certify()) if tls else None
        self.endpoint = f"http{'s' * tls}://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"etcd{'s' * tls}://{self.address}{PREFIX}"

    def _certify(self) -> Path:
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        words += ["-subj", "/CN=etcd"]
        words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(self._key_file), "-out", str(self.ca_file)]
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
        return self.ca_file

    def start(self, *, empty: bool = False) -> None:
        """Start it with the data that it had, or with none; it answers when this returns."""
        if empty:
            shutil.rmtree(self._folder / "data")
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Start it; it answers when most of its cluster is there."""
        options: dict[str, object] = {
            "name": self.name,
            "data-dir": self._folder / "data",
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": self.peer,
            "initial-advertise-peer-urls": self.peer,
            "initial-cluster": self.cluster,
            "heartbeat-interval": 50,
            "election-timeout": 250,  # all members are on this host
            "quota-backend-bytes": self._quota_bytes,
            "logger": "zap",
            "log-level": "error",
        }
        if self._context is not None:
            options |= {"cert-file": self.ca_file, "key-file": self._key_file}
        words = [f"--{name}={value}" for name, value in options.items()]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                ["etcd", *words],
                stdout=log,
                stderr=log,
                # it may outlive the test that restarts it
                env={name: value for name, value in os.environ.items() if name != MARK} | {"GOMAXPROCS": "2"},
            )

    def wait(self) -> None:
        """Until it answers."""
        wait_until(self._answers, 30, lambda: f"etcd answers: {self._log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            self.call("kv/range", {"key": "AA=="})
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def end(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.kill()

    def call(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:
            return json.loads(answer.read())

    def pairs(self) -> dict[str, Any]:
        """All keys of the tests' prefix, as the gateway shows them, with `value` read as JSON where it is that."""
        found = self.call("kv/range", {"key": _b64(PREFIX + "/"), "range_end": _b64(PREFIX + "0")}).get("kvs", [])
        return {b64decode(it["key"]).decode(): it | {"value": _json(b64decode(it["value"]))} for it in found}

    def nodes(self, role: str = "encode") -> list[Any]:
        """What the nodes of a role have put."""
        return [it["value"] for key, it in self.pairs().items() if key.startswith(f"{PREFIX}/{role}/")]

    def put(self, key: str, value: str) -> None:
        self.call("kv/put", {"key": _b64(PREFIX + key), "value": _b64(value)})

    def fill(self) -> None:
        """Put values until it has no space for more (`quota_bytes`)."""
        for number in range(100):
            try:
                self.put(f"/filling/{number}", "x" * 800_000)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 429:
                    return
                raise
        raise AssertionError("it has space without end")

    def ask_for_logins(self, user: str, password: str) -> None:
        """From now on only that user may read and write the tests' prefix, and nothing else."""
        whole = {"key": _b64(PREFIX + "/"), "range_end": _b64(PREFIX + "0")}
        self.call("auth/user/add", {"name": "root", "password": "root"})
        self.call("auth/user/grant", {"user": "root", "role": "root"})
        self.call("auth/role/add", {"name": "nodes"})
        self.call("auth/role/grant", {"name": "nodes", "perm": {"permType": "READWRITE", **whole}})
        self.call("auth/user/add", {"name": user, "password": password})
        self.call("auth/user/grant", {"user": user, "role": "nodes"})
        self.call("auth/enable", {})

    def delete_all(self) -> None:
        self.call("kv/deleterange", {"key": _b64(PREFIX + "/"), "range_end": _b64(PREFIX + "0")})


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


def report(node: int = 1, **changes: Any) -> msg.RouteReport:
    """What an encode node says of itself, but for what is changed."""
    return msg.RouteReport(**fields_of(node, **{"incarnation": 7, "sequence": 1, "ttl_s": 5.0, **changes}))


@contextmanager
def etcd(*, tls: bool = False, quota_bytes: int = 0) -> Iterator[Etcd]:
    """An etcd for the length of a block; nothing of it is left."""
    with run_dirs() as folder:
        it = Etcd(folder, tls=tls, quota_bytes=quota_bytes)
        try:
            it.start()
            yield it
        finally:
            it.end()


class Members:
    """Three members of one cluster, by name in the order of `url`: the one that led at the start comes first."""

    def __init__(self, folder: Path) -> None:
        for number in range(3):
            (folder / str(number)).mkdir()
        self.all = [Etcd(folder / str(number)) for number in range(3)]
        for it in self.all:
            it.cluster = ",".join(f"{other.name}={other.peer}" for other in self.all)
        self.url = ""

    def start(self) -> None:
        for it in self.all:
            it.begin()
        for it in self.all:
            it.wait()
        leader = self.leader()
        self.all.sort(key=lambda it: it is not leader)
        self.url = f"etcd://{','.join(it.address for it in self.all)}{PREFIX}"

    def leader(self, asked: int = 0) -> Etcd:
        """As one of them says, which must answer; it waits for the end of an election."""

        def leads() -> Etcd | None:
            answer = self.all[asked].call("maintenance/status", {})
            members = self.all[asked].call("cluster/member/list", {})["members"]
            names = {it["ID"]: it["name"] for it in members}
            name = names.get(answer.get("leader"))
            return next((it for it in self.all if it.name == name), None)

        found = wait_until(leads, 30)
        assert found is not None
        return found


@contextmanager
def members() -> Iterator[Members]:
    """A cluster of three for the length of a block; nothing of it is left."""
    with run_dirs() as folder:
        it = Members(folder)
        try:
            it.start()
            yield it
        finally:
            for each in it.all:
                each.end()


Answer = Callable[[str, dict[str, Any], str], tuple[int, Any]]
"""Path, body and authorization of a request; its status, and what is answered as JSON or as bytes."""


class FakeGateway:
    """Answers requests over HTTP, one at a time, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.removeprefix("/v3/")
                gateway.asked.append(path)
                status, answered = gateway.answer(path, body, self.headers.get("Authorization", ""))
                data = answered if isinstance(answered, bytes) else json.dumps(answered).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def fake_gateway(answer: Answer) -> Iterator[FakeGateway]:
    gateway = FakeGateway(answer)
    try:
        yield gateway
    finally:
        gateway.close()
