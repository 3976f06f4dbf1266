"""Ranges of a segment: never two owners of a byte, and nothing lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.allocator.ranges import Ranges

PAGE = 4096


def test_what_was_given_back_is_taken_again_first() -> None:
    """Warm memory is used before cold."""
    ranges = Ranges(10 * PAGE)
    first, second = ranges.take(PAGE), ranges.take(1)
    assert (first, second) == ((0, PAGE), (PAGE, 2 * PAGE))
    assert first is not None
    ranges.give_back(*first)
    assert ranges.take(2 * PAGE) == (2 * PAGE, 4 * PAGE)
    assert ranges.take(PAGE) == first


def test_neighbours_are_joined_so_that_the_whole_can_be_taken_again() -> None:
    ranges = Ranges(3 * PAGE + 5)
    taken = [ranges.take(PAGE) for _ in range(3)]
    assert ranges.take(1) is None
    for number in (0, 2, 1):
        ranges.give_back(*taken[number])  # type: ignore[misc]
    assert ranges.free_bytes == 3 * PAGE
    assert ranges.take(3 * PAGE) == (0, 3 * PAGE)


def longest_gap(owned: list[tuple[int, int]], size: int) -> int:
    """The most bytes in one piece that nobody owns."""
    bounds = [0, *(bound for pair in sorted(owned) for bound in pair), size]
    return max(begin - end for end, begin in zip(bounds[::2], bounds[1::2], strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6 * PAGE)), max_size=60))
def test_no_byte_has_two_owners_and_none_is_lost(steps: list[tuple[bool, int]]) -> None:
    """P1's promise, for memory of one process: after any takes and returns, free and owned together are the whole, each
    once.
    """
    size = 16 * PAGE
    ranges = Ranges(size)
    owned: list[tuple[int, int]] = []
    for takes, number in steps:
        if takes:
            got = ranges.take(number)
            if got is None:
                assert longest_gap(owned, size) < number
            else:
                owned.append(got)
        elif owned:
            ranges.give_back(*owned.pop(number % len(owned)))
        pages = [page for begin, end in owned for page in range(begin // PAGE, end // PAGE)]
        assert len(pages) == len(set(pages))
        assert len(pages) * PAGE + ranges.free_bytes == size
