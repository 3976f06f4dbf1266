"""The client of etcd: over a gateway in memory, and its gateway over HTTP answers of every kind."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import msgspec
import pytest
from support.etcd import Answer, Etcd, FakeGateway, etcd, fake_gateway, needs_etcd

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.auth_token import read_login
from embridge.workers.discovery.authorities import tls_context
from embridge.workers.discovery.client import DiscoveryService
from embridge.workers.discovery.etcd import EtcdClient
from embridge.workers.discovery.etcd_gateway import EtcdGateway, KeyValue, Range
from embridge.workers.discovery.etcd_url import parse_etcd_url
from embridge.workers.discovery.http import DiscoveryError
from embridge.workers.discovery.services import open_service
from embridge.workers.timing import NS, Timing

TIMING = Timing(discovery_interval_s=1.0, discovery_ttl_s=5.0, discovery_timeout_s=0.3)


def report(node: int = 1, **changes: Any) -> msg.RouteReport:
    fields: dict[str, Any] = {
        "role": "encode",
        "node_id": f"{node:x}",
        "incarnation": 7,
        "bootstrap_addr": f"tcp://127.0.0.1:{node}",
        "poller_addr": "tcp://127.0.0.1:9",
        "state": "READY",
        "unhealthy": [],
        "outstanding_tokens": 0,
        "outstanding_requests": 0,
        "free_blocks": 0,
        "num_blocks": 1,
        "sequence": 1,
        "ttl_s": 5.0,
    }
    return msg.RouteReport(**{**fields, **changes})


class Memory(EtcdGateway):
    """The keys and leases of an etcd that is never away, unless `error` says so."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyValue] = {}
        self.leases: set[int] = set()
        self.revision = self.granted = self.kept_alive = self.puts = 0
        self.error: DiscoveryError | None = None
        self.refuses_values = False

    async def grant(self, ttl_s: float) -> int:
        self.fail()
        self.granted += 1
        self.leases.add(self.granted)
        return self.granted

    async def keep_alive(self, lease: int) -> bool:
        self.fail()
        self.kept_alive += 1
        return lease in self.leases

    async def revoke(self, lease: int) -> None:
        self.fail()
        self.run_out(lease)

    async def look(self, newest_under: bytes, key: bytes, put: tuple[bytes, int] | None) -> tuple[Range, Range]:
        self.fail()
        newest = sorted(it for it in self.keys if it.startswith(newest_under))[-1:]
        found = Range([self.keys[it] for it in newest]), Range([self.keys[key]] if key in self.keys else [])
        if put is not None:
            if self.refuses_values:
                raise DiscoveryError("database space exceeded", refused=True)
            self.puts += 1
            self.put(key, *put)
        return found

    async def range(self, prefix: bytes, limit: int) -> Range:
        self.fail()
        found = [self.keys[it] for it in sorted(self.keys) if it.startswith(prefix)]
        return Range(found[:limit], more=len(found) > limit)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.revision += 1
        self.keys[key] = KeyValue(key, value, lease, self.revision)

    def run_out(self, lease: int) -> None:
        self.leases.discard(lease)
        self.keys = {key: it for key, it in self.keys.items() if it.lease != lease}

    def empty(self) -> None:
        self.keys.clear()
        self.leases.clear()

    def fail(self) -> None:
        if self.error is not None:
            raise self.error


class Registered:
    """A client at work, by a clock of the test's own."""

    def __init__(self, gateway: Memory, node: int = 1) -> None:
        self.now_ns = 100 * NS
        self.node = node
        self.unreadable = 0
        self.client = EtcdClient(gateway, "/p", TIMING, lambda: self.now_ns, self._count)

    def _count(self, more: int) -> None:
        self.unreadable += more

    def register(self, **changes: Any) -> None:
        self.now_ns += NS
        asyncio.run(self.client.register(report(self.node, sequence=self.now_ns, **changes)))

    def routes(self, role: str = "encode") -> msg.RouteAnswer:
        return asyncio.run(self.client.routes(role))

    def exchange(self) -> msg.RouteAnswer:
        self.register()
        return self.routes()

    def leave(self) -> None:
        asyncio.run(self.client.leave(msg.Leave(node_id=f"{self.node:x}", incarnation=7)))


