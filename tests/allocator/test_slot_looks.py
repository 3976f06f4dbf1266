"""Which request a slot has, as native looks say it, against what the words say one by one; and records of words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from core_support import SharedMemory

from embridge.allocator import metrics, plain_enums, records, rings, status
from embridge.allocator._core import Records, SlotLooks, StatusTable, Words, pending_rings
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import Lane, LaneState, Slot, Told
from embridge.allocator.segment import map_segment
from embridge.allocator.status import TERMINAL, split

GEOMETRY = Geometry(hidden_size=8, block_size=8, num_blocks=16)
LIMITS = Limits(num_slots=128, max_clients=3)
TRIES = 4000


@pytest.fixture
def control(tmp_path: Path) -> Control:
    size = ControlLayout.of(Role.ENCODE, GEOMETRY, LIMITS).size
    path = tmp_path / "control"
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        mapping = map_segment(file.fileno(), size)
    format_control(mapping, Role.ENCODE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping)


def _is_open(control: Control, slot: int, epoch: int) -> bool:
    get = control.slots.get
    return (
        0 <= slot < LIMITS.num_slots
        and split(control.status.load(slot)).epoch == epoch
        and get(slot, Slot.EPOCH) == epoch
        and get(slot, Slot.RELEASED_EPOCH) < epoch
        and control.slots.told(slot, epoch) != Told.RELEASED
    )


def _is_current(control: Control, slot: int, epoch: int) -> bool:
    if not _is_open(control, slot, epoch):
        return False
    lives = control.lanes.get(control.slots.get(slot, Slot.LANE), Lane.STATE) == LaneState.ATTACHED
    return control.slots.told(slot, epoch) == Told.TOLD or not lives


def test_each_look_says_what_the_words_say(control: Control) -> None:
    """R16, R78: of each state in which a slot can be found, also where somebody is about to open it."""
    rng, words = random.Random(1), Words(control.mapping, control.layout.words, LIMITS.num_slots)
    seen = set()
    for lane, state in enumerate((LaneState.ATTACHED, LaneState.DEAD, LaneState.FREE)):
        control.lanes.words.store(lane * records.LANE_WORDS + Lane.STATE, state)
    for _ in range(TRIES):
        slot, epoch = rng.randrange(LIMITS.num_slots), rng.randrange(1, 3)
        phase = rng.randrange(5)
        words.store(slot, rng.choice((epoch, epoch, epoch, 1, 0)) << status.EPOCH_SHIFT | phase << status.PHASE_SHIFT)
        control.slots.set(slot, Slot.EPOCH, rng.choice((epoch, epoch, epoch, epoch - 1)))
        control.slots.set(slot, Slot.RELEASED_EPOCH, rng.choice((epoch - 1, epoch - 1, epoch)))
        control.slots.set(slot, Slot.LANE, rng.randrange(3))
        told = rng.choice((Told.UNTOLD, Told.TOLD, Told.RELEASED))
        control.slots.set(slot, Slot.TOLD, rng.choice((epoch, epoch - 1)) << 2 | told)
        found = control.is_open(slot, epoch), control.is_current(slot, epoch), control.is_live(slot, epoch)
        is_current = _is_current(control, slot, epoch)
        assert found == (_is_open(control, slot, epoch), is_current, is_current and phase < TERMINAL)
        assert control.has_client(slot) == (control.slots.get(slot, Slot.LANE) == 0)
        parts = control.status.epoch(slot), control.status.phase(slot), control.status.sent(slot)
        assert parts == split(control.status.load(slot))
        seen.add(found)
    assert seen == {(False,) * 3, (True, False, False), (True, True, False), (True,) * 3}


def test_what_no_slot_or_epoch_can_be_is_none(control: Control) -> None:
    """D4: a kick lies in a client's memory, and a message comes from anywhere."""
    for look in (control.is_open, control.is_current, control.is_live):
        for slot, epoch in ((-1, 1), (LIMITS.num_slots, 1), (1 << 63, 1), (1 << 70, 1), (0, -1), (0, 1 << 70), (0, 0)):
            assert look(slot, epoch) is False
        with pytest.raises(TypeError):
            look("0", 1)  # type: ignore[arg-type]


def test_of_a_room_the_open_requests_are_found_and_no_others(control: Control) -> None:
    """R80: by whoever has them; not in a page that nobody leases, and not one that was released."""
    words = Words(control.mapping, control.layout.words, LIMITS.num_slots)
    control.lanes.lease_page(0)
    for slot, room, told, released in (
        (3, 7, Told.UNTOLD, 0),
        (4, 8, Told.UNTOLD, 0),
        (5, 7, Told.RELEASED, 0),
        (6, 7, Told.TOLD, 0),
        (7, 7, Told.TOLD, 2),
        (70, 7, Told.UNTOLD, 0),
    ):
        words.store(slot, 2 << status.EPOCH_SHIFT)
        values = {Slot.ROOM: room, Slot.EPOCH: 2, Slot.TOLD: 2 << 2 | told, Slot.RELEASED_EPOCH: released}
        for field, value in values.items():
            control.slots.set(slot, field, value)
    assert control.open_in(7) == [(3, 2), (6, 2)]
    assert (control.open_in(8), control.open_in(9)) == ([(4, 2)], [])
    control.lanes.lease_page(1)
    assert control.open_in(7) == [(3, 2), (6, 2), (70, 2)]


