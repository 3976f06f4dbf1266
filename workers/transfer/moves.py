"""From rows to copies: which bytes of this node's payload go where in a peer's."""

from __future__ import annotations

from dataclasses import replace

from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.geometry import AUX_WORDS, SHELF_BLOCK_BYTES
from embridge.allocator.layout import PayloadLayout
from embridge.workers.role import RoleContext
from embridge.workers.transfer.engines.base import EngineError, Moves


class MovePlan:
    """Knows the geometry of this node, and the blocks that its destinations have granted."""

    def __init__(self, ctx: RoleContext) -> None:
        self._dsts = ctx.control.destinations
        self._geometry = ctx.control.geometry
        self._bs = ctx.bs
        self._pools = pools(ctx.control.geometry)
        self._aux = aux_offset(self._geometry, 0)
        self._shelf = PayloadLayout.of(self._geometry).size  # behind the payload, as engines count
        if ctx.control.has_shelf:
            self._fetches = ctx.control.fetches
        # blocks of a peer -> where its rows of each pool begin, and its aux_datas
        self._there: dict[int, tuple[list[int], int]] = {}

    def most_copies(self, num_blocks: int) -> int:
        """Of so many blocks, wherever they lie."""
        return num_blocks * len(self._pools) + 1

    def of(self, slot: int, d: int, first: int, end: int, blocks: list[tuple[int, int]], num_blocks: int) -> Moves:
        """The copies of rows [first, end) to destination `d`, which has `num_blocks` blocks.

        Blocks that are neighbours on both sides are copied as one.

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
        moves: Moves = []
        bases, aux = self._there.get(num_blocks) or self._begins(num_blocks)
        for pool, base in zip(self._pools, bases, strict=True):
            moves += [
                (base + to * pool.row_bytes, pool.offset + start * pool.row_bytes, rows * pool.row_bytes)
                for to, start, rows in runs
            ]
        if first == 0:
            k, source = blocks[0]
            there_block, _ = self._dsts.grant(slot, d, k)
            moves.append((aux + there_block * 4 * AUX_WORDS, self._aux + source * 4 * AUX_WORDS, 4 * AUX_WORDS))
        return moves

    def where(self, slot: int) -> tuple[int, int]:
        """Where the item of a fetch lies on the shelf: (its first byte, how many bytes)."""
        return self._fetches.held(slot).first * SHELF_BLOCK_BYTES, self._fetches.shape(slot).bytes

    def of_item(self, slot: int, d: int, first: int, end: int, num_blocks: int) -> Moves:
        """The copies of rows [first, end) of a fetch: so many bytes each of its item, which lies on the shelf, in one
        run, into the rows of `input_embeddings` there (R52).

        Raises:
            EngineError: a block index is out of range there.
        """
        bs, row_bytes, (begin, size) = self._bs, self._pools[0].row_bytes, self.where(slot)
        (base, *_), _ = self._there.get(num_blocks) or self._begins(num_blocks)
        moves: list[list[int]] = []
        for k in range(first // bs, -(-end // bs)):
            there_block, _ = self._dsts.grant(slot, d, k)
            if there_block >= num_blocks:
                raise EngineError(f"block {there_block} of {num_blocks} there: out of range")
            low, high = max(first, k * bs), min(end, (k + 1) * bs)
            to = base + (there_block * bs + low - k * bs) * row_bytes
            start, stop = low * row_bytes, min(high * row_bytes, size)
            if moves and moves[-1][0] + moves[-1][2] == to:
                moves[-1][2] += stop - start
            else:
                moves.append([to, self._shelf + begin + start, stop - start])
        return [(to, start, length) for to, start, length in moves]

    def _begins(self, num_blocks: int) -> tuple[list[int], int]:
        geometry = replace(self._geometry, num_blocks=num_blocks)
        there = {pool.name: pool.offset for pool in pools(geometry)}
        self._there[num_blocks] = [there[pool.name] for pool in self._pools], aux_offset(geometry, 0)
        return self._there[num_blocks]
