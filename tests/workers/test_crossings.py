"""Steps of two processes that cross, messages that are late, and words that somebody dies between: one by one, at one
node.

Each is the direct and certain proof that a mutant in `tests/mutants` needs; what noticed it before, if anything did,
was a random run.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, StubEngine
from support.simulation import Killed, segment

from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import Destination, Lane, LaneState, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Phase
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import Outcome

pytestmark = pytest.mark.usefixtures("quiet")


# ---- sessions


class Watched:
    """Words, with a look after every store."""

    def __init__(self, words: Any, look: Any) -> None:
        self._words, self._look = words, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._words, name)

    def store(self, *arguments: int) -> None:
        self._words.store(*arguments)
        self._look()


def test_whoever_looks_while_a_session_begins_sees_one_session_or_none() -> None:
    """R10: a grant with the number of the old session and the port of the new one would let a write land in blocks of
    neither.
    """
    geometry, limits = (
        Geometry(hidden_size=2, block_size=4, num_blocks=2),
        Limits(num_slots=64, num_workers=2, max_clients=1),
    )
    mapping = segment(ControlLayout.of(Role.LANGUAGE, geometry, limits).size)
    format_control(mapping, Role.LANGUAGE, geometry, limits, node_id=1, incarnation=1, now_ns=1)
    writer, reader = (Control(mapping).sessions for _ in range(2))
    old, new = LiveSession(1, 5001, 1 << 40), LiveSession(2, 5002, 2 << 40)
    writer.begin(1, old)
    seen: list[LiveSession] = []
    writer._words = Watched(writer._words, lambda: seen.append(reader.live(1)))  # type: ignore[assignment]
    writer.begin(1, new)
    assert seen[-1] == new
    assert all(session in (old, new) or not session.number for session in seen), seen


def test_a_fence_of_a_session_that_is_over_ends_nothing() -> None:
    """R10, R11: it was asked for twice, and the second came to the process that the first has made."""
    node = LanguageAlone(late_writes=True)
    node.settle()
    node.restart("worker0")
    node.settle()
    assert node.control.sessions.number(0) == 2
    to_worker = node.control.sender("poller", "worker0")
    to_worker.send(Kick.FENCE, 0, 0, 1)
    to_worker.flush()
    node.settle()
    assert node.control.sessions.number(0) == 2
    to_worker.send(Kick.FENCE, 0, 0, 2)
    to_worker.flush()
    node.settle()
    assert node.control.sessions.number(0) == 3


# ---- grants


def test_an_older_grant_of_the_same_blocks_lowers_nothing() -> None:
    """R1, P17: its last block was granted in part then, and whole since."""
    node = EncodeAlone()
    sender = node.sender(1, 40, rows=0)
    node.init(1, [3, 4], tokens=8)
    node.init(1, [3, 4], tokens=6)
    assert node.get(sender, Destination.GRANTED_TOKENS) == 8


def test_a_grant_does_not_leave_when_its_request_ends_while_it_is_exposed() -> None:
    """D2: the blocks are somebody else's by then."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    cells = node.actor("bootstrap").control.blocks.cells
    expose = cells.expose

    def ended_before(*arguments: Any) -> int:
        node.control.status.advance(receiver.slot, receiver.epoch, Phase.Failed, 0, node.now_ns)
        node.control.blocks.cells.reclaim(receiver.slot, receiver.epoch, True)
        return int(expose(*arguments))

    cells.expose = ended_before  # type: ignore[method-assign]  # a view of cells in Python
    node.forget_sent()
    receiver.init(receiver.allocate(2))
    node.settle()
    assert node.sent(msg.Init) == []


