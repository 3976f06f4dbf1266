"""A node's pool of blocks: the owner cells, the reserve, and the clients that wait for a block.

`RESERVE_BLOCK` is what keeps requests from waiting for each other for ever ("nobody holds blocks while waiting for
blocks", on both sides): at a destination only a request whose rows are waiting may hold it, at a source only a read
that a write needs. Rows that nobody can use yet, or that are kept for later, take the other blocks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from embridge.allocator._core import BlockCells, Mapping
from embridge.allocator.lanebits import LaneBits
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import SegmentHeader

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

    def acquire(self, slot: int, epoch: int, want: int, *, may_take_reserve: bool) -> npt.NDArray[np.uint32]:
        """Up to `want` blocks for a request, neighbours where possible; empty when there is none it may have."""
        out = np.empty(max(want, 1), np.uint32)
        if want <= 0:
            return out[:0]
        got = self.cells.acquire(slot, epoch, want, RESERVE_BLOCK + 1, out, 0)
        if got < want and may_take_reserve:
            got += self.cells.acquire(slot, epoch, 1, RESERVE_BLOCK, out, got)
        return out[:got]

    def release(self, blocks: npt.NDArray[np.uint32], slot: int, epoch: int) -> int:
        return self.cells.release(blocks, 0, len(blocks), slot, epoch)

    def counts(self) -> BlockCounts:
        return BlockCounts(*self.cells.counts())

    def check(self) -> BlockCounts:
        """Count the blocks in each state, and check that none is missing. Raises RuntimeError."""
        counts = self.counts()
        if sum(counts) != self.num_blocks:
            raise RuntimeError(f"block pool: {counts} sum to {sum(counts)}, not to {self.num_blocks}")
        return counts

    def set_waiting(self, lane: int, waiting: bool) -> None:
        """Say that this lane's library thread waits for a block (or no longer does); whoever frees one rings it."""
        self._waiters.set(lane, waiting)

    def waiters(self) -> list[int]:
        """The lanes of living clients that wait for a block."""
        return self._waiters.lanes()
