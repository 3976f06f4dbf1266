"""Nodes that find each other through a real etcd, end to end; and that none is lost of what becomes of that etcd."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from support.discovery import QUICK
from support.encoding import open_sender
from support.etcd import PREFIX, Etcd, etcd, needs_etcd
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.waiting import wait_until

from embridge import Client, NoRouteError, attach
from embridge.allocator.metrics import Metric
from embridge.allocator.records import DiscoveryState, NodeState, Process
from embridge.allocator.routes import DiscoveryRecord
from embridge.pipeline.cli import main
from embridge.workers.process_spec import READY

pytestmark = [pytest.mark.process, needs_etcd]

SHORT = {**QUICK, "discovery_ttl_s": 2.0, "discovery_timeout_s": 0.5}


class Cluster(NamedTuple):
    """An etcd and a node of each role, which lose a lease after two seconds; shared by the tests of this file."""

    etcd: Etcd
    encode: Station
    language: Station
    run_dirs: Path
    scheduler: Client

    def listed(self) -> list[str]:
        return [route.bootstrap_addr for route in self.scheduler.encode_nodes()]

    def puts(self) -> dict[str, tuple[str, str]]:
        """Each key with the revision at which it was made, and its lease."""
        return {key: (it["create_revision"], it["lease"]) for key, it in self.etcd.pairs().items()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with run_dirs() as path, etcd() as server:
        settings: Settings = {"discovery": server.url, **SHORT}
        with (
            station("encode", path / "e", **settings) as source,
            station("language", path / "l", **settings) as target,
            attach(target.run_dir) as client,
        ):
            it = Cluster(server, source, target, path, client)
            wait_until(lambda: it.listed() == [source.addr])
            yield it


def said(it: Station) -> DiscoveryRecord:
    """How the node's registrar fares."""
    record = wait_until(it.control.routes.discovery)
    assert record is not None
    return record


def are_registered(cluster: Cluster) -> bool:
    return all(said(it).state == DiscoveryState.REGISTERED for it in (cluster.encode, cluster.language))


def test_a_node_is_found_with_its_health_and_load_which_change_and_what_is_no_node_is_passed_over(
    cluster: Cluster, room: int
) -> None:
    """D10: as through our own server; a worker that does not beat is named, and nothing is routed there."""
    (key,) = [key for key in cluster.etcd.pairs() if key.startswith(f"{PREFIX}/encode/")]
    node = cluster.encode.control.node_id
    assert key == f"{PREFIX}/encode/{node:x}/{cluster.encode.node.incarnation:016}"
    refused = cluster.language.control.metrics.total(Metric.MESSAGES_REFUSED)
    cluster.etcd.put("/encode/1/2", "no node")
    try:
        wait_until(lambda: cluster.language.control.metrics.total(Metric.MESSAGES_REFUSED) == refused + 1)
        assert cluster.language.says(f"discovery: {PREFIX}/encode/1/2 is left out: JSON is malformed")
        with attach(cluster.encode.run_dir) as encoder:
            open_sender(encoder, room, 300, announce=True)
            wait_until(lambda: [it.outstanding_tokens for it in cluster.scheduler.encode_nodes()] == [300])
        wait_until(lambda: [it.outstanding_tokens for it in cluster.scheduler.encode_nodes()] == [0])
        assert cluster.scheduler.pick_encode_node(100) == cluster.encode.addr
        pid = cluster.encode.pid_of("worker0")
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: not cluster.scheduler.encode_nodes()[0].healthy)
            with pytest.raises(NoRouteError, match="worker0 silent"):
                cluster.scheduler.pick_encode_node()
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: cluster.scheduler.encode_nodes()[0].healthy)
        cluster.encode.wait_idle()
    finally:
        cluster.etcd.delete_all()
    wait_until(lambda: len(cluster.puts()) == 2)  # who finds its key gone puts it again
    assert cluster.listed() == [cluster.encode.addr]


def test_a_node_that_drains_is_told_at_once_and_gone_when_it_stops(cluster: Cluster, room: int) -> None:
    """P18, D5: it is slow to renew, so that what is seen of the drain was told at once. Its lease is of 40 s."""

    def states() -> list[NodeState]:
        return [it.state for it in cluster.scheduler.encode_nodes() if it.bootstrap_addr == second.addr]

    slow: Settings = {**QUICK, "discovery_interval_s": 20.0, "discovery_ttl_s": 40.0, "discovery": cluster.etcd.url}
    run_dir = cluster.run_dirs / "second"
    with station("encode", run_dir, **slow) as second, attach(run_dir) as encoder:
        wait_until(lambda: states() == [NodeState.READY])
        open_sender(encoder, room, 10)
        second.node.terminate()
        wait_until(lambda: states() == [NodeState.DRAINING])
        assert {cluster.scheduler.pick_encode_node() for _ in range(8)} == {cluster.encode.addr}
        second.node.terminate()
        assert second.node.wait(20) == 0
        assert [it["node_id"] for it in cluster.etcd.nodes()] == [f"{cluster.encode.control.node_id:x}"]
    wait_until(lambda: cluster.listed() == [cluster.encode.addr])


