"""What went wrong with lifetimes in systems of this kind before: requests, slots and blocks that did not end, or not
once, and connections.

Each test is named after its label, and would fail if it came back; see `test_lessons.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.carrying import carried
from support.encoding import ended, give, open_sender, through_workers
from support.nodes import Station
from support.scheduling import ByHand, Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, Phase
from embridge.pipeline.client.client import library_of
from embridge.workers.stderr import THREAD_NAME

pytestmark = pytest.mark.process


def test_d1_a_sender_whose_destination_never_comes_fails_at_its_deadline(
    encode: Station, sending: Client, room: int
) -> None:
    """D1: the deadline begins when the request is opened, not when it gets somewhere."""
    sender = open_sender(sending, room, 10, timeout_s=0.3)
    assert give(sender)
    sent = ended(sender, 5)
    assert (sent.error, sent.path) == ("TransferTimeout", ["Bootstrapping", "Failed"])
    assert sent.reason == "deadline passed on the encode side: 0 of unknown destinations had sent their init"


@pytest.mark.parametrize(
    ("addr", "waited"),
    [
        ("", "the encoder has not opened the room, or not all destinations have sent their init"),
        ("tcp://127.0.0.1:1", "no handshake with the encode node"),
    ],
    ids=["the encoder never comes", "nobody listens there"],
)
def test_d1_a_receiver_whose_encoder_never_comes_fails_at_its_deadline(
    encode: Station, receiving: Queues, room: int, addr: str, waited: str
) -> None:
    """D1, D10: neither the encoder's absence nor that of its node keeps anybody waiting."""
    receiving.add(addr or encode.addr, room, timeout_s=0.5)
    received = receiving.take(room, 5)
    assert (received.error, received.path) == ("TransferTimeout", ["Bootstrapping", "Failed"])
    assert received.reason == f"deadline passed on the language side: {waited}"


