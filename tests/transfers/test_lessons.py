"""What went wrong in systems of this kind before, by its label, and a test that would fail if it came back.

Those that a scenario, a shortage, a destination or a death proves are in the files of those names; labels are cited
there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.rows import Rows, difference, raw, rows_of
from support.scheduling import ByHand, Queues, aux_is_right
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, Phase
from embridge.allocator.records import Destination, Slot
from embridge.allocator.rings import Kick
from embridge.pipeline.client.client import library_of
from embridge.workers.stderr import THREAD_NAME

pytestmark = pytest.mark.process

ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


def written(station: Station) -> dict[str, int]:
    """Tokens that each transfer worker of a node has written."""
    return {name: row["tokens_written"] for name, row in station.control.metrics.all().items() if "worker" in name}


def test_b1_a_resume_raises_what_is_granted_and_lowers_nothing(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """B1: between the end of a round and the next, both sides are Transferring, and stay it when the resume is sent."""
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, 600)
    assert give(sender)
    transfer.grant(1, 128)
    transfer.wait_sent(128)
    assert transfer.end_round() == "Transferring"
    transfer.copy_out(128)
    wait_until(lambda: sender.poll() == Phase.Transferring)
    words = [handle.progress() for handle in (sender, transfer.receiver)]
    transfer.grant(4, 472)
    while not transfer.receiver.poll().is_terminal:
        now = [handle.progress() for handle in (sender, transfer.receiver)]
        assert all(new >= old for new, old in zip(now, words, strict=True))
        assert all(Phase(word.phase) in (Phase.Transferring, Phase.Success) for word in now)
        words = now
    assert transfer.finish(600).difference == ""


def test_b2_a_partial_round_is_never_success(encode: Station, sending: Client, receiving: Queues, room: int) -> None:
    """B2, R4: the sender gave all its rows, the receiver got all it had granted: that is not the end on either side."""
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, 129)
    assert give(sender)
    transfer.grant(1, 128)
    transfer.wait_sent(128)
    wait_until(lambda: sender.sent_tokens == 128)
    beats = encode.control.metrics.row(2)["messages_out"]
    # heartbeats repeat what is, and no more
    wait_until(lambda: encode.control.metrics.row(2)["messages_out"] >= beats + 3)
    assert sender.poll() == transfer.receiver.poll() == Phase.Transferring
    transfer.grant(1, 1)
    assert transfer.finish(129).path == ended(sender).path == RESUMED


@pytest.mark.parametrize(
    ("total", "grants"),
    [(1000, [(3, 300), (5, 616)]), (1000, [(1, 1), (1, 1), (6, 744)]), (384, [(3, 257), (1, 1)])],
)
def test_b3_a_grant_is_what_the_message_says_and_no_default(
    encode: Station, sending: Client, receiving: Queues, room: int, total: int, grants: list[tuple[int, int]]
) -> None:
    """B3, B6, R3: grants of any size, ending inside a block; what is granted there later lands behind what is there
    already.
    """
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, total)
    assert give(sender)
    for i, (blocks, tokens) in enumerate(grants):
        transfer.grant(blocks, tokens)
        end = min(transfer.receiver.granted_tokens, total)
        transfer.wait_sent(end)
        if i < len(grants) - 1:
            held = transfer.receiver.granted_blocks - transfer.receiver.drained_blocks
            freed = transfer.copy_out(end)
            assert freed == held - (end % 128 > 0 and end < total)
    received = transfer.finish(total)
    assert (received.difference, received.path, received.rounds) == (
        "",
        RESUMED if len(grants) > 1 else ONE_ROUND,
        len(grants),
    )
    assert ended(sender).error == ""


def test_b4_what_is_sent_twice_or_kicked_a_thousand_times_moves_once(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """B4, R16: a second `send_embedding` is refused, and a kick only says "look": every token is written
    exactly once.
    """
    before = sum(written(encode).values())
    request = receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 10_000)
    rows = rows_of(encode.geometry, room, 0, 10_000)
    assert sender.send_embedding(*rows)
    assert not sender.send_embedding(*rows)
    while not sender.poll().is_terminal:
        library_of(sending).attachment.kick_worker(room, sender.slot, sender.epoch)
        library_of(sending).attachment.kick_bootstrap(Kick.LOOK, sender.slot, sender.epoch)
        if request.receiver is not None:
            library_of(receiving.client).attachment.kick_bootstrap(
                Kick.GRANT, request.receiver.slot, request.receiver.epoch
            )
    assert receiving.take(room, 20).difference == ""
    assert not sender.send_embedding(*rows)
    assert sum(written(encode).values()) == before + 10_000


def test_b6_a_wrong_grant_fails_its_request_and_nothing_else(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """B6, D4: two blocks that claim to hold 999 tokens; no process dies of it, and the next request arrives."""
    room, other = next(rooms), next(rooms)
    restarts = encode.restarts()
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, 2000)
    assert give(sender)
    transfer.grant(1, 128)
    transfer.wait_sent(128)
    slot, slots = transfer.receiver.slot, library_of(receiving.client).attachment.control.slots
    library_of(receiving.client).windows.set(slot, 1, int(transfer.receiver.allocate(1)[0]))
    slots.raise_to(slot, Slot.GRANTED, 2 << 32 | 999)
    library_of(receiving.client).attachment.kick_bootstrap(Kick.GRANT, slot, transfer.receiver.epoch)
    for outcome in (ended(transfer.receiver), ended(sender)):
        assert "allocated_tokens 999 does not end in the last of 2 blocks of 128 tokens" in outcome.reason
    transfer.receiver.clear()
    receiving.add(encode.addr, other)
    assert give(open_sender(sending, other, 2000))
    assert receiving.take(other, 20).difference == ""
    assert encode.restarts() == restarts


def test_b7_the_length_is_known_before_any_block_and_whatever_blocks_hold(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """B7, R19: every block's aux says 99 tokens; the length comes with the messages, to a request that was granted no
    block.
    """
    library_of(receiving.client).attachment.buffers.aux_datas[:] = 99
    transfer = ByHand(receiving.client, encode.addr, room)
    receiver = transfer.receiver
    wait_until(lambda: receiver.handshake_done)
    receiver.init([], 0)
    sender = open_sender(sending, room, 300)
    assert give(sender)
    wait_until(lambda: receiver.total_embedding_length and receiver.ready_tokens == 300)
    assert receiver.total_embedding_length == 300
    assert (receiver.granted_blocks, receiver.sent_tokens) == (0, 0)
    transfer.grant(3, 300)
    received = transfer.finish(300)
    assert aux_is_right(received)
    assert (received.difference, received.path) == ("", ONE_ROUND)


def test_b9_progress_is_an_event_that_is_seen_once(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """B9: each rise of the status comes out of one `poll`, though every round lands in the very same block."""
    client = receiving.client
    transfer = ByHand(client, encode.addr, room)
    receiver = transfer.receiver
    seen: list[tuple[int, ...]] = []

    def events() -> int:
        rose = client.poll()
        seen.extend(handle.progress() for handle in rose)
        return len(rose)

    sender = open_sender(sending, room, 4 * 128)
    assert give(sender)
    blocks = set()
    for end in (128, 256, 384, 512):
        transfer.grant(1, 128)
        blocks |= set(receiver.current_allocation().tolist())
        wait_until(lambda: events() and receiver.sent_tokens == end)  # noqa: B023
        deadline = time.monotonic() + 0.3  # longer than the slow look at all words
        while time.monotonic() < deadline:
            assert events() == 0
        assert receiver.needs_resume == (end < 512)
        transfer.copy_out(end)
    assert len(blocks) == 1
    assert seen == sorted(set(seen))
    assert [word[2] for word in seen][-4:] == [128, 256, 384, 512]
    received = transfer.finish(512)
    assert (received.difference, received.rounds) == ("", 4)
    assert sender.poll() == Phase.Success


def test_b9_every_row_is_copied_out_once_and_in_order(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """B9, D20: the chunks of a request with many resumes are its rows, each once; deepstack rows are among them in
    every round.
    """
    request = receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 7777)
    assert give(sender)
    receiving.wait(room, 20)
    assert request.result is not None
    ends = [0, *(end for _, end in request.chunk_info)]
    assert [first for first, _ in request.chunk_info] == ends[:-1]
    assert ends[-1] == request.transferred_tokens == 7777
    assert request.num_rounds >= 7
    for chunk in request.buffered_chunks:
        rows = Rows(chunk.input_embeddings, chunk.fill_ids, chunk.mrope_positions, chunk.deepstack_embeddings)
        assert difference(encode.geometry, room, chunk.first, rows) == ""
    expected = rows_of(encode.geometry, room, 0, 7777).deepstack_embeddings
    assert expected is not None
    assert request.result.deepstack_embeddings is not None
    assert raw(request.result.deepstack_embeddings) == raw(expected)
    assert receiving.take(room, 1).difference == ""


def test_b12_a_result_does_not_change_when_its_blocks_are_used_again(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """B12, D14: all blocks are free again while the result is held, and filling them with something else leaves it as
    it is.
    """
    first, second = next(rooms), next(rooms)
    held = receiving.add(encode.addr, first)
    assert give(open_sender(sending, first, 3000))
    receiving.wait(first, 20)
    pool = library_of(receiving.client).attachment.control.blocks
    wait_until(lambda: pool.counts().free == pool.num_blocks)
    assert held.result is not None
    library_of(receiving.client).attachment.buffers.input_embeddings.view(torch.uint8).fill_(0xA5)
    library_of(receiving.client).attachment.buffers.fill_ids[:] = -1
    receiving.add(encode.addr, second)
    assert give(open_sender(sending, second, 3000))
    assert receiving.take(second, 20).difference == ""
    received = receiving.take(first, 1)
    assert (received.difference, received.total) == ("", 3000)
    assert held.result is None


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
    receiving.add(encode.addr, quick)
    assert give(open_sender(sending, quick, 4000))
    assert receiving.take(quick, 20).difference == ""
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


def test_d18_the_rooms_of_one_pair_of_nodes_are_shared_among_its_workers(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D18: sharded by room, not by peer: both transfer workers have moved rows."""
    before = written(encode)
    numbers = [next(rooms) for _ in range(4)]
    for room in numbers:
        receiving.add(encode.addr, room)
        assert give(open_sender(sending, room, 500))
    for room in numbers:
        assert receiving.take(room, 20).difference == ""
    after = library_of(sending).attachment.control.metrics.all()
    assert {name: after[name]["tokens_written"] - before[name] for name in before} == {"worker0": 1000, "worker1": 1000}


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


