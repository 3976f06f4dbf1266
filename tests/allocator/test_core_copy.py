"""Copies: every byte where it belongs, none elsewhere, and nothing at all where a move is out of range."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
from core_support import SharedMemory
from hypothesis import given
from hypothesis import strategies as st

from embridge.allocator._core import NON_TEMPORAL_BYTES, copy

Bytes = npt.NDArray[np.uint8]


def moves(*triples: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    return np.array(triples, np.int64).reshape(-1, 3)


def pattern(size: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize("shift", [0, 1, 63])
@pytest.mark.parametrize(
    "size", [0, 1, 63, 64, 65, 4096, NON_TEMPORAL_BYTES - 1, NON_TEMPORAL_BYTES, NON_TEMPORAL_BYTES + 333]
)
def test_every_byte_arrives_and_none_beside(size: int, shift: int) -> None:
    """P6: at every alignment, on both sides of the size from which moves go past the cache."""
    source = pattern(size + 200)
    destination = np.full(size + 200, 0xEE, np.uint8)
    assert copy(destination, source, moves((shift + 7, 11, size)), 1) == size
    expected = np.full(size + 200, 0xEE, np.uint8)
    expected[shift + 7 : shift + 7 + size] = source[11 : 11 + size]
    assert np.array_equal(destination, expected)


def test_many_moves_go_in_order_and_only_as_many_as_asked() -> None:
    mapping = SharedMemory(1 << 16).map()
    target, source = np.frombuffer(mapping, np.uint8), pattern(1 << 16)
    triples = [(i * 64, (999 - i) * 64, 64) for i in range(1000)]
    assert copy(mapping, source, moves(*triples, (0, 0, 1 << 16)), 1000) == 64000
    assert np.array_equal(target[:64000].reshape(1000, 64), source[:64000].reshape(1000, 64)[::-1])
    assert not target[64000:].any()
    assert copy(mapping, source, moves((0, 0, 8), (4, 100, 8)), 2) == 16
    assert np.array_equal(target[:12], np.concatenate([source[:4], source[100:108]]))
    assert copy(mapping, source, moves(), 0) == 0


@pytest.mark.parametrize("size", [1000, 2 * NON_TEMPORAL_BYTES])
@pytest.mark.parametrize("distance", [1, 64, 500, -1, -64])
def test_overlapping_ranges_of_one_buffer_are_moved_as_memmove_does(size: int, distance: int) -> None:
    data = pattern(size + 1000)
    expected = data.copy()
    expected[500 + distance : 500 + distance + size] = data[500 : 500 + size].copy()
    copy(data, data, moves((500 + distance, 500, size)), 1)
    assert np.array_equal(data, expected)


@pytest.mark.parametrize(
    "bad",
    [
        (0, 0, 101),
        (1, 0, 100),
        (0, 101, 100),
        (-1, 0, 10),
        (0, -1, 10),
        (0, 0, -1),
        (100, 0, 1),
        (0, 200, 1),
        (2**63 - 1, 0, 1),
        (0, 2**63 - 1, 2),
        (0, 0, 2**63 - 1),
        (-(2**63), 0, 0),
        (2**63 - 1, 0, 2**63 - 1),
    ],
)
def test_a_move_out_of_range_stops_all_of_them_before_the_first_byte(bad: tuple[int, int, int]) -> None:
    """P16: offsets that came from elsewhere reach nothing but the two buffers."""
    source, destination = pattern(200), np.zeros(100, np.uint8)
    with pytest.raises(IndexError, match="move 1"):
        copy(destination, source, moves((0, 0, 50), bad), 2)
    with pytest.raises(IndexError, match="move 70"):
        copy(destination, source, moves(*[(0, 0, 50)] * 70, bad), 71)
    assert not destination.any()
    assert copy(destination, source, moves((0, 0, 50), bad), 1) == 50


def test_the_ends_of_the_buffers_can_be_reached() -> None:
    source, destination = pattern(200), np.zeros(100, np.uint8)
    assert copy(destination, source, moves((0, 100, 100), (100, 200, 0)), 2) == 100
    assert np.array_equal(destination, source[100:])


def test_what_is_no_list_of_moves_is_refused() -> None:
    source, destination = pattern(200), np.zeros(100, np.uint8)
    with pytest.raises(ValueError, match="count: 2 > 1"):
        copy(destination, source, moves((0, 0, 1)), 2)
    with pytest.raises(ValueError, match="items of 4"):
        copy(destination, source, np.zeros((1, 3), np.int32), 1)
    with pytest.raises((BufferError, ValueError)):
        copy(bytes(100), source, moves((0, 0, 1)), 1)
    with pytest.raises(ValueError, match="read-only"):
        copy(np.frombuffer(SharedMemory(100).map(writable=False), np.uint8), source, moves((0, 0, 1)), 1)
    with pytest.raises(TypeError, match="copy"):
        copy(destination, source, moves((0, 0, 1)))  # type: ignore[call-arg]


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300)).filter(
            lambda m: m[0] + m[2] <= 300 and m[1] + m[2] <= 300
        ),
        max_size=20,
    )
)
def test_moves_do_what_slices_do(triples: list[tuple[int, int, int]]) -> None:
    source, destination = pattern(300), pattern(300, seed=2)
    expected = destination.copy()
    for to, start, size in triples:
        expected[to : to + size] = source[start : start + size]
    assert copy(destination, source, moves(*triples), len(triples)) == sum(size for _, _, size in triples)
    assert np.array_equal(destination, expected)


def test_other_threads_run_while_a_large_copy_is_made() -> None:
    """D10: the scheduler's own thread is not stopped by a drain."""
    source, destination = np.ones(32 << 20, np.uint8), np.zeros(32 << 20, np.uint8)
    both = threading.Barrier(2)
    order: list[str] = []

    def drain() -> None:
        both.wait()
        copy(destination, source, moves(*[(0, 0, 32 << 20)] * 4), 4)
        order.append("copied")

    thread = threading.Thread(target=drain)
    thread.start()
    both.wait()
    while not destination[-1] and thread.is_alive():
        order.append("stepped")
    thread.join()
    assert order.index("copied") > 0
    assert destination.all()