def test_d6_slots_and_blocks_of_300_requests_are_used_again(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D6, R17: a slot has an end: 300 requests, some of them aborted, go through no more than 64 slots on each side."""
    for turn in range(30):
        numbers = [next(rooms) for _ in range(10)]
        for room in numbers:
            receiving.add(encode.addr, room)
        senders = [open_sender(sending, room, 1 + room % 200) for room in numbers]
        for sender in senders[:-1]:
            assert give(sender)
        senders[-1].abort("not needed")
        for room, sender in zip(numbers, senders, strict=True):
            received = receiving.take(room, 20)
            # its init came after the end
            late = f"room {room} failed here before: not needed; a room number is used once"
            assert received.difference == ""
            assert received.reason in (("not needed", late) if room == numbers[-1] else ("",)), turn
            ended(sender)
    for station, client in ((encode, sending), (language, receiving.client)):
        station.wait_idle()
        assert len(library_of(client).attachment.control.lanes.pages_of(client.lane)) == 1


def test_d7_the_same_room_after_its_end_is_a_new_request(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """D7: neither the outcome nor a byte of the request before is taken for the new one's."""
    epochs = []
    for total in (1500, 700, 2100):
        request = EmbeddingRequest(room=room, bootstrap_addr=encode.addr)
        receiving.requests[room] = request
        receiving.prealloc.add(request)
        sender = open_sender(sending, room, total)
        assert request.phase_path() in ([], [Phase.Bootstrapping], [Phase.Bootstrapping, Phase.WaitingForInput])
        assert give(sender)
        received = receiving.take(room, 20)
        assert (received.difference, received.total) == ("", total)
        assert ended(sender).sent == total
        assert request.receiver is not None
        epochs.append((request.receiver.slot, request.receiver.epoch))
        wait_until(lambda: not encode.in_flight())
    assert len(set(epochs)) == 3


def test_d12_nothing_that_comes_late_changes_how_a_request_ended(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """D12, P17: Failed stays Failed though Success is stored over it, though rows land, though heartbeats repeat the
    phase before.
    """
    transfer = ByHand(receiving.client, encode.addr, room)
    receiver = transfer.receiver
    sender = open_sender(sending, room, 2000)
    transfer.grant(4, 512)
    wait_until(lambda: sender.poll() == receiver.poll() == Phase.WaitingForInput)
    receiver.abort("enough")
    give(sender)
    assert ended(receiver).reason == "enough"
    for handle, station in ((receiver, language), (sender, encode)):
        outcome = ended(handle)
        assert not station.control.status.advance(handle.slot, handle.epoch, Phase.Success, 2000, time.monotonic_ns())
        before = station.control.metrics.row(2)["messages_in"]
        wait_until(lambda: station.control.metrics.row(2)["messages_in"] >= before + 2)  # noqa: B023
        assert ended(handle) == outcome
        assert outcome.path[-1] == "Failed"
    receiver.clear()


def test_d13_blocks_are_not_held_while_an_encoder_encodes(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D13, D14: of a request that has got 1024 tokens and waits for its encoder, one block at most is not free to
    others' rows.
    """
    slow, quick = next(rooms), next(rooms)
    request = receiving.add(encode.addr, slow)
    slow_sender = open_sender(sending, slow, 5000)
    give(slow_sender, 0, 1024)
    wait_until(lambda: request.transferred_tokens == 1024)
    assert carried(receiving, encode.addr, sending, quick, 4000).difference == ""
    give(slow_sender, 1024)
    assert receiving.take(slow, 20).difference == ""


def test_d14_a_block_is_free_as_soon_as_its_rows_are_copied(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """D14: by hand, block by block; the receiver does not hold them until its end, nor the sender's side what
    was sent.
    """
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, 8 * 128)
    assert give(sender)
    transfer.grant(8, 1024)
    transfer.wait_sent(1024)
    free = library_of(receiving.client).attachment.control.blocks.counts().free
    for k in range(1, 8):
        assert transfer.copy_out(k * 128) == 1
        assert library_of(receiving.client).attachment.control.blocks.counts().free == free + k
    assert transfer.finish(1024).difference == ""
    wait_until(lambda: encode.counts().free == 16)


def written_by_each(station: Station) -> dict[str, int]:
    """Tokens that each transfer worker of a node has written, and its clients together."""
    rows = station.control.metrics.all().items()
    return {name: row["tokens_written"] for name, row in rows if "worker" in name or name == "clients"}


def test_d18_the_rooms_of_one_pair_of_nodes_are_shared_among_its_workers(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D18: sharded by room, not by peer: both transfer workers have moved rows."""
    before = written_by_each(encode)
    numbers = [next(rooms) for _ in range(4)]
    with through_workers(sending):
        for room in numbers:
            receiving.add(encode.addr, room)
            assert give(open_sender(sending, room, 500))
    for room in numbers:
        assert receiving.take(room, 20).difference == ""
    after = written_by_each(encode)
    assert {name: after[name] - before[name] for name in before if name != "clients"} == dict.fromkeys(
        ("worker0", "worker1"), 1000
    )


def threads_of(pid: int) -> list[str]:
    """The names of a process's threads, the main one without, nor the one that writes what the process says."""
    tasks = Path(f"/proc/{pid}/task")
    names = sorted(task.joinpath("comm").read_text().strip() for task in tasks.iterdir() if task.name != str(pid))
    return [name for name in names if name != THREAD_NAME]


def connections_of(pid: int) -> set[str]:
    """The sockets of established TCP connections that a process has open."""
    open_here = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            open_here.add(os.readlink(link))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    established = {f"socket:[{line.split()[9]}]" for table in tables for line in table if line.split()[3] == "01"}
    return open_here & established


def test_d19_a_connection_is_one_processs_and_one_threads(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """D19: of all processes of two nodes under way, only bootstrap and poller have connections, each its own; and they
    run no thread but ZeroMQ's own, and those that every process has (numpy's, of one that has no connection; the one
    that writes standard error).
    """
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 2000)
    assert give(sender, 0, 1000)
    wait_until(lambda: sender.sent_tokens == 1000)
    held: dict[str, str] = {}
    for it in (encode, language):
        for name, pid in it.pids().items():
            connections = connections_of(pid)
            assert bool(connections) == (name in ("bootstrap", "poller")), (name, connections)
            for connection in connections:
                owner = f"{it.control.role.name} {name}"
                assert held.setdefault(connection, owner) == owner
            if connections:
                assert threads_of(pid) == sorted(["ZMQbg/IO/0", "ZMQbg/Reaper", *threads_of(it.pid_of("worker0"))]), (
                    name
                )
    assert len(held) >= 4  # both ends of: bootstrap to bootstrap, poller to poller
    assert give(sender, 1000)
    assert receiving.take(room, 20).difference == ""
