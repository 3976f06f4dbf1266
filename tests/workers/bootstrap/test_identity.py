"""Incarnations, epochs and tombstones: what is about an older one has no effect, and a slot serves one epoch after the
other.
"""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, leave_one_epoch

from embridge.allocator.errors import FailureCode, PeerLost, TransferAborted
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_message_for_another_incarnation_is_dropped_and_answered_stale() -> None:
    """R14, D5: and so is one from a node that is not registered."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.forget_sent()
    node.init(1, [3, 4], for_incarnation=7)
    assert [stale.incarnation for stale in node.sent(msg.Stale)] == [7]
    node.init(1, [3, 4], incarnation=2)
    node.init(1, [3, 4], node_id=12)
    assert len(node.sent(msg.Stale)) == 3
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 0
    assert node.metric("bootstrap", "messages_stale") == 3


def test_a_status_for_or_from_another_incarnation_has_no_effect() -> None:
    """R14, P17."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    room = node.state(receiver, Phase.Success, 16)
    for envelope in (
        node.envelope(node_id=20, for_incarnation=7),
        node.envelope(node_id=20, incarnation=2),
        node.envelope(node_id=21),
    ):
        node.hears("poller", msg.Status(envelope, room))
    assert receiver.poll() == Phase.Bootstrapping
    assert node.metric("poller", "messages_stale") == 3


def test_a_status_of_another_epoch_of_the_slot_closes_it_there_and_changes_nothing_here() -> None:
    """R14, R16, P17."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    old = msg.RequestKey(receiver.slot, receiver.epoch + 1, 1)
    node.status(receiver, Phase.Success, 16, key=old)
    assert receiver.poll() == Phase.Bootstrapping
    assert [close.key for close in node.sent(msg.Close)] == [old]


def test_a_message_to_a_restarted_encode_node_is_answered_and_its_requests_fail_with_a_reason() -> None:
    """D5: a restarted peer is another one, and is not silently taken for the old one."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    stale = msg.Stale(node.envelope(node_id=20, incarnation=2), 1)
    node.hears("bootstrap", stale, address=ENCODE_ADDRESS)
    assert isinstance(receiver.failure_exception(), PeerLost)
    assert node.control.blocks.counts().free == 8  # nobody has mapped the payload
    later = node.client.receiver(ENCODE_ADDRESS, 2)
    node.settle()
    node.registered(incarnation=2)
    assert later.handshake_done


def test_an_older_incarnation_is_refused_and_a_newer_one_replaces() -> None:
    """R14: incarnations are ordered."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3], tokens=4)
    node.register(incarnation=3)
    assert isinstance(sender.failure_exception(), PeerLost)
    node.forget_sent()
    node.register(incarnation=2)
    assert "incarnation 2 is older than 3" in node.sent(msg.Refused)[0].reason


def test_two_nodes_with_a_copied_identity_are_told_so() -> None:
    """R14, D5: each would end the other's requests; the reason names the file, to whoever is refused or lost."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3], tokens=4)
    node.forget_sent()
    node.register(node_id=node.control.node_id)
    node.register(poller_addr="tcp://10.0.0.10:7")
    assert node.sent(msg.Refused)[0].reason == "node id 1 is this encode node's own: its `identity` file was copied"
    assert (
        node.sent(msg.Refused)[1].reason
        == "that start of its node is registered from elsewhere: its `identity` file was copied"
    )
    assert node.sent(msg.Registered) == []
    assert sender.failure_exception() is None
    node.register(incarnation=3)
    node.register(incarnation=2)
    assert node.sent(msg.Refused)[2].reason == "incarnation 2 is older than 3; was its `identity` file copied?"
    reason = str(sender.failure_exception())
    assert "is lost: its id came again; was its `identity` file copied?" in reason


