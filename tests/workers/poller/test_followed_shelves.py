"""What a client of a language node hears of items on encode nodes that it follows; the test is those nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone

from embridge import ItemNotice, NoticeKind, Subscription
from embridge.allocator.records import FOLLOWED_NODES, NOTICES_A_LANE
from embridge.pipeline.client import subscriptions
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")

P, E, R = NoticeKind.PUBLISHED, NoticeKind.EVICTED, NoticeKind.RESYNC


@pytest.fixture
def node() -> LanguageAlone:
    return LanguageAlone()


def registered(node: LanguageAlone, incarnation: int = 1) -> None:
    fields = (ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16, "there.sock")
    envelope = node.envelope(node_id=20, incarnation=incarnation)
    node.hears("bootstrap", msg.Registered(envelope, *fields), address=ENCODE_ADDRESS)


def followed(node: LanguageAlone) -> Subscription:
    it = node.client.subscribe(ENCODE_ADDRESS)
    node.settle()
    registered(node)
    node.advance(0.1)
    assert [(ask.stream, ask.number) for ask in node.sent(msg.Follow)] == [(0, 0)]
    return it


def item(entry: int, key: str, generation: int) -> msg.ItemNotice:
    return msg.ItemNotice(entry, generation, 40, key.encode())


def gone(entry: int) -> msg.ItemNotice:
    return msg.ItemNotice(entry, 0, 0, b"")


def hears(node: LanguageAlone, kind: Any, *values: Any, incarnation: int = 1) -> None:
    node.hears("poller", kind(node.envelope(node_id=20, incarnation=incarnation), *values))
    node.advance(0.1)


def inventory(node: LanguageAlone, number: int, *items: msg.ItemNotice, stream: int = 5, **named: Any) -> None:
    hears(node, msg.Inventory, stream, number, 0, 8, 8, list(items), **named)


def changes(node: LanguageAlone, first: int, *items: msg.ItemNotice, stream: int = 5) -> None:
    hears(node, msg.Notices, stream, first, list(items))


def read(it: Subscription) -> list[tuple[NoticeKind, bytes, int]]:
    return [notice[:3] for notice in it.poll()]


def test_all_that_is_there_is_told_and_then_what_comes_and_goes(node: LanguageAlone) -> None:
    """R72, R76."""
    it = followed(node)
    assert not it.is_whole
    rings = library_of(node.client).attachment.library_bell.sequence()
    inventory(node, 3, item(2, "cat", 7), item(4, "dog", 8))
    assert library_of(node.client).attachment.library_bell.sequence() == rings + 1
    node.advance(0.1)
    assert library_of(node.client).attachment.library_bell.sequence() == rings + 1  # there is nothing to tell
    assert it.keys() == {b"cat": 7, b"dog": 8}
    assert it.is_whole
    assert read(it) == [(R, b"", 0), (P, b"cat", 7), (P, b"dog", 8)]
    changes(node, 4, item(5, "cat", 9), gone(2))
    assert read(it) == [(P, b"cat", 9), (E, b"cat", 7)]
    changes(node, 6, item(4, "cow", 10))
    assert read(it) == [(E, b"dog", 8), (P, b"cow", 10)]
    assert it.keys() == {b"cat": 9, b"cow": 10}
    assert it.poll() == []


def test_a_change_that_comes_twice_or_late_is_told_once(node: LanguageAlone) -> None:
    """P17: of an older stream, of an older number, of another incarnation."""
    it = followed(node)
    inventory(node, 3)
    for _ in range(2):
        changes(node, 4, item(1, "cat", 7))
    changes(node, 4, item(1, "old", 6), stream=4)
    changes(node, 3, item(1, "old", 6), item(1, "cat", 7))
    inventory(node, 2, item(1, "old", 6))
    hears(node, msg.Notices, 5, 5, [item(1, "old", 6)], incarnation=2)
    assert it.keys() == {b"cat": 7}


@pytest.mark.parametrize("is_heartbeat", [False, True])
def test_a_gap_is_asked_for_and_nothing_behind_it_is_told_before(node: LanguageAlone, is_heartbeat: bool) -> None:
    """R74, R75: also of the last notice, of which a heartbeat alone tells."""
    it = followed(node)
    inventory(node, 3, item(1, "cat", 7))
    it.poll()
    node.forget_sent()
    changes(node, 5, *([] if is_heartbeat else [item(2, "dog", 9)]))
    node.advance(0.2)
    assert it.poll() == []
    assert {(ask.stream, ask.number) for ask in node.sent(msg.Follow)} == {(5, 3)}
    changes(node, 4, gone(1), item(2, "dog", 9))
    assert read(it) == [(E, b"cat", 7), (P, b"dog", 9)]
    node.forget_sent()
    node.advance(0.4)
    assert {(ask.stream, ask.number) for ask in node.sent(msg.Follow)} <= {(5, 5)}


def test_a_new_stream_is_asked_for_whole(node: LanguageAlone) -> None:
    """R73: only then it is known what is there."""
    it = followed(node)
    inventory(node, 9, item(1, "cat", 7), item(2, "dog", 8))
    it.poll()
    node.forget_sent()
    changes(node, 10, item(1, "cow", 11), stream=6)
    node.advance(0.2)
    assert it.poll() == []
    assert (5, 9) in [(ask.stream, ask.number) for ask in node.sent(msg.Follow)]
    inventory(node, 2, item(1, "cow", 11), item(2, "dog", 8), stream=6)
    assert it.keys() == {b"cow": 11, b"dog": 8}
    assert read(it)[0] == (R, b"", 0)


def test_an_inventory_counts_when_all_its_pieces_are_there(node: LanguageAlone) -> None:
    """R76: pieces of two of them make none; what stands beyond its piece is nobody's."""
    it = followed(node)
    hears(node, msg.Inventory, 5, 3, 0, 4, 8, [item(1, "cat", 7), item(6, "bad", 1)])
    hears(node, msg.Inventory, 5, 4, 4, 8, 8, [item(5, "dog", 8)])
    assert it.keys() == {}
    hears(node, msg.Inventory, 5, 4, 0, 4, 8, [item(1, "cow", 9)])
    assert it.keys() == {b"cow": 9, b"dog": 8}


