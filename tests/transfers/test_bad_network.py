"""Real nodes whose control messages are lost, doubled, delayed and reordered: nothing changes but time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import pytest
from support.bad_network import BadNetwork
from support.encoding import ended, give, open_sender
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, attach
from embridge.workers.transfer.engines import mooncake

NO_MOONCAKE = mooncake.why_unavailable()
pytestmark = pytest.mark.process

SEEDS_A_TEST = 10
MOST_SEEDS = 20  # the others are a storm
PATHS = (
    ["Bootstrapping", "WaitingForInput", "Success"],
    ["Bootstrapping", "WaitingForInput", "Transferring", "Success"],
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    engine = "shm" if NO_MOONCAKE else "mooncake"  # with sessions there is more that may get lost
    settings: Settings = {"num_blocks": 6, "block_size": 32, "resend_s": 0.1, "heartbeat_s": 0.05, "engine": engine}
    with (
        run_dirs() as path,
        station("encode", path / "e", **settings) as encode,
        station("language", path / "l", default_allocate_tokens=64, **settings) as language,
    ):
        yield encode, language


def _knows_nobody(node: Station) -> bool:
    return not node.control.peers.alive()


@pytest.fixture
def network(pair: tuple[Station, Station]) -> Iterator[BadNetwork]:
    with BadNetwork(*pair) as network:
        yield network
    for node in pair:  # the ports at which each knew the other are closed: to both it is as if the other had died
        wait_until(partial(_knows_nobody, node))


@pytest.fixture
def clients(pair: tuple[Station, Station], network: BadNetwork) -> Iterator[tuple[Client, Queues]]:
    with attach(pair[0].run_dir) as sending, attach(pair[1].run_dir) as client:
        yield sending, Queues(client)


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.storm] if n >= MOST_SEEDS else []) for n in range(0, 50, SEEDS_A_TEST)]
)
def test_lost_doubled_delayed_and_reordered_messages_change_nothing_but_time(
    pair: tuple[Station, Station], network: BadNetwork, clients: tuple[Client, Queues], rooms: Iterator[int], first: int
) -> None:
    """R24, P17, B4, D12: ten seeds, each with requests of several rounds at once, and one that is aborted on
    its way.
    """
    sending, queues = clients
    for seed in range(first, first + SEEDS_A_TEST):
        network.begin(seed)
        rng = random.Random(seed)
        totals = {next(rooms): rng.randint(1, 600) for _ in range(3)}
        senders = {}
        for room, total in totals.items():
            if rng.random() < 0.5:
                queues.add(network.addr, room)
                senders[room] = open_sender(sending, room, total)
            else:
                senders[room] = open_sender(sending, room, total)
                queues.add(network.addr, room)
            give(senders[room])
        doomed = rng.choice(list(totals))
        queues.requests[doomed].abort("somebody changed their mind")
        for room, total in totals.items():
            received, sent = queues.take(room, 30), ended(senders[room])
            if room == doomed and received.error:
                assert received.error == "TransferAborted"
                assert sent.path[-1] == "Success" or sent.reason == "somebody changed their mind", (seed, room, sent)
                continue
            assert (received.error, received.difference, received.total) == ("", "", total), (seed, room, received)
            assert received.path in PATHS, (seed, room)
            assert sent.error == "", (seed, room)
    for node in pair:
        node.wait_idle()
    assert all(network.faults[fault] for fault in ("lost", "doubled", "delayed"))
