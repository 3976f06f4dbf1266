"""The slots that a client has leased, in pages of 64: who may take one, and when a page goes back.

On an encode node a slot may be opened *early*, before anybody has asked for its room; it may then be held for long.
Early slots lie in no more than half of the node's pages, so pages of the other half come free for clients whose rooms
were asked for (`slot_queue.py`). The only page that a client has for them stays one after its last early slot, while
they are few and nobody waits: one request after the other would make it one and unmake it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from embridge.allocator.control import Control
from embridge.allocator.geometry import SLOTS_PER_PAGE, Role
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord

log = logging.getLogger(__name__)

MOST_HELD: Final = SLOTS_PER_PAGE * 3 // 4
NO_MORE_EPOCHS: Final = "slot %d has used all its epochs; it is retired"


class SlotLease:
    """One client's slots. `pages` are its pages, as the scans of the status table want them.

    The caller's thread and the library thread open slots; the library thread leaves, collects and shares; whoever has
    the turn holds. Each step on the shared containers is one that the GIL makes atomic.
    """

    def __init__(self, control: Control, lane: int) -> None:
        self._control = control
        self._slots = control.slots
        self._lanes = control.lanes
        self._opener = control.opener
        self._fetches = control.fetches if control.role == Role.LANGUAGE else None
        self._lane = lane
        self.pages: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._free: dict[int, deque[int]] = {}  # page -> its free slots, first in, first out (R17)
        self._early: dict[int, set[int]] = {}  # page that early slots may lie in -> its early slots
        self._leaving: set[int] = set()  # pages of which no more slots are taken
        self._releasing: dict[tuple[int, int], None] = {}  # (slot, epoch)
        self._page = self._early_page = -1  # of the slot that was taken last
        self._keeps = False  # a page that early slots may lie in, though none does

    def open(
        self,
        room: int,
        opened_ns: int,
        deadline_ns: int,
        prepare: Callable[[int, SlotRecord], None],
        *,
        is_early: bool = False,
        is_untold: bool = False,
    ) -> tuple[int, int] | None:
        """Write a slot's record, then open its next epoch.

        A client that is killed between the two leaves a slot that nobody takes for open. `prepare(slot, record)` writes
        what belongs to one side. `is_untold`: no process of the node is told of it yet (R78). Returns (slot, epoch), or
        None if no slot is free.
        """
        while (slot := self.take(is_early=is_early)) is not None:
            record = SlotRecord()
            words = record.words
            words[Slot.ROOM], words[Slot.LANE] = room, self._lane
            words[Slot.OPENED_NS], words[Slot.DEADLINE_NS] = opened_ns, deadline_ns
            if self._fetches is not None:
                self._fetches.ask_nothing(slot)
            prepare(slot, record)
            if epoch := self._opener.open(slot, record, opened_ns, is_untold=is_untold):
                return slot, epoch
            log.warning(NO_MORE_EPOCHS, slot)
        return None

    def take(self, *, is_early: bool = False) -> int | None:
        """Take a slot, to be opened. None if none is free."""
        if self._releasing:
            self.collect()
        return self._take_early() if is_early else self._take()

    def put_back(self, slot: int) -> None:
        """Put a slot back that was taken, and not opened."""
        self._free[slot // SLOTS_PER_PAGE].appendleft(slot)

    def has_some_to_spare(self) -> bool:
        """Whether a quarter of what this client has, or may lease, is free."""
        self.collect()
        unleased = sum([self._lanes.page_lane(page) is None for page in range(self._lanes.num_pages)])
        free = sum([len(free) for free in list(self._free.values())])
        return 4 * (free + unleased * SLOTS_PER_PAGE) >= (len(self._free) + unleased) * SLOTS_PER_PAGE

    def _take(self) -> int | None:
        """Take a slot, from pages without early slots first; lease one more page if none is free.

        While most of the node's pages are nobody's, a quarter of each is left free, as `hold` asks: so the slots of all
        requests that are in flight may be held.
        """
        slot = self._pop((self._page,), least=SLOTS_PER_PAGE - MOST_HELD)
        if slot is not None:  # as for nearly all: what follows looks through all pages
            return slot
        pages = sorted(self._free, key=self._early.__contains__) if self._early else list(self._free)
        slot = self._pop(pages, least=SLOTS_PER_PAGE - MOST_HELD)
        if slot is None and self._may_spread() and (page := self._lease_page()) is not None:
            slot = self._pop([page])
        if slot is None:
            slot = self._pop(pages)
        while slot is None and (page := self._lease_page()) is not None:
            slot = self._pop([page])
        self._page = -1 if slot is None else slot // SLOTS_PER_PAGE
        return slot

    def _may_spread(self) -> bool:
        count = self._lanes.num_pages
        num_unleased = sum([self._lanes.page_lane(page) is None for page in range(count)])
        return self._control.role == Role.LANGUAGE and 2 * num_unleased > count

    def _take_early(self) -> int | None:
        while True:
            slot = self._pop((self._early_page,)) if self._early_page in self._early else None
            if slot is None:
                slot = self._pop(list(self._early))
            if slot is None and (page := self._make_early()) is not None:
                slot = self._pop([page])
                if slot is None:  # the other thread was faster
                    continue
            if slot is None:
                return None
            page = self._early_page = slot // SLOTS_PER_PAGE
            early = self._early.get(page)
            if early is not None:
                early.add(slot)
                if self._early.get(page) is early:
                    return slot
                early.discard(slot)
            self._free[page].append(slot)  # the library thread has just found that no early slot lies in it

    def _pop(self, pages: Iterable[int], *, least: int = 0) -> int | None:
        """Take a slot of one of these pages that has more than `least` free ones."""
        for page in pages:
            free = self._free.get(page)
            # of thousands of slots, those of most pages are in use
            if free is not None and len(free) > least and page not in self._leaving:
                try:
                    return free.popleft()
                except IndexError:
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
        if self._count_early():
            held = [page for page in list(self._free) if page not in self._early and page not in self._leaving]
            page = next((page for page in held if self._free[page]), None)
            page = self._lease_page() if page is None else page
            early: set[int] = set()
            if page is not None and self._early.setdefault(page, early) is early:
                return page
            self._lanes.add_early(self._lane, -1)
        return None

    def _count_early(self) -> bool:
        """Count a page more in which slots may be held for long. False, and nothing is counted: half of them are."""
        self._lanes.add_early(self._lane, 1)  # first: of two clients that cross, at least one sees the other
        num_early, num_pages = self._lanes.num_early(), self._lanes.num_pages
        if num_early <= num_pages // 2:
            self._keeps = num_early <= num_pages // 4
            return True
        self._lanes.add_early(self._lane, -1)
        return False

    def hold(self, slot: int) -> bool:
        """Note that a slot in use will be held for as long as its scheduler likes (by whoever has the turn).

        False if it may not be: such slots lie in no more than half of the node's pages, as early ones do, and leave a
        quarter of each to requests that end by themselves.
        """
        page = slot // SLOTS_PER_PAGE
        held = self._early.get(page)
        if held is None and page not in self._leaving and self._count_early():
            held = self._early[page] = set()
        if held is None or len(held) >= MOST_HELD:
            return False
        held.add(slot)
        return True

    def _set_pages(self) -> None:
        while True:  # two threads may be here: the last to look finds what it has set to be right
            held = tuple(self._free)
            self.pages = np.array(held, np.uint32)
            if tuple(self._free) == held and len(self.pages) == len(held):
                return

    def leave(self, slot: int, epoch: int) -> None:
        """Leave a slot of which the client needs nothing any more. It is free once the node has released it, too."""
        self.let_go(slot)
        self._slots.set(slot, Slot.CLEARED_EPOCH, epoch)
        self._releasing[slot, epoch] = None

    def released(self, slot: int, epoch: int) -> None:
        """Take a slot back that this client has released itself, as its node was not told of the epoch (R78)."""
        self._slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
        self.take_back(slot)

    def take_back(self, slot: int) -> None:
        """Take back a slot of which all has been said already (R78)."""
        page = slot // SLOTS_PER_PAGE
        if (early := self._early.get(page)) is not None:
            early.discard(slot)
            if not early and (not self._keeps or len(self._early) > 1):
                self._end_early(page, early)
        self._free[page].append(slot)

    def let_go(self, slot: int) -> None:
        """Note that a slot is held for long no more (by whoever has the turn)."""
        page = slot // SLOTS_PER_PAGE
        if (early := self._early.get(page)) is not None:
            early.discard(slot)
            if not early and (not self._keeps or len(self._early) > 1):
                self._end_early(page, early)

    def _end_early(self, page: int, early: set[int]) -> None:
        del self._early[page]
        if early:  # the caller's thread has just added one
            others = self._early.setdefault(page, early)
            if others is early:
                return
            others.update(early)
        self._lanes.add_early(self._lane, -1)

    def collect(self) -> None:
        """Take back the slots that the node has released."""
        for left in list(self._releasing) if self._releasing else ():
            slot, epoch = left
            if self._slots.get(slot, Slot.RELEASED_EPOCH) >= epoch and self._releasing.pop(left, False) is None:
                self._free[slot // SLOTS_PER_PAGE].append(slot)

    # ---- other clients

    def share(self, *, is_needy: bool) -> None:
        """Give back pages for which other clients of the node wait (library thread only).

        `is_needy` says that this client waits for slots, too. A client that does not gives back its pages that are
        wholly free. A client that holds more than its share takes no more slots of one page at a time, until that page
        is wholly free. With fewer pages than clients that may be the only page it has.
        """
        others = [lane for lane in self._control.slot_waiters.lanes() if lane != self._lane]
        # the threads have crossed: one has made it early, or put it back, and the other has no slot of it
        kept = 1 if self._keeps and not others else 0
        empty = [(page, early) for page, early in list(self._early.items()) if not early]
        for page, early in empty if len(self._early) > kept else ():
            self._end_early(page, early)
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
        """Give a page back once all of its slots are in this thread's hands."""
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
