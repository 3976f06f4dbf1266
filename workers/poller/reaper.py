"""What a dead client leaves: the poller ends its slots one by one; then its pages and its lane are free again."""

from __future__ import annotations

from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.plain_enums import Lane, LaneState
from embridge.allocator.status import split
from embridge.workers.role import RoleContext


class Reaper:
    """Frees the pages and lanes of dead clients once none of their slots is in use (poller only)."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._lanes = ctx.control.lanes
        self._dying: set[int] = set()
        self.look()

    def look(self) -> None:
        """Find the DEAD lanes, at the poller's birth and in the slow scan (R25).

        The poller before this one may have died over them.
        """
        lanes = range(self._lanes.num_lanes)
        self._dying.update(lane for lane in lanes if self._lanes.get(lane, Lane.STATE) == LaneState.DEAD)

    def bury(self, lane: int) -> None:
        self._dying.add(lane)

    def free_lanes(self) -> None:
        for lane in list(self._dying):
            if self._lanes.get(lane, Lane.STATE) != LaneState.DEAD:
                self._dying.discard(lane)
                continue
            pages = self._lanes.pages_of(lane)
            if any(self._in_use(page) for page in pages):
                continue
            for page in pages:
                self._lanes.return_page(page, lane)
            control = self._ctx.control
            control.blocks.set_waiting(lane, False)
            control.slot_waiters.set(lane, False)
            control.room_waiters.set(lane, False)
            control.ring_slot_waiters()
            self._lanes.free(lane)
            self._dying.discard(lane)

    def _in_use(self, page: int) -> bool:
        first = page * SLOTS_PER_PAGE
        for slot in range(first, first + SLOTS_PER_PAGE):
            epoch = split(self._ctx.status.load(slot)).epoch
            if epoch and self._ctx.is_current(slot, epoch):
                return True
        return False
