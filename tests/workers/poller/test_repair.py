"""Messages and kicks that were lost: heartbeats and scans make up for each."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone, LanguageAlone

from embridge.allocator.errors import PeerLost, TransferAborted
from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_request_that_has_ended_stays_in_the_heartbeats_until_it_is_closed() -> None:
    """R23: and keeps its slot."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success
    node.forget_sent()
    node.advance(0.5)
    assert len(node.sent(msg.Heartbeat)) >= 4
    beats = node.sent(msg.Heartbeat)[1:]  # it has just been told
    assert all(beat.rooms[0].phase == Phase.Success for beat in beats)
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) < sender.epoch
    node.close(1)
    node.forget_sent()
    node.advance(0.5)
    assert all(beat.rooms == [] for beat in node.sent(msg.Heartbeat))
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch


def test_a_request_whose_destination_is_dead_needs_no_closing() -> None:
    """R23."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3])
    node.is_refused("poller", "tcp://10.1.0.10:2")
    assert isinstance(sender.failure_exception(), PeerLost)
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch


def test_an_aborted_request_is_in_flight_and_its_abort_repeated_until_it_is_acknowledged() -> None:
    """R23."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort()
    receiver.clear()
    node.settle()
    node.forget_sent()
    for _ in range(30):
        node.advance(0.1)
        node.heartbeat(node.state(receiver, Phase.Transferring, 4))
    assert len(node.sent(msg.Abort)) >= 3
    assert len(node.sent(msg.Heartbeat)) >= 20  # as to a peer with requests in flight
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) < receiver.epoch
    node.abort_ack(receiver)
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) == receiver.epoch
    assert len(node.sent(msg.Close)) == 1


def test_whoever_tells_of_a_request_that_has_been_closed_is_told_again() -> None:
    """R79, R23: while its scheduler has not left it, too. Its encode node may know a second sender of it since."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort()
    node.settle()
    node.status(receiver, Phase.WaitingForInput, 0)
    assert node.sent(msg.Close) == []  # the abort ends whom it knows
    node.abort_ack(receiver)
    for num_times in (1, 2):
        assert [close.key.room for close in node.sent(msg.Close)] == [1] * num_times
        node.status(receiver, Phase.WaitingForInput, 0)
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) < receiver.epoch


def test_whoever_tells_of_a_request_that_has_been_closed_is_told_again_until_it_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R79, R23: its poller has done with it, and its bootstrap is slow to release it."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort()
    receiver.clear()
    node.settle()
    with monkeypatch.context() as slow:
        slow.setattr(node.actor("bootstrap"), "is_runnable", lambda now_ns: False)
        node.abort_ack(receiver)
        for num_times in (1, 2):
            assert [close.key.room for close in node.sent(msg.Close)] == [1] * num_times
            node.status(receiver, Phase.WaitingForInput, 0)
        assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) < receiver.epoch
    node.settle()
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) == receiver.epoch


def test_a_request_that_only_the_encode_side_knows_is_closed_there() -> None:
    """R23: on neither list it is never guessed to be a success."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    unknown = node.state(receiver, Phase.Transferring, 4, key=msg.RequestKey(9, 3, 77))
    node.heartbeat(unknown)
    assert [close.key.room for close in node.sent(msg.Close)] == [77]
    other = EncodeAlone()
    sender = other.sender(1, 8)
    other.init(1, [3])
    other.close(1)
    assert isinstance(sender.failure_exception(), TransferAborted)


def test_a_grant_that_was_lost_is_sent_again_when_a_heartbeat_shows_it_missing() -> None:
    """R24: with all of its blocks."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=2)
    node.status(receiver, Phase.WaitingForInput, 0)
    receiver.resume_transfer(receiver.allocate(1), 0)
    node.settle()
    node.forget_sent()
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 0, known_blocks=2))
    (resume,) = node.sent(msg.Resume)
    assert resume.dst_embedding_indices == receiver.current_allocation().tolist()
    assert (resume.first_block, resume.allocated_tokens) == (0, 12)
    node.forget_sent()
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 0, known_blocks=3))
    assert node.sent(msg.Resume) == []


def test_a_first_grant_that_nobody_answers_is_sent_again() -> None:
    """R24: ever more rarely."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=2)
    node.forget_sent()
    for _ in range(100):
        node.advance(0.1)
        node.heartbeat()
    inits = node.sent(msg.Init)
    assert 4 <= len(inits) <= 12
    assert {tuple(init.dst_embedding_indices) for init in inits} == {tuple(receiver.current_allocation().tolist())}


def test_a_kick_that_was_lost_is_repaired_by_the_slow_scan() -> None:
    """R25: `sent` below what is ready and granted is enough."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.actor("bootstrap").role._grants.look = lambda slot, epoch: None  # type: ignore[attr-defined]
    node.init(1, [3, 4])
    node.advance(3.0, until=lambda: sender.progress().sent == 8)
    assert sender.progress().sent == 8


def test_a_restarted_bootstrap_looks_at_everything_at_once() -> None:
    """R25: what its predecessor had taken in and not passed on."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    role = node.actor("bootstrap").role
    role._grants.look = lambda slot, epoch: None  # type: ignore[attr-defined]
    node.init(1, [3, 4])
    assert node.get(sender, Destination.SENT) == 0
    node.restart("bootstrap")
    node.settle()
    assert node.get(sender, Destination.SENT) == 8
    node.init(1, [3, 4])  # and it still knows the room
    assert sender.poll() == Phase.Success
