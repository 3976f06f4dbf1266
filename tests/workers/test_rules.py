"""The rules of a transfer, one by one, at one node whose peers are played by the test.

`docs/invariants.md` says what each label means.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.alone import (
    BLOCK_SIZE,
    ENCODE_ADDRESS,
    EncodeAlone,
    LanguageAlone,
    StubEngine,
    failure_of,
    leave_one_epoch,
)
from support.simulation import LIMITS

from embridge.allocator.errors import EmbridgeError, FailureCode, PeerLost, TransferAborted, TransferTimeout
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination, Slot
from embridge.allocator.request_tables import STAGE_READING, StageEntry
from embridge.allocator.rings import Kick
from embridge.allocator.sessions import SHM_EXPOSURE, LiveSession, exposure_of
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.role import Send
from embridge.workers.transfer.engines.base import EngineError, Outcome

pytestmark = pytest.mark.usefixtures("quiet")


# ---- grants and data


def test_a_granted_block_keeps_its_index_under_one_session() -> None:
    """R1: another index for a block that is not sent yet, under the same session, fails the room, and no other."""
    node = EncodeAlone()
    wrong, right = node.sender(1, 16, rows=0), node.sender(2, 8, rows=0)
    node.init(1, [3, 4])
    node.init(2, [7])
    node.resume(1, [3, 5], first=0)
    assert wrong.poll() == Phase.Failed
    assert "block 1 was granted as 4 and as 5" in str(wrong.failure_exception())
    assert right.poll() == Phase.WaitingForInput


def test_a_grant_that_leaves_a_gap_is_ignored_until_the_whole_window_comes() -> None:
    """R1: `granted` is the contiguous length."""
    node = EncodeAlone()
    sender = node.sender(1, 16)
    node.init(1, [3], first=0)
    node.resume(1, [8], first=2)
    assert node.get(sender, Destination.GRANTED_BLOCKS) == 1
    assert node.get(sender, Destination.GRANTED_TOKENS) == 4
    node.resume(1, [3, 6, 8], first=0)
    assert node.get(sender, Destination.GRANTED_TOKENS) == 12
    assert node.get(sender, Destination.SENT) == 12


def test_an_old_grant_that_comes_late_or_twice_changes_nothing() -> None:
    """R1, R24, P17: a shorter window does not shrink what is granted, and nothing is written again."""
    node = EncodeAlone()
    sender = node.sender(1, 40, rows=24)
    node.init(1, [3, 4])
    node.resume(1, [5, 6], first=2)
    assert node.get(sender, Destination.SENT) == 16
    written = len(node.engine.submitted)
    node.init(1, [3, 4])
    node.init(1, [3])
    node.resume(1, [4, 5], first=1, tokens=7)
    assert node.get(sender, Destination.GRANTED_TOKENS) == 16
    assert node.get(sender, Destination.SENT) == 16
    assert len(node.engine.submitted) == written
    assert sender.poll() < Phase.Success


def test_no_number_in_a_heartbeat_grants_anything() -> None:
    """R1, D13: only blocks do."""
    node = EncodeAlone()
    sender = node.sender(1, 40)
    node.init(1, [3])
    room = msg.RoomState(msg.RequestKey(1, 1, 1), 2, False, 40, 40, 40, 10, 0, 0, 0, "", 0)
    node.hears("poller", msg.Heartbeat(node.envelope(), [room]))
    assert node.get(sender, Destination.GRANTED_TOKENS) == 4
    assert node.get(sender, Destination.SENT) == 4


def test_sent_tokens_in_a_resume_is_not_obeyed() -> None:
    """R2: a late one does not move `sent` back, into drained blocks."""
    node = EncodeAlone()
    sender = node.sender(1, 40)
    node.init(1, [3, 4])
    assert node.get(sender, Destination.SENT) == 8
    node.resume(1, [5], first=2, sent=0)
    assert node.get(sender, Destination.SENT) == 12
    node.resume(1, [6], first=3, sent=12)
    assert node.get(sender, Destination.SENT) == 16
    assert node.blocks_written() == [[3, 4], [5], [6]]


@pytest.mark.parametrize("claimed", [13, 30, 2**32 - 1])
def test_a_resume_that_claims_more_than_was_sent_fails_its_request_alone(claimed: int) -> None:
    """R2, B6: its node knows that number from our reports alone, so it is not of this request."""
    node = EncodeAlone()
    sender, other = node.sender(1, 40), node.sender(2, 8)
    node.init(1, [3, 4, 5])
    assert node.get(sender, Destination.SENT) == 12
    node.resume(1, [6], first=3, sent=claimed)
    assert sender.poll() == Phase.Failed
    failure = failure_of(sender)
    assert failure.code == FailureCode.PROTOCOL
    assert failure.reason == f"a destination's grant is wrong: sent_tokens {claimed} > 12 tokens that were sent to it"
    assert node.blocks_written() == [[3, 4, 5]]
    node.init(2, [7, 8])
    assert other.poll() == Phase.Success


def test_a_resume_is_checked_against_what_was_sent_to_its_own_destination() -> None:
    """R2, R18: not against what another one has."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 16)
    node.init(1, [3, 4], required=2)
    node.init(1, [3], required=2, node_id=11)
    assert [node.get(sender, Destination.SENT, d) for d in (0, 1)] == [8, 4]
    node.resume(1, [5], first=2, sent=8, required=2)
    assert sender.poll() < Phase.Success
    node.resume(1, [5], first=1, sent=8, required=2, node_id=11)
    assert sender.poll() == Phase.Failed
    assert "sent_tokens 8 > 4 tokens" in failure_of(sender).reason


