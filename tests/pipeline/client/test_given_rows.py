"""What a sender does with the rows that it is given, at one node: where they go, what that costs, whose they
are (P22).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from support.alone import BLOCK_SIZE, EncodeAlone, StubEngine
from support.rows import Rows, difference, rows_of

from embridge import EmbeddingSender, NodeBusyError
from embridge.allocator.records import Destination, Lane, LaneState
from embridge.pipeline.client import unsent_memory
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.given_rows import Chunk
from embridge.pipeline.client.kept_rows import Piece
from embridge.pipeline.client.unsent_memory import UnsentMemory
from embridge.workers.transfer.engines.base import Outcome

WATCHDOG_S = 30.0


def write_and_spoil(node: EncodeAlone, sender: EmbeddingSender, first: int, end: int, **named: Any) -> bool:
    """Give rows, and use their memory for something else at once."""
    rows = rows_of(node.node.geometry, sender.room, first, end)
    given = sender.write(first, *rows, **named)
    spoil(rows)
    return given


def spoil(rows: Rows) -> None:
    for tensor in rows:
        if tensor is not None:
            tensor.view(torch.uint8).fill_(0xA5)


def staged_difference(node: EncodeAlone, sender: EmbeddingSender) -> str:
    """How the rows that stand in the request's source blocks differ from those that were given."""
    for k, entry in sender.stock.staged._entries.items():
        buffers = library_of(node.client).attachment.buffers
        where = slice(0, entry.rows)
        got = Rows(
            buffers.input_embeddings[entry.source][where],
            torch.from_numpy(buffers.fill_ids[entry.source][where]),
            torch.from_numpy(buffers.mrope_positions[entry.source][where]),
            None,
        )
        if wrong := difference(node.node.geometry, sender.room, k * BLOCK_SIZE, got):
            return f"block {k}: {wrong}"
    return ""


def unsent(node: EncodeAlone) -> int:
    return node.control.lanes.unsent_bytes()