def test_a_node_is_found_by_those_that_ask_for_its_role_with_its_health_and_load() -> None:
    """D10: what our own server says of it."""
    gateway = Memory()
    one, other = Registered(gateway, 1), Registered(gateway, 2)
    one.register(outstanding_tokens=300, unhealthy=[msg.Silent("worker0", 3.0)])
    other.register(role="language", state="DRAINING")
    (route,) = other.routes("encode").routes
    assert (route.node_id, route.incarnation, route.bootstrap_addr) == ("1", 7, "tcp://127.0.0.1:1")
    assert (route.outstanding_tokens, route.healthy, [str(it) for it in route.unhealthy]) == (
        300,
        False,
        ["worker0 silent 3.0 s"],
    )
    (route,) = one.routes("language").routes
    assert (route.node_id, route.state, route.healthy) == ("2", "DRAINING", True)
    one.leave()
    assert other.routes("encode").routes == []
    with pytest.raises(DiscoveryError, match="no lease to revoke"):
        one.leave()


def test_a_value_is_put_when_it_has_changed_or_is_a_time_to_live_old() -> None:
    """What is put stays in the history of etcd; the lease is kept alive each time."""
    gateway = Memory()
    it = Registered(gateway)
    it.register()
    assert (gateway.puts, gateway.kept_alive) == (1, 0)
    for _ in range(4):
        it.register()
    assert (gateway.puts, gateway.kept_alive) == (1, 4)
    it.register(outstanding_tokens=1)
    assert gateway.puts == 2
    for _ in range(10):
        it.register(outstanding_tokens=1)
    assert (gateway.puts, gateway.granted) == (4, 1)


def test_what_a_reader_says_of_the_age_of_a_report_is_when_it_can_have_been_put_at_the_earliest() -> None:
    gateway = Memory()
    node, reader = Registered(gateway, 1), Registered(gateway, 2)
    node.register()
    reader.routes()
    node.register(outstanding_tokens=1)
    reader.now_ns += 2 * NS
    assert [it.age_s for it in reader.routes().routes] == [2.0]
    reader.now_ns += 3 * NS
    assert [it.age_s for it in reader.routes().routes] == [5.0]
    node.register(outstanding_tokens=2)
    reader.now_ns += NS
    assert [it.age_s for it in reader.routes().routes] == [1.0]


def test_an_etcd_that_was_away_or_comes_back_empty_counts_as_one_that_has_just_started() -> None:
    """D3: so nodes that it does not list yet are kept; `Reporter.take` does that."""
    gateway = Memory()
    it = Registered(gateway)

    def up_s() -> float:
        return it.exchange().server_up_s

    assert [up_s() for _ in range(10)] == [float(second) for second in range(10)]
    gateway.error = DiscoveryError("no answer")
    with pytest.raises(DiscoveryError):
        it.register()
    gateway.error = None
    assert [up_s(), up_s()] == [0.0, 1.0]
    gateway.empty()
    assert [up_s(), up_s()] == [0.0, 1.0]
    assert len(it.routes().routes) == 1
    gateway.keys.clear()  # the leases are still there
    assert [up_s(), up_s()] == [0.0, 1.0]
    it.now_ns += 4 * NS  # stopped for so long that it has forgotten others, though nobody has noticed
    assert [up_s(), up_s()] == [0.0, 1.0]
    it.now_ns += 2 * NS
    assert up_s() == 4.0


def test_while_values_are_refused_the_lease_is_kept_and_routes_are_read() -> None:
    """An etcd without space takes no values: nobody is lost of that, and contact neither."""
    gateway = Memory()
    it = Registered(gateway)
    it.exchange()
    gateway.refuses_values = True
    for second in range(1, 8):
        it.register()
        assert it.routes().server_up_s == second
        if second == 4:
            break
    for _ in range(7):
        with pytest.raises(DiscoveryError, match="space exceeded"):
            it.register(outstanding_tokens=5)
        assert len(it.routes().routes) == 1
    assert it.routes().server_up_s == 11
    assert gateway.granted == 1
    assert it.client.longest_pause_s < TIMING.discovery_ttl_s, "the lease must not run out in a pause"


