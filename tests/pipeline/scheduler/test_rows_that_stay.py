"""Rows that stay in their blocks until the others have come, so that their result can be lent."""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS
from support.lending import Scheduler

from embridge.allocator.status import Phase
from embridge.pipeline.scheduler import straight
from embridge.pipeline.scheduler.default_grant import ENOUGH, RECENT
from embridge.pipeline.scheduler.draining import Draining
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue

pytestmark = pytest.mark.usefixtures("quiet")


def land(node: Scheduler, request: EmbeddingRequest, end: int, total: int) -> None:
    """Rows up to `end` of a request land, and it goes on."""
    receiver = node.announce(request, total)
    assert receiver.granted_tokens >= end
    node.write(request, receiver.sent_tokens, end)
    node.status(receiver, Phase.Transferring, end, total_tokens=total, ready_tokens=total)


def short_of_blocks(node: Scheduler, room: int) -> EmbeddingRequest:
    """A request that waits for a block, in a pool that another one has emptied."""
    holder = node.client.receiver(ENCODE_ADDRESS, 1000 + room)
    node.settle()
    assert len(holder.allocate(node.control.blocks.num_blocks))
    request = node.add(room)
    node.announce(request, 4)
    return request


def test_rows_that_land_in_pieces_stay_in_their_blocks_and_are_lent() -> None:
    """R35: where all blocks that the request needs are granted, and nobody is short."""
    node = Scheduler()
    request = node.add(1)
    for end in (3, 8, 9):
        land(node, request, end, 14)
        assert (request.transferred_tokens, request.record.rows) == (end, None)
    node.finish(request, 14)
    assert node.queue.pop_transferred() == ([request], [])
    assert node.is_lent(request)
    node.check(request)
    assert request.chunk_info == [(0, 3), (3, 8), (8, 9), (9, 14)]
    assert [chunk.end for chunk in request.buffered_chunks] == [3, 8, 9, 14]


def test_what_is_granted_later_goes_on_where_the_first_blocks_end() -> None:
    """R35: the default is one block, and the length becomes known when that is full."""
    node = Scheduler()
    others = [node.add(room) for room in (1, 2)]
    assert [node.receiver_of(other).block_of(0) for other in others] == [1, 2]
    request = others[1]
    receiver = node.receiver_of(request)
    node.status(receiver, Phase.WaitingForInput, 0, total_tokens=0, ready_tokens=4)
    node.announce(request, 16)
    assert receiver.current_allocation().tolist() == [2, 3, 4, 5]
    node.announce(others[0], 16)
    assert node.receiver_of(others[0]).current_allocation().tolist() != [1, 2, 3, 4]


@pytest.mark.parametrize("is_worth_it", [True, False])
def test_requests_whose_lengths_are_unknown_leave_each_other_room(
    monkeypatch: pytest.MonkeyPatch, is_worth_it: bool
) -> None:
    """R35: so each is one run in the end, and lent, if it needs four times the default, or what others have needed. One
    that is copied out in no time has the lowest blocks.
    """
    monkeypatch.setattr(straight, "WORTH_A_RUN_BYTES", 0 if is_worth_it else 1 << 20)
    node = Scheduler(num_blocks=64)
    requests = [node.add(room) for room in range(1, 7)]
    first = [node.receiver_of(request).block_of(0) for request in requests]
    assert first == ([32, 36, 40, 44, 48, 52] if is_worth_it else [1, 2, 3, 4, 5, 6])
    for request in requests:
        receiver = node.announce(request, 4 * BLOCK_SIZE)
        assert receiver.granted_blocks == 4
    for request in requests:
        node.finish(request, 4 * BLOCK_SIZE)
    finished, _ = node.queue.pop_transferred()
    assert [node.is_lent(request) for request in finished] == [is_worth_it] * 6
    for request in finished:
        node.check(request)