def test_a_refusal_of_another_epoch_fails_nobody() -> None:
    """R16, P17: it is about a request that the slot has had, or will have."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    refusal = msg.Refused(node.envelope(node_id=20), 7, "no", msg.RequestKey(receiver.slot, receiver.epoch + 1, 1))
    node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
    node.advance(2 * node.world.timing.scan_s)
    assert receiver.poll() < Phase.Success
    refusal = msg.Refused(node.envelope(node_id=20), 7, "no", msg.RequestKey(receiver.slot, receiver.epoch, 1))
    node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
    assert receiver.poll() == Phase.Failed


def test_more_rows_reported_than_were_granted_fail_the_request() -> None:
    """D15, P16: nobody can have written them into its blocks."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=2)
    node.status(receiver, Phase.Transferring, 12)
    assert "the encode side reports 12 tokens sent, 8 were granted" in str(receiver.failure_exception())


def test_what_a_caller_grants_is_its_own_and_not_after_clear() -> None:
    """D15, D12: blocks of another request, a block twice, and a receiver that was cleared."""
    node = LanguageAlone()
    other, receiver = node.receiver(1), node.receiver(2, blocks=None)
    (mine,) = receiver.allocate(1).tolist()
    for wrong in (other.current_allocation().tolist(), [mine, mine], [7]):
        with pytest.raises(ValueError, match="are not blocks of this request, each once; use allocate"):
            receiver.init(wrong)
    receiver.clear()
    with pytest.raises(ValueError, match="this receiver was cleared; it takes no more grants"):
        receiver.init([mine])


def test_blocks_that_come_when_the_request_has_ended_go_back_at_once() -> None:
    """P1: whoever cleans up after it may have passed already."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    node.status(receiver, Phase.Failed, 0, code=FailureCode.ABORTED, reason="enough")
    free = node.counts()["free"]
    assert len(receiver.allocate(1)) == 0
    assert node.counts()["free"] == free


# ---- the encode side


def test_an_abort_of_what_is_forgotten_is_told_of_a_taint_also_after_its_node_registered_again() -> None:
    """R7, R15: a node that was taken for dead keeps its tombstones, so its aborts are still known to be of what was
    here.
    """
    node = EncodeAlone(engine=StubEngine(late_writes=True, outcome=Outcome.FAILED))
    sender = node.sender(1, 8)
    node.init(1, [3, 4], session=4)
    node.engine.outcome = Outcome.DONE
    node.advance(0.5)
    assert sender.poll() == Phase.Success
    node.close(1)
    sender.clear()
    node.advance(0.5)
    node.is_refused("poller", "tcp://10.1.0.10:2")
    node.register(registration=2)
    node.forget_sent()
    node.abort(1)
    assert [ack.tainted for ack in node.sent(msg.AbortAck)] == [5]


def test_a_bootstrap_that_dies_while_a_destination_joins_leaves_none_or_a_whole_one() -> None:
    """P11, R25: it is counted last."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    table = node.actor("bootstrap").role._grants._dsts  # type: ignore[attr-defined]

    def dies(*_: Any) -> None:
        raise Killed

    table.set = dies
    node.init(1, [3, 4])
    assert node.actor("bootstrap").generation == 2
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 0
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success


def test_a_destination_that_joins_while_the_request_ends_hears_of_the_end() -> None:
    """R23: the poller has not seen it when it asked for the release; the slot is kept until the destination has closed
    it.
    """
    node = EncodeAlone()
    sender = node.sender(1, 8)
    bootstrap = node.actor("bootstrap")
    slots = bootstrap.role._slots  # type: ignore[attr-defined]
    real = slots.set

    def late(slot: int, field: Slot, value: int) -> None:
        if field == Slot.NUM_DESTINATIONS:
            slots.set = real
            sender.abort("enough")
            for _ in range(20):  # everybody else goes on meanwhile
                for actor in node.node.actors:
                    if actor is not bootstrap and actor.is_runnable(node.now_ns):
                        actor.step()
                to_poller = node.control.sender("bootstrap", "poller")
                to_poller.send(Kick.LOOK, sender.slot, sender.epoch)
                to_poller.flush()
            assert sender.progress().phase == Phase.Failed
        real(slot, field, value)

    slots.set = late
    node.init(1, [3, 4])
    node.advance(0.5)
    assert [status.room.phase for status in node.sent(msg.Status)][-1:] == [Phase.Failed]
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) < sender.epoch
    node.close(1)
    node.advance(0.5)
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch


def test_rows_count_as_sent_when_the_engine_says_that_they_are() -> None:
    """P6, R13: not when they are on their way."""
    engine = StubEngine(outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    node.advance(0.1)
    assert len(engine.submitted) == 1
    assert node.get(sender, Destination.SENT) == 0
    assert sender.poll() == Phase.WaitingForInput
    engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert sender.poll() == Phase.Success


def test_a_failure_whose_kick_was_lost_is_found_by_the_slow_scan() -> None:
    """R25: whoever claimed it died before the kick; no timer and no message looks at the request before its
    deadline.
    """
    node = EncodeAlone()
    sender = node.sender(1, 8, rows=0)
    node.slots.claim_failure(sender.slot, FailureCode.ABORTED, "said, and then dead")
    node.advance(2 * node.world.timing.scan_s)
    assert sender.poll() == Phase.Failed


def test_what_an_encoder_that_died_held_comes_free() -> None:
    """P1, P3: its source blocks, its slots and its seat."""
    node = EncodeAlone()
    sender = node.sender(1, 16)
    assert node.control.blocks.counts().owned > 0
    node.node.clients[0].die()
    node.advance(0.2)
    assert node.word(sender.slot).phase == Phase.Failed
    assert node.control.blocks.counts().free == 8
    assert node.control.lanes.get(0, Lane.STATE) == LaneState.FREE
    assert node.control.lanes.page_lane(0) is None


# ---- the language side


def test_the_slots_of_a_scheduler_that_died_are_nobodys_until_its_requests_are_acknowledged() -> None:
    """D6, R16, D2: then its pages and its seat are free."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.node.clients[0].die()
    node.settle()
    assert node.word(receiver.slot).phase == Phase.Failed
    assert node.control.lanes.page_lane(0) == 0
    assert node.control.lanes.get(0, Lane.STATE) == LaneState.DEAD
    node.abort_ack(receiver)
    node.advance(0.2)
    assert node.control.lanes.page_lane(0) is None
    assert node.control.lanes.get(0, Lane.STATE) == LaneState.FREE


# ---- queues


def _queued(node: LanguageAlone, **options: Any) -> tuple[TransferQueue, EmbeddingRequest]:
    queue = TransferQueue(node.client, default_allocate_tokens=8, adaptive=False)
    request = EmbeddingRequest(room=1, bootstrap_addr=ENCODE_ADDRESS, **options)
    queue.add(request)
    node.settle()
    node.registered()
    assert request.receiver is not None
    return queue, request


def test_a_request_without_rows_leaves_the_reserve_where_it_is() -> None:
    """R21, D8: though it could use two blocks, and two are free."""
    node = LanguageAlone(num_blocks=2)
    _, request = _queued(node)
    assert request.receiver is not None
    assert request.receiver.granted_blocks == 1
    node.status(request.receiver, Phase.WaitingForInput, 0, ready_tokens=8)
    assert request.receiver.granted_blocks == 2


def test_what_has_landed_here_is_not_handed_over_before_it_has_landed_everywhere() -> None:
    """R20, B2: another destination may fail the request."""
    node = LanguageAlone()
    queue, request = _queued(node, required_dst_info_num=2)
    assert request.receiver is not None
    node.status(request.receiver, Phase.Transferring, 8, total_tokens=8, ready_tokens=8)
    assert request.transferred_tokens == 8
    assert queue.pop_transferred() == ([], [])
    node.status(request.receiver, Phase.Failed, 8, code=FailureCode.PEER_LOST, reason="the other one died")
    assert queue.pop_transferred() == ([], [request])