def test_a_newer_incarnation_counts_and_its_node_of_before_is_refused_and_writes_nothing() -> None:
    """D5."""
    gateway = Memory()
    old, new, reader = Registered(gateway), Registered(gateway), Registered(gateway, 2)
    old.register()
    new.register(incarnation=10_000)
    assert [it.incarnation for it in reader.routes().routes] == [10_000]
    with pytest.raises(DiscoveryError, match="incarnation: 7 of node 1 < 10000, which is registered") as raised:
        old.register()
    assert raised.value.refused
    again, puts = Registered(gateway), gateway.puts
    with pytest.raises(DiscoveryError, match="give each a run directory of its own"):
        again.register()
    assert (gateway.puts, gateway.granted) == (puts, 2)


def test_what_is_no_node_is_left_out_counted_once_and_logged_with_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Memory()
    node, reader = Registered(gateway), Registered(gateway, 2)
    node.register()
    good = next(iter(gateway.keys.values())).value
    fields = msgspec.json.decode(good)
    bad = {
        b"/p/encode/2/0000000000000001": b"\xff\x00 nonsense",
        b"/p/encode/3/0000000000000007": good,  # of another node
        b"/p/encode/1/7": good,  # no form of key that a node writes
        b"/p/encode/4\x1b[31m": b"[" * 1000,
        b"/p/encode/5/0000000000000007": msgspec.json.encode(fields | {"node_id": "5", "free_blocks": 5}),
        b"/p/encode/6/0000000000000007": msgspec.json.encode(fields | {"node_id": "6", "role": "language"}),
        b"/p/encode/7/0000000000000007": msgspec.json.encode(fields | {"node_id": "7", "bootstrap_addr": "ipc://x"}),
    }
    for key, value in bad.items():
        gateway.put(key, value)
    gateway.put(b"/p/encode/8/0000000000000007", msgspec.json.encode(fields | {"node_id": "8", "newer": [1]}))
    for _ in range(3):
        assert [it.node_id for it in reader.routes().routes] == ["1", "8"]
    assert reader.unreadable == len(bad)
    gateway.put(b"/p/encode/1/7", b"changed")
    reader.routes()
    assert reader.unreadable == len(bad) + 1
    lines = [record.getMessage() for record in caplog.records]
    assert 0 < len(lines) <= 5
    assert "discovery: /p/encode/1/7 is left out: its value is that of another key" in lines
    assert "\x1b" not in "".join(lines)


