"""Deadlines and silence: when a request has taken too long, and when a peer counts as dead."""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone

from embridge.allocator.errors import PeerLost, TransferTimeout
from embridge.allocator.status import Phase

pytestmark = pytest.mark.usefixtures("quiet")


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
