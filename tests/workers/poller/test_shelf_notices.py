"""What an encode node tells of its shelf to language nodes that follow it; the test is those nodes."""

from __future__ import annotations

import pytest
from support.questions import Shelved

from embridge.allocator.records import Shelf as Record
from embridge.workers import messages as msg
from embridge.workers.poller import shelf_notices

pytestmark = pytest.mark.usefixtures("quiet")


def follow(node: Shelved, stream: int = 0, number: int = 0, *, node_id: int = 10) -> None:
    node.forget_sent()
    node.hears("poller", msg.Follow(node.envelope(node_id=node_id), stream, number))
    node.advance(0.06)


def told(node: Shelved) -> list[tuple[bytes, int]]:
    """(key, generation) of each change that was told since `forget_sent`."""
    return [(it.key, it.generation) for notices in node.sent(msg.Notices) for it in notices.changes]


def whole(node: Shelved) -> msg.Inventory:
    (inventory,) = node.sent(msg.Inventory)
    return inventory


def test_who_follows_is_told_all_that_is_there_and_then_what_changes() -> None:
    """R72, R76: nobody who publishes tells anybody; and who does not follow is told nothing."""
    node = Shelved(4)
    first = node.publish("cat")
    node.advance(0.5)
    assert (node.sent(msg.Inventory), node.sent(msg.Notices)) == ([], [])
    follow(node)
    inventory = whole(node)
    assert [(it.key, it.generation, it.num_bytes) for it in inventory.items] == [(b"cat", first, 40)]
    assert (inventory.first_entry, inventory.end_entry) == (0, inventory.num_entries)
    node.forget_sent()
    second = node.publish("dog")
    node.client.shelf.unpublish("cat")
    node.advance(0.06)
    assert sorted(told(node)) == [(b"", 0), (b"dog", second)]
    firsts = [notices.first for notices in node.sent(msg.Notices)]
    assert firsts[0] == inventory.number + 1


def test_a_change_that_is_over_when_it_is_looked_at_is_no_notice() -> None:
    """R72: a notice says what is."""
    node = Shelved(4)
    follow(node)
    node.forget_sent()
    for _ in range(3):
        node.publish("cat")
    node.client.shelf.unpublish("cat")
    node.advance(0.06)
    assert told(node) == []


def test_a_heartbeat_says_the_number_so_that_a_lost_notice_shows() -> None:
    """R74."""
    node = Shelved(4)
    follow(node)
    inventory = whole(node)
    node.publish("cat")
    node.advance(0.06)
    node.forget_sent()
    node.advance(0.5)
    assert {(it.stream, it.first, len(it.changes)) for it in node.sent(msg.Notices)} == {
        (inventory.stream, inventory.number + 2, 0)
    }


def test_who_has_missed_some_is_told_those_and_who_has_missed_too_many_is_told_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R75, R76."""
    monkeypatch.setattr(shelf_notices, "MOST_KEPT", 2)
    node = Shelved(8)
    follow(node)
    stream = whole(node).stream
    for key in ("cat", "dog", "cow"):
        node.publish(key)
        node.advance(0.06)
    follow(node, stream, 1)
    assert [key for key, _ in told(node)] == [b"dog", b"cow"]
    follow(node, stream, 0)
    assert (whole(node).number, len(whole(node).items)) == (3, 3)
    follow(node, stream, 3)
    assert told(node) == []
    assert node.sent(msg.Inventory) == []
    follow(node, stream, 9)  # which nobody can have been told
    assert whole(node).number == 3


def test_what_is_gone_is_in_no_inventory() -> None:
    """R76."""
    node = Shelved(4)
    node.publish("cat")
    follow(node)
    stream = whole(node).stream
    node.client.shelf.unpublish("cat")
    node.advance(0.06)
    follow(node, stream + 1, 1)
    assert whole(node).items == []


def test_a_new_poller_begins_a_new_stream() -> None:
    """R73: what the one before it has told, it does not know."""
    node = Shelved(4)
    node.publish("cat")
    follow(node)
    before = whole(node)
    node.restart("poller")
    node.advance(0.1)
    follow(node, before.stream, before.number)
    after = whole(node)
    assert after.stream > before.stream
    assert [it.key for it in after.items] == [b"cat"]


def test_what_is_below_the_floor_is_gone_though_nobody_has_taken_it_away() -> None:
    """R48, R72."""
    node = Shelved(4)
    generation = node.publish("cat")
    follow(node)
    node.forget_sent()
    node.control.shelf._record.raise_to(Record.FLOOR, generation + 1)
    node.advance(0.06)
    assert told(node) == [(b"", 0)]


def test_who_follows_no_more_or_is_dead_is_told_nothing() -> None:
    """P20."""
    node = Shelved(4)
    follow(node)
    node.advance(10.0)
    node.forget_sent()
    node.publish("cat")
    node.advance(1.0)
    assert node.sent(msg.Notices) == []
    follow(node)
    node.register(incarnation=2)
    node.advance(0.1)
    node.forget_sent()
    node.publish("dog")
    node.advance(0.2)
    assert node.sent(msg.Notices) == []


def test_keys_that_were_asked_for_in_vain_are_known_until_they_are_there() -> None:
    """The latest first, and how often; the oldest makes room."""
    node = Shelved(4)
    node.ask(1, "cat")
    node.advance(0.1)
    node.ask(2, "dog")
    node.advance(0.1)
    node.ask(3, "cat")
    assert [(it.key, it.num_asked) for it in node.client.shelf.wanted()] == [(b"cat", 2), (b"dog", 1)]
    node.publish("cat")
    assert [it.key for it in node.client.shelf.wanted()] == [b"dog"]
    node.restart("bootstrap")
    node.settle()
    node.ask(5, "dog")
    assert [(it.key, it.num_asked) for it in node.client.shelf.wanted()] == [(b"dog", 2)]
    for number in range(64):
        node.advance(0.02)
        node.ask(4, f"{number}", epoch=number + 1)
    assert len(node.client.shelf.wanted()) == 64
    assert b"dog" not in [it.key for it in node.client.shelf.wanted()]
