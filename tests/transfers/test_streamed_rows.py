"""Rows that are read as they land, over real nodes: on the direct path, through the workers, and when somebody dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from support import encoding
from support.agents import running
from support.direct import wait_direct
from support.encoding import ended, give, open_sender, through_workers, wait_doors
from support.nodes import Station, every_engine, station
from support.rows import arrived, difference
from support.scheduling import Queues

from embridge import Client, EmbeddingRequest, attach
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128


def streamed(receiving: Queues, addr: str, room: int, *, keep: bool = False) -> EmbeddingRequest:
    request = EmbeddingRequest(room=room, bootstrap_addr=addr, is_streamed=True, keep_for_retry=keep)
    receiving.requests[room] = request
    receiving.prealloc.add(request)
    return request


def is_in_blocks(client: Client, request: EmbeddingRequest) -> bool:
    """Whether what is available are views of the payload."""
    payload = np.frombuffer(library_of(client).attachment.payload, np.uint8)
    at = request.available()[0].input_embeddings.data_ptr() - payload.ctypes.data
    return 0 <= at < payload.nbytes


def wrong(client: Client, request: EmbeddingRequest) -> str:
    """What is wrong with the rows that are available."""
    [chunk] = request.available()
    assert chunk.first == 0
    return difference(client.geometry, request.room, 0, arrived(chunk))


def sleep_until(receiving: Queues, request: EmbeddingRequest, tokens: int) -> None:
    """Sleep on the client's bell, as a scheduler does, until so many rows can be read; all that is shown is right."""
    deadline = time.monotonic() + 20
    while request.available_tokens < tokens:
        assert time.monotonic() < deadline, request
        assert receiving.client.wait(20), "nobody has rung"
        receiving.client.poll()
        for risen in receiving.transfer.pop_available():
            assert risen is request
            assert wrong(receiving.client, request) == ""


def test_rows_are_read_in_their_blocks_while_the_encoder_works(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R82: on the direct path, by a scheduler that sleeps; nothing is copied on its side."""
    receiving.add(encode.addr, known := next(rooms))
    assert give(open_sender(sending, known, 10))
    assert receiving.take(known, 20).difference == ""
    wait_doors(sending)
    request = streamed(receiving, encode.addr, room := next(rooms))
    sender = open_sender(sending, room, TOTAL)
    wait_direct(sender, TOTAL)
    receiving.client.poll()
    for end in (1, 127, 130, 300, 499):
        assert give(sender, sender.sent_tokens, end)
        assert sender.sent_tokens == end
        sleep_until(receiving, request, end)
        assert request.available_tokens == end
        assert is_in_blocks(receiving.client, request)
    begin = request.available()[0].input_embeddings.data_ptr()
    assert give(sender, 499)
    assert receiving.wait(room, 20).result is not None
    assert request.result is not None
    assert request.result.input_embeddings.data_ptr() == begin
    assert request.record.rows is None
    received = receiving.take(room, 20)
    assert (received.difference, received.total) == ("", TOTAL)
    assert ended(sender).error == ""


@every_engine
@pytest.mark.parametrize("total", [TOTAL, 20_000], ids=["granted at once", "resumed"])
def test_rows_are_read_as_a_worker_writes_them(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], total: int, engine: str
) -> None:
    """R82: in their blocks where all is granted on one host, else out of host memory, in which they do not move."""
    with through_workers(sending):
        sender = open_sender(sending, room := next(rooms), total, announce=total == TOTAL)
        request = streamed(receiving, encode.addr, room)
        begins: set[int] = set()
        for end in (total // 4, total // 2, total):
            assert give(sender, 0 if not begins else request.available_tokens, end)
            sleep_until(receiving, request, end)
            begins.add(request.available()[0].input_embeddings.data_ptr())
        assert len(begins) == 1
        assert is_in_blocks(receiving.client, request) == (engine == "shm" and total == TOTAL)
        received = receiving.take(room, 20)
        assert (received.error, received.difference, received.total) == ("", "", total)


@pytest.mark.parametrize("keep", [False, True], ids=["lent", "kept for a retry"])
def test_what_was_read_of_a_dead_encoder_stays_right_whatever_comes_after(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int], keep: bool
) -> None:
    """R82, P6, P7: until it is released, though its blocks would be others' otherwise; these fill all that is free."""
    with running("doomed encoder") as agent:
        request = streamed(receiving, encode.addr, room := next(rooms), keep=keep)
        agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
        agent.call(encoding.write, room, 0, 300)
        sleep_until(receiving, request, 300)
        assert is_in_blocks(receiving.client, request) != keep
        agent.process.kill()
        agent.process.join()
    assert receiving.wait(room, 20).failure is not None
    for _ in range(2 * language.control.blocks.num_blocks // 4):
        receiving.add(encode.addr, other := next(rooms))
        assert give(open_sender(sending, other, TOTAL))
        assert receiving.take(other, 20).difference == ""
        assert wrong(receiving.client, request) == ""
    assert request.available_tokens == 300
    request.release()
    language.wait_idle()
    encode.wait_idle()


def test_a_request_that_is_read_on_goes_on_from_another_node(
    encode: Station, own_dir: Path, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R82, R26: what had come stays where it is, and is not sent again but for the block that was not whole."""
    room = next(rooms)
    with station("encode", own_dir / "e", deepstack_layers=3) as doomed, attach(doomed.run_dir) as client:
        request = streamed(receiving, doomed.addr, room, keep=True)
        sender = open_sender(client, room, TOTAL)
        assert give(sender, 0, 300)
        sleep_until(receiving, request, 300)
        begin = request.available()[0].input_embeddings.data_ptr()
        doomed.kill_group()
        receiving.wait(room, 20)
        assert request.is_retryable, request.why_not_retryable
        del receiving.done[room]
        receiving.prealloc.retry(request, encode.addr)
        assert request.available_tokens == 256
        assert wrong(receiving.client, request) == ""
        assert give(open_sender(sending, room, TOTAL))
        result = receiving.wait(room, 20).result
        assert result is not None
        assert result.input_embeddings.data_ptr() == begin
        assert receiving.take(room, 20).difference == ""


def test_the_language_node_dies_under_somebody_who_reads(
    encode: Station, own_dir: Path, sending: Client, rooms: Iterator[int]
) -> None:
    """R82: the request fails, and the rows that were shown stay until it is released."""
    with station("language", own_dir / "l", deepstack_layers=3) as doomed, attach(doomed.run_dir) as client:
        queues = Queues(client)
        request = streamed(queues, encode.addr, room := next(rooms))
        sender = open_sender(sending, room, TOTAL)
        assert give(sender, 0, 300)
        sleep_until(queues, request, 300)
        doomed.kill_group()
        queues.wait(room, 20)
        assert request.failure is not None
        assert wrong(client, request) == ""
        request.release()
    ended(sender)
