"""The slots that a client has leased, in pages of 64: who may take one, and when a page goes back.

On an encode node a slot may be opened *early*, before anybody has asked for its room; it may then be held for long.
Such slots lie in no more than half of the node's pages, so that pages of the others come free, for whichever client is
asked (`waiting`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from embridge.allocator.control import Control
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.records import Slot
from embridge.allocator.status import split

log = logging.getLogger(__name__)


class SlotLease:
    """One client's slots. `pages` are its pages, as the scans of the status table want them.

    The caller's thread and the library thread open; the library thread leaves, collects and shares. Each step on the
    shared containers is one that the GIL makes atomic.
    """

    def __init__(self, control: Control, lane: int) -> None:
        self._control = control
        self._slots = control.slots
        self._lanes = control.lanes
        self._lane = lane
        self.pages: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._free: dict[int, deque[int]] = {}  # page -> its free slots, first in, first out (R17)
        self._early: dict[int, set[int]] = {}  # page that early slots may lie in -> those that do
        self._leaving: set[int] = set()  # pages of which no more slots are taken
        self._releasing: dict[tuple[int, int], None] = {}  # (slot, epoch)

    def open(
        self, room: int, opened_ns: int, deadline_ns: int, prepare: Callable[[int], None], *, is_early: bool = False
    ) -> tuple[int, int] | None:
        """Write a slot's record, then open its next epoch: whoever is killed between leaves a slot that nobody takes
        for open.

        `prepare(slot)` writes what belongs to one side. Returns (slot, epoch), or None when there is no free slot to be
        had.
        """
        while (slot := self._take_early() if is_early else self._take()) is not None:
            self._slots.reset(slot)
            for field, value in (
                (Slot.ROOM, room),
                (Slot.LANE, self._lane),
                (Slot.OPENED_NS, opened_ns),
                (Slot.DEADLINE_NS, deadline_ns),
            ):
                self._slots.set(slot, field, value)
            prepare(slot)
            self._slots.set(slot, Slot.EPOCH, split(self._control.status.load(slot)).epoch + 1)
            epoch = self._control.status.open(slot, opened_ns)
            if epoch:
                return slot, epoch
            log.warning("slot %d has used all its epochs; it is retired", slot)
        return None

    def has_some_to_spare(self) -> bool:
        """Whether a quarter of what this client has, or may lease, is free."""
        self.collect()
        unleased = sum([self._lanes.page_lane(page) is None for page in range(self._lanes.num_pages)])
        free = sum([len(free) for free in list(self._free.values())])
        return 4 * (free + unleased * SLOTS_PER_PAGE) >= (len(self._free) + unleased) * SLOTS_PER_PAGE

    def _take(self) -> int | None:
        """From pages without early slots first; one more page is leased when none is free."""
        self.collect()
        pages = sorted(self._free, key=self._early.__contains__) if self._early else list(self._free)
        slot = self._pop(pages)
        while slot is None and (page := self._lease_page()) is not None:
            slot = self._pop([page])
        return slot

    def _take_early(self) -> int | None:
        self.collect()
        while True:
            slot = self._pop(list(self._early))
            if slot is None and (page := self._make_early()) is not None:
                slot = self._pop([page])
                if slot is None:  # the other thread was faster
                    continue
            if slot is None:
                return None
            page = slot // SLOTS_PER_PAGE
            early = self._early.get(page)
            if early is not None:
                early.add(slot)
                if self._early.get(page) is early:
                    return slot
                early.discard(slot)
            self._free[page].append(slot)  # the library thread has just found that no early slot lies in it

    def _pop(self, pages: Iterable[int]) -> int | None:
        for page in pages:
            if page not in self._leaving:
                try:
                    return self._free[page].popleft()
                except (IndexError, KeyError):
                    continue
        return None

    def _lease_page(self) -> int | None:
        page = self._lanes.lease_page(self._lane)
        if page is not None:
            self._free[page] = deque(range(page * SLOTS_PER_PAGE, (page + 1) * SLOTS_PER_PAGE))
            self._set_pages()
        return page

    def _make_early(self) -> int | None:
        """One more page in which early slots may lie, one with a free slot; None when half of the node's pages are
        such.
        """
        self._lanes.add_early(self._lane, 1)  # first: of two clients that cross, at least one sees the other
        if self._lanes.num_early() <= self._lanes.num_pages // 2:
            held = [page for page in list(self._free) if page not in self._early and page not in self._leaving]
            page = next((page for page in held if self._free[page]), None)
            page = self._lease_page() if page is None else page
            early: set[int] = set()
            if page is not None and self._early.setdefault(page, early) is early:
                return page
        self._lanes.add_early(self._lane, -1)
        return None

    def _set_pages(self) -> None:
        while True:  # two threads may be here: the last to look finds what it has set to be right
            held = tuple(self._free)
            self.pages = np.array(held, np.uint32)
            if tuple(self._free) == held and len(self.pages) == len(held):
                return

    def leave(self, slot: int, epoch: int) -> None:
        """The client needs nothing of this epoch any more; the slot is free once the node has released it, too."""
        page = slot // SLOTS_PER_PAGE
        early = self._early.get(page)
        if early is not None:
            early.discard(slot)
            if not early:
                self._end_early(page, early)
        self._slots.set(slot, Slot.CLEARED_EPOCH, epoch)
        self._releasing[slot, epoch] = None

    def _end_early(self, page: int, early: set[int]) -> None:
        del self._early[page]
        if early:  # the caller's thread has just added one
            others = self._early.setdefault(page, early)
            if others is early:
                return
            others.update(early)
        self._lanes.add_early(self._lane, -1)

    def collect(self) -> None:
        """Take back what the node has released."""
        for left in list(self._releasing):
            slot, epoch = left
            if self._slots.get(slot, Slot.RELEASED_EPOCH) >= epoch and self._releasing.pop(left, False) is None:
                self._free[slot // SLOTS_PER_PAGE].append(slot)

    # ---- other clients

    def share(self, *, is_needy: bool) -> None:
        """Give back pages that other clients of the node wait for; `is_needy`: so does this one (library thread only).

        Who needs none gives back those that are wholly free. Who holds more than its share, be it all that it has where
        there are fewer pages than clients, takes no more slots of one page at a time, until that is wholly free.
        """
        # the threads have crossed: one has made it early, or put it back, and the other has no slot of it
        for page, early in list(self._early.items()):
            if not early:
                self._end_early(page, early)
        others = [lane for lane in self._control.slot_waiters.lanes() if lane != self._lane]
        if not others:
            self._leaving.clear()
            return
        unused = [
            page for page, free in list(self._free.items()) if len(free) == SLOTS_PER_PAGE and page not in self._early
        ]
        gone = [page for page in unused if (page in self._leaving or not is_needy) and self._give_back(page)]
        if gone:
            self._control.ring_slot_waiters()
        if not self._leaving:
            self._choose_who_leaves(others)

    def _choose_who_leaves(self, others: list[int]) -> None:
        pages = range(self._lanes.num_pages)
        holders = {lane for page in pages if (lane := self._lanes.page_lane(page)) is not None}
        share = self._lanes.num_pages // len(holders.union(others, (self._lane,)))
        if len(self._free) > share:
            may_leave = [page for page in self._free if page not in self._early]
            self._leaving.update(sorted(may_leave, key=lambda page: len(self._free[page]))[-1:])

    def _give_back(self, page: int) -> bool:
        """Once all of its slots are in this thread's hands."""
        free, slots = self._free[page], []
        while free:
            try:
                slots.append(free.popleft())
            except IndexError:
                break
        if len(slots) < SLOTS_PER_PAGE or page in self._early:  # the caller's thread has just taken one
            free.extend(slots)
            return False
        del self._free[page]
        self._leaving.discard(page)
        self._set_pages()  # before it is another's, whose marks are not ours to take
        return self._lanes.return_page(page, self._lane)
