"""Rows that an encoder makes in source blocks of its own node, where its transfer worker sends them from.

Nothing is copied then on this side. The blocks are the encoder's until they are committed, and that may take long; so
they are only those that nobody else needs: a quarter of the pool stays free, and nobody waits for a block (R21, P21).
Until then the request keeps its slot, by which they are found when the process is dead. A client that leaves while rows
are out takes the memory out of this process's reach first (`Attachment.leave`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from embridge.allocator.buffers import pools
from embridge.allocator.request_tables import STAGE_STAGED, StageEntry

if TYPE_CHECKING:
    from embridge.pipeline.client.handle import TransferHandle
    from embridge.pipeline.client.library import Library
    from embridge.pipeline.client.stock import Stock


class SourceRows:
    """Rows [first, end) of a request, in a run of source blocks; the first of them begins a block (caller's thread)."""

    def __init__(self, library: Library, stock: Stock, first: int, end: int, blocks: list[int]) -> None:
        self.first = first
        self.end = end
        self._attachment = attachment = library.attachment
        self._staged = stock.staged
        self._placed = stock.placed
        self._piece_blocks = stock.kept.piece_blocks
        self._blocks = blocks
        self._bs = attachment.geometry.block_size
        self._pools = pools(attachment.geometry)
        self.memory = memoryview(attachment.payload)
        attachment.rows_out[self] = None

    @classmethod
    def take(
        cls, library: Library, handle: TransferHandle, stock: Stock, first: int, end: int, total: int
    ) -> SourceRows | None:
        """Take source blocks for rows [first, end), or for as many of the first of them as there may be; None for none.

        Blocks are placed whole: a block that these rows do not fill is none of them, unless it is the last of all.
        """
        attachment, blocks = library.attachment, library.attachment.control.blocks
        bs = attachment.geometry.block_size
        end = end if end == total else end // bs * bs
        if first % bs or end <= first or library.is_starving or blocks.waiters():
            return None
        _, _, least = stock.staging.wanted(first)
        count = min(-(-end // bs), least + stock.staging.window) - first // bs
        taken = blocks.acquire(
            handle.slot, handle.epoch, min(count, library.spare_blocks()), may_take_reserve=False
        ).tolist()
        run = [block for i, block in enumerate(taken) if block == taken[0] + i]
        run = run if run == taken[: len(run)] else run[:1]
        stock.staged.release(taken[len(run) :])
        if not run:
            return None
        return cls(library, stock, first, min(end, first + len(run) * bs), run)

    def offset_of(self, name: str) -> int:
        """Where the first row of a buffer lies in the payload."""
        pool = next(pool for pool in self._pools if pool.name == name)
        return pool.offset + self._blocks[0] * self._bs * pool.row_bytes

    def may_end_at(self, end: int) -> bool:
        """Whether the rows before `end` fill their blocks."""
        return end == self.end or end % self._bs == 0

    def place(self, end: int) -> Iterator[int]:
        """Hand the blocks of the rows before `end` over, to be shown to the worker: what is sent first, then the rest.

        Yields how far that is done.
        """
        bs, k = self._bs, self.first // self._bs
        for limit in (min(end, (k + self._piece_blocks) * bs), end):
            while k * bs < limit:
                block = self._blocks.pop(0)
                self._placed.append(StageEntry(k, block, min(limit - k * bs, bs), STAGE_STAGED))
                k += 1
            yield limit
            if limit == end:
                return

    def let_go(self) -> None:
        """Give back the blocks that were not handed over."""
        self._attachment.rows_out.pop(self, None)
        blocks, self._blocks = self._blocks, []
        self._staged.release(blocks)
