"""Posts and meeting records, and who has a slot: what each step does, and what becomes of two who make one at once."""

from __future__ import annotations

from typing import Final

import pytest
from core_support import SharedMemory
from support.posted import grants_in, offers_in, post_grant, write_down

from embridge.allocator.claims import MAX_GENERATION, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.posts import PostTable
from embridge.allocator.records import BUCKET_POSTS, JoinedBy, Lane, LaneState, Slot, Told
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.wanted import _place

GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=4)
LIMITS: Final = Limits(num_slots=64, max_clients=3, num_workers=1, ring_records=16, max_peers=2, max_peer_slots=64)
ROOM: Final = (1 << 63) - 1
ME, OTHER = WriterId(255, MAX_GENERATION), WriterId(254, MAX_GENERATION)
NODE: Final = (7, 3)


def _control(role: Role) -> Control:
    mapping = SharedMemory(ControlLayout.of(role, GEOMETRY, LIMITS).size).map()
    format_control(mapping, role, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping)


@pytest.fixture
def control() -> Control:
    return _control(Role.LANGUAGE)


@pytest.fixture
def posts(control: Control) -> PostTable:
    return control.posts


def _in_one_bucket(posts: PostTable, count: int) -> list[int]:
    first = posts._place(ROOM)[1]
    rooms = (room for room in range(1 << 20) if posts._place(room)[1] == first and room != ROOM)
    return [next(rooms) for _ in range(count)]


# ---- posts


def test_a_grant_is_found_by_its_room_until_it_is_taken_off(posts: PostTable) -> None:
    """R37."""
    assert post_grant(posts, ROOM, 63, (1 << 28) - 1)
    assert grants_in(posts, ROOM) == [(63, (1 << 28) - 1)]
    assert offers_in(posts, ROOM) == []
    posts.take_off_grant(ROOM, 63, 5)
    assert grants_in(posts, ROOM) == [(63, (1 << 28) - 1)]
    posts.take_off_grant(ROOM, 63, (1 << 28) - 1)
    assert grants_in(posts, ROOM) == []


def test_an_offer_is_found_by_its_room_until_it_is_taken_off(posts: PostTable) -> None:
    """R37."""
    assert posts.post_offer(ROOM, ME)
    assert posts.post_offer(ROOM, OTHER)
    assert offers_in(posts, ROOM) == [ME, OTHER]
    assert grants_in(posts, ROOM) == []
    posts.take_off_offer(ROOM, ME)
    assert offers_in(posts, ROOM) == [OTHER]


def test_other_rooms_of_a_bucket_are_told_apart_by_their_tags(posts: PostTable) -> None:
    """R37: a tag is a hint; rooms whose tags differ are not found."""
    (other,) = _in_one_bucket(posts, 1)
    assert post_grant(posts, other, 1, 1)
    assert post_grant(posts, ROOM, 2, 1)
    assert (grants_in(posts, other), grants_in(posts, ROOM)) == ([(1, 1)], [(2, 1)])


def test_a_full_bucket_takes_no_more_and_takes_one_when_there_is_room(posts: PostTable) -> None:
    """R37: a full table costs time, and nothing else."""
    rooms = _in_one_bucket(posts, BUCKET_POSTS)
    assert all(post_grant(posts, room, slot, 1) for slot, room in enumerate(rooms))
    assert not post_grant(posts, ROOM, 40, 1)
    assert not posts.post_offer(ROOM, ME)
    posts.take_off_grant(rooms[3], 3, 1)
    assert posts.post_offer(ROOM, ME)
    assert offers_in(posts, ROOM) == [ME]


def test_the_offers_of_a_dead_writer_are_taken_off_and_nobody_elses(posts: PostTable) -> None:
    """R33, R37: its entry may have another owner then."""
    before = WriterId(ME.entry, ME.generation - 1)
    for room in range(20):
        assert posts.post_offer(room, ME)
    for writer in (OTHER, before):
        assert posts.post_offer(ROOM, writer)
    assert post_grant(posts, ROOM, 1, 1)
    posts.take_off_offers_of(ME)
    assert [offers_in(posts, room) for room in range(20)] == [[]] * 20
    assert offers_in(posts, ROOM) == [OTHER, before]
    assert grants_in(posts, ROOM) == [(1, 1)]


# ---- meeting records


def test_a_record_is_read_in_its_own_epoch_only(posts: PostTable) -> None:
    """R37."""
    assert posts.granted(5, 1) is None
    write_down(posts, 5, 1, ROOM, NODE, 3, 300)
    granted = posts.granted(5, 1)
    assert granted == (ROOM, NODE, 3, 300)
    assert posts.granted(5, 2) is None
    write_down(posts, 5, 2, ROOM, NODE, 4, 400)
    assert posts.granted(5, 1) is None
    assert posts.granted(4, 2) is None