def test_a_resume_ahead_of_a_worker_that_died_between_its_two_words_is_honest() -> None:
    """R2, R27: a report carries the checked word, which stands before `sent`."""
    node = EncodeAlone(verify=True)
    sender = node.sender(1, 40)
    node.init(1, [3, 4])
    node.actor("worker0").stalled_ns = node.now_ns + 10**9
    node.destinations.set(sender.slot, 0, Destination.SENT, 4)
    node.resume(1, [5], first=2, sent=8)
    assert sender.poll() < Phase.Success


def test_a_resume_that_names_another_number_of_destinations_fails_its_request() -> None:
    """R4, B6."""
    node = EncodeAlone()
    sender = node.sender(1, 40)
    node.init(1, [3, 4])
    node.resume(1, [5], first=2, sent=8, required=2)
    assert sender.poll() == Phase.Failed
    assert "required_dst_info_num 2, it was 1" in failure_of(sender).reason


def test_a_grant_whose_endpoint_is_not_the_registered_one_is_refused() -> None:
    """D15: reports go where the node has registered, so a grant that names another place is not its own."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    key = msg.RequestKey(1, 1, 1)
    node.hears("bootstrap", msg.Init(node.envelope(), key, "tcp://10.0.0.21:2", 0, 1, 0, [3, 4], 0, 1, 8, 1))
    assert "endpoint 'tcp://10.0.0.21:2', 'tcp://10.1.0.10:2' registered" in node.sent(msg.Refused)[-1].reason
    assert sender.poll() == Phase.Bootstrapping
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success


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


def test_a_resume_that_claims_more_than_has_landed_is_the_callers_mistake() -> None:
    """R2."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 8)
    with pytest.raises(ValueError, match="sent_tokens: 9 > 8 tokens that have landed"):
        receiver.resume_transfer(receiver.allocate(1), 9)


def test_a_drain_frees_whole_blocks_only_and_at_the_end_all() -> None:
    """R3: a partly filled block is kept while rows may still come into it."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=3)
    node.status(receiver, Phase.Transferring, 6, total_tokens=10)
    assert receiver.release_drained(6) == 1
    assert node.counts() == {"free": 6, "exposed": 2}
    node.status(receiver, Phase.Success, 10, total_tokens=10)
    assert receiver.release_drained(10) == 2
    assert node.control.blocks.counts().free == 8


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


def test_a_resume_is_due_when_all_that_was_granted_is_sent_whatever_the_phase() -> None:
    """R5, B9."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=2)
    node.status(receiver, Phase.WaitingForInput, 8)
    assert receiver.needs_resume
    receiver.resume_transfer(receiver.allocate(1), 8)
    assert not receiver.needs_resume
    node.status(receiver, Phase.Transferring, 8)
    assert not receiver.needs_resume
    node.status(receiver, Phase.Transferring, 12)
    assert receiver.needs_resume
    node.status(receiver, Phase.Success, 16)
    assert not receiver.needs_resume


# ---- late writes


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
    assert node.sent(msg.Status)[-1].room.tainted == 2


