"""How many fetches each language node may have open here, so that none of them keeps the others from theirs (R86).

Half of the slots that fetches may have is parted among the nodes that are alive: each may always have its part. The
other half is for whoever comes first. So a node that is alone has all of them, and one that has many, because its rows
find no memory, say, leaves every other one as many as its part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection


class FetchShares:
    """Counts by node, as the peer table has it. Used by the encode bootstrap only."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: how many slots all fetches may have together."""
        self._capacity = capacity
        self._counts: Counter[int] = Counter()
        self._peer_of: dict[int, int] = {}  # by slot

    def may_open(self, peer: int, living: Collection[int]) -> bool:
        """Whether a node may have one more. `living` are those that are registered, this one included."""
        part = self._capacity // 2 // max(len(living), 1)
        if self._counts[peer] < part:
            return True
        beyond = sum(max(count - part * (of in living), 0) for of, count in self._counts.items())
        return beyond < self._capacity - part * len(living)

    def opened(self, slot: int, peer: int) -> None:
        """Count a fetch."""
        self.released(slot)
        self._peer_of[slot] = peer
        self._counts[peer] += 1

    def released(self, slot: int) -> None:
        """Count it no more."""
        peer = self._peer_of.pop(slot, None)
        if peer is not None:
            self._counts[peer] -= 1
            if not self._counts[peer]:
                del self._counts[peer]