def test_one_encoder_is_bound_to_a_grant_and_none_to_a_later_one(posts: PostTable) -> None:
    """R38, R79: by CAS from the epoch's own value, so who comes with an older epoch binds nothing."""
    write_down(posts, 5, 1, ROOM, NODE, 1, 1)
    assert posts.bind(5, 1)
    assert not posts.bind(5, 1)
    write_down(posts, 5, 2, ROOM, NODE, 1, 1)
    assert not posts.bind(5, 1)
    assert posts.bind(5, 2)


def test_told_only_rises(posts: PostTable) -> None:
    """R80: a late bootstrap takes nothing back."""
    assert not posts.is_told(5, 1)
    posts.show_told(5, 2)
    posts.show_told(5, 1)
    assert posts.is_told(5, 1)
    assert posts.is_told(5, 2)
    assert not posts.is_told(5, 3)


# ---- who has a slot


@pytest.mark.parametrize("role", Role)
def test_an_untold_slot_is_none_of_the_nodes_until_it_is_told(role: Role) -> None:
    """R78."""
    control = _control(role)
    slot, epoch = _opened(control)
    assert control.slots.is_untold(slot, epoch)
    assert not control.is_current(slot, epoch)
    assert list(control.current_slots()) == []
    assert list(control.open_slots()) == [(slot, epoch)]
    assert control.slots.tell(slot, epoch)
    assert not control.slots.tell(slot, epoch)
    assert not control.slots.release_untold(slot, epoch)
    assert control.slots.told(slot, epoch) == Told.TOLD
    assert list(control.current_slots()) == [(slot, epoch)]


def test_a_slot_that_its_client_has_released_is_nobodys(control: Control) -> None:
    """R78: neither a report nor a death brings it back."""
    slot, epoch = _opened(control)
    assert control.slots.release_untold(slot, epoch)
    assert not control.slots.tell(slot, epoch)
    control.lanes.bury(0)
    assert list(control.current_slots()) == list(control.open_slots()) == []


def test_the_untold_slots_of_the_dead_are_the_nodes(control: Control) -> None:
    """R78: nobody else is left to end them."""
    slot, epoch = _opened(control)
    assert control.lanes.bury(0)
    assert control.lanes.get(0, Lane.STATE) == LaneState.DEAD
    assert list(control.current_slots()) == [(slot, epoch)]


def test_a_word_of_another_epoch_says_nothing(control: Control) -> None:
    """R78, R16: who comes with an older epoch tells nobody of this one."""
    slot, epoch = _opened(control)
    assert not control.slots.tell(slot, epoch - 1)
    assert not control.slots.release_untold(slot, epoch + 1)
    assert control.slots.is_untold(slot, epoch)
    assert control.slots.told(slot, epoch + 1) == Told.TOLD


def test_one_of_two_joins_the_first_destination() -> None:
    """R79."""
    slots = _control(Role.ENCODE).slots
    assert slots.join(1, JoinedBy.CLIENT)
    assert not slots.join(1, JoinedBy.BOOTSTRAP)
    assert slots.join(2, JoinedBy.BOOTSTRAP)
    assert slots.join(2, JoinedBy.BOOTSTRAP)
    assert not slots.join(2, JoinedBy.CLIENT)


def _opened(control: Control) -> tuple[int, int]:
    """An untold request of a client that lives in lane 0."""
    lane = control.lanes.take(1, 1)
    assert lane == 0
    page = control.lanes.lease_page(lane)
    assert page == 0
    record = SlotRecord()
    record.words[Slot.LANE] = lane
    assert control.opener.open(3, record, 1, is_untold=True) == 1
    return 3, 1


# ---- rooms that are asked for


def test_a_room_is_asked_for_while_a_grant_waits_for_it() -> None:
    """R80: rooms may share a word, which is a look too many."""
    control = _control(Role.ENCODE)
    asked, untold = control.asked, control.untold
    asked.add(ROOM, 1)
    asked.add(ROOM, 1)
    asked.add(ROOM, -1)
    assert (asked.get(ROOM), untold.get(ROOM)) == (1, 0)
    asked.add(ROOM, -1)
    assert asked.get(ROOM) == 0
    untold.add(ROOM, 2)
    assert untold.get(ROOM) == 2
    untold.clear()
    assert untold.get(ROOM) == 0
    untold.add(_beside(LIMITS.num_slots), 1)
    assert untold.get(ROOM) == 1


def _beside(count: int) -> int:
    """Another room that has the same place in a table of so many words."""
    return next(room for room in range(1 << 20) if _place(room, count) == _place(ROOM, count))


def test_a_room_is_finished_until_it_is_used_again_or_another_takes_its_place() -> None:
    """P24: of rooms of which only clients have known."""
    finished = _control(Role.ENCODE).finished
    assert not finished.has(0)
    finished.note(0)
    finished.note(ROOM)
    assert finished.has(0)
    assert finished.has(ROOM)
    finished.forget(_beside(LIMITS.num_slots))
    assert finished.has(ROOM)
    finished.forget(ROOM)
    assert not finished.has(ROOM)
    finished.note(ROOM)
    finished.note(_beside(LIMITS.num_slots))
    assert not finished.has(ROOM)