def test_a_report_is_no_cleaner_than_its_progress() -> None:
    """R6: who publishes reads `sent` first, then `tainted`, and `sent` not once more after it."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    publisher, order = node.actor("poller").role, []
    get = publisher._dsts.get  # type: ignore[attr-defined]

    def reading(slot: int, d: int, field: Destination) -> int:
        order.append(field)
        return int(get(slot, d, field))

    publisher._dsts.get = reading  # type: ignore[attr-defined]
    publisher._serve(sender.slot, sender.epoch)  # type: ignore[attr-defined]
    assert Destination.SENT in order[: order.index(Destination.TAINTED)]
    assert Destination.SENT not in order[order.index(Destination.TAINTED) :]


def test_what_is_tainted_is_stored_before_the_word_says_that_rows_have_landed() -> None:
    """R6: or a drain between the two would free a block into which a write may still land."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    status, seen = node.actor("poller").ctx.status, []
    advance = status.advance

    def watched(*arguments: int) -> bool:
        seen.append(node.slots.get(receiver.slot, Slot.TAINTED))
        return bool(advance(*arguments))

    status.advance = watched  # type: ignore[method-assign]
    node.status(receiver, Phase.Transferring, 8, tainted=2)
    assert seen
    assert set(seen) == {2}


def test_a_block_that_a_late_write_may_hit_is_quarantined_by_the_drain() -> None:
    """R7, P7: and a clean one is freed."""
    node = LanguageAlone(late_writes=True)
    clean, tainted = node.receiver(1), node.receiver(2)
    node.status(clean, Phase.Transferring, 4)
    node.status(tainted, Phase.Transferring, 4, tainted=2)
    clean.release_drained(4)
    tainted.release_drained(4)
    assert node.counts() == {"free": 5, "exposed": 2, "quarantined": 1}


def test_a_tainted_session_that_is_over_quarantines_nothing() -> None:
    """R7: a taint of a session that a fence has ended, that is, below ours."""
    node = LanguageAlone(late_writes=True)
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 4, tainted=1)  # session 0
    receiver.release_drained(4)
    assert node.counts() == {"free": 7, "exposed": 1}


@pytest.mark.parametrize(("tainted", "expected"), [(0, {"free": 8}), (2, {"free": 6, "quarantined": 2})])
def test_blocks_of_a_failed_request_wait_for_the_abort_ack_and_the_tainted_ones_longer(
    tainted: int, expected: dict[str, int]
) -> None:
    """R7, D2: Failed frees nothing by itself."""
    node = LanguageAlone(late_writes=True)
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 4)
    receiver.abort()
    node.settle()
    assert receiver.poll() == Phase.Failed
    assert node.counts() == {"free": 6, "quarantined": 2}
    assert len(node.sent(msg.Abort)) == 1
    node.abort_ack(receiver, tainted=tainted)
    assert node.counts() == expected


def test_blocks_are_quarantined_when_the_encode_side_says_failed_and_until_it_acknowledges() -> None:
    """R7: Failed from there frees nothing; an abort is sent, and its ack does."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.Failed, 4, code=FailureCode.ABORTED, reason="the encoder had enough")
    assert node.counts() == {"free": 6, "quarantined": 2}
    assert "the encoder had enough" in str(receiver.failure_exception())
    assert len(node.sent(msg.Abort)) == 1
    node.abort_ack(receiver)
    assert node.control.blocks.counts().free == 8


def test_a_source_block_is_not_freed_while_an_attempt_reads_it() -> None:
    """R8."""
    engine = StubEngine(outcome=Outcome.PENDING)
    node = EncodeAlone(engine=engine)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    assert [StageEntry.of(sender._staging.load(sender.slot, k)).state for k in (0, 1)] == [STAGE_READING] * 2
    sender.abort()
    node.advance(1.0)
    assert sender.progress().phase == Phase.Failed
    assert node.control.blocks.counts().owned == 2
    engine.outcome = Outcome.DONE
    node.advance(1.0)
    assert node.control.blocks.counts().free == 8


class OneByOne(StubEngine):
    """A network on which each attempt has its own outcome; those that are not named are under way."""

    def __init__(self) -> None:
        super().__init__(late_writes=True, outcome=Outcome.PENDING)
        self.outcomes: dict[int, Outcome] = {}

    def poll(self, ticket: int) -> Outcome:
        return self.outcomes.get(ticket, self.outcome)


def test_the_source_blocks_of_a_failed_attempt_are_kept_while_its_engine_may_read_them() -> None:
    """R8: until the worker has ended, and its engine with it.

    It waits for an attempt of another request, and renews itself then.
    """
    engine = OneByOne()
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


def test_the_destinations_of_a_request_share_its_window_and_no_entry_of_it() -> None:
    """R1, B10: of 16 entries each of two has 8; a grant beyond its share would be taken for the other's blocks."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 200, rows=0)
    node.init(1, list(range(8)), required=2)
    node.init(1, list(range(8, 16)), required=2, node_id=11)
    assert [node.destinations.grant(sender.slot, 0, k)[0] for k in range(8)] == list(range(8))
    assert [node.destinations.grant(sender.slot, 1, k)[0] for k in range(8)] == list(range(8, 16))
    assert sender.poll() == Phase.WaitingForInput
    node.resume(1, [0], first=8, required=2)
    assert sender.poll() == Phase.Failed
    assert node.slots.reason(sender.slot) == "grant to block 9 exceeds the window at 0"


