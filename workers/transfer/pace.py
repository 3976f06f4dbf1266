"""How fast a network engine is, so that a worker naps between two looks at what is under way no longer than need be."""

from __future__ import annotations

from typing import Final

# Between two looks: an eighth of the time that all that is under way should take. So the looks come closer as it ends,
# and a large window is not looked at more often than it takes to be refilled.
PART: Final = 8
LEAST_NAP_NS: Final = 100_000
MOST_NAP_NS: Final = 1_000_000
LEAST_PACE_BYTES: Final = 4 << 20


class Pace:
    """Learned from attempts that are done."""

    def __init__(self) -> None:
        self._ns_per_byte = 0.0  # 0: not known

    def learn(self, queued_bytes: int, took_ns: int) -> None:
        """An attempt, with all that was under way beside it, took that long.

        A slow one counts for little: the next one is looked at too early rather than too late. Attempts below
        LEAST_PACE_BYTES are skipped: their time is mostly latency.
        """
        if queued_bytes < LEAST_PACE_BYTES:
            return
        seen = took_ns / max(queued_bytes, 1)
        known = self._ns_per_byte or seen
        self._ns_per_byte = known + (seen - known) / (16 if seen > known else 2)

    def nap_ns(self, queued_bytes: int) -> int:
        """How long to wait between two looks at so much that is under way."""
        return min(max(int(self._ns_per_byte * queued_bytes) // PART, LEAST_NAP_NS), MOST_NAP_NS)