def test_the_language_side_says_of_a_lost_encode_node_that_its_id_came_again() -> None:
    """R14: two encode nodes with one identity take each other's place."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    later = node.client.receiver("tcp://10.0.0.21:1", 2)
    node.settle()
    node.registered(incarnation=2, address="tcp://10.0.0.21:1")
    assert later.handshake_done
    assert "is lost: its id came again; was its `identity` file copied?" in str(receiver.failure_exception())


def test_an_init_at_or_below_the_tombstone_opens_nothing() -> None:
    """R15, P17: a request that is over does not begin again when its init comes once more."""
    node = EncodeAlone()
    first = node.sender(1, 4)
    node.init(1, [3], slot=5, epoch=4)
    assert first.poll() == Phase.Success
    node.hears("poller", msg.Close(node.envelope(), msg.RequestKey(5, 4, 1)))
    node.settle()
    again = node.sender(1, 4)
    for epoch in (3, 4):
        node.init(1, [3], slot=5, epoch=epoch)
    assert node.slots.get(again.slot, Slot.NUM_DESTINATIONS) == 0
    node.init(1, [3], slot=5, epoch=5)
    assert again.poll() == Phase.Success


@pytest.mark.parametrize("opened", ["before", "after"])
def test_an_abort_of_a_room_without_init_fails_its_sender_present_or_later(opened: str) -> None:
    """R15: it is acknowledged, and its init, which it has overtaken, opens nothing."""
    node = EncodeAlone()
    sender = node.sender(1, 8) if opened == "before" else None
    node.abort(1, reason="the user went away")
    assert len(node.sent(msg.AbortAck)) == 1
    node.init(1, [3, 4])
    sender = sender or node.sender(1, 8)
    assert isinstance(sender.failure_exception(), TransferAborted)
    assert "the user went away" in str(sender.failure_exception())
    assert node.engine.submitted == []


def test_who_comes_late_to_a_room_that_has_failed_is_told_why() -> None:
    """R15, D1: its deadline is not what tells it."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    sender.abort("the picture is broken")
    node.settle()
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch
    node.forget_sent()
    node.init(1, [3, 4])
    reason = "room 1 failed here before: the picture is broken; a room number is used once"
    assert [(r.code, r.reason) for r in node.sent(msg.Refused)] == [(FailureCode.ABORTED, reason)]


def test_a_ring_record_of_an_epoch_that_is_over_does_nothing() -> None:
    """R16: whatever it asks for."""
    node = LanguageAlone()
    old = node.receiver(1)
    old.abort()
    old.clear()
    node.settle()
    node.abort_ack(old)
    assert node.slots.get(old.slot, Slot.RELEASED_EPOCH) == old.epoch
    for room in range(2, 65):  # until the same slot comes again
        other = node.receiver(room, blocks=None)
        other.clear()
        node.settle()
    receiver = node.receiver(65)
    assert (receiver.slot, receiver.epoch) == (old.slot, old.epoch + 1)
    word = node.word(receiver.slot)
    node.forget_sent()
    to_bootstrap = library_of(node.client).attachment._to_bootstrap
    for kick in Kick:
        if kick not in (Kick.PEER_DEAD, Kick.LANE_DEAD, Kick.WRITER_GONE):  # these name no slot
            to_bootstrap.send(kick, old.slot, old.epoch)
    to_bootstrap.flush()
    node.settle()
    assert node.word(receiver.slot) == word
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) == old.epoch
    assert node.sent(msg.Abort) == []
    assert node.counts() == {"free": 6, "exposed": 2}


def test_slots_are_used_first_in_first_out() -> None:
    """R17: a slot rests as long as it can before it is used again."""
    node = EncodeAlone()
    used = []
    for room in range(1, 130):
        sender = node.sender(room, 4)
        used.append(sender.slot)
        sender.abort()
        node.settle()
    assert used[:64] == list(range(64))
    assert used[64:128] == list(range(64))


def test_a_slot_is_not_used_again_before_the_node_has_released_it() -> None:
    """R23, R16: the client needs it no more, but something about it may be on its way."""
    node = LanguageAlone()
    client, slots, num_slots = node.client, node.control.slots, node.control.limits.num_slots
    first, *_ = [client.receiver(ENCODE_ADDRESS, room) for room in range(num_slots)]
    library_of(client).requests.lease.leave(first.slot, first.epoch)
    again = client.receiver(ENCODE_ADDRESS, num_slots)
    library_of(client).turn()
    assert again.is_waiting
    slots.set(first.slot, Slot.RELEASED_EPOCH, first.epoch)
    library_of(client).turn()
    assert (again.slot, again.epoch) == (first.slot, first.epoch + 1)


def test_the_last_epoch_retires_its_slot() -> None:
    """R17: rather than beginning again, where late messages would find it."""
    node = EncodeAlone()
    leave_one_epoch(node, 0)
    last = node.sender(1, 4)
    assert last.slot == 0
    last.abort()
    node.settle()
    used = []
    for room in range(2, 130):
        sender = node.sender(room, 4)
        used.append(sender.slot)
        sender.abort()
        node.settle()
    assert 0 not in used
    assert len(set(used)) == 63