def test_a_destination_grants_no_more_than_its_share_of_the_encode_nodes_window() -> None:
    """R1: the encode node has a window of 16 blocks, and the request another destination."""
    node = LanguageAlone(num_blocks=16)
    receiver = node.client.receiver(ENCODE_ADDRESS, 1, required_dst_info_num=2)
    node.settle()
    node.registered()
    assert receiver.max_window_blocks == 8
    alone = node.receiver(2)
    assert alone.max_window_blocks == 16


def test_nobody_holds_more_than_the_pool_has_so_the_windows_are_no_larger() -> None:
    """R1, R21: entries of the windows and of staging repeat after the blocks of this node, where these are fewer."""
    assert EncodeAlone(num_blocks=3).control.staging.window == 3
    assert LanguageAlone(num_blocks=5).control.windows.window == 5
    assert LanguageAlone(num_blocks=24).control.windows.window == LIMITS.window_blocks


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


def test_the_death_of_a_peer_frees_no_block_while_it_can_still_write() -> None:
    """R12, D2: over shared memory it is the end of its last process, the "dead foreign writer", that frees them."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    entry = node.control.writers.add(ForeignWriter(20, 1, 4711))
    assert entry is not None
    node.is_refused("poller", "tcp://10.0.0.20:2")
    assert isinstance(receiver.failure_exception(), PeerLost)
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.node.writer_gone(entry)
    node.settle()
    assert node.control.blocks.counts().free == 8


# ---- identity


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


# ---- several destinations


def test_each_destination_is_told_its_own_progress_and_the_word_holds_the_least() -> None:
    """R18, D11: an absent one counts as 0."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 20)
    node.init(1, [3, 4, 5], required=2)
    assert node.get(sender, Destination.SENT) == 12
    assert sender.progress().sent == 0
    node.init(1, [8], required=2, node_id=11)
    assert sender.progress().sent == 4
    rooms = {status.envelope.for_incarnation: status.room for status in node.sent(msg.Status)}
    assert len(rooms) == 1  # both nodes are of incarnation 1
    told = _told(node)
    assert (told["tcp://10.1.0.10:2"].sent_tokens, told["tcp://10.1.0.11:2"].sent_tokens) == (12, 4)
    assert told["tcp://10.1.0.10:2"].phase == told["tcp://10.1.0.11:2"].phase


def _told(node: EncodeAlone) -> dict[str, msg.RoomState]:
    """The last status that was sent to each address."""
    sends = [item for _, item in node.wire.sent if isinstance(item, Send)]
    return {item.address: item.message.room for item in sends if isinstance(item.message, msg.Status)}


def test_rows_flow_to_a_destination_on_its_own_grant_whoever_is_still_missing() -> None:
    """R19: WaitingForInput is a label; and an init may grant no block at all."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [], required=2)
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 1
    node.resume(1, [3, 4], first=0, required=2)
    assert sender.poll() == Phase.Bootstrapping
    assert node.get(sender, Destination.SENT) == 8


def test_no_write_goes_to_a_destination_that_has_not_granted() -> None:
    """B10: another one's grant is not its own."""
    node = EncodeAlone()
    node.register(node_id=11)
    node.sender(1, 16)
    node.init(1, [3, 4], required=2)
    node.init(1, [8], required=2, node_id=11)
    node.resume(1, [5, 6], first=2, required=2)
    ten, eleven = (node.control.peers.find(node_id, 1) for node_id in (10, 11))
    written: dict[int | None, tuple[int, ...]] = {ten: (), eleven: ()}
    for (peer, _), blocks in zip(node.engine.submitted, node.blocks_written(), strict=True):
        written[peer] += tuple(blocks)
    assert written == {ten: (3, 4, 5, 6), eleven: (8,)}


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

    def watched(slot: int, epoch: int, phase: int, sent: int, now_ns: int) -> bool:
        words.append((phase, sent))
        return bool(advance(slot, epoch, phase, sent, now_ns))

    status.advance = watched  # type: ignore[method-assign]
    node.status(receiver, Phase.Success, 16)
    assert words[-1] == (Phase.Success, 16)
    assert all(phase < Phase.Success for phase, _ in words[:-1])


