"""Results that are lent: views of the scheduler's own blocks, as long as the others have enough to go on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS
from support.lending import Scheduler
from support.rows import arrived, rows_of

from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Peer, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.slot_lease import MOST_HELD
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_result_is_views_of_its_blocks_and_its_release_frees_them() -> None:
    """R35: nothing is copied, no host memory is counted any more, and slot and blocks go back with the release."""
    node = Scheduler()
    request = node.arrive(1, 14)
    assert node.is_lent(request)
    node.check(request)
    assert (request.transferred_tokens, request.chunk_info, request.record.rows) == (14, [(0, 14)], None)
    [chunk] = request.buffered_chunks
    assert torch.equal(arrived(chunk).fill_ids, rows_of(node.node.geometry, 1, 0, 14)[1])
    node.advance(0.2)
    assert node.queue.memory.reserved_bytes == 0
    assert node.counts() == {"free": 12, "exposed": 4}
    assert node.control.lanes.num_lent() == 4
    node.forget_sent()
    node.advance(60.0)
    assert len(node.sent(msg.Close)) < 10
    request.release()
    assert (request.result, request.buffered_chunks) == (None, [])
    node.settle()
    assert node.counts() == {"free": 16}
    assert not dict(node.control.open_slots())
    node.add(2)
    request.release()
    node.settle()
    assert node.counts() == {"free": 15, "exposed": 1}


def test_a_result_makes_each_view_once_and_is_not_to_be_changed() -> None:
    """R35: when it is first asked for it; a result is as it is for as long as its scheduler has it."""
    result = Scheduler().arrive(1, 14).result
    assert result is not None
    names = ("input_embeddings", "fill_ids", "mrope_positions", "aux_datas")
    assert all(getattr(result, name) is getattr(result, name) for name in names)
    assert result.deepstack_embeddings is None
    assert result.mrope_position_delta == 1
    assert "14 rows" in repr(result)
    for name in (*names, "deepstack_embeddings"):
        with pytest.raises(AttributeError):
            setattr(result, name, None)


def test_blocks_behind_the_last_row_come_free_when_the_others_are_lent() -> None:
    """R35: the default was more than the request needed."""
    node = Scheduler(num_blocks=8, default_tokens=8 * BLOCK_SIZE)
    request = node.add(1)
    assert node.receiver_of(request).granted_blocks == 7
    node.finish(request, 5)
    assert node.queue.pop_transferred() == ([request], [])
    assert node.is_lent(request)
    assert node.counts() == {"free": 6, "exposed": 2}
    node.check(request)
    request.release()
    node.settle()
    assert node.counts() == {"free": 8}


@pytest.mark.parametrize("grants", [([1], [7, 8], [4]), ([1, 2, 5, 6],)], ids=["in three grants", "in one"])
def test_blocks_that_are_no_run_in_the_order_of_the_rows_are_drained(grants: tuple[list[int], ...]) -> None:
    """R35: [1, 7, 8, 4] are four blocks, and the last is three behind the first."""
    node = Scheduler()
    holder = node.client.receiver(ENCODE_ADDRESS, 99)
    node.settle()
    node.registered()
    assert sorted(holder.allocate(16)) == list(range(16))
    request = node.add(1)
    receiver = node.announce(request, 16)
    for blocks in grants:
        node.control.blocks.release(np.array(blocks, np.uint32), holder.slot, holder.epoch)
        library_of(node.client).wake(receiver)
        node.settle()
        node.advance(0.01)
    assert receiver.current_allocation().tolist() == [block for blocks in grants for block in blocks]
    holder.clear()
    node.settle()
    node.finish(request, 16)
    assert node.queue.pop_transferred() == ([request], [])
    assert not node.is_lent(request)
    node.check(request)


def test_there_is_no_memory_for_a_result_that_outlives_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R35: then it is gone, and its client leaves all the same."""
    node = Scheduler()
    request = node.arrive(1, 14)

    def none(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", none)
    node.client.close()
    monkeypatch.undo()
    assert request.result is None


def test_the_reserve_is_never_lent() -> None:
    """R35, R21: it is there for whoever comes next, however many others are free."""
    node = Scheduler(num_blocks=8)
    holder = node.client.receiver(ENCODE_ADDRESS, 99)
    node.settle()
    node.registered()
    assert sorted(holder.allocate(7, may_take_reserve=False)) == list(range(1, 8))
    request = node.add(1)
    assert node.announce(request, 3).current_allocation().tolist() == [0]
    holder.clear()
    node.finish(request, 3)
    assert node.queue.pop_transferred() == ([request], [])
    assert not node.is_lent(request)
    node.check(request)
    node.settle()
    assert node.counts() == {"free": 8}


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 8, 16, 37])
def test_a_scheduler_that_keeps_all_it_gets_still_gets_the_next_one(num_blocks: int) -> None:
    """R35, D8: results are kept until another one arrives; a quarter of the pool is never lent."""
    node = Scheduler(num_blocks=num_blocks)
    kept = [node.arrive(room, 1 + 5 * room % (2 * BLOCK_SIZE)) for room in range(1, 60)]
    lent = [node.is_lent(request) for request in kept]
    assert any(lent)
    assert not all(lent)
    assert node.counts()["free"] >= num_blocks // 4 + 1
    for request in kept:
        node.check(request)
        request.release()
    node.settle()
    assert node.counts() == {"free": num_blocks}


