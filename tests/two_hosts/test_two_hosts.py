"""Two nodes on two hosts: network namespaces that share nothing but a cable, rows through Mooncake over TCP, messages
under keys.

Here nothing on one side can see the other's processes: what it learns of a death it learns through the cable, or from
its silence.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.cables import plug, pull
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.remains import run_dirs
from support.scheduling import Holder, Queues
from support.stopping import stop
from support.two_hosts import PEER_TIMEOUT_S, Places
from support.waiting import wait_until

from embridge import Client, EmbeddingSender, attach
from embridge.demo.hosts import Host, two_hosts, why_impossible
from embridge.pipeline.client.client import library_of
from embridge.workers.transfer.engines import mooncake

WHY_NOT = why_impossible() or mooncake.why_unavailable()
pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(200),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is possible"),
]

ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]
SLACK_S = 1.0  # beyond the promise, for a machine that runs other tests


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with run_dirs() as path, two_hosts() as (one, other):
        yield Places(path, one, other)


@pytest.fixture(scope="module")
def pair(places: Places) -> Iterator[tuple[Station, Station]]:
    with places.node("encode", "e") as encode, places.node("language", "l") as language:
        yield encode, language


@pytest.fixture
def clients(pair: tuple[Station, Station]) -> Iterator[tuple[Client, Queues]]:
    with attach(pair[0].run_dir) as sending, attach(pair[1].run_dir) as client:
        yield sending, Queues(client)
    for node in pair:
        node.wait_idle()


@pytest.mark.parametrize(
    ("total", "path", "rounds"),
    [(500, ONE_ROUND, 1), (1024, ONE_ROUND, 1), (2000, RESUMED, 2), (10_000, RESUMED, 9)],
    ids=["scenario 1", "scenario 3", "scenario 2", "scenario 4"],
)
def test_a_request_arrives_from_another_host(
    pair: tuple[Station, Station],
    clients: tuple[Client, Queues],
    rooms: Iterator[int],
    total: int,
    path: list[str],
    rounds: int,
) -> None:
    """Scenarios 1 to 4, with the very path of phases, and every byte."""
    sending, queues = clients
    room = next(rooms)
    request = queues.add(pair[0].addr, room)
    wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens)
    sender = open_sender(sending, room, total)
    assert give(sender)
    received = queues.take(room, 30)
    assert (received.error, received.difference, received.path) == ("", "", path)
    assert received.rounds >= rounds
    assert ended(sender).path == path


def out_of_blocks(
    encode: Station, sending: Client, queues: Queues, rooms: Iterator[int], timeout_s: float
) -> tuple[int, EmbeddingSender, Holder]:
    """A request with 1024 of its 2000 tokens received from the other host, and not a block to be had for the rest."""
    holder, room = Holder(queues.client, encode.addr, next(rooms)), next(rooms)
    request = queues.add(encode.addr, room, timeout_s=timeout_s)
    wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens == 1024)
    holder.take_whatever_comes_free()
    sender = open_sender(sending, room, 2000)
    assert give(sender)
    pool = library_of(queues.client).attachment.control.blocks
    wait_until(lambda: request.transferred_tokens == 1024 and len(holder.blocks) == pool.num_blocks)
    wait_until(lambda: queues.client.lane in pool.waiters())
    return room, sender, holder


def test_out_of_blocks_a_request_waits_and_finishes_when_blocks_come_free(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """Scenario 5: what came from the other host is kept, and the rest comes after it."""
    sending, queues = clients
    room, sender, holder = out_of_blocks(pair[0], sending, queues, rooms, 60.0)
    assert queues.transfer.pop_transferred() == ([], [])
    assert sender.poll().name == "Transferring"
    holder.end()
    received = queues.take(room, 20)
    assert (received.error, received.difference, received.path) == ("", "", RESUMED)
    assert ended(sender).path == RESUMED


def test_out_of_blocks_a_request_fails_at_its_deadline_on_both_hosts(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """Scenario 5, D1: both are told who waited for what."""
    sending, queues = clients
    room, sender, holder = out_of_blocks(pair[0], sending, queues, rooms, 2.0)
    received, sent = queues.take(room, 20), ended(sender)
    assert (received.error, sent.error) == ("TransferTimeout", "TransferTimeout")
    assert received.reason == sent.reason
    assert (
        "deadline passed on the language side: sent 1024 granted 1024 of 2000 tokens, no block free" in received.reason
    )
    holder.end()


@pytest.fixture
def other_queues(pair: tuple[Station, Station], clients: tuple[Client, Queues]) -> Iterator[Queues]:
    """A second scheduler on the language node's host."""
    with attach(pair[1].run_dir) as client:
        yield Queues(client)


