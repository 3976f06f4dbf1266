"""R26, one node at a time: where a retried request begins, what is kept of the one before it, and what is not
believed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.rows import arrived

from embridge.allocator.errors import FailureCode, TransferTimeout
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.records import Destination
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.retrying import first_missing_block
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg

ELSEWHERE = "tcp://10.0.0.21:1"


pytestmark = pytest.mark.usefixtures("quiet")


# ---- the encode side


def test_a_destination_begins_where_its_first_grant_does() -> None:
    """R26: the rows before are never staged, nor sent; the first round is over when what it granted has landed
    (R18).
    """
    node = EncodeAlone(num_blocks=1)
    sender = node.sender(1, 40, rows=10)
    node.init(1, [3], first=4)
    assert (node.get(sender, Destination.BEGIN), node.get(sender, Destination.SENT)) == (16, 16)
    assert (sender.poll(), sender.sent_tokens) == (Phase.WaitingForInput, 16)
    assert node.engine.submitted == []
    node.write(sender, 10, 19)
    assert node.get(sender, Destination.SENT) == 19
    assert sender.poll() == Phase.WaitingForInput
    node.write(sender, 19, 40)
    assert (sender.poll(), sender.sent_tokens) == (Phase.Transferring, 20)
    node.resume(1, [3, 5, 6, 7, 8, 9], first=4)
    assert (sender.poll(), sender.sent_tokens) == (Phase.Success, 40)
    assert list(itertools.chain(*node.blocks_written())) == [3, 3, 5, 6, 7, 8, 9]
    told = [status.room.sent_tokens for status in node.sent(msg.Status)]
    assert told == sorted(told)


def test_a_first_grant_that_comes_again_or_before_the_room_is_opened_begins_at_the_same_block() -> None:
    """R26, R24: lost and repeated messages change nothing; one that begins elsewhere is not the same request's."""
    node = EncodeAlone()
    node.init(1, [], first=2)
    node.init(1, [3], first=2)
    node.init(1, [3, 4, 5], first=1)
    sender = node.sender(1, 16)
    node.init(1, [3], first=2)
    assert (node.get(sender, Destination.SENT), node.get(sender, Destination.GRANTED_BLOCKS)) == (12, 3)
    node.resume(1, [4], first=3)
    assert sender.poll() == Phase.Success
    assert node.blocks_written() == [[3], [4]]


def test_destinations_of_one_room_may_begin_at_different_blocks() -> None:
    """R26, R18: each had got as far as it had; the room's progress is the least, through one source block."""
    node = EncodeAlone(num_blocks=1)
    node.register(node_id=11)
    sender = node.sender(1, 16)
    node.init(1, [3], first=3, required=2)
    assert sender.sent_tokens == 0
    node.init(1, [7, 8, 9], first=1, required=2, node_id=11)
    assert (sender.poll(), sender.sent_tokens) == (Phase.Success, 16)
    assert sorted(itertools.chain(*node.blocks_written())) == [3, 7, 8, 9]


@pytest.mark.parametrize("announced_first", [False, True])
def test_a_destination_that_has_more_rows_than_there_are_fails_the_request(announced_first: bool) -> None:
    """R26, B3: the two encoders do not send the same; it must not be taken for complete."""
    node = EncodeAlone()
    sender = node.sender(1, 16, rows=16 if announced_first else 0)
    node.init(1, [3], first=4)
    if not announced_first:
        assert sender.poll() == Phase.WaitingForInput
        node.write(sender, 0, 16)
    assert sender.poll() == Phase.Failed
    assert "has 16 rows from another encode node, and the encoder announces 16 tokens here" in str(
        sender.failure_exception()
    )
    assert node.engine.submitted == []


