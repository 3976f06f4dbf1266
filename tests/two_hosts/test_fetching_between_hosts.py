"""Published items between two hosts that share nothing but a cable, through Mooncake over TCP, under keys.

The run sockets of both hosts are files of one machine, so the clients of these tests are kept from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support import fetching
from support.cables import plug, pull
from support.nodes import LIMITS, Station
from support.publishing import rows_of_version
from support.remains import run_dirs
from support.two_hosts import PEER_TIMEOUT_S, Places
from support.waiting import wait_until

from embridge import Client, FetchFailed, NotPublished, attach
from embridge.demo.hosts import two_hosts, why_impossible
from embridge.pipeline.client import shelf_doors
from embridge.workers.transfer.engines import mooncake

WHY_NOT = why_impossible() or mooncake.why_unavailable()
pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(200),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is possible"),
]
SHELVED = replace(LIMITS, shelf_bytes=48 << 20)


@pytest.fixture(autouse=True)
def _afar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_doors, "knock", fetching.no_door)


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with run_dirs() as path, two_hosts() as (one, other):
        yield Places(path, one, other)


@pytest.fixture(scope="module")
def pair(places: Places) -> Iterator[tuple[Station, Station]]:
    with places.node("encode", "e", limits=SHELVED) as encode, places.node("language", "l") as language:
        yield encode, language


@pytest.fixture
def clients(pair: tuple[Station, Station]) -> Iterator[tuple[Client, Client]]:
    with attach(pair[0].run_dir) as publisher, attach(pair[1].run_dir) as reader:
        publisher.shelf.clear()
        yield publisher, reader
        is_left(pair, publisher)


def is_left(pair: tuple[Station, Station], publisher: Client) -> None:
    """Nothing is held, on either host."""
    encode, language = pair
    wait_until(lambda: not encode.in_flight(), 30.0, lambda: f"{encode.in_flight()}\n{encode.log()}")
    language.wait_idle(30)
    assert publisher.shelf.counts().pinned == 0


def large(version: int) -> torch.Tensor:
    return torch.full((1, 6 << 20), float(version))


def has_begun(encode: Station) -> None:
    under_way = lambda: any(0 < entry["sent"] < entry["total"] for entry in encode.in_flight())  # noqa: E731
    wait_until(under_way, 20.0, encode.log)


def test_an_item_comes_from_another_host_and_what_is_not_there_is_said_to_be_so(
    pair: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """R50, R52, P6, P24."""
    publisher, reader = clients
    publisher.publish("cat", rows_of_version(1))
    publisher.publish("dog", large(2))
    for key, rows in (("cat", rows_of_version(1)), ("dog", large(2)), ("cat", rows_of_version(1))):
        fetch = reader.fetch(key, pair[0].addr)
        assert fetch.wait(60)
        assert torch.equal(fetch.result().rows, rows)
    fetch = reader.fetch("unknown", pair[0].addr)
    assert fetch.wait(10)
    assert isinstance(fetch.exception(), NotPublished)


def test_a_cable_that_is_out_for_a_moment_costs_a_fetch_time_and_no_more(
    places: Places, pair: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """P11, R24."""
    publisher, reader = clients
    publisher.publish("cat", large(3))
    fetch = reader.fetch("cat", pair[0].addr)
    has_begun(pair[0])
    pull(places.hosts["encode"])
    try:
        assert not fetch.wait(1.5)
    finally:
        plug(places.hosts["encode"])
    assert fetch.wait(60)
    assert torch.equal(fetch.result().rows, large(3))


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_when_the_encode_node_is_lost_a_fetch_fails_in_time_and_says_what_to_do(
    places: Places, pair: tuple[Station, Station], how: str
) -> None:
    """P4, R56: and where the cable is out, the encode node gives up by itself what it held for it."""
    with (
        places.node("encode", how[0], limits=SHELVED) as encode,
        attach(encode.run_dir) as publisher,
        attach(pair[1].run_dir) as reader,
    ):
        publisher.publish("cat", large(4))
        fetch = reader.fetch("cat", encode.addr)
        has_begun(encode)
        begun = time.monotonic()
        try:
            if how == "killed":
                encode.kill_group()
            else:
                pull(places.hosts["encode"])
            assert fetch.wait(30)
            assert time.monotonic() - begun < (0.0 if how == "killed" else PEER_TIMEOUT_S) + 3.0
            error = fetch.exception()
            assert isinstance(error, FetchFailed)
            assert "fetch it from another node, or have it encoded again" in str(error)
            if how == "cut off":
                wait_until(lambda: not encode.in_flight(), 30.0, encode.log)
                assert publisher.shelf.counts().pinned == 0
        finally:
            plug(places.hosts["encode"])
        pair[1].wait_idle(30)
