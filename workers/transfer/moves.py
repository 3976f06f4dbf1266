"""From rows to copies: which bytes of this node's payload go where in a peer's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.geometry import AUX_WORDS
from embridge.workers.role import RoleContext
from embridge.workers.transfer.engines.base import EngineError, Moves


class MovePlan:
    """Knows the geometry of this node, and the blocks that its destinations have granted."""

    def __init__(self, ctx: RoleContext) -> None:
        self._dsts = ctx.control.destinations
        self._geometry = ctx.control.geometry
        self._bs = ctx.bs
        self._pools = pools(ctx.control.geometry)

    def of(self, slot: int, d: int, first: int, end: int, blocks: list[tuple[int, int]], num_blocks: int) -> Moves:
        """The copies of rows [first, end) to destination `d`, which has `num_blocks` blocks; neighbours on both sides
        move as one.

        Raises:
            EngineError: a block index is out of range, here or there.
        """
        bs = self._bs
        runs: list[list[int]] = []
        for k, source in blocks:
            there_block, _ = self._dsts.grant(slot, d, k)
            if there_block >= num_blocks or source >= self._geometry.num_blocks:
                raise EngineError(f"block {there_block} of {num_blocks} there, {source} here: out of range")
            low, high = max(first, k * bs), min(end, (k + 1) * bs)
            to, start, rows = there_block * bs + low - k * bs, source * bs + low - k * bs, high - low
            if runs and runs[-1][0] + runs[-1][2] == to and runs[-1][1] + runs[-1][2] == start:
                runs[-1][2] += rows
            else:
                runs.append([to, start, rows])
        moves = []
        there_geometry = replace(self._geometry, num_blocks=num_blocks)
        there = {pool.name: pool for pool in pools(there_geometry)}
        for pool in self._pools:
            base = there[pool.name].offset
            moves += [
                (base + to * pool.row_bytes, pool.offset + start * pool.row_bytes, rows * pool.row_bytes)
                for to, start, rows in runs
            ]
        if first == 0:
            k, source = blocks[0]
            there_block, _ = self._dsts.grant(slot, d, k)
            moves.append((aux_offset(there_geometry, there_block), aux_offset(self._geometry, source), 4 * AUX_WORDS))
        return np.array(moves, np.int64)
