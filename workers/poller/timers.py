"""When to look at a request again: a heap of times that forgets those that ask for nothing any more."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

COMPACT_ABOVE = 1024


class Timers:
    """(time, slot, epoch) in order of time.

    `matters(time, slot, epoch)` says which still do; one that does not never will. So the heap stays small, and nobody
    wakes for them.
    """

    def __init__(self, matters: Callable[[int, int, int], bool]) -> None:
        self._matters = matters
        self._heap: list[tuple[int, int, int]] = []
        self._compact_at = COMPACT_ABOVE

    def add(self, when_ns: int, slot: int, epoch: int) -> None:
        heapq.heappush(self._heap, (when_ns, slot, epoch))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if self._matters(*entry)]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_ABOVE, 2 * len(self._heap))

    def has_due(self, now_ns: int) -> bool:
        """Whether a time has come."""
        return bool(self._heap) and self._heap[0][0] <= now_ns

    def due(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Take (slot, epoch) whose time has come and that still matter."""
        while self._heap and self._heap[0][0] <= now_ns:
            when_ns, slot, epoch = heapq.heappop(self._heap)
            if self._matters(when_ns, slot, epoch):
                yield slot, epoch

    def next_ns(self, otherwise_ns: int) -> int:
        """The earliest of them that matters, and of `otherwise_ns`."""
        while self._heap and self._heap[0][0] < otherwise_ns and not self._matters(*self._heap[0]):
            heapq.heappop(self._heap)
        return min(self._heap[0][0], otherwise_ns) if self._heap else otherwise_ns

    def __len__(self) -> int:
        return len(self._heap)
