"""Keys of items that were asked for in vain: whoever publishes may know what is wanted (`ClientShelf.wanted`)."""

from __future__ import annotations

from struct import pack, unpack
from typing import NamedTuple

from embridge.allocator._core import Mapping
from embridge.allocator.guarded_records import GuardedRecords
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import MAX_KEY_BYTES, MISSED_KEY, MISSED_WORDS, NUM_MISSED, MissedItem


class WantedItem(NamedTuple):
    """A key that was asked for in vain."""

    key: bytes
    num_asked: int
    """How often, since it is in the table."""
    asked_ns: int
    """When it was last, in monotonic nanoseconds of this host."""


class MissedItems:
    """The latest of them. Any process reads; the bootstrap alone writes, through one of these."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._records = GuardedRecords(mapping, layout.missed, NUM_MISSED, MISSED_WORDS)
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> its record, and how often; the oldest first
        self._free: list[int] | None = None  # records that hold none; None: it has not looked

    def put(self, key: bytes, now_ns: int) -> None:
        """Note a key (bootstrap only), in its place, or in that of the one that was asked for longest ago."""
        if self._free is None:
            self._take_up()
        index, count = self._places.pop(key, (None, 0))
        if index is None:
            index = self._free.pop() if self._free else self._places.pop(next(iter(self._places)))[0]
        self._places[key] = index, count + 1
        words = [0] * MISSED_WORDS
        words[MissedItem.ASKED_NS], words[MissedItem.NUM_ASKED] = now_ns, count + 1
        words[MissedItem.KEY_BYTES] = len(key)
        words[MISSED_KEY:] = unpack(f"<{MAX_KEY_BYTES // 8}Q", key.ljust(MAX_KEY_BYTES, b"\0"))
        self._records.write(index, words)

    def _take_up(self) -> None:
        """Go on with what the bootstrap before has written."""
        found = {index: it for index in range(NUM_MISSED) if (it := self._of(index)) is not None}
        for index in sorted(found, key=lambda index: found[index].asked_ns):
            self._places[found[index].key] = index, found[index].num_asked
        used = {index for index, _ in self._places.values()}
        self._free = [index for index in range(NUM_MISSED) if index not in used]

    def all(self) -> list[WantedItem]:
        """Those that are in the table, the latest first."""
        found = [it for index in range(NUM_MISSED) if (it := self._of(index)) is not None]
        return sorted(found, key=lambda it: -it.asked_ns)

    def _of(self, index: int) -> WantedItem | None:
        words = self._records.read(index) if self._records.generation(index) else None
        if words is None:
            return None
        raw = pack(f"<{MAX_KEY_BYTES // 8}Q", *words[MISSED_KEY:])
        key = raw[: words[MissedItem.KEY_BYTES]]
        return WantedItem(key, words[MissedItem.NUM_ASKED], words[MissedItem.ASKED_NS])
