"""The phases of a request and its end: what either poller derives, what it believes of the other, and the reason of a
failure.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import EncodeAlone, LanguageAlone, failure_of

from embridge.allocator.errors import FailureCode, TransferAborted
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


WRONG_REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "more sent than granted": ({"sent": 9}, "9 tokens sent, 8 were granted"),
    "more blocks than granted": ({"sent": 8, "known_blocks": 3}, "3 blocks known, 2 were granted"),
    "a session that never was": ({"sent": 8, "session": 5}, "a grant under session 5, the latest was under 0"),
    "more sent than there are": ({"sent": 8, "total_tokens": 7}, "8 tokens sent and 7 ready of 7"),
    "more ready than there are": ({"sent": 8, "ready_tokens": 17}, "8 tokens sent and 17 ready of 16"),
    "Success before all was sent": (
        {"phase": Phase.Success, "sent": 4, "total_tokens": 8},
        "Success with 4 of 8 tokens sent",
    ),
    "Success of an unknown length": (
        {"phase": Phase.Success, "sent": 8, "total_tokens": 0},
        "Success with 8 of 0 tokens sent",
    ),
}


@pytest.mark.parametrize("what", WRONG_REPORTS)
def test_a_report_that_cannot_be_true_fails_its_request(what: str) -> None:
    """R4, P6, B6: above all no Success over rows that have not come."""
    changes, said = WRONG_REPORTS[what]
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, **{"phase": Phase.Transferring, **changes})
    assert receiver.poll() == Phase.Failed
    failure = failure_of(receiver)
    assert failure.code == FailureCode.PROTOCOL
    assert failure.reason == f"the encode side reports {said}"


def test_a_round_that_has_landed_while_the_encoder_still_writes_is_no_success() -> None:
    """R4, B2: all that is ready and granted has been sent, and what remains fits; the request has not ended."""
    node = EncodeAlone()
    sender = node.sender(1, 12, rows=8)
    node.init(1, [3, 4, 5])
    assert sender.progress().sent == 8
    assert sender.poll() == Phase.WaitingForInput
    node.write(sender, 8, 12)
    assert sender.poll() == Phase.Success


def test_success_needs_every_required_destination() -> None:
    """R4, R18."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], required=2)
    assert sender.poll() == Phase.Bootstrapping
    node.init(1, [8], required=2, node_id=11)
    assert sender.poll() == Phase.Transferring
    node.resume(1, [9], first=1, required=2, node_id=11)
    assert sender.poll() == Phase.Success


def test_the_language_side_takes_success_from_the_phase_alone() -> None:
    """R20: all of its own rows have landed, and another destination may yet fail the request."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=4)
    node.status(receiver, Phase.Transferring, 16)
    assert receiver.progress() == (receiver.epoch, Phase.Transferring, 16)
    node.status(receiver, Phase.Failed, 16, code=FailureCode.PEER_LOST, reason="the other one died")
    assert receiver.poll() == Phase.Failed


def test_phase_and_progress_rise_in_one_step() -> None:
    """R20: nobody sees Success with less than all of the rows."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=4)
    status, words = node.actor("poller").ctx.status, []
    advance = status.advance

    def watched(slot: int, epoch: int, phase: int, sent: int, now_ns: int, is_told: bool = False, /) -> bool:
        words.append((phase, sent))
        return bool(advance(slot, epoch, phase, sent, now_ns, is_told))

    status.advance = watched  # type: ignore[method-assign]
    node.status(receiver, Phase.Success, 16)
    assert words[-1] == (Phase.Success, 16)
    assert all(phase < Phase.Success for phase, _ in words[:-1])


def test_the_length_of_a_request_travels_in_words_and_messages_and_is_told_once() -> None:
    """B7: no row has landed yet; and another length later fails the request."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    assert receiver.total_embedding_length == 0
    key = msg.RequestKey(receiver.slot, receiver.epoch, 1)
    node.hears("poller", msg.Announce(node.envelope(node_id=20), key, 12))
    assert receiver.total_embedding_length == 12
    node.hears("poller", msg.Announce(node.envelope(node_id=20), key, 13))
    assert "announced 12 tokens and then 13" in str(receiver.failure_exception())


def test_who_streams_on_into_a_request_that_has_failed_did_nothing_wrong() -> None:
    """D4, D11: the encoder can't know yet; every further write has no effect and says so."""
    node = EncodeAlone()
    sender = node.sender(1, 12, rows=4)
    node.init(1, [3])
    node.abort(1)
    assert not node.write(sender, 4, 8)
    assert not node.write(sender, 8, 12)
    assert isinstance(sender.failure_exception(), TransferAborted)


def test_a_late_message_does_not_raise_failed_to_success() -> None:
    """D12: terminal phases absorb, on both sides."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort("enough")
    node.settle()
    word = node.word(receiver.slot)
    node.status(receiver, Phase.Success, 16)
    node.heartbeat(node.state(receiver, Phase.Success, 16))
    assert node.word(receiver.slot) == word
    other = EncodeAlone()
    sender = other.sender(1, 8)
    other.init(1, [3])
    other.abort(1)
    word = other.word(sender.slot)
    other.resume(1, [4], first=1)
    other.advance(1.5)
    assert other.word(sender.slot) == word
    assert word.phase == Phase.Failed


def test_a_success_is_not_taken_back() -> None:
    """D12."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=4)
    node.status(receiver, Phase.Success, 16)
    node.status(receiver, Phase.Failed, 16, code=1, reason="late")
    receiver.abort()
    node.settle()
    assert receiver.poll() == Phase.Success


def test_a_failure_is_seen_with_its_reason_or_not_at_all() -> None:
    """P5: who claims it writes the reason, then the code; a node's process finishes for one that died between
    the two.
    """
    node = LanguageAlone()
    receiver = node.receiver(1)
    slots, seen = node.slots, []
    set_reason = slots.set_reason

    def watched(slot: int, text: str) -> None:
        seen.append(slots.get(slot, Slot.FAILURE))
        set_reason(slot, text)

    slots.set_reason = watched  # type: ignore[method-assign]
    assert slots.claim_failure(receiver.slot, 3, "first")
    assert (seen, slots.reason(receiver.slot), slots.get(receiver.slot, Slot.FAILURE)) == ([0], "first", 3)
    assert not slots.claim_failure(receiver.slot, 4, "second")
    assert slots.reason(receiver.slot) == "first"
    node.set_slot(receiver, Slot.FAILURE, 0)  # as if the first had died before its code
    assert not slots.claim_failure(receiver.slot, 4, "second", insist=False)
    assert slots.claim_failure(receiver.slot, 5, "third")
    assert (slots.reason(receiver.slot), slots.get(receiver.slot, Slot.FAILURE)) == ("third", 5)
