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
    """The latest of them. Any process reads; the bootstrap alone writes."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._records = GuardedRecords(mapping, layout.missed, NUM_MISSED, MISSED_WORDS)

    def put(self, key: bytes, now_ns: int) -> None:
        """Note a key (bootstrap only), in its place, or in that of the one that was asked for longest ago."""
        found = [self._of(index) for index in range(NUM_MISSED)]
        index = next((at for at, it in enumerate(found) if it is not None and it.key == key), None)
        count = 0
        if index is None:
            index = min(range(NUM_MISSED), key=lambda at: it.asked_ns if (it := found[at]) is not None else 0)
        else:
            count = next(it.num_asked for it in found if it is not None and it.key == key)
        words = [0] * MISSED_WORDS
        words[MissedItem.ASKED_NS], words[MissedItem.NUM_ASKED] = now_ns, count + 1
        words[MissedItem.KEY_BYTES] = len(key)
        words[MISSED_KEY:] = unpack(f"<{MAX_KEY_BYTES // 8}Q", key.ljust(MAX_KEY_BYTES, b"\0"))
        self._records.write(index, words)

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
