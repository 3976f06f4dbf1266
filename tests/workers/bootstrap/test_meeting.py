"""An encode node that a client wants to know, without a request: its node registers there."""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone

from embridge.allocator.records import Peer
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg
from embridge.workers.role import Send


@pytest.fixture
def node() -> LanguageAlone:
    return LanguageAlone()


def meet(node: LanguageAlone, address: str = ENCODE_ADDRESS) -> None:
    library_of(node.client).attachment.meet(address)
    node.settle()


def answer(node: LanguageAlone, *, incarnation: int = 1, run_socket: str = "there.sock") -> None:
    envelope = node.envelope(node_id=20, incarnation=incarnation)
    fields = (ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16, run_socket)
    node.hears("bootstrap", msg.Registered(envelope, *fields), address=ENCODE_ADDRESS)


def known(node: LanguageAlone) -> list[tuple[str, int, str]]:
    records = [node.control.peers.record(peer) for peer in node.control.peers.alive()]
    return [(it.bootstrap_addr, it.incarnation, it.offer) for it in records]


def test_a_node_that_is_wanted_is_registered_with_and_says_where_its_shelf_is(node: LanguageAlone) -> None:
    """R14; no slot is held for that."""
    meet(node)
    assert len(node.sent(msg.Register)) == 1
    answer(node)
    assert known(node) == [(ENCODE_ADDRESS, 1, "there.sock")]
    assert list(node.control.open_slots()) == []
    node.forget_sent()
    meet(node)
    node.advance(2.0)
    assert node.sent(msg.Register) == []


def test_a_node_that_does_not_answer_is_asked_again_for_a_while_and_then_forgotten(node: LanguageAlone) -> None:
    """P8, P20."""
    meet(node)
    node.advance(node.world.timing.connect_timeout_s + 2.0)
    num_asked = len(node.sent(msg.Register))
    assert num_asked > 1
    node.advance(5.0)
    assert len(node.sent(msg.Register)) == num_asked


def test_of_two_that_are_wanted_at_a_time_none_is_lost(node: LanguageAlone) -> None:
    """P8: the second is said when the bootstrap has heard of the first, and not over it."""
    attachment, other = library_of(node.client).attachment, "tcp://10.0.0.21:1"
    assert attachment.meet(ENCODE_ADDRESS)
    assert not attachment.meet(other)
    node.settle()
    assert attachment.meet(other)
    node.settle()
    asked = [it.address for _, it in node.wire.sent if isinstance(it, Send) and isinstance(it.message, msg.Register)]
    assert sorted(asked) == sorted([ENCODE_ADDRESS, other])


def test_one_that_was_declared_dead_is_registered_with_anew(node: LanguageAlone) -> None:
    """D3."""
    meet(node)
    answer(node)
    (peer,) = node.control.peers.alive()
    node.control.peers.bury(peer)
    node.forget_sent()
    meet(node)
    assert len(node.sent(msg.Register)) == 1
    answer(node, incarnation=2)
    assert known(node) == [(ENCODE_ADDRESS, 2, "there.sock")]
    assert node.control.peers.get(node.control.peers.alive()[0], Peer.INCARNATION) == 2


def test_what_is_no_address_is_counted_and_asked_nowhere(node: LanguageAlone) -> None:
    """P16."""
    meet(node, "tcp://somewhere:1")
    assert node.sent(msg.Register) == []
    assert node.metric("bootstrap", "messages_refused") == 1