def test_a_client_that_does_not_read_holds_nobody_up_and_is_told_how_things_are_when_it_does(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P21, R72: its ring is full; what came and went meanwhile it need not hear."""
    it, other = followed(node), node.client.subscribe("tcp://10.0.0.21:1")
    other.close()
    count = 3 * NOTICES_A_LANE
    with monkeypatch.context() as patched:
        patched.setattr(subscriptions.Subscriptions, "_look", lambda _: None)
        hears(node, msg.Inventory, 5, 3, 0, count, count, [item(entry, f"{entry}", 1) for entry in range(count)])
        for entry in range(count):
            node.hears("poller", msg.Notices(node.envelope(node_id=20), 5, 4 + entry, [item(entry, f"{entry}", 2)]))
        node.advance(0.2)
    node.advance(1.0)
    assert it.keys() == {f"{entry}".encode(): 2 for entry in range(count)}
    assert len(it.poll()) < 2 * count


def test_what_is_not_read_is_bounded_and_comes_as_what_is_there(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P20."""
    monkeypatch.setattr(subscriptions, "MOST_KEPT", 8)
    it = followed(node)
    inventory(node, 3)
    for number in range(20):
        changes(node, 4 + number, item(1, "cat", number + 1))
    notices = read(it)
    assert len(notices) <= 10
    assert notices[0] == (R, b"", 0)
    seen: dict[bytes, int] = {}
    for kind, key, generation in notices:
        if kind == P:
            seen[key] = generation
    assert seen == it.keys() == {b"cat": 20}


def test_when_its_node_is_lost_what_was_told_counts_no_more_and_its_next_start_is_followed(
    node: LanguageAlone,
) -> None:
    """D3, R73."""
    it = followed(node)
    inventory(node, 3, item(1, "cat", 7))
    it.poll()
    node.is_refused("bootstrap", ENCODE_ADDRESS)
    node.advance(0.3)
    assert read(it) == [(R, b"", 0)]
    assert it.keys() == {}
    registered(node, 2)
    node.advance(1.0)
    registered(node, 2)
    node.advance(0.3)
    inventory(node, 1, item(1, "cat", 3), incarnation=2)
    assert it.keys() == {b"cat": 3}


def test_a_new_poller_of_its_own_node_tells_all_anew(node: LanguageAlone) -> None:
    """P11."""
    it = followed(node)
    inventory(node, 3, item(1, "cat", 7))
    it.poll()
    node.restart("poller")
    node.advance(0.3)
    assert it.keys() == {b"cat": 7}
    inventory(node, 4, item(1, "dog", 8))
    assert it.keys() == {b"dog": 8}


def test_nobody_is_followed_for_a_client_that_has_closed_its_subscription_or_is_dead(node: LanguageAlone) -> None:
    """P20: nor is anything of the dead one told to the next client of its lane."""
    it = followed(node)
    inventory(node, 3, item(1, "cat", 7))
    it.close()
    it.close()
    with pytest.raises(ValueError, match="was closed"):
        it.poll()
    node.advance(0.2)
    node.forget_sent()
    node.advance(2.0)
    assert node.sent(msg.Follow) == []
    again = node.client.subscribe(ENCODE_ADDRESS)
    node.advance(0.2)
    assert (node.sent(msg.Follow)[0].stream, node.sent(msg.Follow)[0].number) == (0, 0)
    inventory(node, 3, item(1, "cat", 7))
    node.node.clients[0].die()
    node.advance(0.5)
    node.forget_sent()
    node.advance(2.0)
    assert node.sent(msg.Follow) == []
    other = node.new_client().subscribe(ENCODE_ADDRESS)
    node.advance(0.3)
    assert other.poll() == []
    inventory(node, 1, item(1, "dog", 8), stream=6)
    assert other.keys() == {b"dog": 8}
    assert again is not other


def test_a_subscription_is_awaited_and_waited_for_and_they_are_so_many(node: LanguageAlone) -> None:
    it = followed(node)
    assert not it.wait(0)
    inventory(node, 3, item(1, "cat", 7))

    async def first() -> ItemNotice:
        async for notice in it:
            return notice
        raise AssertionError

    assert asyncio.run(first()).kind == R
    inventory(node, 4, item(2, "dog", 8))
    assert it.wait(1)
    assert next(iter(it)).kind == P
    others = [node.client.subscribe(f"tcp://10.0.1.{number}:1") for number in range(FOLLOWED_NODES - 1)]
    with pytest.raises(ValueError, match="follows 16 nodes already"):
        node.client.subscribe("tcp://10.0.2.1:1")
    others[0].close()
    with node.client.subscribe("tcp://10.0.2.1:1"), pytest.raises(ValueError, match="is no tcp"):
        node.client.subscribe("tcp://name:1")
