"""Streamed requests: rows are looked at as they land, and stay where they are for as long as somebody may look
(R82).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS
from support.lending import Scheduler
from support.rows import arrived, difference, rows_of

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Lent, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.scheduler.host_memory import HostRows
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingChunk, EmbeddingRequest

pytestmark = pytest.mark.usefixtures("quiet")
TOTAL = 3 * BLOCK_SIZE


def opened(node: Scheduler, room: int = 1, total: int = TOTAL, **options: bool) -> EmbeddingRequest:
    """A streamed request, of which all is granted and nothing has landed."""
    request = node.add(room, is_streamed=True, **options)
    assert node.announce(request, total).granted_tokens == total
    assert (request.available_tokens, request.available(), node.queue.pop_available()) == (0, [], [])
    return request


def land(node: Scheduler, request: EmbeddingRequest, end: int, phase: Phase = Phase.Transferring) -> None:
    """Rows up to `end` land, and the library thread has looked at them."""
    receiver = node.receiver_of(request)
    total = receiver.total_embedding_length
    node.write(request, receiver.sent_tokens, end)
    node.status(receiver, phase, end, total_tokens=total, ready_tokens=total)
    node.turn()


def is_in_blocks(node: Scheduler, chunk: EmbeddingChunk) -> bool:
    payload = np.frombuffer(node.attachment.payload, np.uint8)
    return 0 <= chunk.input_embeddings.data_ptr() - payload.ctypes.data < payload.nbytes


def check(node: Scheduler, request: EmbeddingRequest, end: int, *, in_blocks: bool) -> EmbeddingChunk:
    """Rows [0, end) can be looked at, no others, and they are right."""
    assert request.available_tokens == end
    [chunk] = request.available()
    assert (chunk.first, chunk.end) == (0, end)
    assert difference(node.node.geometry, request.room, 0, arrived(chunk)) == ""
    assert is_in_blocks(node, chunk) == in_blocks
    return chunk


def test_rows_are_looked_at_in_their_blocks_as_they_land() -> None:
    """R82: nothing is copied, no row is shown that has not landed, and the result is the same memory."""
    node = Scheduler()
    request = opened(node)
    land(node, request, 5)
    first = check(node, request, 5, in_blocks=True)
    assert node.queue.pop_available() == [request]
    assert node.queue.pop_available() == []
    land(node, request, 9)
    assert node.queue.pop_available() == [request]
    check(node, request, 9, in_blocks=True)
    [rest] = request.available(5)
    assert (rest.first, rest.end) == (5, 9)
    rows = rows_of(node.node.geometry, request.room, 5, 9)
    assert torch.equal(rest.input_embeddings.view(torch.int16), rows[0].view(torch.int16))
    assert (request.available(9), request.available(100)) == ([], [])
    with pytest.raises(ValueError, match=r"^start: -1 is outside 0 to"):
        request.available(-1)
    assert [chunk.end for chunk in request.buffered_chunks] == [9]
    land(node, request, TOTAL, Phase.Success)
    assert node.queue.pop_available() == [request]
    check(node, request, TOTAL, in_blocks=True)
    assert node.queue.pop_transferred() == ([request], [])
    assert request.result is not None
    assert request.result.input_embeddings.data_ptr() == first.input_embeddings.data_ptr()
    assert node.control.slots.is_lent(node.receiver_of(request).slot)
    assert request.chunk_info == [(0, 5), (5, 9), (9, TOTAL)]
    request.release()
    assert (request.available_tokens, request.available()) == (0, [])
    node.settle()
    assert node.counts() == {"free": 16}
    assert node.control.lanes.num_lent() == 0


def test_whoever_waits_is_woken_by_rows_that_were_shown_though_another_call_has_looked_meanwhile() -> None:
    """R82: once; and not by rows of a request that is not streamed, which shows none."""
    node = Scheduler()
    plain = node.add(2)
    node.announce(plain, TOTAL)
    request = opened(node)

    def is_woken() -> bool:
        node.client.poll()
        node.queue.pop_transferred()
        return node.client.wait(0.0)

    assert not is_woken()
    land(node, plain, 5)
    assert (plain.available_tokens, plain.available(), node.queue.pop_available()) == (0, [], [])
    assert not is_woken()
    land(node, request, 5)
    assert is_woken()
    assert not is_woken()
    assert node.queue.pop_available() == [request]
    land(node, request, 6)
    assert node.queue.pop_available() == [request]
    assert not is_woken()


def test_a_request_that_is_not_streamed_has_its_rows_available_when_it_is_popped() -> None:
    node = Scheduler()
    request = node.arrive(1, TOTAL)
    check(node, request, TOTAL, in_blocks=True)


def hold_all(node: Scheduler) -> Callable[[], None]:
    """Have another request of this node hold all blocks that are free; what is returned lets them go."""
    holder = node.client.receiver(ENCODE_ADDRESS, 99)
    node.settle()
    holder.allocate(node.control.blocks.counts().free)
    node.settle()

    def let_go() -> None:
        holder.clear()
        node.settle()

    return let_go


def test_rows_are_copied_out_where_blocks_are_short_and_stay_where_they_were_copied_to() -> None:
    """R82, R35: a quarter of the pool would not be free. Their host memory is for all rows from the first on."""
    node = Scheduler(num_blocks=4)
    request = opened(node)
    let_go = hold_all(node)
    land(node, request, 5)
    first = check(node, request, 5, in_blocks=False)
    let_go()
    land(node, request, 9)
    second = check(node, request, 9, in_blocks=False)
    assert first.input_embeddings.data_ptr() == second.input_embeddings.data_ptr()
    land(node, request, TOTAL, Phase.Success)
    check(node, request, TOTAL, in_blocks=False)
    assert node.queue.pop_transferred() == ([request], [])
    assert request.result is not None
    assert request.result.input_embeddings.data_ptr() == first.input_embeddings.data_ptr()


def test_a_request_of_any_length_streams_through_few_blocks() -> None:
    """R82, R21, B12: where not all is granted each row is copied out and its block goes on. Its host memory is for all
    rows from the first on, though fewer are counted: else they would move beneath whoever looks at them.
    """
    node = Scheduler(num_blocks=4)
    request = node.add(1, is_streamed=True)
    receiver, total = node.receiver_of(request), 20 * BLOCK_SIZE
    reserved, begins = set(), set()
    while (landed := receiver.granted_tokens) < total:
        ready = min(total, landed + BLOCK_SIZE)
        node.write(request, receiver.sent_tokens, landed)
        node.status(receiver, Phase.Transferring, landed, total_tokens=total, ready_tokens=ready)
        begins.add(check(node, request, landed, in_blocks=False).input_embeddings.data_ptr())
        reserved.add(request.record.reserved_tokens)
    land(node, request, total, Phase.Success)
    begins.add(check(node, request, total, in_blocks=False).input_embeddings.data_ptr())
    assert len(begins) == 1
    assert len(reserved) > 1


def test_rows_that_are_looked_at_are_not_drained_when_somebody_is_short() -> None:
    """R82, R35: neither on their way nor when the request has ended and waits to be popped."""
    node = Scheduler(num_blocks=8)
    request = opened(node)
    land(node, request, 5)
    chunk = check(node, request, 5, in_blocks=True)
    hold_all(node)
    other = node.add(2)
    node.announce(other, TOTAL)
    node.advance(1.0)
    assert node.receiver_of(other).granted_tokens == 0
    check(node, request, 5, in_blocks=True)
    land(node, request, TOTAL, Phase.Success)
    node.advance(1.0)
    assert check(node, request, TOTAL, in_blocks=True).input_embeddings.data_ptr() == chunk.input_embeddings.data_ptr()
    assert node.queue.pop_transferred() == ([request], [])
    request.release()
    node.settle()
    assert node.receiver_of(other).granted_tokens > 0


def fail(node: Scheduler, request: EmbeddingRequest) -> None:
    """It fails, and its encode node says that nobody will write any more."""
    request.abort()
    node.settle()
    node.abort_ack(node.receiver_of(request))
    node.settle()


def test_rows_that_were_looked_at_stay_right_though_the_request_has_failed() -> None:
    """R82, D2: their blocks are nobody else's until the release, after which they are free at once."""
    node = Scheduler()
    request = opened(node)
    land(node, request, 5)
    fail(node, request)
    assert node.queue.pop_transferred() == ([], [request])
    node.advance(5.0)
    check(node, request, 5, in_blocks=True)
    assert node.counts() == {"free": 13, "quarantined": 3}
    request.release()
    node.settle()
    assert node.counts() == {"free": 16}
    assert not dict(node.control.open_slots())
    assert node.control.lanes.num_lent() == 0


