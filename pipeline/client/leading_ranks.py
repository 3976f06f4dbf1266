"""What a client needs of the other ranks that it leads."""

from __future__ import annotations

from typing import Protocol


class LeadingRanks(Protocol):
    """The other ranks of a client that was attached with `num_ranks`.

    They follow what this process, rank 0, decides.
    """

    group: str
    """Which group of ranks of its node this is."""
    num_batches: int
    """Batches that rank 0 has popped; each follower counts the same way."""

    @property
    def num_ranks(self) -> int:
        """How many ranks there are, this one included."""

    def states(self) -> dict[int, str]:
        """What has become of each other rank: awaited, joined, left, or cut off.

        Raises RuntimeError once the client is closed.
        """

    def close(self) -> None:
        """Let go of memory and descriptors (`Client.close`, after the lane was given up)."""