def test_a_first_grant_behind_the_longest_request_is_refused() -> None:
    """R26, D15."""
    node = EncodeAlone()
    sender = node.sender(1, 16)
    node.init(1, [3], first=MAX_TOKENS // BLOCK_SIZE + 1)
    assert node.sent(msg.Refused)[-1].code == FailureCode.PROTOCOL
    assert sender.poll() == Phase.Bootstrapping


def test_a_bootstrap_that_is_killed_while_it_opens_a_destination_opens_the_next_one_there_from_its_own_beginning() -> (
    None
):
    """R26, P1: what it had written of a retry is not taken for another destination's."""
    node = EncodeAlone()
    sender = node.sender(1, 16)
    bootstrap = node.actor("bootstrap")
    table = bootstrap.role._grants._dsts  # type: ignore[attr-defined]
    write = table.set

    def die_at_begin(slot: int, d: int, field: Destination, value: int) -> None:
        write(slot, d, field, value)
        if field == Destination.GRANTED_BLOCKS:
            bootstrap.fuse.left = 1

    table.set = die_at_begin
    node.init(1, [3], first=3)
    node.settle()
    assert bootstrap.generation == 2
    assert node.get(sender, Destination.SENT) == 12
    node.init(1, [3, 4, 5, 6], slot=9)
    assert (sender.poll(), node.get(sender, Destination.BEGIN)) == (Phase.Success, 0)
    assert list(itertools.chain(*node.blocks_written())) == [3, 4, 5, 6]


# ---- the language side


def queues(node: LanguageAlone) -> tuple[TransferQueue, PreallocQueue]:
    transfer = TransferQueue(node.client, default_allocate_tokens=16, adaptive=False)
    node.settle()
    return transfer, PreallocQueue(node.client, transfer)


def add(node: LanguageAlone, prealloc: PreallocQueue, room: int) -> tuple[EmbeddingRequest, EmbeddingReceiver]:
    request = EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS, keep_for_retry=True)
    prealloc.add(request)
    node.settle()
    node.registered()
    assert request.receiver is not None
    return request, request.receiver


