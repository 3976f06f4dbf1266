"""An etcd of three members, of which some are lost: no node is, nor what schedulers know of the others (D3, D10)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.discovery import QUICK
from support.etcd import Members, members, needs_etcd
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator.records import DiscoveryState

pytestmark = [pytest.mark.process, pytest.mark.storm, pytest.mark.timeout(300), needs_etcd]

SHORT = {**QUICK, "discovery_ttl_s": 2.0, "discovery_timeout_s": 0.5}


class Cluster(NamedTuple):
    members: Members
    encode: Station
    language: Station
    scheduler: Client

    def listed(self) -> tuple[str, ...]:
        return tuple(it.bootstrap_addr for it in self.scheduler.encode_nodes())

    def are(self, state: DiscoveryState) -> bool:
        records = [it.control.routes.discovery() for it in (self.encode, self.language)]
        return all(it is not None and it.state == state for it in records)

    def made(self, asked: int) -> dict[str, str]:
        """Each key with the revision at which it was made: a later one where it was lost and put again."""
        return {key: it["create_revision"] for key, it in self.members.all[asked].pairs().items()}

    def seen_until(self, until: Callable[[], object]) -> set[tuple[str, ...]]:
        """Whatever the scheduler finds meanwhile."""
        seen = set()

        def look() -> object:
            seen.add(self.listed())
            return until()

        wait_until(look, 30)
        return seen


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with run_dirs() as path, members() as servers:
        settings: Settings = {"discovery": servers.url, **SHORT}
        with (
            station("encode", path / "e", **settings) as source,
            station("language", path / "l", **settings) as target,
            attach(target.run_dir) as client,
        ):
            it = Cluster(servers, source, target, client)
            wait_until(lambda: it.listed() == (source.addr,))
            yield it


def outlived() -> Callable[[], bool]:
    """Whether leases that were kept alive no more would have run out since."""
    until = time.monotonic() + 2 * SHORT["discovery_ttl_s"] + 1
    return lambda: time.monotonic() > until


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda it: it.name)
def test_a_leader_that_is_lost_costs_no_registration(cluster: Cluster, number: signal.Signals) -> None:
    """It is the member that both nodes ask first. The others elect one of themselves; the leases go on, and a new node
    is found meanwhile.
    """
    before = cluster.made(1)
    cluster.members.all[0].signal(number)
    is_over = outlived()
    seen = cluster.seen_until(lambda: is_over() and cluster.are(DiscoveryState.REGISTERED))
    assert seen == {(cluster.encode.addr,)}
    assert cluster.members.leader(1) is not cluster.members.all[0]
    assert cluster.made(1) == before
    run_dir = cluster.encode.run_dir.with_name("later")
    settings: Settings = {"discovery": cluster.members.url, **SHORT}
    with station("encode", run_dir, **settings) as later:
        wait_until(lambda: set(cluster.listed()) == {cluster.encode.addr, later.addr})
    wait_until(lambda: cluster.listed() == (cluster.encode.addr,))


def test_without_a_majority_nodes_go_on_with_what_they_know_and_are_registered_when_it_is_back(
    cluster: Cluster,
) -> None:
    """Longer than the leases last: those count on when there is a leader again."""
    for it in cluster.members.all[:2]:
        it.kill()
    assert cluster.seen_until(lambda: cluster.are(DiscoveryState.UNREACHABLE)) == {(cluster.encode.addr,)}
    is_over = outlived()
    assert cluster.seen_until(is_over) == {(cluster.encode.addr,)}
    assert cluster.scheduler.pick_encode_node() == cluster.encode.addr
    cluster.members.all[0].begin()
    assert cluster.seen_until(lambda: cluster.are(DiscoveryState.REGISTERED)) == {(cluster.encode.addr,)}
    is_over = outlived()
    assert cluster.seen_until(is_over) == {(cluster.encode.addr,)}
    assert len(cluster.made(2)) == 2


def test_members_that_are_restarted_one_after_another_are_not_noticed(cluster: Cluster) -> None:
    """As an operator upgrades them."""
    before = cluster.made(0)
    for it in cluster.members.all:
        it.kill()
        it.start()
        assert cluster.seen_until(lambda: cluster.are(DiscoveryState.REGISTERED)) == {(cluster.encode.addr,)}
    is_over = outlived()
    assert cluster.seen_until(lambda: is_over() and cluster.are(DiscoveryState.REGISTERED)) == {(cluster.encode.addr,)}
    assert cluster.made(0) == before
