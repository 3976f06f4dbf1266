"""Discovery in etcd: each incarnation of a node puts one key under a lease of its own, and reads those of the other
role.

    <prefix>/<role>/<node id>/<incarnation>     NodeValue, as JSON

Every interval the lease is kept alive, the own key is looked at, and the keys of the other role are read. The value is
put where it has changed, or is a time to live old: what is put stays in the history of etcd until that is compacted. A
node that is killed is gone when its lease runs out; one that leaves revokes it. What still was on its way then is
refused, because it names that lease. Of a node's incarnations the highest counts.

An etcd that was away for longer than leases last has ended them all, and one that comes back empty knows nobody. So a
node that is not listed is kept for a while whenever contact was lost, or the own key: `server_up_s` of an answer counts
from there, as of our own server from its start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.etcd_gateway import EtcdGateway, KeyValue
from embridge.workers.discovery.http import MAX_REASON_CHARS, DiscoveryError, printable
from embridge.workers.log_limit import LogLimit
from embridge.workers.timing import NS, Timing

log = logging.getLogger(__name__)

INCARNATION_DIGITS: Final = 16  # of `MAX_COUNT`: keys are ordered as incarnations are
LINES_A_MINUTE: Final = 5

KeyIds = tuple[str, str, int]  # role, node id, incarnation


class EtcdClient:
    """A `DiscoveryService` over a gateway. `unreadable` is told how many values more could not be read."""

    def __init__(
        self,
        gateway: EtcdGateway,
        prefix: str,
        timing: Timing,
        clock: Callable[[], int],
        unreadable: Callable[[int], None],
    ) -> None:
        # A lease goes on while something else is refused, such as a value where the disk of etcd is full.
        self.longest_pause_s = timing.discovery_ttl_s / 2
        self._gateway = gateway
        self._prefix = prefix
        self._clock = clock
        self._reading = _Reading(clock, unreadable)
        self._lease = 0
        self._put: bytes = b""  # the value at the own key, and since when
        self._put_ns = 0
        interval_s, ttl_s = timing.discovery_interval_s, timing.discovery_ttl_s
        self._ttl_ns = int(ttl_s * NS)
        # Leases of others may have run out within a longer one, whatever has become of ours.
        self._longest_gap_ns = int(max(ttl_s - interval_s, 1.5 * interval_s) * NS)
        self._since_ns: int | None = None  # contact, and what was known, were not lost since then
        self._answered_ns = 0

    async def register(self, report: msg.RouteReport) -> None:
        try:
            await self._register(report)
        except DiscoveryError as error:
            self._failed(error)
            raise

    async def routes(self, role: str) -> msg.RouteAnswer:
        under = f"{self._prefix}/{role}/".encode()
        try:
            found = await self._gateway.range(under, msg.MAX_NODES)
        except DiscoveryError as error:
            self._failed(error)
            raise
        now = self._clock()
        if self._since_ns is None or now - self._answered_ns > self._longest_gap_ns:
            self._since_ns = now
        self._answered_ns = now
        routes = self._reading.entries(role, under, found.kvs, more=found.more)
        return msg.RouteAnswer(routes=routes, server_up_s=(now - self._since_ns) / NS)

    async def leave(self, leave: msg.Leave) -> None:
        if not self._lease:
            raise DiscoveryError("there is no lease to revoke")
        lease, self._lease = self._lease, 0
        await self._gateway.revoke(lease)

    async def close(self) -> None:
        await self._gateway.close()

    async def _register(self, report: msg.RouteReport) -> None:
        value = msgspec.json.encode(msgspec.convert(report, msg.NodeValue, from_attributes=True))
        node = f"{self._prefix}/{report.role}/{report.node_id}/"
        key = f"{node}{report.incarnation:0{INCARNATION_DIGITS}}".encode()
        if self._lease and not await self._gateway.keep_alive(self._lease):
            self._lease = 0
        if not self._lease:
            newest, _ = await self._gateway.look(node.encode(), key, None)
            _check_newest(newest.kvs, key, report)
            self._lease = await self._gateway.grant(report.ttl_s)
            self._put = b""
        due = value != self._put or self._clock() - self._put_ns >= self._ttl_ns
        newest, own = await self._gateway.look(node.encode(), key, (value, self._lease) if due else None)
        is_kept = any(it.lease == self._lease for it in own.kvs)
        if not is_kept:  # at first; or somebody has emptied etcd, and others are not listed there either
            self._since_ns = None
        if not is_kept and not due:
            await self._gateway.look(node.encode(), key, (value, self._lease))
        if due or not is_kept:
            self._put, self._put_ns = value, self._clock()
        _check_newest(newest.kvs, key, report)

    def _failed(self, error: DiscoveryError) -> None:
        if not error.refused:
            self._since_ns = None


class _Reading:
    """Makes routes of keys and values; what cannot be read is left out, and told once."""

    def __init__(self, clock: Callable[[], int], unreadable: Callable[[int], None]) -> None:
        self._clock = clock
        self._unreadable = unreadable
        self._read_ns: int | None = None  # when the answer before this one came
        self._seen: dict[bytes, tuple[int, int]] = {}  # key -> (revision, when it was put, at the earliest)
        self._told: dict[bytes, int] = {}  # key that could not be read -> revision
        self._told_more = False
        self._lines = LogLimit(LINES_A_MINUTE, LINES_A_MINUTE)

    def entries(self, role: str, under: bytes, kvs: list[KeyValue], *, more: bool) -> list[msg.RouteEntry]:
        """The nodes of one role, each as its highest incarnation says."""
        now = self._clock()
        newly_ns = self._read_ns if self._read_ns is not None else now
        self._read_ns = now
        seen, told = {}, {}
        found: dict[str, msg.RouteEntry] = {}
        for kv in kvs:
            try:
                value = _value(role, under, kv)
            except ValueError as error:
                told[kv.key] = kv.mod_revision
                self._tell(kv, str(error), now)
                continue
            revision, put_ns = self._seen.get(kv.key, (0, 0))
            if revision != kv.mod_revision:
                put_ns = newly_ns
            seen[kv.key] = kv.mod_revision, put_ns
            before = found.get(value.node_id)
            if before is None or before.incarnation < value.incarnation:
                found[value.node_id] = _entry(value, (now - put_ns) / NS)
        self._seen, self._told = seen, told
        if more and not self._told_more:
            log.warning("discovery: more than %d keys under %s; the others are left out", msg.MAX_NODES, under.decode())
        self._told_more = more
        return list(found.values())

    def _tell(self, kv: KeyValue, why: str, now_ns: int) -> None:
        if self._told.get(kv.key) == kv.mod_revision:
            return
        self._unreadable(1)
        key = printable(kv.key.decode("utf-8", "replace"))
        self._lines.log(log, logging.WARNING, "etcd", now_ns, "discovery: %s is left out: %s", key, printable(why))


def _value(role: str, under: bytes, kv: KeyValue) -> msg.NodeValue:
    """What a key says of a node. Raises ValueError unless key and value are those of one node of that role."""
    try:
        value = msgspec.json.decode(kv.value, type=msg.NodeValue)  # a ValidationError is a ValueError
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)[:MAX_REASON_CHARS]) from error
    if value.role != role or kv.key != under + f"{value.node_id}/{value.incarnation:0{INCARNATION_DIGITS}}".encode():
        raise ValueError("its value is that of another key")
    return value


def _entry(value: msg.NodeValue, age_s: float) -> msg.RouteEntry:
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return msg.RouteEntry(**fields, healthy=not value.unhealthy, age_s=round(age_s, 3))


def _check_newest(newest: list[KeyValue], key: bytes, report: msg.RouteReport) -> None:
    """Raise DiscoveryError where a newer incarnation of the node is registered."""
    if newest and newest[0].key > key:
        other = printable(newest[0].key.rpartition(b"/")[2].decode("utf-8", "replace")).lstrip("0")
        raise DiscoveryError(
            f"incarnation: {report.incarnation} of node {report.node_id} < {other}, which is registered; stop the "
            "older node, or give each a run directory of its own",
            refused=True,
        )