@pytest.mark.parametrize("how", ["aborts", "dies"])
def test_the_failure_of_one_destination_is_told_to_all(how: str) -> None:
    """D11, R18."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 20)
    node.init(1, [3, 4], required=2)
    node.init(1, [8], required=2, node_id=11)
    node.forget_sent()
    if how == "aborts":
        node.abort(1, reason="rank 0 is out of memory")
    else:
        node.is_refused("poller", "tcp://10.1.0.10:2")
    assert sender.poll() == Phase.Failed
    told = _told(node)
    assert told["tcp://10.1.0.11:2"].phase == Phase.Failed
    reason = told["tcp://10.1.0.11:2"].reason
    assert reason == ("rank 0 is out of memory" if how == "aborts" else "language node a at tcp://10.1.0.10:1 is lost")


# ---- no deadlock


def _queue(node: LanguageAlone, default_tokens: int = 8) -> TransferQueue:
    queue = TransferQueue(node.client, default_allocate_tokens=default_tokens, adaptive=False)
    node.settle()
    return queue


def _request(node: LanguageAlone, queue: TransferQueue, room: int) -> EmbeddingRequest:
    request = EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS)
    queue.add(request)
    node.settle()
    assert request.receiver is not None
    if not request.receiver.handshake_done:
        node.registered()
    return request


def test_the_last_free_block_goes_only_to_a_request_whose_rows_wait() -> None:
    """R21, D8: who has no rows waiting may hold it for ever."""
    node = LanguageAlone(num_blocks=3)
    queue = _queue(node)
    first = _request(node, queue, 1)
    second = _request(node, queue, 2)
    assert first.receiver is not None
    assert second.receiver is not None
    assert first.receiver.granted_blocks == 2
    assert second.receiver.granted_blocks == 0
    assert node.counts() == {"free": 1, "exposed": 2}
    node.status(second.receiver, Phase.WaitingForInput, 0, ready_tokens=4)
    assert second.receiver.granted_blocks == 1


def test_a_head_of_the_queue_without_rows_does_not_stop_those_behind_it() -> None:
    """R22."""
    node = LanguageAlone(num_blocks=1)
    queue = _queue(node)
    head, behind = _request(node, queue, 1), _request(node, queue, 2)
    assert head.receiver is not None
    assert behind.receiver is not None
    node.status(behind.receiver, Phase.WaitingForInput, 0, ready_tokens=16)
    assert (head.receiver.granted_blocks, behind.receiver.granted_blocks) == (0, 1)


def test_those_whose_rows_wait_are_served_first_come_first_served() -> None:
    """R22, D9."""
    node = LanguageAlone(num_blocks=2)
    queue = _queue(node)
    holder, early, late = (_request(node, queue, room) for room in (1, 2, 3))
    for request in (holder, late, early):
        assert request.receiver is not None
        node.status(request.receiver, Phase.WaitingForInput, 0, ready_tokens=16)
    receivers = [request.receiver for request in (holder, early, late)]
    assert [r.granted_blocks for r in receivers if r] == [2, 0, 0]
    assert receivers[0] is not None
    node.status(receivers[0], Phase.Transferring, 4)
    assert [r.granted_blocks for r in receivers if r] == [3, 0, 0] or [r.granted_blocks for r in receivers if r] == [
        2,
        1,
        0,
    ]


def test_two_nodes_agree_on_whose_rows_may_exceed_the_limit_of_host_memory() -> None:
    """D8: a request that has landed here waits for its other destination, which may wait for host memory on behalf of
    another one.
    """
    node = LanguageAlone(settings={"host_buffer_bytes": 400, "default_allocate_tokens": 4})
    assert 16 * node.node.geometry.token_bytes < 400 < 32 * node.node.geometry.token_bytes
    queue = _queue(node, default_tokens=4)
    requests: list[EmbeddingRequest] = []
    for room in (7, 3, 5):
        request = EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS, required_dst_info_num=2)
        queue.add(request)
        node.settle()
        if not requests:
            node.registered()
        requests.append(request)
    oldest, lowest, other = (request.receiver for request in requests)
    assert oldest
    assert lowest
    assert other
    for receiver in (oldest, other, lowest):
        node.status(receiver, Phase.WaitingForInput, 0)
    node.status(oldest, Phase.Transferring, 16)
    assert (oldest.granted_tokens, lowest.granted_tokens, other.granted_tokens) == (16, 16, 4)


def test_a_default_is_granted_in_whole_blocks() -> None:
    """R5, P8: or the rest of a block whose beginning was granted would wait for a block behind it that nobody needs."""
    node = LanguageAlone()
    request = _request(node, _queue(node, default_tokens=6), 1)
    receiver = request.receiver
    assert receiver is not None
    assert receiver.granted_tokens == 8
    node.status(receiver, Phase.WaitingForInput, 6, total_tokens=8)
    assert not receiver.needs_resume


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


# ---- repair


def test_a_request_that_has_ended_stays_in_the_heartbeats_until_it_is_closed() -> None:
    """R23: and keeps its slot."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success
    node.forget_sent()
    node.advance(0.5)
    assert all(beat.rooms[0].phase == Phase.Success for beat in node.sent(msg.Heartbeat))
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


