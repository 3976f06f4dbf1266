"""When to look at a request again: a heap of times that forgets requests that are over."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

COMPACT_ABOVE = 1024


class Timers:
    """(time, slot, epoch) in order of time.

    `is_current(slot, epoch)` says which still matter, so that the heap stays small.
    """

    def __init__(self, is_current: Callable[[int, int], bool]) -> None:
        self._is_current = is_current
        self._heap: list[tuple[int, int, int]] = []
        self._compact_at = COMPACT_ABOVE

    def add(self, when_ns: int, slot: int, epoch: int) -> None:
        heapq.heappush(self._heap, (when_ns, slot, epoch))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if self._is_current(entry[1], entry[2])]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_ABOVE, 2 * len(self._heap))

    def has_due(self, now_ns: int) -> bool:
        """Whether a time has come."""
        return bool(self._heap) and self._heap[0][0] <= now_ns

    def due(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Take (slot, epoch) whose time has come and that still matter."""
        while self._heap and self._heap[0][0] <= now_ns:
            _, slot, epoch = heapq.heappop(self._heap)
            if self._is_current(slot, epoch):
                yield slot, epoch

    def next_ns(self, otherwise_ns: int) -> int:
        """The earliest of them and of `otherwise_ns`."""
        return min(self._heap[0][0], otherwise_ns) if self._heap else otherwise_ns

    def __len__(self) -> int:
        return len(self._heap)
