"""What the counters of a node's processes count, and what they do not."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone, LanguageAlone

from embridge.allocator.status import Phase
from embridge.workers import messages as msg


def test_what_is_repeated_as_a_matter_of_course_is_not_counted_as_sent_again() -> None:
    """P12: a request that has ended and is not closed, in every heartbeat, and one that is in flight for a while."""
    encode, language = EncodeAlone(), LanguageAlone()
    encode.sender(1, 8)
    encode.init(1, [3, 4])
    receiver = language.receiver(1)
    language.status(receiver, Phase.WaitingForInput, 0)
    for _ in range(20):
        encode.advance(0.1)
        language.advance(0.1)
        language.heartbeat(language.state(receiver, Phase.WaitingForInput, 0))
    assert sum(len(beat.rooms) for beat in encode.sent(msg.Heartbeat)) > 10
    assert len(language.sent(msg.Heartbeat)) > 10
    assert encode.metric("poller", "resent") == language.metric("poller", "resent") == 0


def test_a_grant_that_a_heartbeat_shows_missing_is_counted_as_sent_again() -> None:
    """R24."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.WaitingForInput, 0)
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 0, known_blocks=1))
    assert node.metric("poller", "resent") == 1


def test_what_is_told_anew_to_a_peer_that_has_missed_something_is_counted() -> None:
    """R77: once for each time that it is asked for."""
    node = EncodeAlone()
    node.sender(1, 8, rows=4)
    node.init(1, [3, 4])
    for _ in range(2):
        node.hears("poller", msg.Resync(node.envelope()))
        node.advance(0.5)
    assert node.metric("poller", "snapshots") == 2


@pytest.mark.parametrize("what", ["a grant", "an abort"])
def test_what_nobody_answers_is_counted_each_time_that_it_is_sent_again(what: str) -> None:
    """R24."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    if what == "an abort":
        receiver.abort("enough")
        node.settle()
    before = node.metric("poller", "resent")
    node.forget_sent()
    for _ in range(30):
        node.advance(0.1)
        node.heartbeat()
    again = len(node.sent(msg.Init)) + len(node.sent(msg.Abort))
    assert again > 1
    assert node.metric("poller", "resent") - before == again


def test_kicks_that_wait_for_room_in_their_ring_are_counted_and_none_is_lost() -> None:
    """P12, R25."""
    node = EncodeAlone()
    rooms = range(1, 41)
    senders = [node.sender(room, 4) for room in rooms]
    assert node.metric("bootstrap", "rings_full") == 0
    node.actor("worker0").stalled_ns = node.now_ns + 10**9
    for room in rooms:
        node.init(room, [room % 16], slot=room)
    assert node.control.limits.ring_records < len(rooms)
    assert node.metric("bootstrap", "rings_full") >= len(rooms) - node.control.limits.ring_records
    node.advance(2.0)
    assert {sender.poll() for sender in senders} == {Phase.Success}
