"""The source blocks of one request that its transfer worker may read, by block of the request.

They are a cache, not a place to wait in.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

import numpy as np

from embridge.allocator.request_tables import STAGE_STAGED, StageEntry, StagingTable
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.kept_rows import KeptRows
from embridge.pipeline.client.library import Library
from embridge.pipeline.leaving import refuse

FREE_ENTRY: Final = 0


class StagedBlocks:
    """One sender's staged blocks.

    The library thread shows blocks to the worker and drops them; it alone calls all methods, except `release`.
    """

    def __init__(self, library: Library, handle: TransferHandle, kept: KeptRows) -> None:
        self._library = library
        self._attachment = library.attachment
        self._blocks = library.attachment.control.blocks
        self._staging: StagingTable = library.staging
        self._window = self._staging.window
        self._handle = handle
        self._kept = kept
        self._entries: dict[int, StageEntry] = {}  # as shown to the worker

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        """The request blocks that are staged now; they may be dropped meanwhile."""
        return iter(list(self._entries))

    def get(self, block: int) -> StageEntry | None:
        """The entry of a request block, if the block is staged."""
        return self._entries.get(block)

    def show(self, block: int, entry: StageEntry) -> None:
        """Show the worker a new block, or a block with more rows than before.

        If the worker is reading the block, only its rows rise.
        """
        handle = self._handle
        if block == 0 and 0 not in self._entries:
            self._attachment.buffers.aux_datas[entry.source] = self._attachment.control.slots.aux(handle.slot)
        while True:
            word = self._staging.load(handle.slot, block)
            now = StageEntry.of(word)
            same = now.block == block and now.state != 0
            assert same or now.state == 0, f"the entry of block {block} holds block {now.block}"
            new = (entry._replace(state=now.state) if same else entry).pack()
            if self._staging.replace(handle.slot, block, word, new):
                break
        self._entries[block] = entry

    def make_place(self, block: int, keep: Container[int]) -> bool:
        """Whether the entry of a block is free, or could be freed.

        Entries repeat after one window, and destinations may be further apart. Request blocks in `keep` are not freed.
        """
        for other in self._entries:
            if other != block and (other - block) % self._window == 0:
                return other not in keep and self.free(other)
        return True

    def free(self, block: int) -> bool:
        """Take a block out of the cache although its rows may be needed again; they are kept in host memory then."""
        if not self._kept.has(block) and not self._kept.is_over(block):
            entry = self._entries[block]
            try:
                self._kept.bring_back(self._attachment.payload, block, entry.source, entry.rows)
            except MemoryError:
                return False
        return self.drop(block)

    def drop(self, block: int) -> bool:
        """Take a block out of the cache, unless the worker is reading it."""
        slot, entry = self._handle.slot, self._entries[block]
        word = self._staging.load(slot, block)
        if StageEntry.of(word).state != STAGE_STAGED or not self._staging.replace(slot, block, word, FREE_ENTRY):
            return False
        del self._entries[block]
        self.release([entry.source])
        return True

    def drop_all(self) -> int:
        """Drop all blocks that the worker is not reading. Returns how many were dropped."""
        return sum(self.drop(block) for block in self)

    def release(self, sources: list[int]) -> None:
        """Give source blocks of the request back to the pool (either thread: those that it holds)."""
        if sources:
            self._blocks.release(np.array(sources, np.uint32), self._handle.slot, self._handle.epoch)
            self._library.blocks_freed()

    def refuse(self, why: str) -> None:
        """Have every use of the blocks raise RuntimeError, because the client has left its node."""
        refuse(self, why, ("_staging", "_blocks"))