def test_a_prefix_with_more_keys_than_there_may_be_nodes_is_read_so_far(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Memory()
    it = Registered(gateway)
    it.register()
    for number in range(msg.MAX_NODES + 50):
        gateway.put(f"/p/encode/{number:016x}/x".encode(), b"")
    for _ in range(3):
        assert it.routes().routes == []
    assert it.unreadable == msg.MAX_NODES
    assert sum("more than 1024 keys under /p/encode/" in record.getMessage() for record in caplog.records) == 1


# ---- over HTTP


def through(
    endpoints: list[str], token_file: str, ask: Callable[[DiscoveryService], Awaitable[Any]], timing: Timing = TIMING
) -> Any:
    """What `ask` returns, with a client of the etcd at these endpoints."""

    async def life() -> Any:
        hosts = ",".join(it.removeprefix("http://") for it in endpoints)
        service = open_service(
            f"etcd://{hosts}/p", token_file=token_file, ca_file="", timing=timing, clock=lambda: 0, unreadable=print
        )
        try:
            return await ask(service)
        finally:
            await service.close()

    return asyncio.run(life())


def always(status: int, answered: Any) -> Answer:
    return lambda path, body, authorization: (status, answered)


async def routes(service: DiscoveryService) -> msg.RouteAnswer:
    return await service.routes("encode")


UNSUPPORTED = {"error": "etcdserver: mvcc: database space\x1b[31m exceeded", "code": 8}


@pytest.mark.parametrize(
    ("status", "answered", "said", "refused"),
    [
        (404, b"404 page not found", r"answered 404: .*page not found.*--enable-grpc-gateway", True),
        (429, UNSUPPORTED, r"kv/range answered 429: etcdserver: mvcc: database space\?\[31m exceeded$", True),
        (403, {"code": 7, "message": "permission denied", "details": []}, "answered 403: permission denied", True),
        (503, {"error": "etcdserver: no leader", "code": 14}, "answered 503: etcdserver: no leader", False),
        (302, b"", "answered 302", False),
        (200, b"\x00\xff", "its answer is not that of etcd", False),
        (200, {"kvs": [{"key": "!!"}]}, "its answer is not that of etcd", False),
        (200, {"kvs": 7}, "its answer is not that of etcd", False),
        (200, {"kvs": [{"key": "AAAA", "value": "x" * (3 << 20)}]}, "its answer has more than 2097152 bytes", False),
    ],
)
def test_every_other_answer_is_an_error_that_says_what_came(
    status: int, answered: Any, said: str, refused: bool
) -> None:
    with (
        fake_gateway(always(status, answered)) as gateway,
        pytest.raises(DiscoveryError, match=rf"{gateway.endpoint}: .*{said}") as raised,
    ):
        through([gateway.endpoint], "", routes)
    assert raised.value.refused is refused


def test_a_member_that_does_not_answer_or_has_no_leader_is_passed_over() -> None:
    """Also later: the one that has answered is asked first."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        fake_gateway(always(503, {"error": "etcdserver: no leader"})) as leaderless,
        fake_gateway(always(200, {"header": {"revision": "1"}})) as good,
    ):
        endpoints = [f"http://127.0.0.1:{silent.getsockname()[1]}", leaderless.endpoint, good.endpoint]

        async def twice(service: DiscoveryService) -> list[msg.RouteAnswer]:
            return [await routes(service), await routes(service)]

        answers = through(endpoints, "", twice)
        assert [it.routes for it in answers] == [[], []]
        assert (len(leaderless.asked), len(good.asked)) == (1, 2)
        with pytest.raises(DiscoveryError, match=f"{leaderless.endpoint}: .*no leader"):
            through(endpoints[:2], "", routes)


class Guarded:
    """An etcd that asks for a user and a password, and forgets tokens when it is told to."""

    def __init__(self) -> None:
        self.password = "right-password"
        self.tokens = 0

    def __call__(self, path: str, body: dict[str, Any], authorization: str) -> tuple[int, Any]:
        if path == "auth/authenticate":
            if body != {"name": "nodes", "password": self.password}:
                return 400, {"error": "etcdserver: authentication failed, invalid user ID or password", "code": 3}
            self.tokens += 1
            return 200, {"header": {}, "token": f"token.{self.tokens}"}
        if authorization != f"token.{self.tokens}":
            return 401, {"error": "etcdserver: invalid auth token", "code": 16}
        return 200, {}


def test_who_logs_in_does_so_once_and_again_when_etcd_has_forgotten_the_token(tmp_path: Path) -> None:
    login, etcd = tmp_path / "login", Guarded()
    login.touch(0o600)
    login.write_text("nodes:right-password\n")

    async def ask(service: DiscoveryService) -> None:
        await routes(service)
        await routes(service)
        etcd.tokens += 1
        await routes(service)
        etcd.password = "another:password"
        etcd.tokens += 1
        with pytest.raises(DiscoveryError, match="authentication failed") as raised:
            await routes(service)
        assert raised.value.refused
        assert "right-password" not in str(raised.value)
        login.write_text("nodes:another:password\n")
        await routes(service)

    with fake_gateway(etcd) as gateway:
        through([gateway.endpoint], str(login), ask)
        assert gateway.asked.count("auth/authenticate") == 4
        assert through_login(gateway, login, "nodes:wrong") == "refused"
        assert through_login(gateway, login, "nobody") == "it has no user and password"


def through_login(gateway: FakeGateway, login: Path, text: str) -> str:
    login.write_text(text)
    try:
        through([gateway.endpoint], str(login), routes)
    except DiscoveryError as error:
        return "refused" if error.refused else str(error).partition(": ")[2].partition(";")[0]
    return "taken"


@needs_etcd
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_etcd_that_has_a_certificate_and_asks_for_logins_is_talked_to_with_both(tmp_path: Path) -> None:
    """A user that may read and write the prefix alone needs no other right."""
    login = tmp_path / "login"
    login.touch(0o600)

    async def life(url: str, ca_file: str, password: str) -> list[msg.RouteEntry]:
        login.write_text(f"nodes:{password}")
        timing, files = Timing(), {"token_file": str(login), "ca_file": ca_file}
        service = open_service(url, timing=timing, clock=time.monotonic_ns, unreadable=print, **files)
        try:
            await service.register(report())
            await service.register(report(outstanding_tokens=7))
            found = (await service.routes("encode")).routes
            await service.leave(msg.Leave(node_id="1", incarnation=7))
            assert (await service.routes("encode")).routes == []
            return found
        finally:
            await service.close()

    with etcd(tls=True) as server:
        server.ask_for_logins("nodes", "correct-horse")
        (found,) = asyncio.run(life(server.url, str(server.ca_file), "correct-horse"))
        assert (found.node_id, found.outstanding_tokens) == ("1", 7)
        with pytest.raises(DiscoveryError, match="answered 400: etcdserver: authentication failed"):
            asyncio.run(life(server.url, str(server.ca_file), "battery"))
        with pytest.raises(DiscoveryError, match=r"its certificate is not accepted: .*; see discovery_ca_file"):
            asyncio.run(life(server.url, "", "correct-horse"))


@needs_etcd
def test_a_real_etcd_without_space_keeps_who_is_registered() -> None:
    """And says why it takes no news of them."""

    async def life(server: Etcd) -> None:
        service = open_service(
            server.url, token_file="", ca_file="", timing=Timing(), clock=time.monotonic_ns, unreadable=print
        )
        try:
            await service.register(report())
            with pytest.raises(HTTPError, match="429"):
                for number in range(10):
                    server.put(f"/others/{number}", "x" * 800_000)
            for _ in range(2):
                with pytest.raises(DiscoveryError, match="answered 429: .*database space exceeded") as raised:
                    await service.register(report(outstanding_tokens=7))
                assert raised.value.refused
                assert [it.outstanding_tokens for it in (await service.routes("encode")).routes] == [0]
            await service.register(report())
            await service.leave(msg.Leave(node_id="1", incarnation=7))
            assert (await service.routes("encode")).routes == []
        finally:
            await service.close()

    with etcd(quota_bytes=1_000_000) as server:
        asyncio.run(life(server))


@pytest.mark.parametrize("text", ["ab", ":secretly", "two words:x", "x" * 600])
def test_a_login_is_a_user_and_a_password_in_a_file_that_nobody_else_may_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "login"
    path.touch(0o600)
    path.write_text("me:pw")
    assert read_login(path) == "me:pw"
    path.write_text(text)
    with pytest.raises(ValueError, match="token file") as raised:
        read_login(path)
    assert text not in str(raised.value)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="must be 600"):
        read_login(path)


def test_a_file_of_no_authorities_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(ValueError, match=f"{path}: .*; it must hold certificates in PEM"):
            tls_context(path)
        (tmp_path / "empty").write_text("")


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix"),
    [
        ("etcd://10.0.0.1:2379", ["http://10.0.0.1:2379"], "/embridge"),
        ("etcds://a.b:1,[::1]:2/x/y-z/", ["https://a.b:1", "https://[::1]:2"], "/x/y-z"),
        ("etcd://h:65535/", ["http://h:65535"], "/embridge"),
    ],
)
def test_a_url_of_etcd_has_members_and_a_prefix(url: str, endpoints: list[str], prefix: str) -> None:
    assert parse_etcd_url(url) == (tuple(endpoints), prefix)
