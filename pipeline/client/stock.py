"""The stock of a sender: rows that were not written straight into their destination, in host memory and source blocks.

It is made when the first row is kept, because most senders never have one.
"""

from __future__ import annotations

from collections import deque

from embridge.allocator._core import Mapping
from embridge.allocator.request_tables import StageEntry
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.kept_rows import KeptRows
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.staged_blocks import StagedBlocks
from embridge.pipeline.client.staging import Staging


class Stock:
    """One sender's."""

    def __init__(self, library: Library, handle: TransferHandle, total_tokens: int) -> None:
        self.kept = KeptRows(library.attachment.geometry, library.unsent, total_tokens)
        self.staged = StagedBlocks(library, handle, self.kept)
        self.staging = Staging(library, handle, total_tokens, self.kept, self.staged)
        self.placed: deque[StageEntry] = deque()
        """Filled by the caller's thread, not shown to the worker yet."""

    def show_placed(self, payload: Mapping) -> None:
        """Show the worker the blocks that the caller's thread has filled (library thread)."""
        while self.placed:
            entry = self.placed[0]
            if self.staged.make_place(entry.block, ()):
                self.staged.show(entry.block, entry)
            else:  # the block in its place is still being read
                self.kept.bring_back(payload, entry.block, entry.source, entry.rows)
                self.staged.release([entry.source])
            self.placed.popleft()

    def clear(self) -> None:
        """Free all rows, and the blocks that no worker was shown."""
        self.staged.release([entry.source for entry in self.placed])
        self.placed.clear()
        self.kept.clear()

    def refuse(self, why: str) -> None:
        """The client has left its node: whatever is asked of the tables from now on is a RuntimeError."""
        self.staged.refuse(why)
        self.staging.refuse(why)
