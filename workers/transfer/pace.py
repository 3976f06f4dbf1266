"""How fast a network engine is, so that a worker looks at an attempt about when it is done, and naps until then."""

from __future__ import annotations

from typing import Final

# between two looks at an attempt of a network engine; a 32nd of the time it should take, when that is more
LEAST_NAP_NS: Final = 50_000
MOST_NAP_NS: Final = 1_000_000
MOST_LOOK_NS: Final = 100_000_000
LEAST_PACE_BYTES: Final = 4 << 20
# of the time that an attempt should take: looks before that cost the engine's threads more than they tell
FIRST_LOOK: Final = 0.6


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

    def first_look_ns(self, queued_bytes: int) -> int:
        """How long after its submission an attempt is looked at first."""
        return min(int(FIRST_LOOK * self._ns_per_byte * queued_bytes), MOST_LOOK_NS)

    def nap_ns(self, queued_bytes: int) -> int:
        """How long to wait between two looks at an attempt."""
        return min(max(int(self._ns_per_byte * queued_bytes) // 32, LEAST_NAP_NS), MOST_NAP_NS)