def test_all_destinations_of_a_request_get_every_byte(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], other_queues: Queues, rooms: Iterator[int]
) -> None:
    """Scenario 7: two schedulers share the pool of the other host, which holds neither of their requests whole."""
    sending, queues = clients
    room = next(rooms)
    for destination in (queues, other_queues):
        destination.add(pair[0].addr, room, required=2)
    sender = open_sender(sending, room, 5000)
    assert give(sender)
    for destination in (queues, other_queues):
        received = destination.take(room, 30)
        assert (received.error, received.difference, received.path) == ("", "", RESUMED)
    assert ended(sender).path == RESUMED


def test_one_destination_that_gives_up_fails_all_and_all_are_told_why(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], other_queues: Queues, rooms: Iterator[int]
) -> None:
    """Scenario 7, D11: over the cable, too, the reason reaches the sender and the other destination."""
    sending, queues = clients
    room = next(rooms)
    requests = [destination.add(pair[0].addr, room, required=2) for destination in (queues, other_queues)]
    sender = open_sender(sending, room, 3000)
    give(sender, 0, 1000)
    wait_until(lambda: sender.sent_tokens > 0, 20, lambda: sender)
    requests[1].abort("the second rank has no more memory")
    for destination in (queues, other_queues):
        received = destination.take(room, 20)
        assert (received.error, received.reason) == ("TransferAborted", "the second rank has no more memory")
    assert ended(sender).reason == "the second rank has no more memory"


def test_a_cable_that_is_out_for_a_moment_costs_time_and_no_request(
    places: Places, pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """P11, R24: what was under way is written again, what was said is said again."""
    sending, queues = clients
    room = next(rooms)
    queues.add(pair[0].addr, room)
    sender = open_sender(sending, room, 6000)
    give(sender, 0, 3000)
    wait_until(lambda: sender.sent_tokens > 0, 20)
    with cable_out(places.hosts["encode"]):
        give(sender, 3000)
        time.sleep(1.5)
        assert not sender.poll().is_terminal
    received = queues.take(room, 60)
    assert (received.error, received.difference) == ("", "")
    assert ended(sender).error == ""


@contextmanager
def cable_out(host: Host) -> Iterator[None]:
    pull(host)
    try:
        yield
    finally:
        plug(host)


def half_way(encode: Station, sending: Client, queues: Queues, room: int) -> EmbeddingSender:
    """A request of which some rows have landed, and others are yet to be written."""
    queues.add(encode.addr, room)
    sender = open_sender(sending, room, 3000)
    give(sender, 0, 2000)
    wait_until(lambda: sender.sent_tokens > 0, 20, lambda: sender)
    return sender


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("killed", "encode"),
        ("killed", "language"),
        pytest.param("stopped", "encode", marks=pytest.mark.storm),  # as silent as one that is cut off
        pytest.param("stopped", "language", marks=pytest.mark.storm),
        ("cut off", "encode"),
    ],
)
def test_when_a_node_is_lost_the_other_fails_its_requests_in_time(
    places: Places, pair: tuple[Station, Station], rooms: Iterator[int], how: str, lost: str
) -> None:
    """Scenario 6, P4, D10, R12: 1 s after a kill, `peer_timeout_s` + 1 s after it falls silent; with the reason, and no
    block is lost.

    Blocks that the lost node may still write to over the network are quarantined and counted, until a fence.
    """
    room = next(rooms)
    with (
        places.node(lost, f"{how[0]}{lost[0]}") as gone,
        attach((gone if lost == "encode" else pair[0]).run_dir) as sending,
        attach((pair[1] if lost == "encode" else gone).run_dir) as client,
    ):
        queues = Queues(client)
        encode, left = (gone, pair[1]) if lost == "encode" else (pair[0], pair[0])
        sender = half_way(encode, sending, queues, room)
        silenced: list[int] = []
        begun = time.monotonic()
        if how == "killed":
            gone.kill_group()
            limit_s = 1.0
        else:
            limit_s = PEER_TIMEOUT_S + 1.0
            if how == "stopped":
                silenced = [gone.node.pid, *gone.pids().values()]
                stop(*silenced)
            else:
                pull(places.hosts[lost])
        try:
            if lost == "encode":
                received = queues.take(room, 30)
                error, reason = received.error, received.reason
            else:
                outcome = ended(sender, 30)
                error, reason = outcome.error, outcome.reason
            took_s = time.monotonic() - begun
            assert error == "PeerLost"
            assert "is lost" in reason
            assert took_s < limit_s + SLACK_S
            left.wait_idle(20)  # the fence included
            if how == "cut off":  # the other side has noticed, too
                assert ended(sender, 30).error == "PeerLost"
        finally:
            for pid in silenced:
                os.kill(pid, signal.SIGCONT)
            plug(places.hosts[lost])
        sender.clear()
