"""Opening a slot: all that belongs to the next epoch is there when its status word says so."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from embridge.allocator._core import MAX_EPOCH, Words
from embridge.allocator.claims import Claim, ClaimState
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import Destination, Slot, Told
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.segment import map_segment
from embridge.allocator.status import Phase, split

GEOMETRY = Geometry(hidden_size=8, block_size=8, num_blocks=16)
LIMITS = Limits(num_slots=128, max_clients=2, max_destinations=3)
SLOT = 70
NEIGHBOURS = (SLOT - 1, SLOT + 1)


@pytest.fixture(params=list(Role))
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Control:
    role: Role = request.param
    size = ControlLayout.of(role, GEOMETRY, LIMITS).size
    path = tmp_path / "control"
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        mapping = map_segment(file.fileno(), size)
    format_control(mapping, role, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping)


def record_of(**words: int) -> SlotRecord:
    record = SlotRecord()
    for name, value in words.items():
        record.words[Slot[name]] = value
    return record


def test_a_slot_is_opened_with_its_record_and_no_other_is_touched(control: Control) -> None:
    """P11, R78."""
    untouched = [control.slots.get_all(slot) for slot in NEIGHBOURS]
    record = record_of(ROOM=5, LANE=1, TOTAL=40, DEADLINE_NS=9, RELEASED_EPOCH=77)
    record.set_address("tcp://127.0.0.1:1")
    assert control.opener.open(SLOT, record, 3, is_untold=True) == 1
    assert split(control.status.load(SLOT)) == (1, Phase.Bootstrapping, 0)
    assert control.status.stamps(SLOT)[0] == 3
    get = control.slots.get
    words = {Slot.ROOM: 5, Slot.EPOCH: 1, Slot.LANE: 1, Slot.TOTAL: 40, Slot.DEADLINE_NS: 9, Slot.RELEASED_EPOCH: 0}
    assert {word: get(SLOT, word) for word in words} == words
    assert control.slots.address(SLOT) == "tcp://127.0.0.1:1"
    assert control.slots.told(SLOT, 1) == Told.UNTOLD
    assert [control.slots.get_all(slot) for slot in NEIGHBOURS] == untouched
    if control.role == Role.LANGUAGE:
        assert control.claims.get(SLOT) == Claim(1, ClaimState.SHUT)
        assert (control.claims.lane(SLOT), control.claims.length(SLOT)) == (1, 40)
        assert all(control.claims.get(slot).epoch == 0 for slot in NEIGHBOURS)


def test_nothing_of_the_epoch_before_is_left(control: Control) -> None:
    """R16, R78: neither its words, nor its destinations, nor its source blocks; and it is released."""
    opener = control.opener
    assert opener.open(SLOT, record_of(ROOM=1), 1, is_untold=True) == 1
    control.slots.set(SLOT, Slot.FAILURE, 3)
    if control.role == Role.ENCODE:
        for slot in (*NEIGHBOURS, SLOT):
            for destination in range(LIMITS.max_destinations):
                control.destinations.set(slot, destination, Destination.SENT, 8)
            assert control.staging.replace(slot, 0, 0, 1)
            assert control.staging.replace(slot, control.staging.window - 1, 0, 1)
    assert opener.open(SLOT, record_of(ROOM=2), 2) == 2
    get = control.slots.get
    assert [get(SLOT, word) for word in (Slot.ROOM, Slot.FAILURE, Slot.RELEASED_EPOCH)] == [2, 0, 1]
    assert control.is_current(SLOT, 2)
    if control.role == Role.ENCODE:
        last = control.staging.window - 1
        for slot, left in ((SLOT, 0), (NEIGHBOURS[0], 1), (NEIGHBOURS[1], 1)):
            sent = [control.destinations.get(slot, d, Destination.SENT) for d in range(LIMITS.max_destinations)]
            assert sent == [8 * left] * LIMITS.max_destinations
            assert [control.staging.load(slot, block) for block in (0, last)] == [left, left]


def test_a_slot_that_has_used_all_its_epochs_is_not_opened(control: Control) -> None:
    """R17: nor is its claim shut for an epoch that there is not."""
    status = Words(control.mapping, control.layout.words, LIMITS.num_slots)
    status.store(SLOT, MAX_EPOCH << 36 | Phase.Success << 33)
    assert control.opener.open(SLOT, SlotRecord(), 1) == 0
    assert split(control.status.load(SLOT)).epoch == MAX_EPOCH
    assert control.slots.get(SLOT, Slot.RELEASED_EPOCH) == MAX_EPOCH
    if control.role == Role.LANGUAGE:
        assert control.claims.get(SLOT).epoch == 0


def test_what_does_not_fit_the_slots_is_refused(control: Control) -> None:
    """P2: before anything is written."""
    words = array("Q", SlotRecord().words)
    layout, mapping, num = control.layout, control.mapping, LIMITS.num_slots
    records = Words(mapping, layout.slots, num * len(words))
    odd = Words(mapping, layout.slots, num * len(words) - 1)
    good: list[Any] = [SLOT, 1, records, words, False, (), None]
    wrong: list[tuple[int, Any, type[Exception]]] = [
        (0, num, IndexError),
        (1, -1, OverflowError),
        (2, odd, ValueError),
        (2, Words(mapping, layout.slots, num * (len(words) - 1)), ValueError),
        (2, control.status, TypeError),
        (3, words[:-1], ValueError),
        (4, 2, ValueError),
        (5, [records], TypeError),
        (5, (odd,), ValueError),
        (5, (records,) * 3, ValueError),
        (5, (None,), TypeError),
        (6, odd, ValueError),
        (6, records, ValueError),
        (6, 1, TypeError),
    ]
    before = bytes(mapping)
    for at, value, error in wrong:
        with pytest.raises(error):
            control.status.open_record(*[value if i == at else argument for i, argument in enumerate(good)])
    with pytest.raises(TypeError):
        control.status.open_record(*good[:-1])
    assert bytes(mapping) == before
    assert control.status.open_record(*good) == 1
