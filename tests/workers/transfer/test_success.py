"""A success that the transfer worker tells: the word first, then the destination, and what repeats it if it was
lost.
"""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone, LanguageAlone, StubEngine

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.workers import messages as msg
from embridge.workers.role import Disconnect, Send
from embridge.workers.transfer.engines.base import Outcome

pytestmark = pytest.mark.usefixtures("quiet")


def under_way(*, required: int = 1, **options: bool) -> tuple[EncodeAlone, EmbeddingSender]:
    """A request of 8 rows whose attempt over a network is under way."""
    node = EncodeAlone(engine=StubEngine(late_writes=True, outcome=Outcome.PENDING), **options)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], required=required)
    node.forget_sent()
    return node, sender


def land(node: EncodeAlone, seconds: float = 0.04) -> None:
    node.engine.outcome = Outcome.DONE
    node.advance(seconds)


def said(node: EncodeAlone) -> tuple[int, int]:
    """How often the worker, and the poller, have told of a success."""
    told = [status for status in node.sent(msg.Status) if status.room.phase == Phase.Success]
    return len(node.sent(msg.Landed)), len(told)


def test_the_worker_that_has_sent_the_last_row_tells_the_destination_itself() -> None:
    """R83, R9: the word stands when the message leaves; and nothing of it is under way any more."""
    node, sender = under_way()
    land(node)
    (landed,) = node.sent(msg.Landed)
    assert (landed.room.phase, landed.room.sent_tokens, landed.room.total_tokens) == (Phase.Success, 8, 8)
    assert landed.room.key == msg.RequestKey(1, 1, 1)
    assert (landed.room.known_blocks, landed.room.session, landed.room.tainted) == (2, 1, 0)
    sent = [(role, item) for role, item in node.wire.sent if isinstance(item, Send)]
    assert [(role, item.address) for role, item in sent if item.message is landed] == [("worker0", "tcp://10.1.0.10:2")]
    assert sender.poll() == Phase.Success
    assert node.slots.get(sender.slot, Slot.QUIESCED_EPOCH) == sender.epoch
    node.close(1)
    assert said(node) == (1, 0), "the poller has nothing left to say"
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch
    node.advance(1.5)  # nothing is in flight
    beats = node.sent(msg.Heartbeat)
    assert [key.room for beat in beats for key in beat.closed] == [1]
    assert not any(beat.rooms for beat in beats)
    assert (beats[-1].num_rooms, beats[-1].digest) == (0, 0)


def test_a_success_that_nobody_has_heard_is_repeated_by_heartbeats() -> None:
    """R83, R23: the poller finds the word raised, and the destination does not close the request."""
    node, _ = under_way()
    land(node)
    assert said(node) == (1, 0)
    node.forget_sent()
    node.advance(0.5)
    told = [[room.phase for room in beat.rooms] for beat in node.sent(msg.Heartbeat)]
    assert told.count([Phase.Success]) >= 2
    assert said(node) == (0, 0)


def test_a_worker_that_dies_before_it_tells_is_followed_by_a_poller_that_does() -> None:
    """R83, P11: at each of its changes of shared memory."""
    for change in range(1, 40):
        node, sender = under_way()
        with node.killed_at("worker0", change) as places:
            land(node, 0.02)
        node.advance(1.5)
        heard = [room.phase for beat in node.sent(msg.Heartbeat) for room in beat.rooms]
        assert sender.poll() == Phase.Success, change
        assert Phase.Success in heard or said(node) != (0, 0), f"{change}: {places}"


@pytest.mark.parametrize("why", ["claimed", "late", "resumed", "several", "checked", "lost"])
def test_what_is_more_than_rows_that_have_landed_is_left_to_the_poller(why: str) -> None:
    """R83, R18, R27: a failure that was claimed, a deadline, a phase in between, other destinations, rows to check."""
    node, sender = under_way(required=2 if why == "several" else 1, verify=why == "checked")
    if why == "claimed":
        node.slots.claim_failure(sender.slot, FailureCode.ABORTED, "enough")
    if why == "late":
        node.slots.set(sender.slot, Slot.DEADLINE_NS, node.now_ns)
    if why == "lost":
        node.control.peers.bury(0)
    if why == "resumed":
        node = EncodeAlone(engine=StubEngine(late_writes=True, outcome=Outcome.PENDING))
        sender = node.sender(1, 8)
        node.init(1, [3])
        node.resume(1, [3, 4], first=0)
    land(node, 0.2)
    assert said(node)[0] == 0
    phases = {"resumed": Phase.Success, "several": Phase.Bootstrapping, "checked": Phase.WaitingForInput}
    assert sender.poll() == phases.get(why, Phase.Failed)


def test_a_success_through_an_engine_of_one_host_is_the_poller_s() -> None:
    node = EncodeAlone(engine=StubEngine())
    node.sender(1, 8)
    node.init(1, [3, 4])
    assert said(node) == (0, 1)


def test_the_connection_to_a_node_that_is_gone_is_ended() -> None:
    """P23."""
    node, _ = under_way()
    land(node)
    node.close(1)
    node.is_refused("poller", "tcp://10.1.0.10:2")
    node.advance(2.5)
    assert [role for role, item in node.wire.sent if isinstance(item, Disconnect)].count("worker0") == 1


# ---- the language side


def with_a_report() -> tuple[LanguageAlone, EmbeddingReceiver]:
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.WaitingForInput, 0, total_tokens=8)
    node.forget_sent()
    return node, receiver


def hear(node: LanguageAlone, room: msg.RoomState) -> None:
    node.hears("poller", msg.Landed(node.envelope(node_id=20), room))


def test_what_the_worker_says_raises_the_word_and_is_in_no_list() -> None:
    """R83, R77: the digest is of what the two pollers have said to each other."""
    node, receiver = with_a_report()
    hear(node, node.state(receiver, Phase.Success, 8, total_tokens=8))
    assert receiver.poll() == Phase.Success
    assert [close.key.room for close in node.sent(msg.Close)] == [1]
    for _ in range(3):
        node.heartbeat()
    node.heartbeat(closed=[msg.RequestKey(receiver.slot, receiver.epoch, 1)])
    node.heartbeat()
    assert node.sent(msg.Resync) == []
    assert len(node.sent(msg.Close)) == 1


def test_a_report_that_it_has_overtaken_changes_nothing() -> None:
    """R83, P5: nothing orders two connections."""
    node, receiver = with_a_report()
    late = node.state(receiver, Phase.WaitingForInput, 0, total_tokens=8, ready_tokens=8)
    hear(node, node.state(receiver, Phase.Success, 8, total_tokens=8))
    node.told.put(late)
    node.hears("poller", msg.Status(node.envelope(node_id=20), late))
    assert (receiver.poll(), receiver.sent_tokens) == (Phase.Success, 8)
    node.heartbeat()
    assert node.sent(msg.Resync) == []


def test_what_it_says_of_another_epoch_or_beyond_the_grant_is_not_believed() -> None:
    """R2, R14, P17."""
    node, receiver = with_a_report()
    right = node.state(receiver, Phase.Success, 8, total_tokens=8)
    hear(node, node.state(receiver, Phase.Success, 8, total_tokens=8, key=msg.RequestKey(receiver.slot, 9, 1)))
    assert receiver.poll() == Phase.WaitingForInput
    node.hears("poller", msg.Landed(node.envelope(node_id=21), right))
    assert receiver.poll() == Phase.WaitingForInput
    hear(node, node.state(receiver, Phase.Success, 80, total_tokens=8))
    failed = receiver.failure_exception()
    assert failed is not None
    assert failed.code == FailureCode.PROTOCOL