def test_nothing_is_lent_while_somebody_waits_for_a_block_or_a_slot() -> None:
    """R35, D8: another client of the node, say."""
    node = Scheduler()
    other = node.new_client()
    node.control.blocks.set_waiting(other.lane, True)
    assert not node.is_lent(node.arrive(1, 4))
    node.control.blocks.set_waiting(other.lane, False)
    node.control.slot_waiters.set(other.lane, True)
    assert not node.is_lent(node.arrive(2, 4))
    node.control.slot_waiters.set(other.lane, False)
    assert node.is_lent(node.arrive(3, 4))


def test_results_that_are_kept_leave_slots_to_this_client_and_to_others() -> None:
    """R35, P8: they lie in half of the pages of slots, and leave a quarter of each."""
    node = Scheduler(num_blocks=512)
    assert node.control.lanes.num_pages == 2
    kept = [node.arrive(room, 4) for room in range(1, 3 * SLOTS_PER_PAGE)]
    lent = [request for request in kept if node.is_lent(request)]
    assert len(lent) == MOST_HELD
    assert len({node.receiver_of(request).slot // SLOTS_PER_PAGE for request in lent}) == 1
    other = node.new_client()
    receiver = other.receiver(ENCODE_ADDRESS, 1 << 20)
    node.settle()
    assert not receiver.is_waiting
    for request in kept:
        request.release()
    node.settle()
    assert node.control.lanes.num_early() == 0


def test_a_room_whose_result_is_lent_is_no_longer_in_use() -> None:
    """R35: as one whose result was drained."""
    node = Scheduler()
    request = node.arrive(1, 4)
    assert node.is_lent(request)
    again = node.add(1)
    assert node.receiver_of(again).slot != node.receiver_of(request).slot
    request.release()
    node.settle()
    node.finish(again, 4)
    assert node.queue.pop_transferred() == ([again], [])


def test_blocks_into_which_a_late_write_may_land_are_drained() -> None:
    """R35, R7."""
    node = Scheduler(late_writes=True)
    node.settle()
    request = node.add(1)
    receiver = node.announce(request, 4)
    node.write(request, 0, 4)
    session = node.slots.get(receiver.slot, Slot.SESSION)
    node.status(receiver, Phase.Success, 4, total_tokens=4, ready_tokens=4, tainted=session + 1)
    node.turn()
    assert node.queue.pop_transferred() == ([request], [])
    assert not node.is_lent(request)
    assert node.counts() == {"free": 15, "quarantined": 1}


def test_an_abort_after_the_end_takes_nothing_of_what_is_lent() -> None:
    """R35: it has no effect, as ever."""
    node = Scheduler()
    request = node.arrive(1, 4)
    request.abort("too late")
    node.advance(1.0)
    assert node.is_lent(request)
    node.check(request)
    assert node.counts() == {"free": 15, "exposed": 1}


def test_a_result_outlives_its_client() -> None:
    """R35, P9: what is lent is copied before its blocks are another's; a release after that is one of host memory."""
    node = Scheduler()
    kept, released, not_popped = node.arrive(1, 14), node.arrive(2, 4), node.add(3)
    node.finish(not_popped, 4)
    assert node.is_lent(kept)
    assert node.is_lent(released)
    released.release()
    node.client.close()
    np.frombuffer(node.node.payload, np.uint8)[:] = 0xEE
    node.check(kept)
    assert (released.result, not_popped.result) == (None, None)
    kept.release()
    kept.release()
    assert kept.result is None


def test_what_is_lent_by_a_node_that_is_gone_stays() -> None:
    """R35: nobody writes there any more."""
    node = Scheduler()
    request = node.arrive(1, 14)
    node.attachment.node_gone = True
    library_of(node.client).wake()
    node.settle()
    assert node.is_lent(request)
    node.check(request)
    request.release()
    node.settle()
    assert request.result is None


def test_a_result_that_was_not_popped_outlives_its_node_though_somebody_waits() -> None:
    """R35: a node that is gone has nothing to give to whoever waits."""
    node = Scheduler()
    request = node.add(1)
    node.finish(request, 14)
    other = node.new_client()
    node.attachment.node_gone = True
    node.control.blocks.set_waiting(other.lane, True)
    node.control.slot_waiters.set(other.lane, True)
    node.advance(0.2)
    assert node.queue.pop_transferred() == ([request], [])
    assert node.is_lent(request)
    node.check(request)


def test_a_client_that_dies_leaves_no_block_that_it_had_lent() -> None:
    """R35, P1, P3: the cells say whose they are."""
    node = Scheduler()
    request = node.arrive(1, 14)
    assert node.is_lent(request)
    node.node.clients[0].die()
    node.advance(1.0)
    assert node.counts() == {"free": 16}
    assert not dict(node.control.open_slots())
    assert node.control.lanes.num_early() == 0


def test_what_is_lent_keeps_no_entry_of_a_peer_that_is_gone() -> None:
    """R35, P23: a scheduler that keeps its results does not keep new encode nodes away."""
    node = Scheduler()
    request = node.arrive(1, 4)
    assert node.is_lent(request)
    peers, slot = node.control.peers, node.receiver_of(request).slot
    [peer] = peers.alive()
    assert node.slots.get(slot, Slot.PEER) == peer + 1
    record = peers.record(peer)
    for other in range(1, peers.num_peers):
        fields = {**record._asdict(), "node_id": 100 + other}
        assert peers.register(PeerRecord(**fields), 1, ()) is not None
    peers.bury(peer)
    again = EmbeddingRequest(room=2, bootstrap_addr=ENCODE_ADDRESS)
    node.queue.add(again)
    node.settle()
    node.registered(incarnation=2)
    assert node.receiver_of(again).handshake_done
    assert peers.get(peer, Peer.INCARNATION) == 2
    node.check(request)