def test_room_is_left_behind_the_last_then_from_below_and_where_there_is_none_a_request_has_the_lowest_blocks() -> None:
    """R35."""
    pool = Scheduler(num_blocks=64).control.blocks

    def acquired(want: int, room: int) -> list[int]:
        return pool.acquire(9, 1, want, may_take_reserve=False, room=room).tolist()

    assert acquired(2, 10) == [32, 33]
    assert acquired(2, 10) == [44, 45]
    assert acquired(3, 0) == [1, 2, 3]  # of whose length nothing is unknown
    assert acquired(2, 10) == [4, 5]
    assert acquired(2, 10) == [16, 17]
    assert acquired(2, 10) == [46, 47]
    assert acquired(2, 17) == [6, 7]
    assert acquired(2, 10) == [18, 19]


@pytest.mark.parametrize(("num_seen", "room"), [(0, 3), (ENOUGH - 1, 5), (ENOUGH, 5), (ENOUGH + RECENT, 1)])
def test_room_is_left_for_the_longest_that_was_seen_of_late(
    monkeypatch: pytest.MonkeyPatch, num_seen: int, room: int
) -> None:
    """R35: for four times the default, while few were seen."""
    monkeypatch.setattr(straight, "WORTH_A_RUN_BYTES", 0)
    node = Scheduler(num_blocks=64)
    for number in range(num_seen):
        node.queue.default.observe((6 if number < ENOUGH else 2) * BLOCK_SIZE)
    first, second = (node.receiver_of(node.add(room)) for room in (1, 2))
    assert second.block_of(0) - first.block_of(0) == 1 + room


def test_rows_that_are_on_their_way_are_drained_when_somebody_is_short() -> None:
    """R35, R21: what landed after that, too; whole blocks come free."""
    node = Scheduler()
    request = node.add(1)
    land(node, request, 9, 14)
    assert request.record.rows is None
    waiting = short_of_blocks(node, 2)
    assert request.record.drained_tokens == 9
    assert node.receiver_of(waiting).granted_blocks == 1
    node.finish(request, 14)
    node.finish(waiting, 4)
    finished, _ = node.queue.pop_transferred()
    assert set(finished) == {request, waiting}
    assert not node.is_lent(request)
    node.check(request)
    node.check(waiting)


def test_results_that_were_not_popped_are_drained_when_somebody_is_short_and_no_others() -> None:
    """R35: a result is its scheduler's once it has popped it; before that it is nobody's, and may be moved."""
    node = Scheduler(default_tokens=4 * BLOCK_SIZE)
    popped = node.arrive(1, 14)
    waiting = [node.add(room) for room in (2, 3)]
    for request in waiting:
        node.finish(request, 7)
    assert [request.record.lent is not None for request in waiting] == [True, True]
    held = node.queue.memory.reserved_bytes
    assert held >= node.queue.memory.bytes_for(14)
    short = short_of_blocks(node, 4)
    assert node.receiver_of(short).granted_blocks == 1
    assert [request.record.lent is not None for request in waiting] == [True, False]
    node.finish(short, 4)
    assert node.queue.pop_transferred() == ([*waiting, short], [])
    assert [node.is_lent(request) for request in (popped, *waiting, short)] == [True, True, False, False]
    for request in (popped, *waiting, short):
        node.check(request)
        request.release()
    node.advance(0.2)
    assert node.queue.memory.reserved_bytes == 0
    assert node.control.lanes.num_lent() == 0


def test_a_result_that_is_drained_just_when_it_is_popped_comes_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: whoever takes it out of the queue has it."""
    node = Scheduler(default_tokens=4 * BLOCK_SIZE)
    requests = [node.add(room) for room in (1, 2)]
    for request in requests:
        node.finish(request, 7)
    drain, came = Draining.drain, []

    def crossing(*args: Any) -> None:
        came.append(node.queue.pop_transferred())
        drain(*args)

    monkeypatch.setattr(Draining, "drain", crossing)
    short_of_blocks(node, 3)
    came.append(node.queue.pop_transferred())
    assert came[0] == ([requests[0]], [])
    assert came[-1] == ([requests[1]], [])
    assert [node.is_lent(request) for request in requests] == [True, False]
    for request in requests:
        node.check(request)


def test_a_result_that_is_released_just_when_it_is_drained_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: by whichever thread, and before it was popped."""
    node = Scheduler(default_tokens=4 * BLOCK_SIZE)
    requests = [node.add(room) for room in (1, 2)]
    for request in requests:
        node.finish(request, 7)
    drain = Draining.drain

    def crossing(*args: Any) -> None:
        for request in requests:
            request.release()
        drain(*args)

    monkeypatch.setattr(Draining, "drain", crossing)
    short = short_of_blocks(node, 3)
    monkeypatch.undo()
    node.finish(short, 4)
    finished, _ = node.queue.pop_transferred()
    assert finished == [*requests, short]
    assert [request.result is None for request in finished] == [True, True, False]
    short.release()
    node.advance(0.2)
    assert node.queue.memory.reserved_bytes == 0
    assert node.control.lanes.num_lent() == 0


