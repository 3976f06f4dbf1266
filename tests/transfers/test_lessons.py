"""What went wrong in systems of this kind before, by its label, and a test that would fail if it came back.

Those of lifetimes are in `test_lessons_of_lifetimes.py`. Those that a scenario, a shortage, a destination or a death
proves are in the files of those names; labels are cited there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.carrying import carried
from support.direct import written
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.rows import arrived, difference, raw, rows_of
from support.scheduling import ByHand, Queues, aux_is_right
from support.waiting import wait_until

from embridge import Client, Phase
from embridge.allocator.records import Destination, Slot
from embridge.allocator.rings import Kick
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process

ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


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
    for _ in range(1000):
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
    assert carried(receiving, encode.addr, sending, other, 2000).difference == ""
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
        wait_until(lambda: events() and seen[-1][2] == end)  # noqa: B023
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
        rows = arrived(chunk)
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
    assert carried(receiving, encode.addr, sending, second, 3000).difference == ""
    received = receiving.take(first, 1)
    assert (received.difference, received.total) == ("", 3000)
    assert held.result is None


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