def test_a_registrar_that_is_killed_is_started_again_and_its_registration_renewed(cluster: Cluster) -> None:
    """D3, D4: under a lease of the new one; the old one has no key any more that it could take with it."""
    before = cluster.puts()
    (key,) = [key for key in before if key.startswith(f"{PREFIX}/encode/")]
    pid = cluster.encode.pid_of("registrar")
    os.kill(pid, signal.SIGKILL)
    processes = cluster.encode.control.processes
    while processes.get("registrar", Process.PID) == pid or processes.get("registrar", Process.STATE) != READY:
        assert cluster.listed() == [cluster.encode.addr]
    wait_until(lambda: cluster.puts()[key][1] != before[key][1])
    assert cluster.puts()[key][0] == before[key][0], "it was renewed, not made again"
    assert "keys" not in cluster.etcd.call("lease/timetolive", {"ID": before[key][1], "keys": True})
    wait_until(lambda: said(cluster.encode).state == DiscoveryState.REGISTERED)


def lives_through(cluster: Cluster, trouble: Callable[[], None]) -> set[tuple[str, ...]]:
    """What the scheduler finds, from before the trouble until no node that was not listed again would be kept."""
    seen = set()

    def look() -> bool:
        seen.add(tuple(cluster.listed()))
        return are_registered(cluster)

    look()
    trouble()
    wait_until(look)
    kept_until = time.monotonic() + SHORT["discovery_ttl_s"] + SHORT["discovery_timeout_s"] + 0.5
    wait_until(lambda: look() and time.monotonic() > kept_until)
    assert cluster.scheduler.pick_encode_node() == cluster.encode.addr
    return seen


def unreachable(cluster: Cluster) -> None:
    for it in (cluster.encode, cluster.language):
        wait_until(lambda it=it: said(it).state == DiscoveryState.UNREACHABLE)  # type: ignore[misc]


@pytest.mark.storm
def test_an_etcd_that_is_killed_and_started_again_loses_no_node(cluster: Cluster) -> None:
    """D3: with its data, it knows the leases still."""
    before = cluster.puts()

    def killed() -> None:
        cluster.etcd.kill()
        unreachable(cluster)
        assert "Connection refused; is etcd running?" in said(cluster.language).reason
        status = CliRunner().invoke(main, ["status", "--run-dir", str(cluster.language.run_dir)])
        assert "UNREACHABLE" in status.stdout
        assert cluster.etcd.url in status.stdout
        assert cluster.encode.addr in status.stdout
        cluster.etcd.start()

    assert lives_through(cluster, killed) == {(cluster.encode.addr,)}
    assert cluster.puts().keys() == before.keys()


@pytest.mark.storm
def test_an_etcd_that_comes_back_empty_loses_no_node_and_is_registered_in_again(cluster: Cluster) -> None:
    """D3: leases and keys are gone, and each node makes new ones."""
    before = cluster.puts()

    def emptied() -> None:
        cluster.etcd.kill()
        unreachable(cluster)
        cluster.etcd.start(empty=True)
        assert cluster.puts().keys() <= before.keys()

    assert lives_through(cluster, emptied) == {(cluster.encode.addr,)}
    after = cluster.puts()
    assert after.keys() == before.keys()
    assert {lease for _, lease in after.values()}.isdisjoint(lease for _, lease in before.values())


@pytest.mark.storm
def test_an_etcd_that_stands_still_for_longer_than_leases_last_loses_no_node(cluster: Cluster) -> None:
    """D3: it ends all leases when it goes on, before anybody can keep his alive."""
    before = cluster.puts()

    def stopped() -> None:
        cluster.etcd.signal(signal.SIGSTOP)
        goes_on = time.monotonic() + 2 * SHORT["discovery_ttl_s"]
        unreachable(cluster)
        wait_until(lambda: time.monotonic() > goes_on)
        cluster.etcd.signal(signal.SIGCONT)

    assert lives_through(cluster, stopped) == {(cluster.encode.addr,)}
    after = cluster.puts()
    assert after.keys() == before.keys()
    assert all(made != before[key][0] for key, (made, _) in after.items()), "the keys had gone with their leases"


@pytest.mark.storm
def test_a_node_that_is_killed_is_gone_when_its_lease_runs_out_and_its_next_incarnation_is_found(
    cluster: Cluster,
) -> None:
    """D3, D5."""
    run_dir = cluster.run_dirs / "third"
    settings: Settings = {"discovery": cluster.etcd.url, **SHORT}
    with station("encode", run_dir, **settings) as third:
        wait_until(lambda: third.addr in cluster.listed())
        third.kill_group()
        third.node.wait(10)
    assert len(cluster.etcd.nodes()) == 2
    wait_until(lambda: len(cluster.etcd.nodes()) == 1)
    wait_until(lambda: cluster.listed() == [cluster.encode.addr])
    with station("encode", run_dir, **settings) as again:
        wait_until(lambda: again.addr in cluster.listed())
        assert again.node.incarnation > third.node.incarnation