def test_another_client_that_is_short_gets_what_this_one_has_not_popped() -> None:
    """R35, R21: without waiting for anybody's slow look."""
    node = Scheduler()
    request = node.add(1)
    node.finish(request, 7)
    assert request.record.lent is not None
    other = node.new_client()
    queue = TransferQueue(other, default_allocate_tokens=BLOCK_SIZE, adaptive=False)
    node.settle()
    holder = other.receiver(ENCODE_ADDRESS, 99)
    node.settle()
    holder.allocate(node.control.blocks.num_blocks)
    waiting = EmbeddingRequest(room=2, bootstrap_addr=ENCODE_ADDRESS)
    queue.add(waiting)
    node.settle()
    node.announce(waiting, 4)
    assert request.record.lent is None
    assert node.receiver_of(waiting).granted_blocks == 1
    assert node.queue.pop_transferred() == ([request], [])
    node.check(request)


def test_results_that_were_not_popped_give_their_slots_to_who_waits_for_one() -> None:
    """R35, P8."""
    node = Scheduler()
    request = node.add(1)
    node.finish(request, 7)
    other = node.new_client()
    node.control.slot_waiters.set(other.lane, True)
    node.advance(0.2)
    assert request.record.lent is None
    assert not dict(node.control.open_slots())
    assert node.queue.pop_transferred() == ([request], [])
    node.check(request)


def test_who_looks_at_rows_as_they_come_has_them_copied_out() -> None:
    """R35: `buffered_chunks` before the end."""
    node = Scheduler()
    request = node.add(1)
    land(node, request, 9, 14)
    assert request.buffered_chunks == []
    node.settle()
    [chunk] = request.buffered_chunks
    assert (chunk.first, chunk.end) == (0, 9)
    land(node, request, 12, 14)
    assert [chunk.end for chunk in request.buffered_chunks] == [9, 12]
    node.finish(request, 14)
    assert node.queue.pop_transferred() == ([request], [])
    assert not node.is_lent(request)
    node.check(request)


def test_rows_that_are_kept_for_a_retry_are_drained_as_they_come() -> None:
    """R35, R26: they would be lost with their blocks; what has come to its end in one piece is lent."""
    node = Scheduler(default_tokens=4 * BLOCK_SIZE)
    request, whole = node.add(1, keep_for_retry=True), node.add(2, keep_for_retry=True)
    land(node, request, 9, 14)
    assert request.record.drained_tokens == 9
    node.finish(whole, 14)
    assert node.queue.pop_transferred() == ([whole], [])
    assert node.is_lent(whole)


def test_an_encoder_that_stops_does_not_hold_all_that_is_not_lent() -> None:
    """R35, P21: of what is left of the pool it has a half ahead of its rows."""
    node = Scheduler(num_blocks=64)
    kept = [node.arrive(room, 3 * BLOCK_SIZE) for room in range(1, 40)]
    num_lent = sum(3 for request in kept if node.is_lent(request))
    assert node.control.lanes.num_lent() == num_lent >= 40
    stopped = node.add(100)
    node.status(node.receiver_of(stopped), Phase.WaitingForInput, 0, total_tokens=400, ready_tokens=1)
    assert 0 < node.receiver_of(stopped).granted_blocks <= (64 - num_lent) // 2 + 1
    node.check(node.arrive(101, 4 * BLOCK_SIZE))
