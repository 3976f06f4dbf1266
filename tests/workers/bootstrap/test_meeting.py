"""An encode node that a client wants to know, without a request: its node registers there."""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone

from embridge import FetchFailed
from embridge.allocator.control import Control
from embridge.allocator.records import NUM_REFUSED, Peer
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg
from embridge.workers.role import Send
from embridge.workers.timing import NS


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


def refuse(node: LanguageAlone, reason: str, *, address: str = ENCODE_ADDRESS) -> None:
    node.hears("bootstrap", msg.Refused(node.envelope(node_id=20), 7, reason), address=address)


@pytest.mark.usefixtures("quiet")
def test_a_refused_registration_ends_a_fetch_at_once(node: LanguageAlone) -> None:
    """P24: and those that begin within a second of it; a later one is refused by a question of its own."""
    fetch = node.client.fetch("cat", ENCODE_ADDRESS)
    node.settle()
    refuse(node, "hidden_size: language 2, encode 3; launch both with the same")
    node.advance(0.2)
    assert fetch.is_done
    with pytest.raises(FetchFailed, match="refused: hidden_size: language 2, encode 3"):
        fetch.result()
    assert isinstance(node.client.fetch("dog", ENCODE_ADDRESS).exception(), FetchFailed)
    node.advance(1.5)
    node.forget_sent()
    later = node.client.fetch("cat", ENCODE_ADDRESS)
    node.settle()
    assert not later.is_done
    assert len(node.sent(msg.Register)) == 1
    refuse(node, "dtype: language float16, encode bfloat16")
    node.advance(0.2)
    assert "dtype: language float16" in str(later.exception())
    assert list(node.control.open_slots()) == []


def test_a_node_that_was_refused_and_is_right_now_is_registered_with(node: LanguageAlone) -> None:
    """D3: what was found before is no word of what comes after it."""
    node.client.fetch("cat", ENCODE_ADDRESS).abort()
    node.settle()
    refuse(node, "no")
    node.advance(1.5)
    fetch = node.client.fetch("cat", ENCODE_ADDRESS)
    node.settle()
    answer(node)
    node.advance(0.2)
    assert known(node) == [(ENCODE_ADDRESS, 1, "there.sock")]
    assert not fetch.is_done


def test_what_was_refused_longest_ago_is_forgotten_first(node: LanguageAlone) -> None:
    """P24: also behind a record that a bootstrap has left half written when it died."""
    table, now_ns = Control(node.node.control_map).refused_nodes, NS
    for number in range(NUM_REFUSED + 1):
        table.put(f"tcp://10.0.0.{number}:1", f"because of {number}", now_ns + number)
    assert table.why("tcp://10.0.0.0:1", 0) == ""
    assert [table.why(f"tcp://10.0.0.{number}:1", 0) for number in (1, 8)] == ["because of 1", "because of 8"]
    assert table.why("tcp://10.0.0.1:1", now_ns + 2) == ""
    records = table._records
    records._words.store(records.num_words * 2, records.generation(2) | 1)
    assert table.why("tcp://10.0.0.2:1", 0) == ""
    table.put("tcp://10.0.0.9:1", "because of 9", now_ns + 9)
    assert table.why("tcp://10.0.0.9:1", 0) == "because of 9"
    assert table.why("tcp://10.0.0.1:1", 0) == "because of 1"
