"""The ranks of a language node, each in a process: one copy for all of them, one order everywhere, and deaths that are
told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import encoding, ranks, scheduling
from support.agents import Agent, running
from support.encoding import give, open_sender
from support.nodes import Station
from support.ranks import Seen, language_station
from support.rows import DELTA
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import attach, follow
from embridge.allocator.errors import NodeGoneError
from embridge.pipeline.inspection.node_status import node_status

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def place(shared_dir: Path) -> Iterator[Station]:
    """A language node with little host memory, all of which its ranks share."""
    with language_station(shared_dir / "r") as made:
        yield made


@pytest.fixture(scope="module")
def other_place(shared_dir: Path) -> Iterator[Station]:
    with language_station(shared_dir / "s") as made:
        yield made


@pytest.fixture(scope="module")
def agents() -> Iterator[list[Agent]]:
    """Four processes, one a rank: of a language node, of an encoder, or of both."""
    with ExitStack() as stack:
        yield [stack.enter_context(running(f"rank {rank}")) for rank in range(4)]


@pytest.fixture
def group(agents: list[Agent], place: Station, encode: Station) -> Iterator[Callable[..., list[Agent]]]:
    """Makes a group of the first agents: rank 0 and its followers. All have left afterwards, and everything is back."""
    places = []

    def start(num_ranks: int, members: list[Agent] | None = None, at: Station = place) -> list[Agent]:
        places.append(at)
        members = (members or agents)[:num_ranks]
        members[0].call(ranks.lead, at.run_dir, num_ranks)
        for rank, agent in enumerate(members[1:], 1):
            agent.call(ranks.join, at.run_dir, rank)
        return members

    yield start
    for at in places:
        for agent in agents:
            agent.call(ranks.leave, at.run_dir)
        at.wait_idle()
    for agent in agents:
        agent.call(encoding.leave, encode.run_dir)
    encode.wait_idle()


def copied_bytes(*stations: Station) -> int:
    """What the transfer workers of these nodes have written so far."""
    return sum(row["bytes_written"] for node in stations for row in node.control.metrics.all().values())


def pop_everywhere(members: list[Agent], at: Station, count: int) -> list[list[Seen]]:
    """Have all ranks pop so many requests, at the same time; they saw the same batches."""
    for agent in members[1:]:
        agent.start(ranks.pop_followed, at.run_dir, count)
    batches: list[list[Seen]] = members[0].call(ranks.pop, at.run_dir, count)
    for agent in members[1:]:
        assert agent.result() == batches, agent.name
    return batches


def check(batches: list[list[Seen]], totals: dict[int, int]) -> None:
    """All of these requests came, whole."""
    came = {request.room: request for batch in batches for request in batch}
    assert set(came) == set(totals)
    for room, total in totals.items():
        assert came[room] == Seen(room, total, "", (total, DELTA), "", "")


def test_all_ranks_get_every_byte_in_rank_0s_order_from_one_copy(
    encode: Station, place: Station, group: Callable[..., list[Agent]], rooms: Iterator[int]
) -> None:
    """B8, D16: four ranks; each saw rank 0's batches, failures among them, and what crossed between the nodes is one
    copy.
    """
    members = group(4)
    totals = {next(rooms): total for total in (1, 128, 500, 700, 1300, 2000, 90, 1024)}
    doomed = next(rooms)
    before = copied_bytes(encode)
    members[0].call(scheduling.request_many, place.run_dir, encode.addr, [*totals, doomed])
    members[0].call(scheduling.abort, place.run_dir, doomed, "the user went away")
    members[3].call(encoding.send_many, encode.run_dir, totals)
    batches = pop_everywhere(members, place, len(totals) + 1)
    failed = [request for batch in batches for request in batch if request.error]
    assert failed == [Seen(doomed, 0, "", (0, 0), "TransferAborted", "the user went away")]
    check([[request for request in batch if not request.error] for batch in batches], totals)
    one_copy = sum(totals.values()) * encode.geometry.token_bytes
    assert one_copy <= copied_bytes(encode) - before < 1.01 * one_copy
    members[0].call(ranks.wait_memory_free, place.run_dir)


def test_status_shows_the_ranks_and_how_far_each_is_behind(
    encode: Station, place: Station, rooms: Iterator[int]
) -> None:
    """B8: who is awaited, has joined, or has left; and what it has not taken from its log."""
    attached = attach(place.run_dir, num_ranks=3, group="shown")
    with attached as leader, attach(encode.run_dir) as sending:
        queues = Queues(leader)

        def shown() -> list[tuple[str, int]]:
            groups = node_status(place.run_dir)["groups"]
            assert {(rank["group"], rank["leader"]) for rank in groups} == {("shown", os.getpid())}
            return [(rank["state"], rank["unread_records"]) for rank in groups]

        assert shown() == [("AWAITED", 0), ("AWAITED", 0)]
        with follow(place.run_dir, rank=2, group="shown") as follower:
            assert shown() == [("AWAITED", 0), ("JOINED", 0)]
            assert node_status(place.run_dir)["groups"][1]["pid"] == os.getpid()
            room = next(rooms)
            queues.add(encode.addr, room)
            assert give(open_sender(sending, room, 100))
            request = queues.wait(room, 20)
            assert shown() == [("AWAITED", 1), ("JOINED", 1)]
            (finished, _) = follower.pop_transferred()
            assert shown() == [("AWAITED", 1), ("JOINED", 0)]
            finished[0].release()
            request.release()
            wait_until(lambda: node_status(place.run_dir)["groups"][1]["released"] == 1)
        wait_until(lambda: shown() == [("AWAITED", 1), ("LEFT", 0)])
    wait_until(lambda: node_status(place.run_dir)["groups"] == [])
    place.wait_idle()
    encode.wait_idle()


@pytest.mark.parametrize("num_senders", [1, 2, 4])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_any_pair_of_parallel_sizes_works(
    encode: Station,
    place: Station,
    agents: list[Agent],
    group: Callable[..., list[Agent]],
    rooms: Iterator[int],
    num_senders: int,
    num_ranks: int,
) -> None:
    """D17: encoders of 1, 2 and 4 ranks, each sending its own rooms, to language nodes of 1, 2 and 4 ranks."""
    members = group(num_ranks)
    totals = {next(rooms): 100 + 300 * number for number in range(4)}
    members[0].call(scheduling.request_many, place.run_dir, encode.addr, list(totals))
    for number, (room, total) in enumerate(totals.items()):
        agents[number % num_senders].call(encoding.send, encode.run_dir, room, total)
    check(pop_everywhere(members, place, len(totals)), totals)


def test_two_nodes_with_ranks_are_two_destinations(
    encode: Station,
    place: Station,
    other_place: Station,
    agents: list[Agent],
    group: Callable[..., list[Agent]],
    rooms: Iterator[int],
) -> None:
    """Scenario 7, B10, D16, D17: two ranks on each of two nodes; every rank has every byte, from one copy a node."""
    here, there = group(2, agents[:2], place), group(2, agents[2:], other_place)
    totals = {next(rooms): total for total in (300, 1500, 40)}
    before = copied_bytes(encode)
    for members, at in ((here, place), (there, other_place)):
        members[0].call(scheduling.request_many, at.run_dir, encode.addr, list(totals), required=2)
    agents[1].call(encoding.send_many, encode.run_dir, totals)
    for members, at in ((here, place), (there, other_place)):
        check(pop_everywhere(members, at, len(totals)), totals)
    one_copy = sum(totals.values()) * encode.geometry.token_bytes
    assert 2 * one_copy <= copied_bytes(encode) - before < 1.01 * 2 * one_copy


def test_a_follower_that_is_killed_holds_nothing_any_more(
    encode: Station, place: Station, agents: list[Agent], rooms: Iterator[int]
) -> None:
    """D14, P9: a "dead follower rank", by SIGKILL; it held results and had not read others.

    The rest go on, all memory comes back.
    """
    leader, survivor, sender = agents[:3]
    totals = {next(rooms): 600 for _ in range(6)}
    first, later = list(totals)[:3], list(totals)[3:]
    with running("doomed rank") as doomed:
        leader.call(ranks.lead, place.run_dir, 3)
        survivor.call(ranks.join, place.run_dir, 1)
        doomed.call(ranks.join, place.run_dir, 2)
        leader.call(scheduling.request_many, place.run_dir, encode.addr, list(totals))
        sender.call(encoding.send_many, encode.run_dir, dict.fromkeys(first, 600))
        doomed.start(ranks.pop_followed, place.run_dir, 2, keep=True)
        survivor.start(ranks.pop_followed, place.run_dir, 3)
        before = leader.call(ranks.pop, place.run_dir, 3)
        assert survivor.result() == before
        doomed.result()
        assert leader.call(ranks.memory, place.run_dir)[0] > 0
        doomed.kill()
    leader.call(ranks.wait_state, place.run_dir, 2, "left")
    leader.call(ranks.wait_memory_free, place.run_dir)
    sender.call(encoding.send_many, encode.run_dir, dict.fromkeys(later, 600))
    after = pop_everywhere([leader, survivor], place, 3)
    check([*before, *after], totals)
    leader.call(ranks.wait_memory_free, place.run_dir)
    for agent in (survivor, leader):
        agent.call(ranks.leave, place.run_dir)
    sender.call(encoding.leave, encode.run_dir)
    place.wait_idle()
    encode.wait_idle()


def test_followers_of_a_rank_0_that_is_killed_are_told_and_keep_what_they_hold(
    encode: Station, place: Station, agents: list[Agent], rooms: Iterator[int]
) -> None:
    """B8, P9: SIGKILL of rank 0 mid-stream; each follower saw a prefix of one order, and a new group begins at once."""
    followers, sender = agents[1:3], agents[3]
    totals = {next(rooms): 700 for _ in range(6)}
    with running("doomed rank 0") as doomed:
        doomed.call(ranks.lead, place.run_dir, 3)
        for rank, agent in enumerate(followers, 1):
            agent.call(ranks.join, place.run_dir, rank)
        doomed.call(scheduling.request_many, place.run_dir, encode.addr, list(totals))
        sender.call(encoding.send_many, encode.run_dir, dict.fromkeys(list(totals)[:3], 700))
        for agent in followers:
            agent.start(ranks.pop_followed, place.run_dir, 2, keep=True)
        doomed.call(ranks.pop, place.run_dir, 2)
        kept = [[request for batch in agent.result() for request in batch] for agent in followers]
        doomed.start(ranks.pop, place.run_dir, len(totals))  # it is in the middle of this
        for room in list(totals)[3:]:
            sender.call(encoding.send, encode.run_dir, room, 700)
        pid = doomed.pid
        doomed.kill()
    for agent in followers:
        agent.start(ranks.drain, place.run_dir)
    rest = [agent.result() for agent in followers]
    for (more, why), mine in zip(rest, kept, strict=True):
        assert why == f"rank 0 (process {pid}) is gone; start the whole group again"
        mine += more
    shorter, longer = sorted(kept, key=len)
    assert longer[: len(shorter)] == shorter
    check([longer], {request.room: 700 for request in longer})
    for agent, mine in zip(followers, kept, strict=True):
        assert agent.call(ranks.look_again, place.run_dir, mine[0].room) == mine[0]
        agent.call(ranks.leave, place.run_dir)
    sender.call(encoding.leave, encode.run_dir)
    place.wait_idle()
    encode.wait_idle()
    with attach(place.run_dir, num_ranks=2):
        follow(place.run_dir, rank=1).close()


def test_followers_of_a_node_that_is_killed_are_told(own_dir: Path) -> None:
    """P8, P9: every process of the node at once; a sleeping follower wakes."""
    with language_station(own_dir / "r") as at:  # noqa: SIM117
        with attach(at.run_dir, num_ranks=2), follow(at.run_dir, rank=1) as follower:
            assert not follower.poll()
            at.kill_group()
            at.node.wait(5.0)

            def told() -> str:
                try:
                    follower.poll()
                except NodeGoneError as error:
                    return str(error)
                return ""

            assert "is gone; start it and the whole group again" in wait_until(told, 5.0)
