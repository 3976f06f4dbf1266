"""Grants as an encode node takes them: which are applied, which are ignored, and which fail their request."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone, LanguageAlone, failure_of
from support.simulation import LIMITS

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import FINDER_SLOT_BITS, Destination, JoinedBy, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.bootstrap.encode import Admission

pytestmark = pytest.mark.usefixtures("quiet")


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


def test_a_grant_that_waits_is_not_looked_for_among_the_slots_of_other_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """R80, P21: what it costs does not grow in Python with the slots in use, whichever room the count is of."""
    node = EncodeAlone()
    for room in range(2, 30):
        node.sender(room, 8, rows=0)
    control = node.actor("bootstrap").control
    node.control.untold.add(1, 1)  # as where a room of the same hash is open
    monkeypatch.setattr(control, "_slots_that", None)
    node.init(1, [3])
    assert not node.metric("bootstrap", "errors")
    node.control.untold.add(1, -1)
    sender = node.sender(1, 4)
    node.settle()
    assert sender.poll() == Phase.Success


def test_no_number_in_a_heartbeat_grants_anything() -> None:
    """R1, D13: only blocks do."""
    node = EncodeAlone()
    sender = node.sender(1, 40)
    node.init(1, [3])
    room = msg.RoomState(msg.RequestKey(1, 1, 1), 2, False, 40, 40, 40, 10, 0, 0, 0, "", 0)
    node.hears("poller", msg.Heartbeat(node.envelope(), [room], [], 0, 0, 0))
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


def test_nobody_holds_more_than_the_pool_has_so_the_windows_are_no_larger() -> None:
    """R1, R21: entries of the windows and of staging repeat after the blocks of this node, where these are fewer."""
    assert EncodeAlone(num_blocks=3).control.staging.window == 3
    assert LanguageAlone(num_blocks=5).control.windows.window == 5
    assert LanguageAlone(num_blocks=24).control.windows.window == LIMITS.window_blocks


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


def test_a_grant_makes_its_transfer_runnable_in_the_same_step() -> None:
    """B5: the hang was a resume that updated the fields and queued nothing."""
    node = EncodeAlone()
    node.sender(1, 8)
    node.init(1, [])
    inbox = node.control.inbox("worker0")
    assert not inbox.pending()
    bootstrap = node.actor("bootstrap")
    key = msg.RequestKey(1, 1, 1)
    grant = msg.Resume(node.envelope(), key, "tcp://10.1.0.10:2", 0, 1, 0, [3, 4], 0, 1, 8, 0)
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


def test_a_resume_that_crosses_the_end_of_its_request_is_refused_and_nobody_is_warned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R15, R23: of a request that this node has never known, whoever reads the log is to hear."""
    warned: list[object] = []
    monkeypatch.setattr(Admission, "_warn", lambda self, envelope, text, *values: warned.append(values))
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    node.close(1)
    assert sender.poll() == Phase.Success
    refused = node.metric("bootstrap", "messages_refused")
    node.resume(1, [3, 4], first=0, sent=8)
    assert (node.metric("bootstrap", "messages_refused"), warned) == (refused + 1, [])
    node.resume(2, [5], first=0)
    assert warned == [(2, "room 2 is not known to the encode node")]


OTHER = 40  # a slot of another client
FOUND = {
    "it is bound": ({Slot.JOINED_BY: JoinedBy.CLIENT}, 1, False),
    "it is about to be": ({}, 1, True),
    "it is of another room": ({Slot.ROOM: 2, Slot.JOINED_BY: JoinedBy.CLIENT}, 1, True),
    "it is bound to another grant": ({Slot.JOINED_BY: JoinedBy.CLIENT, Slot.NUM_DESTINATIONS: 1}, 1, True),
    "it has found an older one": ({Slot.JOINED_BY: JoinedBy.CLIENT}, 0, True),
}


@pytest.mark.parametrize(("words", "epoch", "may"), FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_grant_that_another_sender_has_found_is_never_applied(
    words: dict[Slot, int], epoch: int, may: bool, is_restarted: bool
) -> None:
    """R81, P6: nor by a bootstrap whose predecessor has died before it looked."""
    node = EncodeAlone()
    sender, peers = node.sender(1, 8), node.control.peers
    node.init(1, [])
    assert peers.tombstone(0, 1) == 1
    assert peers._finders is not None
    for field, value in {Slot.ROOM: 1, **words}.items():
        node.slots.set(OTHER, field, value)
    peers._finders.store(1, epoch << FINDER_SLOT_BITS | OTHER)
    if is_restarted:
        node.actor("bootstrap").start()
    for _ in range(2):
        node.init(1, [3, 4])
        node.init(1, [3, 4])
    assert (sender.poll() == Phase.Success) == may
    assert bool(node.get(sender, Destination.GRANTED_BLOCKS)) == may
    assert len(node.engine.submitted) == may
    is_kept_off = may and epoch == 1 and not words
    assert (node.slots.get(OTHER, Slot.JOINED_BY) == JoinedBy.BOOTSTRAP) == is_kept_off
    if not may:
        assert str(sender.failure_exception()).endswith("room 1 is in use by another sender of this node")


def test_a_sender_that_has_found_its_own_grant_is_granted_it() -> None:
    """R81: its bootstrap was faster."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    assert node.control.peers._finders is not None
    node.control.peers._finders.store(1, 1 << FINDER_SLOT_BITS | sender.slot)
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success
