"""Checksums of rows: the values that others compute, going on from any row, and no byte read outside the memory."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from core_support import SharedMemory
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.allocator._core import checksum
from embridge.allocator.buffers import PayloadBuffers, aux_offset, pools
from embridge.allocator.checksums import RowSum, RowSums
from embridge.allocator.geometry import AUX_WORDS, Geometry
from embridge.allocator.layout import PayloadLayout


def columns(*pairs: tuple[int, int]) -> npt.NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


def slowly(data: bytes, before: int = 0) -> int:
    """CRC-32C bit by bit, as RFC 3720 describes it."""
    state = before ^ 0xFFFF_FFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F6_3B78 if state & 1 else 0)
    return state ^ 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE306_9283),
        (bytes(32), 0x8A91_36AA),
        (b"\xff" * 32, 0x62A8_AB43),
        (bytes(range(32)), 0x46DD_794E),
        (bytes(range(31, -1, -1)), 0x113F_DB5C),
    ],
)
def test_known_values(data: bytes, value: int) -> None:
    """RFC 3720, B.4, and the check value of the catalogues."""
    assert checksum(data, columns((0, len(data))), 1, 0) == slowly(data) == value


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_it_is_that_of_the_slow_reference_at_every_length_and_alignment(data: bytes, shift: int, before: int) -> None:
    """P6."""
    memory = bytes(shift) + data + b"beyond"
    assert checksum(memory, columns((shift, len(data))), 1, before) == slowly(data, before)


@settings(deadline=None)
@given(st.data())
def test_rows_go_on_from_any_row(data: st.DataObject) -> None:
    """P6: row by row, of each row one column after the other; in two parts as in one."""
    widths = data.draw(st.lists(st.integers(0, 20), max_size=4))
    rows = data.draw(st.integers(0, 6))
    memory = data.draw(st.binary(min_size=rows * sum(widths), max_size=rows * sum(widths)))
    starts = [rows * sum(widths[:i]) for i in range(len(widths))]
    whole = b"".join(
        memory[at + r * width : at + (r + 1) * width]
        for r in range(rows)
        for at, width in zip(starts, widths, strict=True)
    )
    assert checksum(memory, columns(*zip(starts, widths, strict=True)), rows, 0) == slowly(whole)
    cut = data.draw(st.integers(0, rows))
    first = checksum(memory, columns(*zip(starts, widths, strict=True)), cut, 0)
    rest = columns(*((at + cut * width, width) for at, width in zip(starts, widths, strict=True)))
    assert checksum(memory, rest, rows - cut, first) == slowly(whole)


@pytest.mark.parametrize(
    ("pair", "rows"),
    [
        ((0, 101), 1),
        ((1, 100), 1),
        ((101, 0), 1),
        ((-1, 1), 1),
        ((0, -1), 1),
        ((0, 10), 11),
        ((50, 10), 6),
        ((0, 2**62), 4),
        ((0, 1), 2**63),
        ((2**63 - 1, 2**63 - 1), 2**64 - 1),
    ],
)
def test_a_column_out_of_range_is_refused(pair: tuple[int, int], rows: int) -> None:
    """P16: blocks that came from elsewhere lead nowhere but into the memory."""
    with pytest.raises(IndexError, match="outside the memory's 100"):
        checksum(bytes(100), columns((0, 1), pair), rows, 0)
    assert checksum(bytes(100), columns((0, 10), (100, 0)), 10, 7) == slowly(bytes(100), 7)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((bytes(8), columns(), 1), TypeError),
        ((None, columns(), 1, 0), TypeError),
        ((bytes(8), None, 1, 0), TypeError),
        ((bytes(8), columns(), "1", 0), TypeError),
        ((bytes(8), columns(), -1, 0), OverflowError),
        ((bytes(8), columns(), 2**64, 0), OverflowError),
        ((bytes(8), columns(), 1, 2**32), ValueError),
        ((bytes(8), np.zeros(3, np.int64), 1, 0), ValueError),
        ((bytes(8), columns(*[(0, 1)] * 17), 1, 0), ValueError),
        ((bytes(8), np.zeros(4, np.int32), 1, 0), ValueError),
    ],
)
def test_arguments_that_are_none_of_its_kind(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    """P16."""
    with pytest.raises(error):
        checksum(*arguments)


def test_rows_of_no_bytes_cost_nothing_however_many() -> None:
    assert checksum(b"", columns((0, 0)), 2**64 - 1, 5) == checksum(b"", columns(), 2**64 - 1, 5) == 5


def test_it_gives_up_the_gil() -> None:
    """Another thread goes on while many bytes are summed."""
    memory = SharedMemory(64 << 20).map()
    turns = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = turns
        for _ in range(5):
            checksum(memory, columns((0, 64 << 20)), 1, 0)
        assert turns > before
    finally:
        stop.set()
        thread.join()


# ---- over the blocks of a payload

GEOMETRY = Geometry(hidden_size=3, block_size=4, num_blocks=6, dtype="float16", deepstack_layers=1)


def payload(blocks: list[int], total: int) -> Any:
    """A payload in whose blocks the rows of one request lie, and noise in the others."""
    memory = SharedMemory(PayloadLayout.of(GEOMETRY).size).map()
    np.frombuffer(memory, np.uint8)[:] = blocks[0] + 1
    rows = np.random.default_rng(99)
    for pool in pools(GEOMETRY):
        data = rows.integers(0, 256, (total, pool.row_bytes), np.uint8)
        for row in range(total):
            at = pool.offset + (blocks[row // 4] * 4 + row % 4) * pool.row_bytes
            np.frombuffer(memory, np.uint8, pool.row_bytes, at)[:] = data[row]
    PayloadBuffers(memory, GEOMETRY).aux_datas[blocks[0]] = np.arange(AUX_WORDS)
    return memory


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.permutations(range(6)), st.lists(st.integers(0, 22), max_size=5))
def test_the_sum_of_rows_is_the_same_wherever_and_however_they_came(
    ours: list[int], theirs: list[int], cuts: list[int]
) -> None:
    """P6: two nodes sum the same rows in other blocks, in other rounds."""
    total = 22
    here, there = payload(ours, total), payload(theirs, total)
    expected = RowSums(here, GEOMETRY).extend(RowSum(0, 0), total, ours)
    at = RowSum(0, 0)
    for end in [*sorted(cuts), total]:
        at = RowSums(there, GEOMETRY).extend(at, end, theirs[at.tokens // 4 : -(-end // 4)])
    assert at == expected
    assert RowSum.of(at.pack()) == at


def test_every_byte_of_every_buffer_counts() -> None:
    """P6, D20: ids, positions, deepstack and aux as well as embeddings; bytes that are nobody's do not."""
    memory, blocks, total = payload([4, 1], 6), [4, 1], 6
    sums, data = RowSums(memory, GEOMETRY), np.frombuffer(memory, np.uint8)
    right = sums.extend(RowSum(0, 0), total, blocks)
    ours = set(range(aux_offset(GEOMETRY, 4), aux_offset(GEOMETRY, 4) + 4 * AUX_WORDS))
    for pool in pools(GEOMETRY):
        for place in (16, 17, 18, 19, 4, 5):
            ours |= set(range(pool.offset + place * pool.row_bytes, pool.offset + (place + 1) * pool.row_bytes))
    near = {at + d for at in ours for d in (-1, 0, 1)}
    for at in near:
        data[at] ^= 0x10
        assert (sums.extend(RowSum(0, 0), total, blocks) != right) == (at in ours), at
        data[at] ^= 0x10


def test_a_block_that_is_none_is_refused() -> None:
    """P16: it would lie outside the payload."""
    memory = payload([0], 4)
    with pytest.raises(IndexError):
        RowSums(memory, GEOMETRY).extend(RowSum(0, 0), 4, [1 << 31])
