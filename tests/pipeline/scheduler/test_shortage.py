"""Scenario 5 and what else happens when blocks or host memory are short: waiting, in order, with a deadline, losing
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.encoding import ended, give, open_sender
from support.nodes import Station, every_engine
from support.rows import arrived, difference
from support.scheduling import Holder, Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, EmbeddingSender
from embridge.pipeline.client.client import library_of

pytestmark = [pytest.mark.process, every_engine]

TOTAL, FIRST = 2000, 1024
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


@pytest.fixture
def holder(encode: Station, receiving: Queues, room: int) -> Iterator[Holder]:
    held = Holder(receiving.client, encode.addr, room)
    yield held
    held.end()


def out_of_blocks(
    encode: Station, sending: Client, receiving: Queues, holder: Holder, room: int, *, timeouts_s: tuple[float, float]
) -> tuple[EmbeddingRequest, EmbeddingSender]:
    """A request with 1024 of its 2000 tokens received, and not a block to be had for the rest."""
    request = receiving.add(encode.addr, room, timeout_s=timeouts_s[0])
    wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens == FIRST)
    holder.take_whatever_comes_free()
    sender = open_sender(sending, room, TOTAL, timeout_s=timeouts_s[1])
    assert give(sender)
    num_blocks = library_of(receiving.client).attachment.control.blocks.num_blocks
    wait_until(lambda: request.transferred_tokens == FIRST and len(holder.blocks) == num_blocks)
    wait_until(lambda: receiving.client.lane in library_of(receiving.client).attachment.control.blocks.waiters())
    return request, sender


def test_out_of_blocks_at_a_resume_a_request_waits_keeps_what_came_and_finishes_when_blocks_come_free(
    encode: Station, sending: Client, receiving: Queues, holder: Holder, rooms: Iterator[int]
) -> None:
    """Scenario 5, B11: a momentary shortage fails nothing; the rows that came stay where they were copied to."""
    room = next(rooms)
    request, sender = out_of_blocks(encode, sending, receiving, holder, room, timeouts_s=(60, 60))
    assert request.receiver is not None
    assert request.needs_resume
    assert request.receiver.poll().name == sender.poll().name == "Transferring"
    kept = request.buffered_chunks
    assert [(chunk.first, chunk.end) for chunk in kept] == request.chunk_info
    assert (kept[0].first, kept[-1].end) == (0, FIRST)
    for chunk in kept:
        rows = arrived(chunk)
        assert difference(encode.geometry, room, chunk.first, rows) == ""
    assert receiving.transfer.pop_transferred() == ([], [])
    assert request.receiver.granted_tokens == FIRST
    holder.end()
    received = receiving.take(room, 20)
    assert (received.difference, received.path) == ("", RESUMED)
    assert ended(sender).path == RESUMED


@pytest.mark.parametrize(("side", "timeouts_s"), [("language", (2.0, 60.0)), ("encode", (60.0, 2.0))])
def test_a_request_that_waits_for_blocks_beyond_its_deadline_fails_on_both_sides(
    encode: Station,
    sending: Client,
    receiving: Queues,
    holder: Holder,
    rooms: Iterator[int],
    side: str,
    timeouts_s: tuple[float, float],
) -> None:
    """Scenario 5, D1: whichever side's deadline passes first, both are Failed and say which one it was and what it
    waited for.
    """
    room = next(rooms)
    _, sender = out_of_blocks(encode, sending, receiving, holder, room, timeouts_s=timeouts_s)
    received, sent = receiving.take(room, 20), ended(sender)
    assert received.error == sent.error == "TransferTimeout"
    assert received.reason == sent.reason
    assert f"deadline passed on the {side} side: sent" in received.reason
    assert "no block free" in received.reason or side == "encode"
    assert received.path == sent.path == [*RESUMED[:-1], "Failed"]
    holder.end()
    encode.wait_idle()


def test_of_those_who_wait_for_blocks_the_first_to_come_is_the_first_to_be_served(
    encode: Station, sending: Client, receiving: Queues, holder: Holder, rooms: Iterator[int]
) -> None:
    """D9, R22: one block comes free; a request of 3000 tokens goes through it before one of 100 tokens that
    came later.
    """
    holder.take(64)
    large, small = next(rooms), next(rooms)
    requests = [receiving.add(encode.addr, room) for room in (large, small)]
    senders = [open_sender(sending, room, total) for room, total in ((large, 3000), (small, 100))]
    assert all(give(sender) for sender in senders)
    wait_until(lambda: all(r.receiver is not None and r.receiver.ready_tokens for r in requests))
    assert [r.receiver.granted_tokens for r in requests if r.receiver] == [0, 0]
    holder.give_back(holder.blocks[-1])
    first, second = receiving.take(large, 20), receiving.take(small, 20)
    assert first.difference == second.difference == ""
    assert receiving.order == [large, small]
    assert first.ended_ns < second.ended_ns
    assert first.rounds == -(-3000 // 128)


def test_a_request_that_has_no_rows_yet_does_not_stop_those_behind_it(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R21, R22: the last block goes to whom rows wait for, so a slow encoder at the head delays nobody."""
    slow, quick = next(rooms), next(rooms)
    request = receiving.add(encode.addr, slow)
    wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens == FIRST)
    receiving.add(encode.addr, quick)
    sender = open_sender(sending, quick, 1500)
    assert give(sender)
    assert receiving.take(quick, 20).difference == ""
    late = open_sender(sending, slow, TOTAL)
    assert give(late)
    assert receiving.take(slow, 20).difference == ""


def test_a_request_that_can_never_fit_into_host_memory_is_refused_at_once_on_both_sides(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D9: what is impossible fails when its length is known, and does not wait; one that just fits passes."""
    limit = receiving.transfer.memory.limit_bytes = receiving.transfer.memory.bytes_for(1500)
    room, fits = next(rooms), next(rooms)
    for number in (room, fits):
        receiving.add(encode.addr, number)
    sender = open_sender(sending, room, 1501, announce=True)
    received, sent = receiving.take(room, 20), ended(sender)
    assert received.reason == sent.reason
    assert f"1501 tokens need {receiving.transfer.memory.bytes_for(1501)} bytes of host memory > {limit}" in sent.reason
    other = open_sender(sending, fits, 1500)
    assert give(other)
    assert receiving.take(fits, 20).difference == ""
