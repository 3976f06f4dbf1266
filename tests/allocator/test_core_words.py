"""Single atomic words."""

from __future__ import annotations

from collections.abc import Callable

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
