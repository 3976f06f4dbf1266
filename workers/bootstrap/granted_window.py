"""What a request's client has granted and its rows have not been drained from: the blocks that a grant message carries.

The client records a grant in its slot (`Slot.GRANTED` and the windows); here its blocks are exposed before the message
leaves.
"""

from __future__ import annotations

import numpy as np

from embridge.allocator.records import Slot
from embridge.workers.role import RoleContext


class GrantedWindow:
    """Reads and exposes windows (bootstrap process of a language node)."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._windows = ctx.control.windows

    def expose(self, slot: int, epoch: int, exposure: int) -> tuple[int, list[int], int] | None:
        """Expose every block of the window under a session; (first block, indices, tokens granted).

        None when the request has ended meanwhile. When a block was drained meanwhile, it looks again.
        """
        while self._ctx.is_live(slot, epoch):
            first, indices, tokens = self._read(slot)
            array = np.array(indices, np.uint32)
            if not indices or (
                self._control.blocks.cells.expose(array, 0, len(array), slot, epoch, exposure) == len(array)
            ):
                return first, indices, tokens
            if self._slots.get(slot, Slot.DRAINED_BLOCKS) == first:
                return None  # freed by the request's end, which its word will show
        return None

    def _read(self, slot: int) -> tuple[int, list[int], int]:
        """(first block, indices, tokens granted) that belong together, though the client drains meanwhile."""
        while True:
            first = self._slots.get(slot, Slot.DRAINED_BLOCKS)
            blocks, tokens = self._slots.granted(slot)
            indices = [self._windows.get(slot, k) for k in range(first, blocks)]
            if self._slots.get(slot, Slot.DRAINED_BLOCKS) == first:
                return first, indices, tokens
