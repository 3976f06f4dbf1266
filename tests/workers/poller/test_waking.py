"""Whom the language poller wakes, and when it wakes up itself."""

from __future__ import annotations

from typing import cast

import pytest
from support.alone import LanguageAlone

from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers import messages as msg
from embridge.workers.poller.language import StatusReceiver
from embridge.workers.timing import NS

pytestmark = pytest.mark.usefixtures("quiet")

SOON_NS = NS // 50


def poller(node: LanguageAlone) -> StatusReceiver:
    return cast(StatusReceiver, node.actor("poller").role)


def rung(node: LanguageAlone, receiver: EmbeddingReceiver, phase: Phase, sent: int) -> list[str]:
    """Whose bells rise while the poller alone takes a report."""
    bells = {who: node.control.bell(f"{who}0") for who in ("lane", "library")}
    before = {who: bell.sequence() for who, bell in bells.items()}
    room = node.state(receiver, phase, sent, total_tokens=8)
    poller(node)._take_report(room, 0)
    return [who for who, bell in bells.items() if bell.sequence() != before[who]]


def test_a_library_thread_that_is_spared_sleeps_while_rows_land_and_wakes_for_those_that_are_ready() -> None:
    """P8: a success is its caller's, who is awake; of rows that wait, and of their number, it hears itself."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.control.bell("library0").spare(True)
    assert rung(node, receiver, Phase.WaitingForInput, 0) == ["lane", "library"]
    assert rung(node, receiver, Phase.Success, 8) == ["lane"]


def test_a_library_thread_that_others_wait_for_hears_of_a_success() -> None:
    """P8."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.control.bell("library0").spare(False)
    rung(node, receiver, Phase.WaitingForInput, 0)
    assert rung(node, receiver, Phase.Success, 8) == ["lane", "library"]


def test_nobody_wakes_for_a_grant_that_was_answered() -> None:
    """R24: one that was not is sent again; its deadline is looked at in any case."""
    node = LanguageAlone()
    heard, unheard = node.receiver(1), node.receiver(2)
    node.status(heard, Phase.WaitingForInput, 0)
    times = poller(node)._timers
    assert len(times) == 4
    due = times.next_ns(1 << 62)
    assert due <= node.now_ns + int(node.world.timing.resend_s * NS)
    node.status(unheard, Phase.WaitingForInput, 0)
    assert times.next_ns(1 << 62) > due
    assert len(times) == 2
    node.advance(node.world.timing.request_timeout_s + 1)
    assert [heard.poll(), unheard.poll()] == [Phase.Failed] * 2


def test_whatever_is_said_to_a_peer_is_a_sign_of_life() -> None:
    """P4: it hears something as often as before, and no more."""
    node = LanguageAlone()
    node.receiver(1)
    other = node.receiver(2)
    node.advance(0.2)
    node.forget_sent()
    node.status(other, Phase.Success, 8, total_tokens=8)
    assert len(node.sent(msg.Close)) == 1
    begun = node.now_ns
    node.advance(1.0, until=lambda: bool(node.sent(msg.Heartbeat)))
    every_ns = int(node.world.timing.heartbeat_s * NS)
    assert every_ns <= node.now_ns - begun <= every_ns + SOON_NS


def test_nobody_looks_who_follows_which_node_until_a_client_says_so() -> None:
    """R72: nor does a look come late that it was told of."""
    node = LanguageAlone()
    node.receiver(1)
    node.advance(0.02)
    follows = poller(node)._notices
    assert follows is not None
    assert follows.next_ns() is None
    library_of(node.client).attachment.kick_follows()
    node.settle()
    assert (follows.next_ns() or 1 << 62) <= node.now_ns + NS // 20
    node.advance(0.1)
    assert follows.next_ns() is None
