"""The slots that are not released, all of them at one look: a few columns of the tables, and no record by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from embridge.allocator._core import Words
from embridge.allocator.control import Control
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.records import SLOT_BYTES, Slot, Told
from embridge.allocator.request_tables import TOLD_BITS
from embridge.allocator.status import EPOCH_SHIFT, PHASE_MASK, PHASE_SHIFT, split

_COLUMNS: Final = (Slot.EPOCH, Slot.RELEASED_EPOCH, Slot.TOLD, Slot.TOTAL, Slot.OPENED_NS)


class OpenSlot(NamedTuple):
    """A slot that is not released, with what its words say of its request. Rows; `opened_ns` is monotonic."""

    slot: int
    epoch: int
    phase: int
    sent: int
    total: int
    opened_ns: int


class OpenSlots:
    """The slots of one node. The columns are looked up once; a look costs some 0.6 µs a slot of a leased page."""

    def __init__(self, control: Control) -> None:
        self._lanes = control.lanes
        at, count = control.layout, control.limits.num_slots
        self._words = Words(control.mapping, at.words, count)
        self._columns = [Words(control.mapping, at.slots + 8 * field, count, SLOT_BYTES) for field in _COLUMNS]

    def look(self) -> list[OpenSlot]:
        """The slots of which `Control.is_open` is true now, in their order."""
        found = []
        for first in self._pages():
            rows = self._rows(first, len(_COLUMNS))
            for slot, (word, epoch, gone, told, total, opened_ns) in enumerate(rows, first):
                if epoch <= gone or told == epoch << TOLD_BITS | Told.RELEASED:
                    continue
                now = split(word)
                if now.epoch == epoch:
                    found.append(OpenSlot(slot, epoch, now.phase, now.sent, total, opened_ns))
        return found

    def phases(self) -> Counter[int]:
        """How many of the same slots are in each phase, for a third of what a look costs."""
        found: Counter[int] = Counter()
        for first in self._pages():
            found.update(
                word >> PHASE_SHIFT & PHASE_MASK
                for word, epoch, gone, told in self._rows(first, _COLUMNS.index(Slot.TOLD) + 1)
                if epoch > gone and word >> EPOCH_SHIFT == epoch and told != epoch << TOLD_BITS | Told.RELEASED
            )
        return found

    def _pages(self) -> Iterator[int]:
        """The first slot of each page that is leased; no slot of another one is open."""
        lanes = self._lanes
        return (page * SLOTS_PER_PAGE for page in range(lanes.num_pages) if lanes.page_lane(page) is not None)

    def _rows(self, first: int, num_columns: int) -> Iterator[tuple[int, ...]]:
        """Of each slot of a page, its status word and so many of the columns, which are read in this order."""
        words = self._words.load_many(first, SLOTS_PER_PAGE)
        columns = [column.load_many(first, SLOTS_PER_PAGE) for column in self._columns[:num_columns]]
        return zip(words, *columns, strict=True)