def test_d20_deepstack_rows_of_every_round_arrive(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """D20: what comes with each round is looked at in the blocks themselves, deepstack rows first among them."""
    transfer = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, 300)
    assert give(sender)
    buffers = library_of(receiving.client).attachment.buffers
    for first, end in ((0, 128), (128, 256), (256, 300)):
        transfer.grant(1, end - first)
        transfer.wait_sent(end)
        block = transfer.receiver.block_of(first // 128)
        expected = rows_of(encode.geometry, room, first, end).deepstack_embeddings
        assert expected is not None
        assert buffers.deepstack_embeddings is not None
        assert raw(buffers.deepstack_embeddings[block][: end - first]) == raw(expected)
        if end < 300:
            transfer.copy_out(end)
    assert transfer.finish(300).difference == ""


def test_the_tail_of_a_partly_filled_block_is_not_touched(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R3: rows that the request does not have do not travel; what stood in the block stays."""
    client = receiving.client
    library_of(client).attachment.buffers.fill_ids[:] = -5
    transfer = ByHand(client, encode.addr, room)
    sender = open_sender(sending, room, 200)
    assert give(sender)
    transfer.grant(2, 256)
    transfer.wait_sent(200)
    assert np.all(library_of(client).attachment.buffers.fill_ids[transfer.receiver.block_of(1)][200 - 128 :] == -5)
    assert library_of(sending).attachment.control.destinations.get(sender.slot, 0, Destination.SENT) in (0, 200)
    assert transfer.finish(200).difference == ""
