"""Few free blocks: which of a scheduler's requests gets them, and why nobody waits for ever."""

from __future__ import annotations

import pytest
from support.lending import Scheduler

from embridge.allocator.status import Phase

pytestmark = pytest.mark.usefixtures("quiet")


def test_the_last_free_block_goes_only_to_a_request_whose_rows_wait() -> None:
    """R21, D8: who has no rows waiting may hold it for ever."""
    node = Scheduler(num_blocks=3, default_tokens=8)
    first, second = (node.receiver_of(node.add(room)) for room in (1, 2))
    assert first.granted_blocks == 2
    assert second.granted_blocks == 0
    assert node.counts() == {"free": 1, "exposed": 2}
    node.status(second, Phase.WaitingForInput, 0, ready_tokens=4)
    assert second.granted_blocks == 1


def test_a_head_of_the_queue_without_rows_does_not_stop_those_behind_it() -> None:
    """R22."""
    node = Scheduler(num_blocks=1, default_tokens=8)
    head, behind = (node.receiver_of(node.add(room)) for room in (1, 2))
    node.status(behind, Phase.WaitingForInput, 0, ready_tokens=16)
    assert (head.granted_blocks, behind.granted_blocks) == (0, 1)


def test_those_whose_rows_wait_are_served_first_come_first_served() -> None:
    """R22, D9."""
    node = Scheduler(num_blocks=2, default_tokens=8)
    holder, early, late = (node.receiver_of(node.add(room)) for room in (1, 2, 3))
    for receiver in (holder, late, early):
        node.status(receiver, Phase.WaitingForInput, 0, ready_tokens=16)
    assert [receiver.granted_blocks for receiver in (holder, early, late)] == [2, 0, 0]
    node.status(holder, Phase.Transferring, 4)
    assert [receiver.granted_blocks for receiver in (holder, early, late)] in ([3, 0, 0], [2, 1, 0])


def test_two_nodes_agree_on_whose_rows_may_exceed_the_limit_of_host_memory() -> None:
    """D8: a request that has landed here waits for its other destination, which may wait for host memory on behalf of
    another one.
    """
    node = Scheduler(
        num_blocks=8, default_tokens=4, settings={"host_buffer_bytes": 400, "default_allocate_tokens": 4}
    )
    assert 16 * node.node.geometry.token_bytes < 400 < 32 * node.node.geometry.token_bytes
    oldest, lowest, other = (node.receiver_of(node.add(room, required_dst_info_num=2)) for room in (7, 3, 5))
    for receiver in (oldest, other, lowest):
        node.status(receiver, Phase.WaitingForInput, 0)
    node.status(oldest, Phase.Transferring, 16)
    assert (oldest.granted_tokens, lowest.granted_tokens, other.granted_tokens) == (16, 16, 4)


def test_a_default_is_granted_in_whole_blocks() -> None:
    """R5, P8: or the rest of a block whose beginning was granted would wait for a block behind it that nobody needs."""
    node = Scheduler(num_blocks=8, default_tokens=6)
    receiver = node.receiver_of(node.add(1))
    assert receiver.granted_tokens == 8
    node.status(receiver, Phase.WaitingForInput, 6, total_tokens=8)
    assert not receiver.needs_resume


def test_a_shortage_waits_and_what_came_is_kept() -> None:
    """B11."""
    node = Scheduler(num_blocks=2, default_tokens=8)
    request, other = node.add(1), node.add(2)
    first, second = node.receiver_of(request), node.receiver_of(other)
    node.status(first, Phase.WaitingForInput, 0, total_tokens=12, ready_tokens=8)
    assert first.granted_blocks == 2
    node.status(second, Phase.WaitingForInput, 0, total_tokens=4, ready_tokens=4)
    assert second.granted_blocks == 0
    node.status(first, Phase.Transferring, 8, total_tokens=12, ready_tokens=8)
    assert request.transferred_tokens == 8
    assert second.granted_blocks == 1
    assert [(chunk.first, chunk.end) for chunk in request.buffered_chunks] == [(0, 8)]
