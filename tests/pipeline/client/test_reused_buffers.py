"""P22, between two nodes: rows are the caller's again when the call returns, or the call said that they are lent and
tells when not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from support.encoding import ended, open_sender
from support.nodes import Station, every_engine
from support.rows import Rows, rows_of
from support.scheduling import Queues
from support.waiting import grows, wait_until

from embridge import Client, EmbeddingSender, NodeBusyError, attach
from embridge.allocator.records import Lane, LaneState
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.given_rows import Chunk
from embridge.pipeline.client.kept_rows import Piece
from embridge.pipeline.inspection.node_status import node_status

pytestmark = [pytest.mark.process, every_engine]

Pair = tuple[Station, Station]


@pytest.fixture(scope="session")
def plain(stations: Callable[..., Station], engine: str) -> Pair:
    """An encode node of 8 blocks, with room for 16 MiB of rows beside them, and a language node of 9."""
    encode = stations("encode", "given-e", engine, num_blocks=8, unsent_max_bytes=16 << 20)
    return encode, stations("language", "l", engine, num_blocks=9, default_allocate_tokens=1024)


@pytest.fixture(scope="session")
def verified(stations: Callable[..., Station], engine: str) -> Pair:
    """Two nodes that check rows."""
    encode = stations("encode", "verifying-e", engine, num_blocks=16, verify=True)
    return encode, stations("language", "verifying-l", engine, num_blocks=9, default_allocate_tokens=1024, verify=True)


@pytest.fixture(params=["plain", "verified"])
def nodes(request: pytest.FixtureRequest, plain: Pair, verified: Pair) -> Pair:
    return plain if request.param == "plain" else verified


class Buffers:
    """One set of tensors for all rows that an encoder makes, as a model's output buffers are."""

    def __init__(self, client: Client, most: int) -> None:
        self._geometry = client.geometry
        self._rows = rows_of(client.geometry, 0, 0, most)

    def fill(self, room: int, first: int, end: int) -> Rows:
        """The rows of a room, in the memory in which those of before were."""
        made = rows_of(self._geometry, room, first, end)
        views = self._rows.cut(end - first)
        for view, rows in zip(views, made, strict=True):
            if view is not None and rows is not None:
                view.copy_(rows)
        return views

    def spoil(self) -> None:
        for buffer in self._rows:
            if buffer is not None:
                buffer.zero_()


@pytest.mark.parametrize("step", [20_000, 3000, 77])
def test_buffers_that_are_overwritten_at_once_harm_no_byte(
    nodes: Pair, rooms: Iterator[int], step: int
) -> None:
    """P22, P6: 20 000 rows through 8 or 16 blocks, and through 9."""
    encode, language = nodes
    total = 20_000 if step > 100 else 3000
    room = next(rooms)
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        queues, buffers = Queues(receiving), Buffers(sending, step)
        sender = open_sender(sending, room, total, announce=True)
        queues.add(encode.addr, room)
        first = 0
        while first < total:
            rows = buffers.fill(room, first, min(first + step, total))
            try:
                assert sender.write(first, *rows)
            except NodeBusyError:  # of the limit of 16 MiB: it is written again when rows have gone
                wait_until(grows(lambda: sender.sent_tokens), 20, lambda: f"{sender} goes on")
                continue
            finally:
                buffers.spoil()
            first += len(rows.fill_ids)
        received = queues.take(room, 30)
        assert (received.error, received.difference, received.total) == ("", "", total)
        assert ended(sender).error == ""
        wait_until(lambda: encode.control.lanes.unsent_bytes() == 0)
    encode.wait_idle()
    language.wait_idle()


def test_one_buffer_serves_many_requests_that_wait_for_one_another(
    nodes: Pair, rooms: Iterator[int]
) -> None:
    """P22, R21, D8: all are written before any has a destination; more than the pool holds, and taken in
    another order.
    """
    encode, language = nodes
    ours = [next(rooms) for _ in range(6)]
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        queues, buffers = Queues(receiving), Buffers(sending, 1500)
        senders = {}
        for room in ours:
            senders[room] = open_sender(sending, room, 1500)
            assert senders[room].send_embedding(*buffers.fill(room, 0, 1500))
            buffers.spoil()
        assert node_status(encode.run_dir)["unsent_bytes"] > 0
        for room in reversed(ours):
            queues.add(encode.addr, room)
        assert {room: queues.take(room, 30).difference for room in ours} == dict.fromkeys(ours, "")
        wait_until(lambda: encode.control.lanes.unsent_bytes() == 0)
    encode.wait_idle()
    language.wait_idle()


def _set(event: threading.Event, _: EmbeddingSender) -> None:
    event.set()


