"""Owner cells: one owner a block, runs of neighbours, quarantine, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from core_support import SharedMemory

from embridge.allocator._core import MAX_EPOCH, BlockCells, Mapping, Words

FREE, OWNED, EXPOSED, QUARANTINED = range(4)


def new_mapping(num_blocks: int) -> Mapping:
    return SharedMemory(16 * num_blocks).map()


def new_cells(num_blocks: int = 200) -> BlockCells:
    return BlockCells(new_mapping(num_blocks), 0, 8 * num_blocks, num_blocks)


def acquire(cells: BlockCells, slot: int, epoch: int, want: int, lowest: int = 0) -> npt.NDArray[np.uint32]:
    out = np.zeros(max(want, 1), np.uint32)
    return out[: cells.acquire(slot, epoch, want, lowest, out, 0)]


def release(cells: BlockCells, blocks: npt.NDArray[np.uint32], slot: int, epoch: int) -> int:
    return cells.release(blocks, 0, len(blocks), slot, epoch)


def num_runs(blocks: npt.NDArray[np.uint32]) -> int:
    return int(np.count_nonzero(np.diff(blocks.astype(np.int64)) != 1)) + 1


def test_a_block_names_its_owner_and_its_generation() -> None:
    """D6, R16."""
    cells = new_cells()
    blocks = acquire(cells, 65535, MAX_EPOCH, 3)
    assert [cells.cell(int(b)) for b in blocks] == [(OWNED, 65535, MAX_EPOCH, 1)] * 3
    assert release(cells, blocks, 65535, MAX_EPOCH) == 3
    assert [cells.cell(int(b)) for b in blocks] == [(FREE, 0, 0, 1)] * 3
    everything = acquire(cells, 0, 0, len(cells))
    assert {cells.cell(int(b))[3] for b in blocks} == {2}
    assert len(everything) == 200


def test_the_generation_wraps_and_spills_into_nothing() -> None:
    mapping = new_mapping(2)
    cells, words = BlockCells(mapping, 0, 16, 2), Words(mapping, 0, 2)
    words.store(0, (2**18 - 1) << 46)
    assert acquire(cells, 7, 9, 1).tolist() == [0]
    assert cells.cell(0) == (OWNED, 7, 9, 0)


def test_what_is_short_is_given_as_far_as_it_goes() -> None:
    cells = new_cells(10)
    assert len(acquire(cells, 1, 1, 7)) == 7
    assert sorted(acquire(cells, 2, 1, 7).tolist()) == [7, 8, 9]
    assert len(acquire(cells, 3, 1, 1)) == 0
    assert len(acquire(cells, 3, 1, 0)) == 0
    assert cells.counts() == (0, 10, 0, 0)


def test_blocks_below_the_lowest_stay_for_others() -> None:
    """R21: the reserve is not taken by those who may not."""
    cells = new_cells(64)
    assert sorted(acquire(cells, 1, 1, 64, lowest=3).tolist()) == list(range(3, 64))
    assert len(acquire(cells, 1, 1, 1, lowest=3)) == 0
    assert len(acquire(cells, 1, 1, 1, lowest=64)) == 0
    assert len(acquire(cells, 1, 1, 1, lowest=2**32 - 1)) == 0
    assert acquire(cells, 1, 1, 64).tolist() == [0, 1, 2]


def test_blocks_go_where_the_caller_wants_them() -> None:
    cells = new_cells()
    out = np.full(10, 999, np.uint32)
    assert cells.acquire(1, 1, 4, 10, out, 3) == 4
    assert out.tolist() == [999] * 3 + [10, 11, 12, 13] + [999] * 3
    assert cells.release(out, 4, 2, 1, 1) == 2
    assert [cells.cell(b)[0] for b in (10, 11, 12, 13)] == [OWNED, FREE, FREE, OWNED]


@pytest.mark.parametrize("want", [1, 2, 8, 63, 64, 65, 130, 500])
@pytest.mark.parametrize("where", [0, 1, 60, 64, 299, 500])
def test_the_only_run_that_is_long_enough_is_found(want: int, where: int) -> None:
    """Every other block is taken but for one run, wherever it lies and however it crosses the 64-block steps."""
    cells = new_cells(1100)
    everything = acquire(cells, 1, 1, 1100)
    assert num_runs(everything) == 1
    outside = [b for b in range(0, 1100, 2) if not where - 1 <= b <= where + want]
    freed = np.array(outside + list(range(where, where + want)), np.uint32)
    assert release(cells, freed, 1, 1) == len(freed)
    assert acquire(cells, 2, 1, want).tolist() == list(range(where, where + want)) or want == 1


@pytest.mark.parametrize("want", [2, 8, 63, 64, 65, 130])
@pytest.mark.parametrize("where", [150, 191, 192, 200, 230])
def test_a_run_that_is_one_block_too_short_is_passed_over(want: int, where: int) -> None:
    cells = new_cells(512)
    acquire(cells, 1, 1, 512)
    free = [*range(want - 1), *range(where, where + want)]
    release(cells, np.array(free, np.uint32), 1, 1)
    assert acquire(cells, 2, 1, want).tolist() == list(range(where, where + want))


def test_pieces_are_as_long_as_there_are_when_no_run_is_long_enough() -> None:
    cells = new_cells(512)
    acquire(cells, 1, 1, 512)
    free = [*range(10, 14), *range(100, 108), *range(300, 302)]
    release(cells, np.array(free, np.uint32), 1, 1)
    got = acquire(cells, 2, 1, 14)
    assert sorted(got.tolist()) == free
    assert got[:8].tolist() == list(range(100, 108))
    assert num_runs(got) == 3


def test_free_blocks_on_both_sides_of_used_ones_are_no_run() -> None:
    cells = new_cells(256)
    acquire(cells, 1, 1, 256)
    free = [*range(60, 64), *range(192, 196), *range(250, 256)]
    release(cells, np.array(free, np.uint32), 1, 1)
    assert acquire(cells, 2, 1, 6).tolist() == list(range(250, 256))
    assert acquire(cells, 2, 1, 8).tolist() == [*range(60, 64), *range(192, 196)]


def test_the_lowest_run_of_so_many_is_found_and_not_taken() -> None:
    cells, other = (BlockCells(mapping, 0, 8 * 256, 256) for mapping in [new_mapping(256)] * 2)
    acquire(other, 1, 1, 256)
    assert cells.find_run(0, 1) == -1
    release(other, np.array([*range(60, 66), *range(192, 202), *range(250, 256)], np.uint32), 1, 1)
    assert [cells.find_run(0, length) for length in (1, 6, 7, 10, 11)] == [60, 60, 192, 192, -1]
    assert [cells.find_run(lowest, 6) for lowest in (61, 193, 197, 251, 256, 2**32 - 1)] == [192, 193, 250, -1, -1, -1]
    assert cells.find_run(0, 0) == -1
    assert cells.counts()[0] == 22


def test_runs_stay_whole_through_churn_at_four_fifths_use() -> None:
    rng = np.random.default_rng(1)
    cells = new_cells(4096)
    held = [acquire(cells, 1, 1, 8) for _ in range(4096 * 4 // 5 // 8)]
    runs = []
    for _ in range(3000):
        i = int(rng.integers(len(held)))
        assert release(cells, held[i], 1, 1) == 8
        held[i] = acquire(cells, 1, 1, 8)
        runs.append(num_runs(held[i]))
    assert np.mean(np.array(runs) == 1) > 0.95
    assert len(np.unique(np.concatenate(held))) == len(held) * 8


def test_what_another_handle_freed_is_found() -> None:
    """The summary in a handle is advice; the cells are the truth."""
    mapping = new_mapping(2000)
    mine, other = (BlockCells(mapping, 0, 16000, 2000) for _ in range(2))
    blocks = acquire(mine, 1, 1, 2000)
    assert len(acquire(other, 2, 1, 1)) == 0
    assert release(mine, blocks[500:510], 1, 1) == 10
    assert sorted(acquire(other, 2, 1, 20).tolist()) == list(range(500, 510))
    assert len(acquire(mine, 1, 1, 10)) == 0  # it believes them free, and looks before it takes


def test_releasing_twice_frees_once_and_only_what_is_ones_own() -> None:
    """P17, R16: a stale or repeated free does nothing."""
    cells = new_cells()
    mine = acquire(cells, 1, 5, 4)
    assert release(cells, mine, 1, 4) == 0
    assert release(cells, mine, 2, 5) == 0
    assert release(cells, mine, 1, 5) == 4
    assert release(cells, mine, 1, 5) == 0
    theirs = acquire(cells, 2, 1, 200)
    assert len(theirs) == 200
    assert release(cells, mine, 1, 5) == 0
    assert cells.counts() == (0, 200, 0, 0)


def test_a_free_block_belongs_to_nobody_not_even_to_owner_zero() -> None:
    cells = new_cells()
    blocks = np.arange(10, dtype=np.uint32)
    assert cells.expose(blocks, 0, 10, 0, 0, 7) == 0
    assert cells.release(blocks, 0, 10, 0, 0) == 0
    assert cells.reclaim(0, 0, True) == 0
    assert cells.counts() == (200, 0, 0, 0)
    assert cells.exposure(0) == 0


def test_an_exposed_block_says_to_whom() -> None:
    """R10."""
    cells = new_cells()
    blocks = acquire(cells, 1, 1, 3)
    assert cells.expose(blocks, 0, 2, 1, 1, 77) == 2
    assert [cells.cell(int(b))[0] for b in blocks] == [EXPOSED, EXPOSED, OWNED]
    assert cells.exposure(int(blocks[0])) == 77
    assert cells.expose(blocks, 0, 3, 1, 1, 2**64 - 1) == 3  # again, under a newer session
    assert [cells.exposure(int(b)) for b in blocks] == [2**64 - 1] * 3
    assert cells.expose(blocks, 0, 3, 1, 2, 5) == 0
    assert cells.exposure(int(blocks[0])) == 2**64 - 1
    assert release(cells, blocks, 1, 1) == 3


def test_a_quarantined_block_is_nobodys_until_its_quarantine_ends() -> None:
    """D2, P7: not released, not exposed, not acquired."""
    cells = new_cells(8)
    blocks = acquire(cells, 1, 1, 8)
    assert cells.expose(blocks, 0, 5, 1, 1, 3) == 5
    assert cells.quarantine(blocks, 0, 8, 1, 1) == 5
    assert cells.counts() == (3, 0, 0, 5)
    assert cells.quarantine(blocks, 0, 8, 1, 1) == 0
    assert release(cells, blocks, 1, 1) == 0
    assert cells.expose(blocks, 0, 8, 1, 1, 4) == 0
    assert len(acquire(cells, 1, 1, 8)) == 3
    assert cells.reclaim(1, 1, True) == 3
    assert cells.end_quarantine(1, 2) == 0
    assert cells.end_quarantine(1, 1) == 5
    assert cells.counts() == (8, 0, 0, 0)


@pytest.mark.parametrize("quarantine", [True, False])
def test_reclaiming_a_dead_owner_leaves_everybody_elses(quarantine: bool) -> None:
    """P1, P3."""
    cells = new_cells(100)
    dead, alive = acquire(cells, 1, 1, 30), acquire(cells, 1, 2, 30)
    cells.expose(dead, 0, 10, 1, 1, 9)
    cells.expose(alive, 0, 10, 1, 2, 9)
    assert cells.reclaim(1, 1, quarantine) == 30
    assert cells.counts() == ((60, 20, 10, 10) if quarantine else (70, 20, 10, 0))
    assert cells.reclaim(1, 1, quarantine) == 0
    assert release(cells, alive, 1, 2) == 30


def test_a_fence_frees_what_was_exposed_below_its_session_and_to_its_peer() -> None:
    """R10, R12: exposure is `peer:16 | session:48` here."""
    cells = new_cells(100)
    peer = 0xFFFF << 48
    for slot, (node, session) in enumerate([(1, 4), (1, 5), (1, 6), (2, 4)]):
        blocks = acquire(cells, slot, 1, 10)
        cells.expose(blocks, 0, 10, slot, 1, node << 48 | session)
        cells.quarantine(blocks, 0, 10, slot, 1)
    still_exposed = acquire(cells, 9, 1, 10)
    cells.expose(still_exposed, 0, 10, 9, 1, 1 << 48 | 4)
    assert cells.end_exposure(peer, 1 << 48, 4) == 0
    assert cells.end_exposure(peer, 1 << 48, 6) == 20
    assert cells.counts() == (70, 0, 10, 20)
    assert cells.end_exposure(0, 0, 2**64 - 1) == 20
    assert cells.counts() == (90, 0, 10, 0)


def test_counting_free_blocks_stops_at_the_limit() -> None:
    cells = new_cells(100)
    acquire(cells, 1, 1, 40)
    assert cells.num_free(1000) == cells.num_free(2**64 - 1) == 60
    assert cells.num_free(10) == 10
    assert cells.num_free(0) == 0


def test_what_is_out_of_range_is_refused_before_a_block_moves() -> None:
    cells = new_cells(100)
    mine = acquire(cells, 1, 1, 10)
    bad = np.array([*mine, 100], np.uint32)
    out = np.zeros(10, np.uint32)
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (IndexError, lambda: cells.release(bad, 0, 11, 1, 1)),
        (IndexError, lambda: cells.quarantine(bad, 0, 11, 1, 1)),
        (IndexError, lambda: cells.expose(bad, 0, 11, 1, 1, 1)),
        (IndexError, lambda: cells.release(mine, 5, 6, 1, 1)),
        (IndexError, lambda: cells.release(mine, 2**64 - 1, 2, 1, 1)),
        (IndexError, lambda: cells.release(mine, 1, 2**64 - 1, 1, 1)),
        (IndexError, lambda: cells.acquire(1, 1, 11, 0, out, 0)),
        (IndexError, lambda: cells.acquire(1, 1, 5, 0, out, 6)),
        (IndexError, lambda: cells.acquire(1, 1, 0, 0, out, 11)),
        (IndexError, lambda: cells.cell(100)),
        (IndexError, lambda: cells.exposure(-1)),
        (ValueError, lambda: cells.acquire(65536, 1, 1, 0, out, 0)),
        (ValueError, lambda: cells.acquire(1, MAX_EPOCH + 1, 1, 0, out, 0)),
        (ValueError, lambda: cells.release(np.zeros(4, np.int64), 0, 1, 1, 1)),
        (OverflowError, lambda: cells.acquire(-1, 1, 1, 0, out, 0)),
        (OverflowError, lambda: cells.expose(mine, 0, 1, 1, 1, 2**64)),
        (BufferError, lambda: cells.acquire(1, 1, 1, 0, bytes(40), 0)),
        (TypeError, lambda: cells.release([1, 2], 0, 1, 1, 1)),  # type: ignore[arg-type]
    ]
    for error, call in calls:
        with pytest.raises(error):
            call()
    assert cells.counts() == (90, 10, 0, 0)
    assert release(cells, mine, 1, 1) == 10
