"""Attempts of a transfer worker, and the source blocks that they read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.alone import EncodeAlone, StubEngine
from support.simulation import LIMITS

from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination
from embridge.allocator.request_tables import STAGE_READING, StageEntry
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import EngineError, Outcome

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_source_block_is_not_freed_while_an_attempt_reads_it() -> None:
    """R8."""
    engine = StubEngine(outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    assert [StageEntry.of(node.control.staging.load(sender.slot, k)).state for k in (0, 1)] == [STAGE_READING] * 2
    sender.abort()
    node.advance(1.0)
    assert sender.progress().phase == Phase.Failed
    assert node.control.blocks.counts().owned == 2
    engine.outcome = Outcome.DONE
    node.advance(1.0)
    assert node.control.blocks.counts().free == 8


def test_the_source_blocks_of_a_failed_attempt_are_kept_while_its_engine_may_read_them() -> None:
    """R8: until the worker has ended, and its engine with it.

    It waits for an attempt of another request, and renews itself then.
    """
    engine = StubEngine(late_writes=True, outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender, other = node.sender(1, 8), node.sender(2, 8)
    node.init(1, [3, 4], session=1)
    node.init(2, [5, 6], session=1)
    assert len(engine.submitted) == 2
    sender.abort()
    engine.outcomes[1] = Outcome.FAILED
    node.advance(0.1)
    assert sender.progress().phase == Phase.Failed
    assert node.control.blocks.counts().owned == 4
    engine.outcome = Outcome.DONE
    node.advance(1.0)
    assert other.poll() == Phase.Success
    assert node.control.blocks.counts().free == 8


def test_two_blocks_that_share_a_staging_entry_are_staged_one_after_the_other() -> None:
    """R8: destinations may be further apart than the window; the entry that one attempt reads is not given to another
    block.
    """
    node = EncodeAlone(num_blocks=24, limits=replace(LIMITS, window_blocks=32))
    assert node.control.staging.window == 24
    node.register(node_id=11)
    sender = node.sender(1, 200)
    node.init(1, list(range(15)), required=2)
    node.init(1, [0], required=2, node_id=11)
    for k in range(15, 40):
        node.resume(1, [k % 16], first=k, required=2)
    assert node.get(sender, Destination.SENT) == 160
    assert node.get(sender, Destination.SENT, 1) == 4
    node.resume(1, list(range(1, 16)), first=1, required=2, node_id=11)
    assert node.get(sender, Destination.SENT, 1) == 64
    node.resume(1, [k % 16 for k in range(40, 50)], first=40, required=2)
    assert node.get(sender, Destination.SENT) == 200


def test_a_newer_session_replaces_what_is_not_sent_and_nothing_below() -> None:
    """R10, R1."""
    node = EncodeAlone()
    sender = node.sender(1, 40, rows=10)
    node.init(1, [3, 4, 5, 6], session=1)
    assert node.get(sender, Destination.SENT) == 10
    node.init(1, [9, 10, 11, 12], session=2)
    node.init(1, [3, 4, 5, 6], session=1)  # what is older comes late
    assert [node.destinations.grant(sender.slot, 0, k) for k in range(4)] == [(3, 1), (4, 1), (11, 2), (12, 2)]
    node.write(sender, 10, 16)
    assert node.blocks_written() == [[3, 4, 5], [11, 12]]


def test_a_source_block_of_the_reserve_is_staged_only_for_what_can_be_written_now() -> None:
    """R21, D8: rows for which nobody has granted a block do not take the last one."""
    node = EncodeAlone(num_blocks=1)
    idle, wanted = node.sender(1, 8), node.sender(2, 8)
    assert node.control.blocks.counts().free == 1
    node.init(2, [3, 4])
    assert wanted.poll() == Phase.Success
    assert node.control.blocks.counts().free == 1
    node.init(1, [5, 6])
    assert idle.poll() == Phase.Success


def test_a_session_without_an_answer_fails_a_request_at_once_or_where_rows_have_come_before_only_when_that_lasts() -> (
    None
):
    """P11, D3: a worker that is being restarted there is given `peer_timeout_s`, for this node has proved that it can
    be reached.
    """
    node = EncodeAlone()
    node.engine.open = refuse_to_open  # type: ignore[method-assign]
    early = node.sender(1, 8, rows=8)
    node.init(1, [3, 4])
    node.advance(0.1)
    assert early.poll() == Phase.Failed
    assert "does not answer" in str(early.failure_exception())
    del node.engine.open
    first = node.sender(2, 8, rows=8)
    node.init(2, [5, 6])
    node.advance(0.1)
    assert first.poll() == Phase.Success
    node.engine.open = refuse_to_open  # type: ignore[method-assign]
    patient, late = node.sender(3, 4, rows=4), node.sender(4, 4, rows=4)
    node.init(3, [7])
    node.advance(2.0)
    assert patient.poll() == Phase.WaitingForInput
    del node.engine.open
    node.advance(0.1)
    assert patient.poll() == Phase.Success
    node.engine.open = refuse_to_open  # type: ignore[method-assign]
    node.init(4, [8])
    for _ in range(40):  # its node lives, and says so
        node.hears("poller", msg.Heartbeat(node.envelope(node_id=10), [], [], 0, 0, 0))
        node.advance(0.2)
    assert late.poll() == Phase.Failed
    assert "does not answer" in str(late.failure_exception())


def refuse_to_open(peer: int, record: PeerRecord, session: LiveSession) -> bool:
    raise EngineError("it does not answer")


@pytest.mark.parametrize("error", [EngineError, OSError])
def test_an_attempt_that_cannot_be_begun_fails_its_request_and_keeps_no_block(error: type[Exception]) -> None:
    """D4, R8: what it was to read is the sender's again at once."""
    node = EncodeAlone()

    def refuse() -> None:
        raise error("no room")

    node.engine.on_submit = refuse
    sender = node.sender(1, 8, rows=8)
    node.init(1, [3, 4])
    node.advance(0.1)
    assert sender.poll() == Phase.Failed
    assert "no room" in str(sender.failure_exception())
    node.hears("poller", msg.Close(node.envelope(node_id=10), msg.RequestKey(1, 1, 1)))
    sender.clear()
    node.advance(0.1)
    assert node.control.blocks.counts().free == 8


def test_a_kick_that_comes_twice_sends_nothing_twice() -> None:
    """B4: the watermarks decide, while an attempt is under way and after it."""
    engine = StubEngine(outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    for _ in range(3):
        library_of(node.client).attachment.kick_worker(sender.room, sender.slot, sender.epoch)
        node.settle()
    engine.outcome = Outcome.DONE
    node.advance(0.1)
    for _ in range(3):
        library_of(node.client).attachment.kick_worker(sender.room, sender.slot, sender.epoch)
        node.settle()
    assert len(engine.submitted) == 1


def test_rooms_are_spread_over_the_workers() -> None:
    """D18: one pair of nodes uses them all."""
    node = EncodeAlone()
    node.control.limits = type(node.control.limits)(num_workers=4)
    assert {node.control.worker_of(room) for room in range(8)} == {0, 1, 2, 3}
