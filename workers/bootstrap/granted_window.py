"""The window of a request: the blocks that its client has granted and whose rows are not drained. A grant carries them.

The client records a grant in its slot (`Slot.GRANTED` and the windows). Here its blocks are exposed before the message
leaves. If rows may come through shared memory, the slot's claim is then offered to writers on this host (R28).
"""

from __future__ import annotations

from array import array

from embridge.allocator.plain_enums import Slot
from embridge.allocator.sessions import SHM_EXPOSURE
from embridge.workers.role import RoleContext


class GrantedWindow:
    """Reads and exposes windows (bootstrap process of a language node)."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._windows = ctx.control.windows
        self._claims = ctx.control.claims

    def expose(self, slot: int, epoch: int, exposure: int) -> tuple[int, list[int], int] | None:
        """Expose every block of the window under a session. Returns (first block, indices, tokens granted).

        It looks again if the client has drained a block meanwhile. None if the request has ended meanwhile.
        """
        while self._ctx.is_live(slot, epoch):
            first, indices, tokens = self._read(slot)
            blocks = array("I", indices)
            if not indices or (
                self._control.blocks.cells.expose(blocks, 0, len(blocks), slot, epoch, exposure) == len(blocks)
            ):
                if indices and exposure == SHM_EXPOSURE:
                    self._claims.offer(slot, epoch)
                return first, indices, tokens
            if self._slots.get(slot, Slot.DRAINED_BLOCKS) == first:
                return None  # freed by the request's end, which its word will show
        return None

    def _read(self, slot: int) -> tuple[int, list[int], int]:
        """(first block, indices, tokens granted) that belong together, although the client may drain meanwhile."""
        while True:
            first = self._slots.get(slot, Slot.DRAINED_BLOCKS)
            blocks, tokens = self._slots.granted(slot)
            indices = self._windows.get_some(slot, first, blocks)
            if self._slots.get(slot, Slot.DRAINED_BLOCKS) == first:
                return first, indices, tokens