@pytest.mark.parametrize("step", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("num_blocks", [1, 2, 8, 64])
def test_rows_that_were_given_are_the_callers_again_and_the_memory_for_them_goes_back(
    step: int, num_blocks: int
) -> None:
    """P22, R21: whatever the pool, and in whatever steps they come; and in a block is never anything but what was
    given.
    """
    node = EncodeAlone(num_blocks=num_blocks)
    total = 100
    sender = node.sender(1, total, rows=0)
    for first in range(0, total, step):
        assert write_and_spoil(node, sender, first, min(first + step, total))
        node.settle()
        assert staged_difference(node, sender) == ""
    for k in range(0, 25, 5):
        node.resume(1, [0, 1, 2, 3, 4], first=k) if k else node.init(1, [0, 1, 2, 3, 4])
        assert staged_difference(node, sender) == ""
        if num_blocks == 1:  # nothing is placed; what was sent goes at once
            assert unsent(node) == (total - node.get(sender, Destination.SENT)) * node.node.geometry.token_bytes
    assert node.get(sender, Destination.SENT) == total
    assert sender.poll().name == "Success"
    assert unsent(node) == 0
    assert node.control.blocks.counts().free == num_blocks


def test_whole_blocks_go_straight_into_source_blocks_while_a_quarter_of_the_pool_is_free() -> None:
    """P22, R21: they are copied once; what finds no block is copied into host memory, and what is no whole block."""
    node = EncodeAlone(num_blocks=16)
    sender = node.sender(1, 80, rows=0)
    write_and_spoil(node, sender, 0, 50)
    assert (len(sender.stock.placed), unsent(node)) == (11, 2 * BLOCK_SIZE * node.node.geometry.token_bytes)
    node.settle()
    assert staged_difference(node, sender) == ""
    write_and_spoil(node, sender, 50, 80)
    assert not sender.stock.placed


def test_what_stands_in_a_block_alone_is_copied_to_host_memory_before_the_block_is_anothers() -> None:
    """R21, D8, P22: rows that nobody can take yet are evicted, and lost they are not."""
    node = EncodeAlone(num_blocks=4, engine=StubEngine(outcome=Outcome.PENDING))
    first = node.sender(1, 2 * BLOCK_SIZE, rows=0)
    write_and_spoil(node, first, 0, 2 * BLOCK_SIZE)
    node.settle()
    assert not any(first.stock.kept.has(k) for k in first.stock.staged)
    second = node.sender(2, 4 * BLOCK_SIZE, rows=0)
    node.init(2, [0, 1, 2, 3])
    write_and_spoil(node, second, 0, 4 * BLOCK_SIZE)
    node.settle()  # it is being written from all other blocks, and nothing of the first is needed
    third = node.sender(3, BLOCK_SIZE, rows=0)
    node.init(3, [4])
    write_and_spoil(node, third, 0, BLOCK_SIZE)
    node.settle()
    assert any(first.stock.kept.has(k) for k in range(2))
    node.engine.outcome = Outcome.DONE
    node.advance(1.0)
    assert [sender.poll().name for sender in (second, third)] == ["Success", "Success"]
    node.init(1, [5, 6])
    node.advance(1.0)
    assert first.poll().name == "Success"
    assert unsent(node) == 0


def test_beyond_the_nodes_limit_no_row_is_taken_and_a_later_write_is() -> None:
    """P22, P12: the limit is for all clients of the node together; what a client has left is not counted."""
    node = EncodeAlone(num_blocks=1)
    other = node.new_client()
    size = node.node.geometry.token_bytes
    for client in (node.client, other):
        library_of(client).unsent.limit_bytes = 10 * size
    mine, theirs = node.sender(1, 8, rows=0), other.sender(2, 8)
    node.settle()
    assert write_and_spoil(node, mine, 0, 8)
    said = rf"^room 2, rows 0 to 7: {8 * size} \+ {8 * size} bytes .* > {10 * size} bytes .* rows have been sent"
    with pytest.raises(NodeBusyError, match=said):
        write_and_spoil(node, theirs, 0, 8)
    assert (theirs._ready, unsent(node)) == (0, 8 * size)
    node.init(1, [0, 1])
    assert mine.poll().name == "Success"
    assert write_and_spoil(node, theirs, 0, 8)
    large = node.sender(3, 40, rows=0)
    with pytest.raises(NodeBusyError, match="write fewer rows at a time, lend them"):
        write_and_spoil(node, large, 0, 40)
    lane = other.lane
    node.node.clients[-1].die()
    node.advance(1.0, until=lambda: node.control.lanes.get(lane, Lane.STATE) == LaneState.FREE)
    assert unsent(node) == 0


@pytest.mark.parametrize("step", [1, 8, 40])
def test_rows_that_are_lent_are_not_copied_and_are_the_callers_again_when_it_is_done(step: int) -> None:
    """P22, R8: later than the end, or never before; a callback is called once, also one that comes late."""
    node = EncodeAlone(num_blocks=2, engine=StubEngine(outcome=Outcome.PENDING))
    sender = node.sender(1, 40, rows=0)
    called: list[EmbeddingSender] = []
    sender.add_done_callback(called.append)
    for first in range(0, 40, step):
        rows = rows_of(node.node.geometry, 1, first, first + step)
        assert sender.write(first, *rows, borrow=True)
        node.settle()
    assert unsent(node) == 0
    node.init(1, [0, 1, 2, 3, 4])
    node.resume(1, [5, 6, 7, 8, 9], first=5)
    assert not sender.done
    assert staged_difference(node, sender) == ""
    node.engine.outcome = Outcome.DONE
    while sender.poll() < 3:
        assert (sender.done, called) == (False, [])
        node.world.now_ns += 1_000_000
        for actor in node.node.actors:
            if actor.is_runnable(node.now_ns):
                actor.step()
    node.settle()
    assert sender.done
    sender.add_done_callback(called.append)
    assert called == [sender, sender]


def test_a_request_is_not_ended_while_its_rows_are_being_written() -> None:
    """P22, D2: its blocks would be another's, and the copy would go into them."""
    node = EncodeAlone(num_blocks=8)
    sender = node.sender(1, 4 * BLOCK_SIZE, rows=0)
    put = sender.stock.kept.put

    def fails_meanwhile(chunk: Chunk, rooms: dict[int, Piece]) -> None:
        sender.abort("enough")
        node.settle()
        assert sender.poll().name == "Failed"
        assert node.control.blocks.counts().owned > 0  # still ours
        assert sender._final is None
        put(chunk, rooms)

    sender.stock.kept.put = fails_meanwhile  # type: ignore[method-assign]
    assert write_and_spoil(node, sender, 0, 3 * BLOCK_SIZE)
    node.settle()
    assert sender.done
    assert node.control.blocks.counts().free == 8
    assert unsent(node) == 0
    assert not write_and_spoil(node, sender, 3 * BLOCK_SIZE, 4 * BLOCK_SIZE)


def test_a_block_whose_rows_are_everywhere_is_evicted_without_a_copy() -> None:
    """P22: the worker still read it when its rows were let go; a copy of them would be counted for as long as the
    client lives.
    """
    node = EncodeAlone(num_blocks=8)
    sender = node.sender(1, 4 * BLOCK_SIZE, rows=0)
    write_and_spoil(node, sender, 0, 4 * BLOCK_SIZE)
    node.settle()
    assert 0 in list(sender.stock.staged)
    sender.stock.kept.let_go(1)
    assert sender.stock.staged.free(0)
    assert unsent(node) == 0
    sender.stock.kept.bring_back(
        library_of(node.client).attachment.payload, 0, sender.stock.staged._entries[1].source, BLOCK_SIZE
    )
    assert unsent(node) > 0
    sender.stock.kept.clear()
    assert unsent(node) == 0


def test_a_write_that_crosses_the_end_of_the_node_says_that_the_request_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P8: the client lets go of the payload of a node that is gone, also between two pieces of a write."""
    node = EncodeAlone(num_blocks=8)
    sender = node.sender(1, 2 * BLOCK_SIZE, rows=0)

    def gone(*_: object) -> None:
        library_of(node.client).attachment.node_gone = True
        raise BufferError("the mapping is closed")

    monkeypatch.setattr("embridge.pipeline.client.sender.place", gone)
    assert not sender.write(0, *rows_of(node.node.geometry, 1, 0, 2 * BLOCK_SIZE))
    assert sender.poll().name == "Failed"


def test_rows_are_let_go_once_though_two_threads_come_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """P22: the caller's, at the end of a write into a request that has ended meanwhile, and the library's."""
    node = EncodeAlone(num_blocks=8)
    sender = node.sender(1, 100, rows=50)
    clear, begun = sender.stock.kept.clear, []

    def clear_as_the_other_comes() -> None:
        begun.append(sender.done)
        if len(begun) == 1:
            sender.let_go()
        clear()

    monkeypatch.setattr(sender.stock.kept, "clear", clear_as_the_other_comes)
    sender.let_go()
    assert begun == [False]
    assert sender.done
    assert unsent(node) == 0


def test_rows_that_were_lent_to_a_request_without_a_slot_are_the_callers_again_when_its_client_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P22: it has ended, and left the line, while another thread was in `write`, which sees that the client is closed
    by then.
    """
    node = EncodeAlone()
    library = library_of(node.client)
    while library.requests.lease._take() is not None:
        pass
    sender = node.client.sender(1, 40, timeout_s=1.0)
    is_lending, may_go_on = threading.Event(), threading.Event()
    lend, leave_node = sender.stock.kept.lend, library._leave_node

    def lend_slowly(chunk: Chunk) -> None:
        lend(chunk)
        is_lending.set()
        assert may_go_on.wait(WATCHDOG_S)

    def leave_after_the_write() -> None:
        assert not sender.done
        may_go_on.set()
        writer.join(WATCHDOG_S)
        leave_node()

    monkeypatch.setattr(sender.stock.kept, "lend", lend_slowly)
    monkeypatch.setattr(library, "_leave_node", leave_after_the_write)
    rows = rows_of(node.node.geometry, 1, 0, 40)
    writer = threading.Thread(target=lambda: sender.write(0, *rows, borrow=True))
    writer.start()
    assert is_lending.wait(WATCHDOG_S)
    node.advance(1.5)
    assert sender.poll().name == "Failed"
    assert (sender.is_waiting, len(library.slot_queue), library.requests.by_slot) == (False, 0, {})
    called: list[EmbeddingSender] = []
    sender.add_done_callback(called.append)
    node.client.close()
    assert sender.done
    assert called == [sender]


def test_a_write_that_fails_half_way_gives_back_what_it_took() -> None:
    """P15: blocks and host memory; the rows before stay given."""
    node = EncodeAlone(num_blocks=8)
    sender = node.sender(1, 40, rows=0)
    sender.stock.kept.piece_blocks = 2
    put = sender.stock.kept.put
    calls: list[Chunk] = []

    def put_twice(chunk: Chunk, rooms: dict[int, Piece]) -> None:
        calls.append(chunk)
        if len(calls) > 2:
            raise MemoryError("by the test")
        put(chunk, rooms)

    sender.stock.kept.put = put_twice  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        write_and_spoil(node, sender, 0, 40)
    node.settle()
    assert sender._ready == 16
    sender.stock.kept.put = put  # type: ignore[method-assign]
    assert write_and_spoil(node, sender, 16, 40)
    node.init(1, list(range(10)))
    assert sender.poll().name == "Success"
    assert unsent(node) == 0
    assert node.control.blocks.counts().free == 8


def crossed(at: int, do: Callable[[], object], other: Callable[[], object]) -> bool:
    """Do one thing, and another, as a second thread, between two of its instructions.

    False where it has fewer than `at`.
    """
    done = 0

    def seen(frame: Any, event: str, arg: Any) -> Any:
        nonlocal done
        if frame.f_code.co_filename != unsent_memory.__file__:
            return None
        frame.f_trace_opcodes = True
        done += event == "opcode"
        if event == "opcode" and done == at:
            sys.settrace(None)
            other()
        return seen

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 tells of instructions only if one was asked for before
    sys.settrace(seen)
    try:
        do()
    finally:
        sys.settrace(before)
    return done >= at


def num_kept(memory: UnsentMemory, size: int) -> int:
    """Of many pieces that are given back, how many are kept for the next rows."""
    for _ in range(100):
        memory.take(size)
    given = [np.empty(size, np.uint8) for _ in range(100)]
    for piece in given:
        memory.give_back(piece)
    return len({id(piece) for piece in given} & {id(memory.take(size)) for _ in given})


def test_what_is_kept_warm_does_not_drift_though_two_threads_take_and_give_back() -> None:
    """P12, P20: wherever one of them is interrupted by the other, as much is kept afterwards as before."""
    size, client = unsent_memory.LEAST_WARM_BYTES, EncodeAlone(num_blocks=1).client
    for is_taken in (True, False):
        for at in count(1):
            memory = UnsentMemory(library_of(client).attachment.control, client.lane)
            memory._warm_limit = 10 * size
            for _ in range(4):
                memory.give_back(np.empty(size, np.uint8))
            take, give_back = partial(memory.take, size), partial(memory.give_back, np.empty(size, np.uint8))
            if not crossed(at, *((take, give_back) if is_taken else (give_back, take))):
                break
            assert num_kept(memory, size) == 10, f"interrupted at its instruction {at}"
        assert at > 10


def work(do: Callable[[], None]) -> int:
    """How many calls of functions, of Python's and of C's, this makes: time without a clock."""
    count = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("borrow", [False, True], ids=["copied", "lent"])
def test_a_row_a_write_costs_the_same_for_every_row(borrow: bool) -> None:
    """The work is that of one row, not that of all before it: while they are written, and while they are sent."""
    writing, sending = [], []
    for total in (256, 1024):
        node = EncodeAlone(num_blocks=128)
        sender = node.sender(1, total, rows=0)
        rows = [rows_of(node.node.geometry, 1, row, row + 1) for row in range(total)]

        def write_all(node: EncodeAlone = node, sender: EmbeddingSender = sender, rows: list[Rows] = rows) -> None:
            for row, given in enumerate(rows):
                sender.write(row, *given, borrow=borrow)
                library_of(node.client).turn()

        def send_all(node: EncodeAlone = node, total: int = total) -> None:
            for k in range(0, total // BLOCK_SIZE, 8):
                node.resume(1, list(range(8)), first=k) if k else node.init(1, list(range(8)))

        writing.append(work(write_all) / total)
        sending.append(work(send_all) / total)
        assert sender.poll().name == "Success"
    assert writing[1] < 1.1 * writing[0], writing
    assert sending[1] < 1.1 * sending[0], sending