def test_a_failed_request_of_which_nothing_was_shown_needs_no_release() -> None:
    node = Scheduler()
    request = opened(node)
    fail(node, request)
    assert node.queue.pop_transferred() == ([], [request])
    assert request.is_released
    assert node.counts() == {"free": 16}


def test_a_request_that_fails_while_it_is_lent_shows_nothing() -> None:
    """R82: its blocks are lent only if it had not failed after that was said, for its poller looks once."""
    node = Scheduler()
    request = opened(node)
    receiver = node.receiver_of(request)
    library = library_of(node.client)
    slots = library.attachment.control.slots
    raise_to, has_failed = slots.raise_to, []
    node.write(request, 0, 5)

    def fails_first(slot: int, field: Slot, value: int) -> bool:
        if field == Slot.LENT:
            assert value == Lent.STREAM
            has_failed.append(node.control.status.advance(slot, receiver.epoch, Phase.Failed, 5, node.now_ns))
        return raise_to(slot, field, value)

    slots.raise_to = fails_first
    node.control.status.advance(receiver.slot, receiver.epoch, Phase.Transferring, 5, node.now_ns)
    library.turn()
    slots.raise_to = raise_to
    assert (has_failed, request.available_tokens) == ([True], 0)
    node.advance(1.0)
    node.abort_ack(receiver)
    assert node.queue.pop_transferred() == ([], [request])
    node.settle()
    assert node.counts() == {"free": 16}


