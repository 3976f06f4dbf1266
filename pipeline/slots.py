"""The slots that a client has leased: in pages of 64, taken first in, first out, and free again when the whole node is done with them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from embridge.allocator import layout as lay
from embridge.allocator.control import Control
from embridge.allocator.layout import Slot
from embridge.allocator.status import split

log = logging.getLogger(__name__)


class SlotLease:
    """One client's slots. `pages[:num_pages]` are its pages, as the scans of the status table want them.

    The caller's thread opens, the library thread leaves and collects; each step on the shared containers is one that the GIL makes
    atomic.
    """

    def __init__(self, control: Control, lane: int) -> None:
        self._control = control
        self._slots = control.slots
        self._lane = lane
        self.pages: npt.NDArray[np.uint32] = np.zeros(control.lanes.num_pages, np.uint32)
        self.num_pages = 0
        self._free: deque[int] = deque()
        self._releasing: dict[tuple[int, int], None] = {}  # (slot, epoch)

    def open(self, room: int, now_ns: int, deadline_ns: int, prepare: Callable[[int], None]) -> tuple[int, int]:
        """Write a slot's record, then open its next epoch: whoever is killed between leaves a slot that nobody takes for open.

        `prepare(slot)` writes what belongs to one side. Returns (slot, epoch).

        Raises:
            RuntimeError: every slot of the node is in use.
        """
        while True:
            slot = self._take()
            self._slots.reset(slot)
            for field, value in (
                (Slot.ROOM, room),
                (Slot.LANE, self._lane),
                (Slot.OPENED_NS, now_ns),
                (Slot.DEADLINE_NS, deadline_ns),
            ):
                self._slots.set(slot, field, value)
            prepare(slot)
            self._slots.set(slot, Slot.EPOCH, split(self._control.status.load(slot)).epoch + 1)
            epoch = self._control.status.open(slot, now_ns)
            if epoch:
                return slot, epoch
            log.warning("slot %d has used all its epochs; it is retired", slot)

    def _take(self) -> int:
        """First in, first out (R17); one more page is leased when none is free."""
        self.collect()
        if not self._free:
            page = self._control.lanes.lease_page(self._lane)
            if page is None:
                raise RuntimeError(f"all {self._control.limits.num_slots} slots are in use; try again later, or raise num_slots")
            self.pages[self.num_pages] = page
            self.num_pages += 1
            first = page * lay.SLOTS_PER_PAGE
            self._free.extend(range(first, first + lay.SLOTS_PER_PAGE))
        return self._free.popleft()

    def leave(self, slot: int, epoch: int) -> None:
        """The client needs nothing of this epoch any more; the slot is free once the node has released it, too."""
        self._slots.set(slot, Slot.CLEARED_EPOCH, epoch)
        self._releasing[slot, epoch] = None

    def collect(self) -> None:
        """Take back what the node has released."""
        for left in list(self._releasing):
            slot, epoch = left
            if self._slots.get(slot, Slot.RELEASED_EPOCH) >= epoch and self._releasing.pop(left, False) is None:
                self._free.append(slot)