def fill(node: LanguageAlone, receiver: EmbeddingReceiver, num_tokens: int) -> None:
    """Rows land: each row's id is its number; and the request's auxiliary words with the first."""
    ids = np.asarray(library_of(node.client).attachment.buffers.fill_ids)
    for row in range(num_tokens):
        ids[receiver.block_of(row // BLOCK_SIZE), row % BLOCK_SIZE] = row
    library_of(node.client).attachment.buffers.aux_datas[receiver.block_of(0)][:2] = (16, -5)


def land_and_fail(node: LanguageAlone, receiver: EmbeddingReceiver, sent: int) -> None:
    """Rows land and the encoder dies, before the library thread has looked: nothing is drained."""
    fill(node, receiver, sent)
    landed = node.state(receiver, Phase.Transferring, sent)
    failed = node.state(receiver, Phase.Failed, sent, code=FailureCode.CLIENT_DIED, reason="the encoder process died")
    node.hears("poller", *(msg.Status(node.envelope(node_id=20), state) for state in (landed, failed)))


def test_rows_that_have_landed_when_the_request_fails_are_copied_out_of_their_blocks_then() -> None:
    """R26, P6: whole blocks; the next request takes up behind them, in blocks of its own, in the same room."""
    node = LanguageAlone()
    transfer, prealloc = queues(node)
    request, receiver = add(node, prealloc, 1)
    old_blocks = {receiver.block_of(k) for k in range(4)}
    land_and_fail(node, receiver, 11)
    assert transfer.pop_transferred() == ([], [request])
    assert (request.is_retryable, request.transferred_tokens, request.chunk_info) == (True, 8, [(0, 8)])
    assert arrived(request.buffered_chunks[0]).fill_ids.tolist() == list(range(8))
    assert node.counts()["quarantined"] == 4
    node.forget_sent()
    prealloc.retry(request, ENCODE_ADDRESS, timeout_s=7.0)
    node.settle()
    again = request.receiver
    assert again is not None
    assert again is not receiver
    init = node.sent(msg.Init)[-1]
    assert (init.key.room, init.first_block, init.allocated_tokens) == (1, 2, 8)
    assert (init.key.slot, init.key.epoch) != (receiver.slot, receiver.epoch)
    assert not old_blocks & set(init.dst_embedding_indices)
    ids = np.asarray(library_of(node.client).attachment.buffers.fill_ids)
    for block, first in zip(init.dst_embedding_indices, (8, 12), strict=True):
        ids[block] = range(first, first + 4)
    node.status(again, Phase.Success, 16, known_blocks=4)
    assert transfer.pop_transferred() == ([request], [])
    assert request.result is not None
    assert arrived(request.result).fill_ids.tolist() == list(range(16))
    assert (int(request.result.aux_datas[0]), request.result.mrope_position_delta) == (16, -5)
    assert request.num_rounds == 2
    request.release()
    node.abort_ack(receiver)
    library_of(node.client).turn()
    assert transfer.memory.reserved_bytes == 0
    assert node.counts() == {"free": 8}


def test_a_block_that_is_taken_back_while_it_is_copied_out_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """R26, D2: once it is free, it may be another request's; what was read may be that one's rows."""
    node = LanguageAlone()
    transfer, prealloc = queues(node)
    request, receiver = add(node, prealloc, 1)
    holds, looks = EmbeddingReceiver.holds, []

    def freed_before_the_second_look(self: EmbeddingReceiver, block: int) -> bool:
        looks.append(block)
        if len(looks) == 2:
            node.control.blocks.cells.end_quarantine(receiver.slot, receiver.epoch)
        return holds(self, block)

    monkeypatch.setattr(EmbeddingReceiver, "holds", freed_before_the_second_look)
    land_and_fail(node, receiver, 15)
    assert transfer.pop_transferred() == ([], [request])
    assert len(looks) == 2
    assert (request.transferred_tokens, request.chunk_info) == (4, [(0, 4)])
    request.release()


def test_a_request_that_is_kept_for_a_retry_and_released_gives_its_memory_back() -> None:
    """R26, D6."""
    node = LanguageAlone()
    transfer, prealloc = queues(node)
    request, receiver = add(node, prealloc, 1)
    land_and_fail(node, receiver, 11)
    transfer.pop_transferred()
    assert transfer.memory.reserved_bytes > 0
    request.release()
    node.settle()
    library_of(node.client).turn()
    assert transfer.memory.reserved_bytes == 0
    assert request.why_not_retryable == "it was released"


def test_a_retry_may_fail_and_be_retried_with_what_is_kept_by_then() -> None:
    """R26: nobody answers at the second node; what the first had sent is still there for the third."""
    node = LanguageAlone()
    transfer, prealloc = queues(node)
    request, receiver = add(node, prealloc, 1)
    land_and_fail(node, receiver, 11)
    transfer.pop_transferred()
    prealloc.retry(request, ELSEWHERE)
    node.advance(node.world.timing.connect_timeout_s + 1, until=lambda: request.failure is not None)
    assert transfer.pop_transferred() == ([], [request])
    assert request.failure is not None
    assert (request.failure.code, request.transferred_tokens) == (FailureCode.UNREACHABLE, 8)
    prealloc.retry(request, ENCODE_ADDRESS, room=2)
    node.settle()
    node.registered()  # it has been silent for all that time
    assert node.sent(msg.Init)[-1].key.room == 2
    assert node.sent(msg.Init)[-1].first_block == 2


def test_the_total_of_the_first_encode_node_holds_for_the_second_whatever_its_first_word_is() -> None:
    """R26, B3: not even Success, if that is the first that is heard of it, ends the request as finished."""
    node = LanguageAlone()
    transfer, prealloc = queues(node)
    request, receiver = add(node, prealloc, 1)
    land_and_fail(node, receiver, 11)
    transfer.pop_transferred()
    prealloc.retry(request, ENCODE_ADDRESS)
    node.settle()
    assert request.receiver is not None
    node.status(request.receiver, Phase.Success, 12, total_tokens=12, known_blocks=4)
    assert transfer.pop_transferred() == ([], [request])
    assert "announced 16 tokens and then 12" in str(request.failure)
    assert "PROTOCOL" in request.why_not_retryable


@pytest.mark.parametrize(("ready", "is_ours"), [(16, True), (8, False)])
def test_a_request_that_ran_out_of_time_is_retried_if_it_was_its_encode_node_that_kept_it_waiting(
    ready: int, is_ours: bool
) -> None:
    """R26: rows that waited for a block of ours would wait for it again."""
    node = LanguageAlone()
    receiver = node.client.receiver(ENCODE_ADDRESS, 1, timeout_s=0.5)
    node.settle()
    node.registered()
    receiver.init(receiver.allocate(2))
    node.settle()
    node.status(receiver, Phase.Transferring, 8, ready_tokens=ready)
    node.advance(1.0)
    assert isinstance(receiver.failure_exception(), TransferTimeout)
    assert bool(receiver.why_not_retryable) == is_ours


def test_whole_blocks_are_kept_but_never_the_last() -> None:
    """R26, R20: a request of which all rows have come still waits for its encode node to say so."""
    assert [first_missing_block(n, 16, 4) for n in (0, 3, 4, 11, 12, 15, 16)] == [0, 0, 1, 2, 3, 3, 3]
    assert [first_missing_block(n, 13, 4) for n in (11, 12, 13)] == [2, 3, 3]
    assert first_missing_block(0, 0, 4) == 0