def test_an_aborted_request_is_listed_and_its_abort_repeated_until_it_is_acknowledged() -> None:
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
    assert node.sent(msg.Heartbeat)[-1].rooms[0].key.slot == receiver.slot
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) < receiver.epoch
    node.abort_ack(receiver)
    assert node.slots.get(receiver.slot, Slot.RELEASED_EPOCH) == receiver.epoch
    assert len(node.sent(msg.Close)) == 1


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


# ---- what went wrong elsewhere


def test_a_session_that_does_not_answer_fails_a_request_at_once_or_where_rows_have_come_before_only_when_that_lasts() -> (
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
        node.hears("poller", msg.Heartbeat(node.envelope(node_id=10), []))
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

def test_a_resume_does_not_touch_the_status() -> None:
    """B1: it raises what is granted."""
    node = EncodeAlone()
    sender = node.sender(1, 40, rows=4)
    node.init(1, [3])
    node.write(sender, 4, 40)
    node.advance(0.1)
    assert sender.poll() == Phase.Transferring
    node.actor("worker0").stalled_ns = node.now_ns + 10**9
    word = node.word(sender.slot)
    node.resume(1, [4, 5], first=1)
    assert node.get(sender, Destination.GRANTED_TOKENS) == 12
    assert node.word(sender.slot) == word


def test_a_grant_larger_than_the_request_and_one_smaller_than_any_default_both_end_whole() -> None:
    """B3: each side decides from what this request's messages carry."""
    node = EncodeAlone()
    large, small = node.sender(1, 5), node.sender(2, 5)
    node.init(1, [3, 4, 5, 6])
    node.init(2, [8], tokens=3)
    assert large.poll() == Phase.Success
    assert node.get(small, Destination.SENT) == 3
    node.resume(2, [8, 9], first=0, tokens=5)
    assert small.poll() == Phase.Success
    assert small.phase_path() == [Phase.Bootstrapping, Phase.WaitingForInput, Phase.Transferring, Phase.Success]


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


def test_a_grant_makes_its_transfer_runnable_in_the_same_step() -> None:
    """B5: the hang was a resume that updated the fields and queued nothing."""
    node = EncodeAlone()
    node.sender(1, 8)
    node.init(1, [])
    inbox = node.control.inbox("worker0")
    assert not inbox.pending()
    bootstrap = node.actor("bootstrap")
    key = msg.RequestKey(1, 1, 1)
    grant = msg.Resume(node.envelope(), key, "tcp://10.1.0.10:2", 0, 1, 0, [3, 4], 0, 1, 0, 8)
    node.actor("worker0").stalled_ns = node.now_ns + 10**9
    node.hears("bootstrap", grant)
    assert bootstrap.arrivals == type(bootstrap.arrivals)()
    assert inbox.pending()


BAD_GRANTS = {
    "more tokens than blocks hold": {"blocks": [3, 4], "tokens": 9},
    "a block too many for its tokens": {"blocks": [3, 4], "tokens": 4},
    "a block out of range": {"blocks": [3, 16]},
    "a block twice": {"blocks": [3, 3]},
    "more blocks than the window": {"blocks": [*range(16), 0]},
    "too many destinations": {"blocks": [3], "required": 3},
    "a slot out of range": {"blocks": [3], "slot": 64},
}


@pytest.mark.parametrize("wrong", BAD_GRANTS.values(), ids=BAD_GRANTS)
def test_a_grant_that_breaks_a_rule_fails_its_request_and_nothing_else(wrong: dict[str, object]) -> None:
    """B6, D15, P16: indices are checked against the geometry that the node registered."""
    node = EncodeAlone()
    first, second = node.sender(1, 8), node.sender(2, 8)
    node.init(1, **wrong)  # type: ignore[arg-type]
    assert len(node.sent(msg.Refused)) == 1
    assert node.slots.get(first.slot, Slot.NUM_DESTINATIONS) == 0
    node.init(2, [3, 4])
    assert second.poll() == Phase.Success
    assert node.metric("bootstrap", "errors") == 0


def test_a_grant_of_an_open_request_that_breaks_a_rule_fails_it_and_says_why() -> None:
    """B6, D15."""
    node = EncodeAlone()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3])
    node.resume(1, [99], first=1)
    assert sender.poll() == Phase.Failed
    assert "block 99 granted, 16 blocks registered" in str(sender.failure_exception())
    assert node.engine.submitted == []


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


