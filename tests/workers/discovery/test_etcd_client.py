"""What the client of etcd puts and makes of what it reads; over a gateway in memory, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from support.etcd import report

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.etcd import EtcdClient
from embridge.workers.discovery.etcd_gateway import EtcdGateway, KeyValue, Range
from embridge.workers.discovery.http import DiscoveryError
from embridge.workers.timing import NS, Timing

TIMING = Timing(discovery_interval_s=1.0, discovery_ttl_s=5.0, discovery_timeout_s=0.3)


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
