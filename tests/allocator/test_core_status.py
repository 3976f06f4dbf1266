"""Status words: they only rise; stamps and dirty bits follow them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from core_support import SharedMemory
from hypothesis import given
from hypothesis import strategies as st

from embridge.allocator._core import MAX_EPOCH, StatusTable, Words

NUM_SLOTS = 256
NUM_PAGES = NUM_SLOTS // 64
WORDS, STAMPS, DIRTY = 0, 4096, 4096 * 4
SUCCESS, FAILED = 3, 4


class Table(NamedTuple):
    """A table, and its raw words."""

    status: StatusTable
    words: Words
    stamps: Words
    dirty: Words


@pytest.fixture
def table() -> Table:
    return new_table()


def new_table() -> Table:
    mapping = SharedMemory(1 << 16).map()
    return Table(
        StatusTable(mapping, WORDS, STAMPS, DIRTY, NUM_SLOTS, num_views=3),
        Words(mapping, WORDS, NUM_SLOTS),
        Words(mapping, STAMPS, NUM_SLOTS * 5),
        Words(mapping, DIRTY, 3 * NUM_PAGES),
    )


def word(epoch: int, phase: int, sent: int) -> int:
    return epoch << 36 | phase << 33 | sent


def changed(status: StatusTable, view: int, pages: list[int] | None = None, room: int = NUM_SLOTS) -> list[int]:
    wanted = np.array(range(NUM_PAGES) if pages is None else pages, np.uint32)
    out = np.zeros(room, np.uint32)
    slots: list[int] = out[: status.changed(view, wanted, len(wanted), out)].tolist()
    return slots


def test_a_word_is_epoch_phase_and_sent_in_that_order_of_weight(table: Table) -> None:
    epoch = table.status.open(7, 1000)
    assert table.status.advance(7, epoch, 2, 123, 2000)
    assert table.status.load(7) == word(1, 2, 123) == table.words.load(7)
    assert table.status.load(6) == table.status.load(8) == 0


def test_a_word_never_decreases_in_an_epoch(table: Table) -> None:
    """P5, B1: the phase does not go back, nor does what was sent."""
    status = table.status
    status.open(0, 1)
    assert status.advance(0, 1, 2, 10, 2)
    assert not status.advance(0, 1, 2, 10, 3)
    assert not status.advance(0, 1, 2, 9, 3)
    assert not status.advance(0, 1, 1, 11, 3)
    assert status.load(0) == word(1, 2, 10)
    assert status.advance(0, 1, 2, 11, 4)


@pytest.mark.parametrize("terminal", [SUCCESS, FAILED])
def test_terminal_phases_absorb(table: Table, terminal: int) -> None:
    """D12: Failed is not raised to anything by a late message, nor is Success."""
    status = table.status
    epoch = status.open(5, 1)
    assert status.advance(5, epoch, terminal, 10, 2)
    for phase in range(5):
        for sent in (0, 10, 11, 2**32 - 1):
            assert not status.advance(5, epoch, phase, sent, 3)
    assert status.load(5) == word(epoch, terminal, 10)
    assert status.open(5, 4) == epoch + 1
    assert status.load(5) == word(epoch + 1, 0, 0)


def test_whoever_names_another_epoch_changes_nothing(table: Table) -> None:
    """D6, D7, R16, P17: a late writer of an old request loses, and so does one who is ahead."""
    status = table.status
    assert not status.advance(3, 0, 1, 0, 1)  # never opened: epoch 0 is nobody's
    first = status.open(3, 1)
    second = status.open(3, 2)
    assert (first, second) == (1, 2)
    assert not status.advance(3, first, SUCCESS, 100, 3)
    assert not status.advance(3, second + 1, 1, 0, 3)
    assert status.load(3) == word(second, 0, 0)
    assert changed(status, 0) == []


def test_the_last_epoch_retires_the_slot(table: Table) -> None:
    """R17."""
    table.words.store(9, word(MAX_EPOCH - 1, FAILED, 0))
    assert table.status.open(9, 1) == MAX_EPOCH
    assert table.status.advance(9, MAX_EPOCH, SUCCESS, 2**32 - 1, 5)
    before, stamps = table.status.load(9), table.status.stamps(9)
    assert table.status.open(9, 7) == 0
    assert table.status.load(9) == before == word(MAX_EPOCH, SUCCESS, 2**32 - 1)
    assert table.status.stamps(9) == stamps


def test_stamps_tell_when_each_phase_was_first_entered(table: Table) -> None:
    """B1: the exact path of a request can be read afterwards."""
    status = table.status
    epoch = status.open(1, 1000)
    assert status.stamps(1) == (1000, 0, 0, 0, 0)
    status.advance(1, epoch, 1, 0, 1100)
    status.advance(1, epoch, 1, 5, 1200)
    status.advance(1, epoch, 1, 6, 1300)
    status.advance(1, epoch, SUCCESS, 6, 1400)
    status.advance(1, epoch, FAILED, 6, 1500)
    assert status.stamps(1) == (1000, 1100, 0, 1400, 0)
    status.open(1, 2000)
    assert status.stamps(1) == (2000, 0, 0, 0, 0)


def test_the_stamp_of_a_late_writer_is_neither_shown_nor_in_the_way(table: Table) -> None:
    """P17: a writer that moved the word of an old epoch may stamp when the slot has passed to the next request."""
    status, stamps = table.status, table.stamps
    status.open(2, 1000)
    status.advance(2, 1, SUCCESS, 0, 1500)
    late = stamps.load(2 * 5 + SUCCESS)
    status.open(2, 2000)
    stamps.store(2 * 5 + SUCCESS, late)
    assert status.stamps(2) == (2000, 0, 0, 0, 0)
    assert status.advance(2, 2, SUCCESS, 0, 2500)
    assert status.stamps(2) == (2000, 0, 0, 2500, 0)


def test_a_stamp_of_256_epochs_ago_is_not_taken_for_one_of_now(table: Table) -> None:
    """A stamp bears eight bits of its epoch; `open` clears what these cannot tell apart."""
    status = table.status
    status.advance(4, status.open(4, 10), FAILED, 0, 20)
    table.words.store(4, word(256, SUCCESS, 0))
    assert status.open(4, 30) == 257
    assert status.stamps(4) == (30, 0, 0, 0, 0)


@given(opened=st.integers(1, 2**63), later=st.integers(0, 10**15), epoch=st.integers(0, MAX_EPOCH - 1))
def test_a_stamp_is_exact_whatever_the_clock_and_the_epoch(opened: int, later: int, epoch: int) -> None:
    """P14."""
    table = new_table()
    table.words.store(0, word(epoch, FAILED, 0))
    assert table.status.open(0, opened) == epoch + 1
    assert table.status.advance(0, epoch + 1, 1, 1, opened + later)
    assert table.status.stamps(0) == (opened, opened + later, 0, 0, 0)


def test_each_view_sees_every_change_once(table: Table) -> None:
    """B9: progress is an event that is consumed once."""
    status = table.status
    for slot in (3, 64, 255):
        status.advance(slot, status.open(slot, 1), 1, 0, 2)
    assert changed(status, 0) == [3, 64, 255]
    assert changed(status, 0) == []
    assert changed(status, 1) == [3, 64, 255]
    status.advance(64, 1, 2, 5, 3)
    assert changed(status, 0) == changed(status, 1) == [64]
    assert changed(status, 2) == [3, 64, 255]


def test_opening_and_refusing_set_no_bit_and_mark_sets_one(table: Table) -> None:
    status = table.status
    status.open(10, 1)
    assert not status.advance(10, 2, 1, 0, 1)
    assert changed(status, 0) == []
    status.mark(10, 1)
    assert changed(status, 1) == [10]
    assert changed(status, 0) == changed(status, 2) == []
    assert status.load(10) == word(1, 0, 0)


def test_only_the_pages_that_are_asked_for_are_taken(table: Table) -> None:
    status = table.status
    for slot in (0, 64, 128, 192):
        status.mark(slot, 0)
    assert changed(status, 0, [2, 0, 2]) == [128, 0]
    pages = np.array([1, 3], np.uint32)
    out = np.zeros(64, np.uint32)
    assert status.changed(0, pages, 1, out) == 1
    assert out[0] == 64
    assert changed(status, 0) == [192]


def test_the_words_of_the_slots_that_have_changed_come_with_them(table: Table) -> None:
    status = table.status
    for slot in (3, 70):
        status.advance(slot, status.open(slot, 1000), 2, slot, 2000)
    out, words = np.zeros(64, np.uint32), np.full(65, 7, np.uint64)
    assert status.changed(0, np.array([1, 0], np.uint32), 2, out, words) == 1  # the next page might not fit
    assert (out[0], *words[:2]) == (70, word(1, 2, 70), 7)
    assert status.changed(0, np.array([1, 0], np.uint32), 2, out, words) == 1
    assert (out[0], *words[:2]) == (3, word(1, 2, 3), 7)


def test_a_page_that_might_not_fit_is_left_for_the_next_call(table: Table) -> None:
    status = table.status
    for slot in range(130):
        status.mark(slot, 0)
    taken = [changed(status, 0, room=127) for _ in range(4)]  # 63 are left after the first page: one too few
    assert taken == [list(range(64)), list(range(64, 128)), [128, 129], []]
    with pytest.raises(ValueError, match="one page"):
        changed(status, 0, room=63)


def test_compare_finds_what_a_dead_writer_left_unmarked(table: Table) -> None:
    """P1: the bit is a hint, the word is the truth."""
    status = table.status
    seen = np.zeros(NUM_SLOTS, np.uint64)
    for slot in (3, 70, 71):
        status.advance(slot, status.open(slot, 1), 1, slot, 2)
    for page in range(3 * NUM_PAGES):
        table.dirty.store(page, 0)  # as if the writers had died before they set their bits
    assert changed(status, 0) == []
    pages, out = np.arange(NUM_PAGES, dtype=np.uint32), np.zeros(2, np.uint32)
    assert status.compare(pages, 1, seen, out) == 1
    assert out[0] == 3
    assert status.compare(pages, NUM_PAGES, seen, out) == 2
    assert out.tolist() == [70, 71]
    assert seen[71] == status.load(71)
    assert status.compare(pages, NUM_PAGES, seen, out) == 0


def test_compare_stops_when_its_array_is_full_and_goes_on_with_the_next_call(table: Table) -> None:
    for slot in range(10):
        table.status.open(slot, 1)
    seen, out, found = np.zeros(NUM_SLOTS, np.uint64), np.zeros(4, np.uint32), []
    pages = np.arange(NUM_PAGES, dtype=np.uint32)
    while count := table.status.compare(pages, NUM_PAGES, seen, out):
        found += out[:count].tolist()
    assert found == list(range(10))


def test_what_is_out_of_range_is_refused_before_anything_changes(table: Table) -> None:
    status = table.status
    epoch = status.open(0, 1)
    out, seen = np.zeros(NUM_SLOTS, np.uint32), np.zeros(NUM_SLOTS, np.uint64)
    status.mark(0, 0)
    with pytest.raises(IndexError, match="slot"):
        status.load(NUM_SLOTS)
    with pytest.raises(IndexError, match="slot"):
        status.stamps(-1)
    with pytest.raises(IndexError, match="slot"):
        status.open(NUM_SLOTS, 1)
    with pytest.raises(IndexError, match="slot"):
        status.advance(NUM_SLOTS, 1, 1, 0, 1)
    with pytest.raises(IndexError, match="view"):
        status.mark(0, 3)
    with pytest.raises(IndexError, match="view"):
        changed(status, 3)
    with pytest.raises(IndexError, match="pages"):
        changed(status, 0, [0, NUM_PAGES])
    with pytest.raises(ValueError, match="num_pages"):
        status.changed(0, np.zeros(1, np.uint32), 2, out)
    with pytest.raises(ValueError, match="items of 8"):
        status.changed(0, np.zeros(1, np.int64), 1, out)
    with pytest.raises(ValueError, match="items of 2"):
        status.changed(0, np.zeros(1, np.uint32), 1, np.zeros(64, np.uint16))
    with pytest.raises(ValueError, match="words: 63 items < 64 of out"):
        status.changed(0, np.zeros(1, np.uint32), 1, np.zeros(64, np.uint32), np.zeros(63, np.uint64))
    with pytest.raises(ValueError, match="seen"):
        status.compare(np.zeros(1, np.uint32), 1, seen[:-1], out)
    with pytest.raises(ValueError, match="contiguous"):
        status.changed(0, np.zeros(8, np.uint32)[::2], 1, out)
    with pytest.raises(ValueError, match="multiple of 4"):
        status.changed(0, np.zeros(9, np.uint8)[1:].data, 1, out)
    for phase, sent, error in ((5, 0, ValueError), (1, 2**32, ValueError), (1, -1, OverflowError)):
        with pytest.raises(error):
            status.advance(0, epoch, phase, sent, 1)
    with pytest.raises(ValueError, match="epoch"):
        status.advance(0, MAX_EPOCH + 1, 1, 0, 1)
    assert status.load(0) == word(epoch, 0, 0)
    assert changed(status, 0) == [0]


steps = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=60
)


@given(steps)
def test_words_follow_the_plain_rules_and_only_rise(history: list[tuple[int, int, int, int]]) -> None:
    """P5, D12, P17: against a model in plain Python; epoch 0 in a step means `open`."""
    status = new_table().status
    model = dict.fromkeys(range(4), (0, 0, 0))
    dirty: set[int] = set()
    for slot, epoch, phase, sent in history:
        before = status.load(slot)
        current = model[slot]
        if epoch == 0:
            assert status.open(slot, 1) == current[0] + 1
            model[slot] = (current[0] + 1, 0, 0)
        else:
            rises = epoch == current[0] and current[1] < SUCCESS and (phase, sent) > current[1:]
            assert status.advance(slot, epoch, phase, sent, 1) == rises
            if rises:
                model[slot] = (epoch, phase, sent)
                dirty.add(slot)
        assert status.load(slot) == word(*model[slot]) >= before
    assert changed(status, 0) == sorted(dirty)
