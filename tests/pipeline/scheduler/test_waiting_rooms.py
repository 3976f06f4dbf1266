"""Requests that wait for their encoders hold a share of the pool, and no more: those whose rows come have the rest."""

from __future__ import annotations

from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, LanguageAlone

from embridge import EmbeddingRequest, Phase, TransferQueue
from embridge.pipeline.scheduler.default_grant import free_for_all_of, share_without_rows


def waiting(node: LanguageAlone, queue: TransferQueue, room: int) -> EmbeddingRequest:
    """A request whose encoder has not come."""
    request = EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS)
    queue.add(request)
    node.settle()
    assert request.receiver is not None
    if not request.receiver.handshake_done:
        node.registered()
    return request


def blocks_of(request: EmbeddingRequest) -> int:
    assert request.receiver is not None
    return request.receiver.granted_blocks


def queue_of(node: LanguageAlone, default_blocks: int) -> TransferQueue:
    queue = TransferQueue(node.client, default_allocate_tokens=default_blocks * BLOCK_SIZE, adaptive=False)
    node.settle()
    return queue


def test_requests_that_wait_for_their_encoders_leave_a_quarter_of_the_pool_to_those_whose_rows_come() -> None:
    """P21, D13: each has half of what is left, and contact with its encode node; one whose rows come has its blocks at
    once.
    """
    node = LanguageAlone(num_blocks=32)
    queue = queue_of(node, 16)
    silent = [waiting(node, queue, room) for room in range(1, 11)]
    assert [blocks_of(request) for request in silent] == [16, 8, 0, 0, 0, 0, 0, 0, 0, 0]
    node.advance(5.0)  # it takes no more because time passes
    assert sum(blocks_of(request) for request in silent) == 24
    assert all(request.record.is_contacted for request in silent)
    busy = waiting(node, queue, 11)
    assert busy.receiver is not None
    assert blocks_of(busy) == 0
    node.status(busy.receiver, Phase.WaitingForInput, 0, total_tokens=6 * BLOCK_SIZE, ready_tokens=BLOCK_SIZE)
    assert blocks_of(busy) == 6


def announced(node: LanguageAlone, request: EmbeddingRequest, num_blocks: int, num_ready: int = 0) -> None:
    """Its encoder has come, and has rows for the first `num_ready` blocks."""
    assert request.receiver is not None
    total, ready = num_blocks * BLOCK_SIZE, num_ready * BLOCK_SIZE
    node.status(request.receiver, Phase.WaitingForInput, 0, total_tokens=total, ready_tokens=ready)


def test_requests_whose_lengths_are_announced_leave_that_quarter_as_long_as_they_have_shown_no_row() -> None:
    """P21, D8: their encoders may stop before the first row; one whose rows come has the rest of its blocks then."""
    node = LanguageAlone(num_blocks=32)
    queue = queue_of(node, 1)
    silent = [waiting(node, queue, room) for room in range(1, 5)]
    for request in silent:
        announced(node, request, 40)
    assert [blocks_of(request) for request in silent] == [15, 7, 1, 1]
    node.advance(4.0)  # none takes more because time passes
    assert [blocks_of(request) for request in silent] == [15, 7, 1, 1]
    busy = waiting(node, queue, 5)
    assert blocks_of(busy) == 0
    announced(node, busy, 6, num_ready=1)
    assert blocks_of(busy) == 6
    announced(node, silent[2], 40, num_ready=1)
    assert blocks_of(silent[2]) == 2  # all but the reserve


def test_encoders_that_stop_after_their_first_row_leave_a_block_to_those_whose_rows_are_all_there() -> None:
    """P21, P8, D8, R21: three of them have the pool, the last one its reserve, until their deadlines; else others would
    wait as long.
    """
    node = LanguageAlone(num_blocks=16)
    queue = queue_of(node, 1)
    for room in range(1, 6):
        silent = waiting(node, queue, room)
        assert silent.receiver is not None
        node.status(silent.receiver, Phase.WaitingForInput, 0, total_tokens=40 * BLOCK_SIZE, ready_tokens=1)
    busy = waiting(node, queue, 6)
    announced(node, busy, 1, num_ready=1)
    assert blocks_of(busy) == 1


