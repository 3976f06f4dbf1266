"""Rows that the caller's thread has placed in source blocks, it shows the worker itself; and whom it tells of them."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone, StubEngine
from support.rows import rows_of

from embridge.allocator._core import TurnTaker
from embridge.allocator.request_tables import STAGE_STAGED, StageEntry
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import Outcome


@pytest.fixture
def node() -> EncodeAlone:
    return EncodeAlone(engine=StubEngine(late_writes=True))


def granted(node: EncodeAlone, tokens: int = 8) -> EmbeddingSender:
    """A request of 8 rows, of which so many are granted, and none is given."""
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4][: tokens // 4], tokens=tokens)
    node.forget_sent()
    return sender


def write(node: EncodeAlone, sender: EmbeddingSender, first: int, end: int) -> None:
    """Nobody else does anything meanwhile."""
    assert sender.write(first, *rows_of(node.node.geometry, sender.room, first, end))


def is_shown(node: EncodeAlone, sender: EmbeddingSender) -> list[bool]:
    entries = [StageEntry.of(node.control.staging.load(sender.slot, k)) for k in (0, 1)]
    return [entry.state == STAGE_STAGED for entry in entries]


def only_the_worker_works(node: EncodeAlone) -> None:
    """It is told, and nobody else takes a step."""
    node.actor("worker0").step()


def test_rows_are_written_without_a_turn_of_the_library_thread(node: EncodeAlone) -> None:
    """P8: where they are granted and stand in source blocks, the worker needs to know of them, and nothing else."""
    sender = granted(node)
    write(node, sender, 0, 8)
    assert is_shown(node, sender) == [True, True]
    only_the_worker_works(node)
    assert node.blocks_written() == [[3, 4]]
    node.settle()
    assert sender.poll() == Phase.Success


def test_while_somebody_has_the_turn_the_library_thread_shows_them(node: EncodeAlone) -> None:
    """R8: what is staged belongs to whoever has the turn."""
    sender = granted(node)
    with TurnTaker(library_of(node.client).view.turn) as has_turn:
        assert has_turn
        write(node, sender, 0, 8)
    assert is_shown(node, sender) == [False, False]
    node.settle()
    assert node.blocks_written() == [[3, 4]]
    assert sender.poll() == Phase.Success


def test_the_length_of_what_is_all_granted_is_told_with_the_first_rows_that_are_sent(node: EncodeAlone) -> None:
    """B7: it opens no other grant, and so needs no message of its own."""
    sender = granted(node)
    node.engine.outcome = Outcome.PENDING
    write(node, sender, 0, 8)
    node.settle()
    assert not [status for status in node.sent(msg.Status) if status.room.total_tokens]
    node.engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert node.sent(msg.Landed)[-1].room.total_tokens == 8


def test_the_length_is_told_at_once_while_more_has_to_be_granted(node: EncodeAlone) -> None:
    """B3, D13: the rest is granted while the first rows travel."""
    sender = granted(node, tokens=4)
    node.engine.outcome = Outcome.PENDING
    write(node, sender, 0, 8)
    node.settle()
    assert node.sent(msg.Status)[-1].room.total_tokens == 8
