"""The slow look: which requests have changed since a process looked last, and those of whom something else says so."""

from __future__ import annotations

from array import array

import pytest
from support.alone import EncodeAlone, LanguageAlone

from embridge.allocator.geometry import SLOTS_PER_PAGE, Limits
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.records import Destination, Lane, LaneState, Peer, Slot
from embridge.allocator.slot_changes import PARTS, SlotChanges, WordChanges, leased_pages

pytestmark = pytest.mark.usefixtures("quiet")

MANY = Limits(num_slots=23 * SLOTS_PER_PAGE, max_clients=1, num_workers=1, max_peers=1, ring_records=16)


@pytest.fixture
def node() -> EncodeAlone:
    node = EncodeAlone()
    for room in (1, 2):
        node.sender(room, 8, rows=0)
        node.init(room, [room])
    node.settle()
    return node


def slots_of(node: EncodeAlone) -> dict[int, int]:
    return {room: handle.slot for room, handle in node.client._library.requests.by_room.items()}


def test_asked_anew_it_names_every_request_and_then_those_that_change(node: EncodeAlone) -> None:
    """R25: by any word of their records, of their destinations, or the status word."""
    one, two = slots_of(node).values()
    changes = SlotChanges(node.control)
    assert changes.take() == {one: 1, two: 1}
    assert changes.take() == {}
    node.slots.set(one, Slot.READY, 5)
    assert changes.take() == {one: 1}
    node.destinations.set(two, 1, Destination.SENT, 1)
    assert changes.take() == {two: 1}
    node.control.status.advance(one, 1, 2, 3, 4)
    assert changes.take() == {one: 1}
    assert changes.take() == {}


@pytest.mark.parametrize("what", ["a peer", "a registration", "a client", "a foreign writer"])
def test_what_concerns_all_names_all(node: EncodeAlone, what: str) -> None:
    """R25: who goes by a peer's or a client's word looks at all when that has changed."""
    every = dict.fromkeys(slots_of(node).values(), 1)
    changes = SlotChanges(node.control)
    changes.take()
    if what == "a peer":
        node.control.peers.bury(0)
    elif what == "a registration":
        node.control.peers.put(0, Peer.REGISTRATION, 9)
    elif what == "a foreign writer":
        assert node.control.writers.add(ForeignWriter(9, 1, 1)) is not None
    else:
        node.control.lanes.bury(0)
        assert node.control.lanes.get(0, Lane.STATE) == LaneState.DEAD
    assert changes.take() == every
    assert changes.take() == {}


def test_requests_that_were_released_are_not_named(node: EncodeAlone) -> None:
    """R16."""
    one, two = slots_of(node).values()
    changes = SlotChanges(node.control)
    node.slots.raise_to(one, Slot.RELEASED_EPOCH, 1)
    assert changes.take() == {two: 1}


def test_a_claim_that_moves_is_a_change() -> None:
    """R25, R30: on a language node."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    changes = SlotChanges(node.control)
    assert changes.take() == {receiver.slot: 1}
    node.control.claims.revoke(receiver.slot, 1)
    assert changes.take() == {receiver.slot: 1}
    assert changes.take() == {}


def test_one_word_is_compared_alone() -> None:
    """R24."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=1)
    changes, pages = WordChanges(node.control, Slot.GRANTED), leased_pages(node.control)
    assert changes.take(pages) == [receiver.slot]
    node.slots.set(receiver.slot, Slot.TAINTED, 1)
    assert changes.take(pages) == []
    node.slots.set(receiver.slot, Slot.GRANTED, 5)
    assert changes.take(pages) == [receiver.slot]
    assert changes.take(array("I")) == []


@pytest.mark.parametrize("num_pages", [0, 1, 3, 10, 23])
def test_all_pages_have_had_their_turn_after_ten_calls(num_pages: int) -> None:
    """P8: a share at a time, so that a look stays short however many there are."""
    control = LanguageAlone(limits=MANY).control
    changes, pages = SlotChanges(control), array("I", range(num_pages))
    for slot in range(num_pages * SLOTS_PER_PAGE):
        control.slots.set(slot, Slot.READY, 1)
    parts = [changes.take_some(memoryview(pages)) for _ in range(PARTS)]
    assert set().union(*parts) == set(range(num_pages * SLOTS_PER_PAGE))
    assert max(map(len, parts)) <= -(-num_pages // PARTS) * SLOTS_PER_PAGE
    assert not any(changes.take_some(memoryview(pages)) for _ in range(PARTS))