def test_rows_that_were_lent_come_back_with_a_call(
    nodes: Pair, rooms: Iterator[int]
) -> None:
    """P22, R8: nothing is copied, and the caller is told once, when it is `done`."""
    encode, language = nodes
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        queues, buffers = Queues(receiving), Buffers(sending, 4000)
        for _ in range(3):
            room, is_back = next(rooms), threading.Event()
            sender = open_sender(sending, room, 4000)
            assert sender.send_embedding(*buffers.fill(room, 0, 4000), borrow=True)
            assert encode.control.lanes.unsent_bytes() == 0
            sender.add_done_callback(partial(_set, is_back))
            assert not sender.done
            queues.add(encode.addr, room)
            assert is_back.wait(30)
            assert sender.done
            buffers.spoil()
            assert queues.take(room, 20).difference == ""
    encode.wait_idle()
    language.wait_idle()


@pytest.mark.parametrize("how", ["abort", "close", "deadline"])
def test_rows_that_were_lent_come_back_whatever_the_end(
    plain: Pair, rooms: Iterator[int], how: str
) -> None:
    """P22: also where nobody ever came for them."""
    encode, _ = plain
    called: list[EmbeddingSender] = []
    with attach(encode.run_dir) as sending:
        room = next(rooms)
        sender = open_sender(sending, room, 1000, timeout_s=0.5 if how == "deadline" else None)
        sender.add_done_callback(called.append)
        assert sender.send_embedding(*rows_of(sending.geometry, room, 0, 1000), borrow=True)
        assert not called
        if how == "abort":
            sender.abort()
        if how != "close":
            wait_until(lambda: called)
    assert called == [sender]
    assert sender.done
    encode.wait_idle()


def test_a_seat_is_not_given_up_while_another_thread_writes(plain: Pair, rooms: Iterator[int]) -> None:
    """P22, D2: its blocks would be another client's, and the copy would go into them."""
    encode, _ = plain
    client = attach(encode.run_dir)
    sender = open_sender(client, next(rooms), 1000)
    put, is_writing, go_on = sender.stock.kept.put, threading.Event(), threading.Event()

    def put_late(chunk: Chunk, rooms: dict[int, Piece]) -> None:
        is_writing.set()
        assert go_on.wait(30)
        put(chunk, rooms)

    sender.stock.kept.put = put_late  # type: ignore[method-assign]
    rows = rows_of(client.geometry, sender.room, 0, 1000)
    writer = threading.Thread(target=lambda: sender.write(0, *rows))
    closer = threading.Thread(target=client.close)
    writer.start()
    assert is_writing.wait(30)
    closer.start()
    wait_until(lambda: not any(thread.is_alive() for thread in library_of(client).attachment.threads))
    held = encode.counts().owned
    assert (closer.is_alive(), held > 0) == (True, True)
    assert encode.control.lanes.get(client.lane, Lane.STATE) == LaneState.ATTACHED
    go_on.set()
    for thread in (writer, closer):
        thread.join(30)
    assert sender.done
    encode.wait_idle()


def test_the_nodes_limit_is_shown_and_beyond_it_no_row_is_taken(
    plain: Pair, rooms: Iterator[int]
) -> None:
    """P22, P12: all clients of a node share it, and what a client held goes with it."""
    encode, _ = plain
    size = encode.geometry.token_bytes
    with attach(encode.run_dir) as first, attach(encode.run_dir) as second:
        mine, theirs = open_sender(first, next(rooms), 20_000), open_sender(second, next(rooms), 20_000)
        assert mine.send_embedding(*rows_of(first.geometry, mine.room, 0, 20_000))
        seen = node_status(encode.run_dir)
        assert 19_000 * size < seen["unsent_bytes"] < seen["unsent_max_bytes"] == 16 << 20
        assert [client["unsent_bytes"] for client in seen["clients"]] == [seen["unsent_bytes"], 0]
        with pytest.raises(NodeBusyError, match=r"rows 0 to 19999: \d+ \+ \d+ bytes .* > 16777216 bytes of this node"):
            theirs.send_embedding(*rows_of(first.geometry, theirs.room, 0, 20_000))
        assert theirs.poll().name == "Bootstrapping"
        mine.abort()
        wait_until(lambda: encode.control.lanes.unsent_bytes() == 0)
        assert theirs.send_embedding(*rows_of(first.geometry, theirs.room, 0, 20_000))
    wait_until(lambda: encode.control.lanes.unsent_bytes() == 0)
    encode.wait_idle()


def test_what_does_not_lie_in_host_memory_as_it_is_sent_cannot_be_lent(sending: Client, room: int) -> None:
    """P22: a copy would be made, and the caller asked for none."""
    sender = open_sender(sending, room, 10)
    embeddings, ids, positions, deepstack = rows_of(sending.geometry, room, 0, 10)
    with pytest.raises(ValueError, match="input_embeddings: borrow=True needs a contiguous tensor in host memory"):
        sender.write(0, embeddings.T.contiguous().T, ids, positions, deepstack, borrow=True)
    assert sender.write(0, embeddings, ids.long(), positions.T, deepstack, borrow=True)
    assert torch.equal(ids, rows_of(sending.geometry, room, 0, 10).fill_ids)
    sender.abort()
    wait_until(lambda: sender.done)
