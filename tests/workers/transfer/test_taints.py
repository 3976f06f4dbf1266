"""Tainted sessions: what an attempt may write is noted before it writes, and told with its progress."""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import EncodeAlone, LanguageAlone, StubEngine

from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import Outcome

pytestmark = pytest.mark.usefixtures("quiet")


def test_what_an_attempt_may_write_is_noted_before_it_is_submitted() -> None:
    """R6: a worker that dies leaves behind how far its write may reach, and under which session."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    seen: list[tuple[int, int]] = []
    node.engine.on_submit = lambda: seen.append(
        (node.get(sender, Destination.ISSUED), node.get(sender, Destination.ATTEMPT_SESSION))
    )
    node.init(1, [3, 4], session=5)
    assert seen == [(8, 5)]


def test_an_attempt_that_fails_taints_its_session_before_it_is_repeated() -> None:
    """R6: with an engine whose failed writes may still land."""
    engine = StubEngine(late_writes=True, outcome=Outcome.FAILED)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    tainted: list[int] = []

    def on_submit() -> None:
        tainted.append(node.get(sender, Destination.TAINTED))
        if len(tainted) == 2:
            engine.outcome = Outcome.DONE

    engine.on_submit = on_submit
    node.init(1, [3, 4], session=1)
    node.advance(0.1)
    assert tainted == [0, 2]
    assert sender.poll() == Phase.Success
    assert node.sent(msg.Status)[-1].room.tainted == 2


def test_an_engine_whose_writes_end_with_it_taints_nothing() -> None:
    """R6, R12: for shared memory a failed attempt is over."""
    engine = StubEngine(late_writes=False, outcome=Outcome.FAILED)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    engine.on_submit = lambda: setattr(engine, "outcome", Outcome.DONE if len(engine.submitted) else Outcome.FAILED)
    node.init(1, [3, 4])
    node.advance(0.1)
    assert len(engine.submitted) == 2
    assert node.get(sender, Destination.TAINTED) == 0


def test_a_worker_that_died_in_an_attempt_leaves_its_session_tainted() -> None:
    """R6: its successor can't know what the dead engine's connection still holds."""
    engine = StubEngine(late_writes=True, outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], session=1)
    assert node.get(sender, Destination.ISSUED) == 8
    engine.outcome = Outcome.DONE
    node.new_worker()
    node.advance(0.1)
    assert node.get(sender, Destination.TAINTED) == 2
    assert node.sent(msg.Landed)[-1].room.tainted == 2


def test_a_report_is_no_cleaner_than_its_progress() -> None:
    """R6: who publishes reads `sent` first, then `tainted`, and `sent` not once more after it."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    publisher, order = node.actor("poller").role, []
    table = publisher._dsts  # type: ignore[attr-defined]
    get, get_all = table.get, table.get_all

    def reading(slot: int, d: int, field: Destination) -> int:
        order.append(field)
        return int(get(slot, d, field))

    def reading_all(slot: int, d: int) -> list[int]:
        order.append(Destination.TAINTED)
        return list(get_all(slot, d))

    table.get, table.get_all = reading, reading_all
    publisher._serve(sender.slot, sender.epoch)  # type: ignore[attr-defined]
    assert Destination.SENT in order[: order.index(Destination.TAINTED)]
    assert Destination.SENT not in order[order.index(Destination.TAINTED) :]


def test_what_is_tainted_is_stored_before_the_word_says_that_rows_have_landed() -> None:
    """R6: or a drain between the two would free a block into which a write may still land."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    status, seen = node.actor("poller").ctx.status, []
    advance = status.advance

    def watched(*arguments: Any) -> bool:
        seen.append(node.slots.get(receiver.slot, Slot.TAINTED))
        return bool(advance(*arguments))

    status.advance = watched  # type: ignore[method-assign]
    node.status(receiver, Phase.Transferring, 8, tainted=2)
    assert seen
    assert set(seen) == {2}


def test_an_abort_is_acknowledged_only_when_the_last_attempt_has_ended() -> None:
    """R9: the worker, the only one who submits, says so."""
    engine = StubEngine(outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    node.sender(1, 8)
    node.init(1, [3, 4])
    assert len(engine.submitted) == 1
    node.abort(1)
    node.advance(1.0)
    assert node.sent(msg.AbortAck) == []
    engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert len(node.sent(msg.AbortAck)) == 1
    assert len(engine.submitted) == 1