def test_a_shortage_waits_and_what_came_is_kept() -> None:
    """B11."""
    node = LanguageAlone(num_blocks=2)
    queue = _queue(node)
    first, second = _request(node, queue, 1), _request(node, queue, 2)
    assert first.receiver is not None
    assert second.receiver is not None
    node.status(first.receiver, Phase.WaitingForInput, 0, total_tokens=12, ready_tokens=8)
    assert first.receiver.granted_blocks == 2
    node.status(second.receiver, Phase.WaitingForInput, 0, total_tokens=4, ready_tokens=4)
    assert second.receiver.granted_blocks == 0
    node.status(first.receiver, Phase.Transferring, 8, total_tokens=12, ready_tokens=8)
    assert first.transferred_tokens == 8
    assert second.receiver.granted_blocks == 1
    assert [(chunk.first, chunk.end) for chunk in first.buffered_chunks] == [(0, 8)]


def test_blocks_are_not_freed_by_an_abort_while_a_remote_write_may_land() -> None:
    """D2: not by the client, not by its death, not by time; only by the ack."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort()
    receiver.clear()
    node.settle()
    node.node.clients[0].die()
    for _ in range(20):
        node.advance(0.5)
        node.heartbeat()
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.abort_ack(receiver)
    assert node.control.blocks.counts().free == 8


class Broken(EmbridgeError):
    """Something that is raised on purpose."""


@pytest.mark.parametrize("error", [ValueError, Broken])
@pytest.mark.parametrize(("role", "method"), [("bootstrap", "apply"), ("poller", "_advance"), ("worker0", "_submit")])
def test_an_exception_in_one_item_ends_that_request_and_not_the_process(
    role: str, method: str, error: type[Exception]
) -> None:
    """D4: it is logged and counted, and the next item is served."""
    node = EncodeAlone()
    victim, other = node.sender(1, 8), node.sender(2, 8)
    target: object = node.actor(role).role
    target = getattr(target, "_grants", target)
    real = getattr(target, method)

    def failing(first: object, *arguments: object) -> object:
        slot = first if isinstance(first, int) else first.slot  # type: ignore[attr-defined]
        if slot == victim.slot:
            raise error("broken on purpose")
        return real(first, *arguments)

    setattr(target, method, failing)
    node.init(1, [3, 4])
    node.init(2, [5, 6])
    assert other.poll() == Phase.Success
    assert node.metric(role, "errors") >= 1
    setattr(target, method, real)
    node.init(1, [3, 4])  # to the bootstrap it was a message that it could not take: its node sends it again
    node.advance(2.0, until=lambda: victim.poll() >= Phase.Success)
    if role == "bootstrap":
        assert victim.poll() == Phase.Success
    else:
        assert "broken on purpose" in str(victim.failure_exception())


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


@pytest.mark.parametrize("index", [-1, 8, 1 << 31])
def test_a_block_index_of_the_callers_is_checked_before_it_is_granted(index: int) -> None:
    """D15."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    with pytest.raises(ValueError, match=f"embedding_indices: {index} is outside 0 to 7"):
        receiver.init([index])