def test_rows_are_not_shown_whose_blocks_may_have_been_anothers_when_they_were_copied_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R82, D2: the request fails while its library thread drains."""
    node = Scheduler(num_blocks=4)
    request = opened(node)
    receiver = node.receiver_of(request)
    hold_all(node)
    drain = HostRows.drain

    def fails_first(rows: HostRows, *args: object) -> None:
        node.control.status.advance(receiver.slot, receiver.epoch, Phase.Failed, 5, node.now_ns)
        drain(rows, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HostRows, "drain", fails_first)
    node.write(request, 0, 5)
    node.control.status.advance(receiver.slot, receiver.epoch, Phase.Transferring, 5, node.now_ns)
    library_of(node.client).turn()
    assert request.transferred_tokens == 5
    assert request.available_tokens == 0


def test_rows_that_are_kept_for_a_retry_are_copied_out_and_the_retry_goes_on_with_them() -> None:
    """R82, R26: what is available falls back to the whole blocks, which do not move."""
    node = Scheduler()
    request = opened(node, keep_for_retry=True)
    land(node, request, BLOCK_SIZE + 1)
    first = check(node, request, BLOCK_SIZE + 1, in_blocks=False)
    receiver, total = node.receiver_of(request), TOTAL
    gone = {"code": FailureCode.CLIENT_DIED, "reason": "the encoder process died", "total_tokens": total}
    node.status(receiver, Phase.Failed, receiver.sent_tokens, ready_tokens=total, **gone)
    assert node.queue.pop_transferred() == ([], [request])
    assert request.failure is not None
    assert request.failure.code == FailureCode.CLIENT_DIED
    assert request.is_retryable
    check(node, request, BLOCK_SIZE + 1, in_blocks=False)
    PreallocQueue(node.client, node.queue).retry(request, ENCODE_ADDRESS)
    node.settle()
    assert request.available_tokens == BLOCK_SIZE
    assert request.available()[0].input_embeddings.data_ptr() == first.input_embeddings.data_ptr()


def test_a_request_that_is_released_on_its_way_gives_its_blocks_back() -> None:
    """R82: before or after rows have landed."""
    node = Scheduler()
    for number, shown in enumerate((0, 5)):
        request = opened(node, 1 + number)
        if shown:
            land(node, request, shown)
        request.release()
        assert request.available_tokens == 0
        if not shown:
            land(node, request, 5)
        fail(node, request)
        assert node.queue.pop_transferred() == ([], [request])
        node.settle()
        assert node.counts() == {"free": 16}
        assert node.control.lanes.num_lent() == 0


def test_a_client_that_leaves_gives_all_back_and_views_are_over() -> None:
    """R82: one is on its way, one has failed, one has ended."""
    node = Scheduler()
    requests = [opened(node, room) for room in (1, 2, 3)]
    for request in requests:
        land(node, request, 5)
    fail(node, requests[1])
    land(node, requests[2], TOTAL, Phase.Success)
    assert node.queue.pop_transferred() == ([requests[2]], [requests[1]])
    result = requests[2].result
    node.client.close()
    assert requests[0].available_tokens == 0
    assert requests[1].result is None
    assert result is not requests[2].result
    node.check(requests[2])
    with pytest.raises(RuntimeError):
        node.queue.pop_available()