def test_a_lane_that_there_is_not_has_no_client(control: Control) -> None:
    """D4: a record that is damaged ends no process."""
    control.slots.set(3, Slot.LANE, 1 << 63)
    assert not control.has_client(3)
    with pytest.raises(IndexError):
        control.has_client(LIMITS.num_slots)


def test_tables_that_are_too_small_are_refused(control: Control) -> None:
    at, mapping = control.layout, control.mapping
    slots, lanes, pages = control.slots.words, control.lanes.words, control.lanes.pages
    short = Words(mapping, at.slots, LIMITS.num_slots * (records.SLOT_WORDS - 1))
    for wrong in (
        (short, lanes, pages),
        (slots, Words(mapping, at.lanes, records.LANE_WORDS - 1), pages),
        (slots, lanes, Words(mapping, at.pages, 1)),
        (slots, lanes, Words(mapping, at.pages, 2, 16)),
    ):
        with pytest.raises(ValueError, match="words"):
            SlotLooks(control.status, *wrong)
    with pytest.raises(TypeError):
        SlotLooks(control.status, slots, lanes, control.status)  # type: ignore[arg-type]


# ---- records


def test_the_words_of_records_are_those_of_their_places() -> None:
    mapping = SharedMemory(4096).map()
    words, flat, deep = Words(mapping, 64, 24), Records(mapping, 64, 6, 4), Records(mapping, 64, 3, 4, columns=2)
    flat.set(5, 3, 7)
    assert (words.load(23), flat.get(5, 3), deep.get(2, 1, 3)) == (7, 7, 7)
    assert (deep.raise_to(2, 1, 3, 6), deep.raise_to(2, 1, 3, 8), deep.raise_to(2, 1, 3, 8)) == (False, True, False)
    assert flat.get_all(5) == deep.get_all(2, 1) == [0, 0, 0, 8]
    deep.set(0, 1, 0, (1 << 64) - 1)
    assert words.load_many(0, 24) == [0] * 4 + [(1 << 64) - 1] + [0] * 18 + [8]


@pytest.mark.parametrize("place", [(6, 0), (-1, 0), (0, 4), (1 << 70, 0)])
def test_a_place_that_there_is_not_is_refused(place: tuple[int, int]) -> None:
    flat = Records(SharedMemory(4096).map(), 0, 6, 4)
    for call in (flat.get, lambda *at: flat.set(*at, 1), lambda *at: flat.raise_to(*at, 1)):
        with pytest.raises(IndexError):
            call(*place)


def test_arguments_that_do_not_fit_the_records_are_refused() -> None:
    memory = SharedMemory(4096)
    flat, deep = Records(memory.map(), 0, 6, 4), Records(memory.map(), 0, 3, 4, 2)
    wrong: tuple[Any, ...] = (flat.get, deep.get, flat.get_all, deep.get_all, flat.set, deep.raise_to)
    for call in wrong:
        with pytest.raises(TypeError):
            call(*[0] * 6)
    with pytest.raises(IndexError):
        deep.get_all(0, 2)
    for shape in ((-1, 4), (6, 0), (1 << 40, 4), (6, 1 << 20), (1000, 4), (6, 4, -1), (1 << 30, 1 << 15, 1 << 15)):
        with pytest.raises(ValueError, match="records"):
            Records(memory.map(), 0, *shape)
    reading = Records(memory.map(writable=False), 0, 6, 4)
    assert reading.get(0, 0) == 0
    with pytest.raises(ValueError, match="read-only"):
        reading.set(0, 0, 1)


def test_the_parts_of_a_word_are_asked_of_a_slot_that_there_is() -> None:
    table = StatusTable(SharedMemory(65536).map(), 0, 8192, 32768, 64, 1)
    for part in (table.epoch, table.phase, table.sent):
        assert part(63) == 0
        with pytest.raises(IndexError):
            part(64)


def test_only_rings_are_looked_at() -> None:
    assert pending_rings(()) == []
    with pytest.raises(TypeError):
        pending_rings([])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pending_rings((1,))  # type: ignore[arg-type]


# ---- enumerations


def test_the_plain_enumerations_have_the_members_of_those_that_they_stand_for() -> None:
    """They are looked up in another way, and are the same."""
    for name in plain_enums.__all__:
        kind = next(vars(it)[name] for it in (records, metrics, rings, status) if name in vars(it))
        stand_in: Any = getattr(plain_enums, name)
        assert all(getattr(stand_in, member) is kind[member] for member in kind.__members__)
        assert all(stand_in(member.value) is member for member in kind)