def test_every_deadline_begins_when_the_request_is_opened() -> None:
    """D1, P8: on both sides, whatever it waits for: a peer that never comes included."""
    encode, language = EncodeAlone(), LanguageAlone()
    sender = encode.client.sender(1, 8, timeout_s=3.0)
    receiver = language.client.receiver(ENCODE_ADDRESS, 1, timeout_s=3.0)
    for node in (encode, language):
        node.advance(2.9)
    assert sender.poll() < Phase.Success
    assert receiver.poll() < Phase.Success
    for node in (encode, language):
        node.advance(0.2)
    assert isinstance(sender.failure_exception(), TransferTimeout)
    assert isinstance(receiver.failure_exception(), TransferTimeout)


def test_who_is_silent_is_dead_and_who_was_stopped_itself_holds_nothing_against_others() -> None:
    """P4, P14."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3])
    node.world.now_ns += 60 * 10**9  # this process was stopped for a minute
    node.settle()
    assert sender.poll() < Phase.Success
    node.advance(4.9)
    assert sender.poll() < Phase.Success
    node.advance(0.5)
    assert isinstance(sender.failure_exception(), PeerLost)


def test_a_poller_that_has_just_begun_holds_no_silence_against_others() -> None:
    """P4, P14: nobody heard what came while its predecessor hung, and its peer has registered again meanwhile."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3])
    node.world.now_ns += 60 * 10**9
    node.actor("poller").start()
    node.settle()
    assert sender.poll() < Phase.Success
    node.advance(4.9)
    assert sender.poll() < Phase.Success
    node.advance(0.5)
    assert isinstance(sender.failure_exception(), PeerLost)


def test_rooms_are_spread_over_the_workers() -> None:
    """D18: one pair of nodes uses them all."""
    node = EncodeAlone()
    node.control.limits = type(node.control.limits)(num_workers=4)
    assert {node.control.worker_of(room) for room in range(8)} == {0, 1, 2, 3}


def test_an_allocation_that_ends_inside_a_block_is_legal_where_it_is_the_last() -> None:
    """B6: 976 tokens in 8 blocks of 128; more than one block less is not."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    blocks = receiver.allocate(3)
    for tokens in (8, 13):
        with pytest.raises(ValueError, match="does not end in the last of 3 blocks of 4 tokens; expected 9 to 12"):
            receiver.init(blocks, tokens)
    receiver.init(blocks, 9)
    node.settle()
    assert node.sent(msg.Init)[-1].allocated_tokens == 9
    assert receiver.granted_tokens == 9
    assert np.array_equal(receiver.current_allocation(), blocks)
    assert node.node.geometry.block_size == BLOCK_SIZE


def test_a_block_that_nobodys_request_holds_is_reported_once() -> None:
    """P1: the integrity check of an idle node, which sees no leak while a request is in flight."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.advance(5)
    assert node.metric("poller", "errors") == 0
    receiver.abort()
    node.settle()
    node.abort_ack(receiver)
    receiver.clear()
    node.advance(5)
    assert node.counts()["free"] == 8
    assert node.metric("poller", "errors") == 0
    node.node.may_leak = True  # the simulation would say so itself
    node.control.blocks.acquire(receiver.slot, receiver.epoch, 1, may_take_reserve=True)
    node.advance(5)
    assert node.metric("poller", "errors") == 1


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


@pytest.mark.parametrize(("network", "errors"), [(False, 1), (True, 0)])
def test_a_quarantine_that_no_fence_can_end_is_a_leak(network: bool, errors: int) -> None:
    """P1: through shared memory nothing stays in quarantine once no request is in flight; over a network a fence ends
    it.
    """
    node = LanguageAlone(late_writes=network)
    receiver = node.receiver(1)
    receiver.abort()
    node.settle()
    node.abort_ack(receiver)
    receiver.clear()
    node.advance(3)
    node.node.may_leak = True
    blocks = node.control.blocks.acquire(receiver.slot, receiver.epoch, 1, may_take_reserve=True)
    node.control.blocks.cells.expose(
        blocks, 0, 1, receiver.slot, receiver.epoch, exposure_of(0, 1) if network else SHM_EXPOSURE
    )
    node.control.blocks.cells.quarantine(blocks, 0, 1, receiver.slot, receiver.epoch)
    node.advance(4)
    assert node.metric("poller", "errors") == errors
