"""Rows that an encoder makes in source blocks, from which they are sent to another host: nothing is copied here."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from support.alone import BLOCK_SIZE, EncodeAlone, StubEngine
from support.nodes import station
from support.rows import rows_of

from embridge import EmbeddingSender, attach
from embridge.allocator.buffers import pools
from embridge.allocator.errors import NodeBusyError
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.in_place import WritableRows
from embridge.pipeline.client.kept_rows import KeptRows
from embridge.workers.transfer.engines.base import Outcome

pytestmark = pytest.mark.usefixtures("quiet")


def network(num_blocks: int = 16, outcome: Outcome = Outcome.DONE) -> EncodeAlone:
    return EncodeAlone(engine=StubEngine(late_writes=True, outcome=outcome), num_blocks=num_blocks)


def fill(sender: EmbeddingSender, rows: WritableRows) -> None:
    want = rows_of(sender._attachment.geometry, sender.room, rows.first, rows.end)
    for view, values in zip(rows[3:], want, strict=True):
        if view is not None and values is not None:
            view.copy_(values)


def rows_at(node: EncodeAlone, rows: WritableRows) -> int:
    """Where the first of these rows lies in the payload."""
    return rows.input_embeddings.data_ptr() - node.node.payload.address


def commit(node: EncodeAlone, sender: EmbeddingSender, end: int) -> bool:
    committed = sender.commit(end)
    node.settle()
    return committed


def owned(node: EncodeAlone) -> int:
    return node.control.blocks.counts().owned


def test_rows_are_sent_from_where_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """R8: no row is copied, and each of their buffers moves from there."""
    monkeypatch.setattr(KeptRows, "put", lambda *_: pytest.fail("copied"))
    node = network()
    sender = node.sender(1, 10, rows=0)
    node.init(1, [3, 4, 5], tokens=10)
    rows = sender.rows(0, 10)
    assert (rows.first, rows.end, rows.is_in_place) == (0, 10, True)
    fill(sender, rows)
    node.advance(0.5)
    assert node.engine.submitted == []
    assert (sender.sent_tokens, owned(node)) == (0, 3)
    first = rows_at(node, rows)
    assert commit(node, sender, 10)
    assert sender.poll() == Phase.Success
    row_bytes = pools(node.node.geometry)[0].row_bytes
    moved = [(here, size) for _, moves in node.engine.submitted for _, here, size in moves]
    assert any(first == here for here, _ in moved)
    assert sum(size for here, size in moved if first <= here < first + 10 * row_bytes) == 10 * row_bytes
    node.close(1)
    assert owned(node) == 0


def test_lots_follow_one_another_and_rows_that_are_not_committed_are_handed_out_anew() -> None:
    node = network()
    sender = node.sender(1, 16, rows=0)
    node.init(1, [3, 4, 5, 6])
    rows = sender.rows(0, 12)
    fill(sender, rows)
    assert commit(node, sender, 8)
    assert (sender.sent_tokens, owned(node)) == (8, 0)
    rows = sender.rows(8, 8)
    assert (rows.first, rows.end, rows.is_in_place) == (8, 16, True)
    fill(sender, rows)
    assert commit(node, sender, 16)
    assert sender.poll() == Phase.Success


def test_rows_that_end_within_a_block_are_copied() -> None:
    """Those that follow belong into the same block, and may come from elsewhere."""
    node = network()
    sender = node.sender(1, 12, rows=0)
    node.init(1, [3, 4, 5])
    fill(sender, sender.rows(0, 12))
    assert commit(node, sender, 6)
    assert sender.sent_tokens == 6
    rows = sender.rows(6, 6)
    assert not rows.is_in_place
    fill(sender, rows)
    assert commit(node, sender, 12)
    assert sender.poll() == Phase.Success
    node.close(1)
    assert owned(node) == 0


def test_only_blocks_that_nobody_else_needs_are_handed_out() -> None:
    """R21, P21: a quarter of the pool stays free, however long the rows are out; the others are in host memory."""
    node = network(num_blocks=8)
    first, second = node.sender(1, 40, rows=0), node.sender(2, 8, rows=0)
    rows = first.rows(0, 40)
    assert (rows.first, rows.end, rows.is_in_place) == (0, 5 * BLOCK_SIZE, True)
    assert not second.rows(0, 8).is_in_place
    assert node.control.blocks.counts().free == 3


def test_what_is_out_when_the_request_fails_stays_its_own_until_it_is_committed() -> None:
    """D2, R8: somebody may still write there."""
    node = network()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    fill(sender, sender.rows(0, 8))
    node.abort(1)
    node.close(1)
    node.advance(0.5)
    assert sender.poll() == Phase.Failed
    assert owned(node) == 2
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) < node.slots.get(sender.slot, Slot.EPOCH)
    slot, epoch = sender.slot, sender.epoch
    assert not commit(node, sender, 8)
    node.advance(0.5)
    assert owned(node) == 0
    assert node.slots.get(slot, Slot.RELEASED_EPOCH) == epoch
    assert node.engine.submitted == []


@pytest.mark.parametrize("end", [0, 8])
def test_none_may_be_committed(end: int) -> None:
    node = network()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    fill(sender, sender.rows(0, 8))
    assert commit(node, sender, end)
    assert sender.sent_tokens == end
    node.close(1)
    node.advance(0.5)
    assert owned(node) == 0


def test_rows_for_which_there_is_no_memory_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """P22."""
    node = network()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    fill(sender, sender.rows(0, 8))

    def busy(*_: object) -> None:
        raise NodeBusyError("full", 0.1)

    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "make_room", busy)
        with pytest.raises(NodeBusyError):
            sender.commit(6)
    assert commit(node, sender, 8)
    assert sender.poll() == Phase.Success


def test_the_blocks_of_an_encoder_that_dies_come_free() -> None:
    """P1, P3."""
    node = network()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    sender.rows(0, 8)
    node.node.clients[0].die()
    node.settle()
    node.close(1)
    node.advance(2.0)
    assert owned(node) == 0


@pytest.mark.process
def test_who_leaves_with_rows_out_writes_into_nobody_s_blocks(tmp_path: Path) -> None:
    """D2, P1: the blocks are another's at once, and the views stay where they are."""
    with station("encode", tmp_path / "e") as encode:
        client = attach(encode.run_dir)
        sender = client.sender(1, 300)
        rows = sender.rows(0, 300)
        assert rows.is_in_place
        rows.input_embeddings.fill_(1)
        client.close()
        with attach(encode.run_dir) as other:
            payload = library_of(other).attachment.buffers.input_embeddings
            before = torch.as_tensor(payload).clone()
            rows.input_embeddings.fill_(7)
            assert torch.equal(torch.as_tensor(payload), before)
            with pytest.raises(RuntimeError):
                sender.commit(300)
        del rows
        gc.collect()