def test_a_retry_whose_new_encoder_is_silent_has_a_share_too() -> None:
    """P21, R26: its length is known; a second one of its kind has a half of what is left."""
    node = LanguageAlone(num_blocks=32)
    queue = queue_of(node, 1)
    silent = waiting(node, queue, 1)
    announced(node, silent, 16)
    again = EmbeddingRequest(room=2, bootstrap_addr=ENCODE_ADDRESS)
    again.record.first_block, again.record.total_there = 10, 40 * BLOCK_SIZE
    again.total_embedding_length = again.record.total_there
    queue.add(again)
    node.settle()
    assert (blocks_of(silent), blocks_of(again) - 10) == (16, 8)


def test_a_request_without_rows_takes_nothing_of_what_comes_free_later() -> None:
    """P21: it has had its share; were it given one whenever it is looked at, it would have its all in the end."""
    node = LanguageAlone(num_blocks=32)
    queue = queue_of(node, 12)
    first, silent = waiting(node, queue, 1), waiting(node, queue, 2)
    first.abort()
    node.settle()
    assert first.receiver is not None
    node.abort_ack(first.receiver)
    assert node.counts()["free"] == 22
    node.advance(4.0)
    assert blocks_of(silent) == 10


def test_the_rest_comes_with_the_rows() -> None:
    """P21, R22: then a request is served as any other."""
    node = LanguageAlone(num_blocks=32)
    queue = queue_of(node, 12)
    silent, later = waiting(node, queue, 1), waiting(node, queue, 2)
    assert (blocks_of(silent), blocks_of(later)) == (12, 10)
    announced(node, later, 20)
    assert blocks_of(later) == 12  # its length gives it a share once more: of what is left above the quarter
    announced(node, later, 20, num_ready=11)
    assert blocks_of(later) == 16  # a window


def test_no_request_has_more_than_half_of_the_pool_ahead_of_its_rows() -> None:
    """P21: one of a known length, whose encoder may stop at any time; as its rows come, it has more."""
    node = LanguageAlone(num_blocks=20)
    queue = queue_of(node, 4)
    long = waiting(node, queue, 1)
    assert long.receiver is not None
    node.status(long.receiver, Phase.WaitingForInput, 0, total_tokens=40 * BLOCK_SIZE, ready_tokens=0)
    assert blocks_of(long) == 10
    node.status(
        long.receiver, Phase.WaitingForInput, 2 * BLOCK_SIZE, total_tokens=40 * BLOCK_SIZE, ready_tokens=3 * BLOCK_SIZE
    )
    assert blocks_of(long) == 13
    node.status(
        long.receiver, Phase.WaitingForInput, 2 * BLOCK_SIZE, total_tokens=40 * BLOCK_SIZE, ready_tokens=40 * BLOCK_SIZE
    )
    assert blocks_of(long) == 2 + 16  # a window


def test_a_request_that_is_alone_has_its_default_where_that_is_no_more_than_half_of_the_pool() -> None:
    """D13: most requests need one round, as long as the pool is not full of others; in a small pool a single one may
    have most of it.
    """
    for num_blocks, default, granted in ((32, 8, 8), (32, 16, 16), (9, 8, 8), (8, 4, 4), (8, 8, 7)):
        node = LanguageAlone(num_blocks=num_blocks)
        assert blocks_of(waiting(node, queue_of(node, default), 1)) == granted


def test_a_pool_with_room_is_not_counted_to_the_end() -> None:
    """What is enough for a default is enough: the share of what is really free is no less."""
    for num_blocks in (1, 2, 8, 9, 64, 1000):
        for blocks in range(1, num_blocks):
            enough = free_for_all_of(blocks, num_blocks)
            for free in range(enough, num_blocks):
                assert share_without_rows(free, num_blocks) >= blocks


def test_however_many_wait_a_quarter_stays() -> None:
    """P21: one after the other takes its share until there is none."""
    for num_blocks in (16, 64, 100, 4096):
        free, shares = num_blocks, []
        while share := share_without_rows(free, num_blocks):
            free -= share
            shares.append(share)
        assert free >= num_blocks // 4
        assert shares == sorted(shares, reverse=True)


def test_a_retry_that_begins_behind_more_than_half_of_the_pool_is_granted_from_there() -> None:
    """P21, R26: what another encode node has sent counts as rows that have come."""
    node = LanguageAlone(num_blocks=16)
    queue = queue_of(node, 4)
    request = EmbeddingRequest(room=1, bootstrap_addr=ENCODE_ADDRESS)
    request.record.first_block, request.record.total_there = 30, 40 * BLOCK_SIZE
    request.total_embedding_length = request.record.total_there
    queue.add(request)
    node.settle()
    node.registered()
    assert request.receiver is not None
    assert request.receiver.granted_blocks == 38
