"""A node's pool of blocks: the owner cells, the reserve, and the clients that wait for a block.

`RESERVE_BLOCK` keeps requests from waiting for each other for ever, on both sides: no request holds blocks while it
waits for blocks (R21). At a destination only a request whose rows are waiting may hold it, at a source only rows that a
write needs. Rows that nobody can use yet, or that are kept for later, take the other blocks.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from embridge.allocator._core import BlockCells, Mapping
from embridge.allocator.lanebits import LaneBits
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import SegmentHeader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RESERVE_BLOCK: Final = 0

FREE, OWNED, EXPOSED, QUARANTINED = range(4)


class BlockCounts(NamedTuple):
    """How many blocks stand in each state; the sum is the pool."""

    free: int
    owned: int
    exposed: int
    quarantined: int


class BlockPool:
    """The owner cells of one node's payload, with the reserve rule and the waiters' bits."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_blocks = layout.num_blocks
        self.cells = BlockCells(mapping, layout.cells, layout.exposure, layout.num_blocks)
        self._waiters = LaneBits(mapping, layout, SegmentHeader.BLOCK_WAITERS)
        self._roomy_from = self.num_blocks // 2  # above what the others take, who begin below

    def acquire(
        self, slot: int, epoch: int, want: int, *, may_take_reserve: bool, behind: int = RESERVE_BLOCK, room: int = 0
    ) -> array[int]:
        """Take up to `want` blocks for a request, neighbours where possible; empty if there is none it may have.

        If all blocks right `behind` one that it has are free, it has those, and its blocks stay one run. It has its
        first ones where `room` more are free behind them, as it may need so many later, if there is such a place; the
        next request that asks for room begins behind that.
        """
        out = array("I", bytes(4 * max(want, 0)))
        if want <= 0:
            return out
        lowest = RESERVE_BLOCK + 1
        if behind != RESERVE_BLOCK and self._are_free(behind + 1, want):
            lowest = behind + 1
        elif room:
            lowest = self._roomy(want + room)
        got = self.cells.acquire(slot, epoch, want, lowest, out, 0)
        if got < want and may_take_reserve:
            got += self.cells.acquire(slot, epoch, 1, RESERVE_BLOCK, out, got)
        return out[:got]

    def _roomy(self, length: int) -> int:
        """Where a run of so many free blocks begins; if there is none, the lowest block that may be taken."""
        lowest = RESERVE_BLOCK + 1
        for begin in (max(self._roomy_from, lowest), lowest):
            start = self.cells.find_run(begin, length)
            if start >= 0:
                self._roomy_from = start + length
                return start
        return lowest

    def _are_free(self, first: int, count: int) -> bool:
        fits = first + count <= self.num_blocks
        return fits and all(self.cells.cell(block)[0] == FREE for block in range(first, first + count))

    def release(self, blocks: array[int] | npt.NDArray[np.uint32], slot: int, epoch: int) -> int:
        return self.cells.release(blocks, 0, len(blocks), slot, epoch)

    def counts(self) -> BlockCounts:
        return BlockCounts(*self.cells.counts())

    def check(self) -> BlockCounts:
        """Count the blocks in each state, and check that none is missing. Raises RuntimeError if one is."""
        counts = self.counts()
        if sum(counts) != self.num_blocks:
            raise RuntimeError(f"block pool: {counts} sum to {sum(counts)}, not to {self.num_blocks}")
        return counts

    def set_waiting(self, lane: int, waiting: bool) -> None:
        """Say whether this lane's library thread waits for a block. Whoever frees one rings it."""
        self._waiters.set(lane, waiting)

    def waiters(self) -> list[int]:
        """The lanes of living clients that wait for a block."""
        return self._waiters.lanes()
