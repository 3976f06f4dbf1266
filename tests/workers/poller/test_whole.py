"""What the language poller does with a request that is whole: its encode node decides how it ends (R36)."""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone, failure_of

from embridge.allocator._core import Words
from embridge.allocator.errors import PeerLost, TransferTimeout
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase, is_whole
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def whole(node: LanguageAlone) -> EmbeddingReceiver:
    """A request whose rows an encoder on this host has written, and who has said so, and no more."""
    receiver = node.receiver(1, blocks=4)
    node.status(receiver, Phase.WaitingForInput, 0)
    node.forget_sent()
    words = Words(node.node.control_map, node.control.layout.words, node.control.limits.num_slots)
    words.store(receiver.slot, words.load(receiver.slot) | 1 << 32)
    return receiver


def pass_time(node: LanguageAlone, seconds: float) -> None:
    """The encode node lives."""
    for _ in range(int(2 * seconds)):
        node.advance(0.5)
        node.heartbeat()


def test_a_whole_request_that_is_to_end_asks_its_encode_node_and_waits() -> None:
    """R36, P8: again and again, in case the abort is lost; a poller that is restarted goes on with it."""
    node = LanguageAlone()
    receiver = whole(node)
    receiver.abort("enough")
    node.settle()
    assert [abort.reason for abort in node.sent(msg.Abort)] == ["enough"]
    pass_time(node, 3)
    assert len(node.sent(msg.Abort)) > 1
    assert receiver.poll() == Phase.WaitingForInput
    assert node.counts() == {"free": 4, "exposed": 4}
    node.forget_sent()
    node.restart("poller")
    pass_time(node, 0.5)
    assert node.sent(msg.Abort)
    assert receiver.poll() == Phase.WaitingForInput


@pytest.mark.parametrize("phase", [Phase.Success, Phase.Failed])
def test_a_whole_request_ends_as_its_encode_node_says(phase: Phase) -> None:
    """R36: whatever it would rather; with its own reason, if it had one first."""
    node = LanguageAlone()
    receiver = whole(node)
    receiver.abort("enough")
    node.settle()
    node.status(receiver, phase, 16, code=7, reason="as there")
    assert receiver.poll() == phase
    assert phase == Phase.Success or str(failure_of(receiver)).endswith("enough")
    if phase == Phase.Failed:
        assert node.counts() == {"free": 4, "quarantined": 4}
        node.abort_ack(receiver)
        assert node.counts() == {"free": 8}


def test_a_whole_request_that_nobody_gives_up_is_told_of_a_failure() -> None:
    """R36, D11: it has no reason of its own."""
    node = LanguageAlone()
    receiver = whole(node)
    node.status(receiver, Phase.Failed, 16, code=3, reason="the encoder had enough")
    assert "the encoder had enough" in str(failure_of(receiver))
    assert len(node.sent(msg.Abort)) == 1


def test_a_whole_request_waits_for_no_deadline_of_its_own() -> None:
    """R36, D1: it has the encode node abort it then."""
    node = LanguageAlone()
    receiver = whole(node)
    deadline_ns = node.slots.get(receiver.slot, Slot.DEADLINE_NS)
    while node.now_ns <= deadline_ns:
        pass_time(node, 5)
    assert receiver.poll() == Phase.WaitingForInput
    assert node.sent(msg.Abort)
    node.status(receiver, Phase.Failed, 16)
    assert isinstance(receiver.failure_exception(), TransferTimeout)


def test_a_whole_request_fails_with_its_encode_node() -> None:
    """R36, P4: nobody is left who could decide, also when it had been asked to."""
    node = LanguageAlone()
    receiver = whole(node)
    assert is_whole(node.control.status.load(receiver.slot))
    receiver.abort("enough")
    node.settle()
    assert receiver.poll() == Phase.WaitingForInput
    node.is_refused("poller", "tcp://10.0.0.20:2")
    assert receiver.poll() == Phase.Failed
    other = LanguageAlone()
    receiver = whole(other)
    other.is_refused("poller", "tcp://10.0.0.20:2")
    assert isinstance(receiver.failure_exception(), PeerLost)


def test_a_whole_request_of_which_its_encode_node_knows_nothing_fails() -> None:
    """R36, P8: nobody there will ever tell of it."""
    node = LanguageAlone()
    receiver = whole(node)
    key = msg.RequestKey(receiver.slot, receiver.epoch, receiver.room)
    receiver.abort("enough")
    node.settle()
    node.hears("bootstrap", msg.AbortAck(node.envelope(node_id=20), key, 0), address=ENCODE_ADDRESS)
    assert str(failure_of(receiver)).endswith("enough")
    assert node.counts() == {"free": 8}


def test_an_acknowledgement_of_the_poller_tells_nothing_of_the_end() -> None:
    """R36: the report that was before it may be lost, and comes again."""
    node = LanguageAlone()
    receiver = whole(node)
    receiver.abort("enough")
    node.settle()
    node.abort_ack(receiver)
    assert receiver.poll() == Phase.WaitingForInput
    node.status(receiver, Phase.Success, 16)
    assert receiver.poll() == Phase.Success
