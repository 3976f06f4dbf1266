"""Single atomic words."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from core_support import SharedMemory

from embridge.allocator._core import Words


@pytest.fixture
def words() -> Words:
    return Words(SharedMemory(4096).map(), 64, 16)


def test_each_operation_returns_what_stood_there_before(words: Words) -> None:
    words.store(3, 12)
    assert words.add(3, 5) == 12
    assert words.set_bits(3, 0b1100) == 17
    assert words.clear_bits(3, 0b0101) == 0b11101
    assert words.load(3) == 0b11000
    assert words.load(2) == words.load(4) == 0


def test_a_word_has_64_bits_and_addition_wraps(words: Words) -> None:
    words.store(0, 2**64 - 1)
    assert words.add(0, 2) == 2**64 - 1
    assert words.load(0) == 1
    assert words.add(0, 2**64 - 1) == 1  # subtraction
    assert words.load(0) == 0


def test_raise_to_never_lowers(words: Words) -> None:
    """P5."""
    assert words.raise_to(1, 5)
    assert not words.raise_to(1, 5)
    assert not words.raise_to(1, 4)
    assert words.raise_to(1, 2**64 - 1)
    assert words.load(1) == 2**64 - 1


def test_compare_exchange_changes_only_what_it_expects(words: Words) -> None:
    assert not words.compare_exchange(0, 1, 2)
    assert words.load(0) == 0
    assert words.compare_exchange(0, 0, 2)
    assert words.load(0) == 2


def test_fill_stores_in_the_words_that_it_names_and_in_no_other(words: Words) -> None:
    for index in range(16):
        words.store(index, 100 + index)
    words.fill(3, 4, 7)
    words.fill(10, 0, 7)
    words.fill(16, 0, 7)
    assert [words.load(index) for index in range(16)] == [100, 101, 102, 7, 7, 7, 7, *range(107, 116)]
    for index, count in ((0, 17), (15, 2), (17, 0), (-1, 1), (0, -1)):
        with pytest.raises((ValueError, OverflowError)):
            words.fill(index, count, 7)
    assert words.load(0) == 100


def test_the_sum_is_that_of_the_words_that_are_named(words: Words) -> None:
    for index in range(16):
        words.store(index, 1 << index)
    assert words.sum(1, 3, 5) == (1 << 1) + (1 << 6) + (1 << 11)
    assert words.sum(15, 1, 16) == 1 << 15
    assert words.sum(0, 16, 1) == (1 << 16) - 1
    assert words.sum(3, 2, 0) == 16
    assert words.sum(16, 0, 1) == 0
    words.store(0, 2**64 - 1)
    assert words.sum(0, 2, 1) == 1
    for index, count, step in ((16, 1, 1), (0, 17, 1), (1, 4, 5), (0, 2, 16)):
        with pytest.raises((IndexError, ValueError)):
            words.sum(index, count, step)


def test_many_words_are_stored_and_loaded_from_where_they_are_named(words: Words) -> None:
    words.store_many(2, array("Q", [1, 2**64 - 1, 3]))
    assert words.load_many(0, 16) == [0, 0, 1, 2**64 - 1, 3, *[0] * 11]
    assert words.load_many(3, 2) == [2**64 - 1, 3]
    assert words.load_many(16, 0) == []


def test_many_words_that_do_not_fit_are_refused_and_none_is_stored(words: Words) -> None:
    with pytest.raises(IndexError):
        words.store_many(14, array("Q", [1, 2, 3]))
    with pytest.raises(ValueError, match="index"):
        words.store_many(17, array("Q", [1]))
    with pytest.raises(ValueError, match="values"):
        words.store_many(0, array("I", [1, 2, 3]))
    with pytest.raises(ValueError, match="count"):
        words.load_many(14, 3)
    with pytest.raises(ValueError, match="index"):
        words.load_many(17, 0)
    assert words.load_many(0, 16) == [0] * 16


def test_words_lie_a_stride_apart() -> None:
    mapping = SharedMemory(4096).map()
    strided, dense = Words(mapping, 8, 4, stride=24), Words(mapping, 0, 512)
    for i in range(4):
        strided.store(i, 100 + i)
    assert {i: dense.load(i) for i in range(512) if dense.load(i)} == {1: 100, 4: 101, 7: 102, 10: 103}
    assert len(strided) == 4
    last = Words(mapping, 4096 - 8, 1, stride=4096)  # the stride reaches beyond the mapping, the word does not
    last.store(0, 1)
    assert dense.load(511) == 1


def test_there_may_be_no_words_at_all() -> None:
    words = Words(SharedMemory(4096).map(), 4096, 0)
    assert len(words) == 0
    with pytest.raises(IndexError):
        words.load(0)


@pytest.mark.parametrize("index", [16, -1, 2**40, 2**80, -(2**80)])
def test_an_index_outside_is_an_index_error(words: Words, index: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: words.load(index),
        lambda: words.store(index, 1),
        lambda: words.add(index, 1),
        lambda: words.raise_to(index, 1),
        lambda: words.compare_exchange(index, 0, 1),
    ]
    for call in calls:
        with pytest.raises(IndexError, match="outside 0 to 15"):
            call()


def test_a_value_that_is_no_64_bit_number_is_refused(words: Words) -> None:
    for value in (-1, 2**64):
        with pytest.raises(OverflowError):
            words.store(0, value)
    for nothing in (1.5, "1", None):
        with pytest.raises(TypeError):
            words.store(0, nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="store"):
        words.store(0)  # type: ignore[call-arg]
    assert words.load(0) == 0


def test_numpy_integers_are_integers(words: Words) -> None:
    words.store(np.int64(2), np.uint64(2**64 - 1))  # type: ignore[arg-type]
    assert words.load(np.uint32(2)) == 2**64 - 1  # type: ignore[arg-type]


ROWS, ROW_WORDS = 128, 3


@pytest.fixture
def rows() -> Words:
    return Words(SharedMemory(ROWS * ROW_WORDS * 8).map(), 0, ROWS * ROW_WORDS)


def changed(rows: Words, seen: np.ndarray, first: int = 0, count: int = ROW_WORDS, room: int = ROWS) -> list[int]:
    out = np.zeros(room, np.uint32)
    pages = np.array([0, 1], np.uint32)
    found: list[int] = out[: rows.changed_rows(ROW_WORDS, first, count, pages, 2, seen, out)].tolist()
    return found


def test_rows_that_have_changed_are_named_once(rows: Words) -> None:
    """R25: whichever of their words; rows of zeroes have not."""
    seen = np.zeros(ROWS, np.uint64)
    assert changed(rows, seen) == []
    for row, word in ((0, 0), (64, 1), (127, 2)):
        rows.store(row * ROW_WORDS + word, 1)
    assert changed(rows, seen) == [0, 64, 127]
    assert changed(rows, seen) == []
    rows.store(64 * ROW_WORDS, 2**64 - 1)
    assert changed(rows, seen) == [64]
    rows.store(64 * ROW_WORDS, 0)  # as it was before
    assert changed(rows, seen) == [64]
    for row in (0, 64, 127):
        for word in range(ROW_WORDS):
            rows.store(row * ROW_WORDS + word, 0)
    assert changed(rows, seen) == [0, 64, 127]
    assert not seen.any()


def test_only_the_words_that_are_asked_for_are_compared(rows: Words) -> None:
    seen = np.zeros(ROWS, np.uint64)
    rows.store(5 * ROW_WORDS, 1)
    rows.store(6 * ROW_WORDS + 1, 1)
    assert changed(rows, seen, first=1, count=1) == [6]
    assert changed(rows, seen, first=1, count=0) == [6]  # of no words the hash is 0


def test_words_that_are_exchanged_are_a_change(rows: Words) -> None:
    seen = np.zeros(ROWS, np.uint64)
    rows.store(0, 1)
    assert changed(rows, seen) == [0]
    rows.store(0, 0)
    rows.store(1, 1)
    assert changed(rows, seen) == [0]


def test_rows_that_do_not_fit_come_with_the_next_call(rows: Words) -> None:
    seen = np.zeros(ROWS, np.uint64)
    for row in range(5):
        rows.store(row * ROW_WORDS, 7)
    assert [changed(rows, seen, room=2) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_what_is_no_table_of_rows_is_refused(rows: Words) -> None:
    pages, seen, out = np.zeros(1, np.uint32), np.zeros(ROWS, np.uint64), np.zeros(ROWS, np.uint32)

    def call(*, row_words: int = ROW_WORDS, first: int = 0, count: int = 1, words: Words = rows, **arrays: Any) -> int:
        given: dict[str, Any] = {"pages": pages, "seen": seen, "out": out, **arrays}
        return words.changed_rows(row_words, first, count, given["pages"], 1, given["seen"], given["out"])

    assert call() == 0
    strided = Words(SharedMemory(4096).map(), 0, 64, 16)
    cases: tuple[dict[str, Any], ...] = (
        {"row_words": 0, "count": 0}, {"row_words": 5}, {"first": 4}, {"count": 4}, {"first": 3}, {"words": strided},
        {"seen": seen[:-1]}, {"seen": np.zeros(ROWS, np.uint32)}, {"pages": np.zeros(1, np.uint64)},
    )  # fmt: skip
    for wrong in cases:
        with pytest.raises(ValueError, match=r"row_words|first|count|seen|pages"):
            call(**wrong)
    with pytest.raises(IndexError, match="pages: 2 is outside 0 to 1"):
        call(pages=np.array([2], np.uint32))
    few = Words(SharedMemory(4096).map(), 0, 3 * ROW_WORDS)
    with pytest.raises(IndexError, match="pages"):  # less than a page of rows
        call(words=few)
    seen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call()
    with pytest.raises(TypeError):
        rows.changed_rows(ROW_WORDS, 0, 1, pages, 1, seen)  # type: ignore[call-arg]
