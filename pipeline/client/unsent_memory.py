"""Host memory for rows that were given and could not be placed in source blocks at once: counted, with a limit a node.

Each client adds what it takes to a word of its own lane, and then looks at the sum over all lanes. Beyond
`unsent_max_bytes` it takes its own back and refuses. So the sum of what is *held* never exceeds the limit, however
clients cross. Two that cross may both be refused where one could have been served; they try again. A lane's word counts
while its client lives.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from embridge.allocator.control import Control
from embridge.allocator.errors import NodeBusyError
from embridge.allocator.records import SegmentHeader

Bytes = npt.NDArray[np.uint8]

WARM_BYTES: Final = 64 << 20  # kept for the next rows: fresh memory costs a page fault every 4 KiB
LEAST_WARM_BYTES: Final = 1 << 16  # smaller ones are left to malloc, which keeps them warm itself


class UnsentMemory:
    """One client's part. Any thread may call it: each step on a shared container is one that the GIL makes atomic."""

    def __init__(self, control: Control, lane: int) -> None:
        self._lanes = control.lanes
        self._lane = lane
        self.limit_bytes = control.header.load(SegmentHeader.UNSENT_MAX_BYTES)
        self._warm_limit = min(WARM_BYTES, self.limit_bytes // 8)
        # by size; its bytes are summed up when asked for, because a count of its own would drift
        self._warm: dict[int, deque[Bytes]] = {}

    def reserve(self, size: int, what: str) -> None:
        """Count `size` bytes in, before one of them is used; `what` is named in the error.

        Raises:
            NodeBusyError: the node's unsent rows would exceed its limit with them; nothing is counted.
        """
        self._lanes.add_unsent(self._lane, size)
        total = self._lanes.unsent_bytes()
        if total > self.limit_bytes:
            self._lanes.add_unsent(self._lane, -size)
            hint = "write again when rows have been sent" if size <= self.limit_bytes else "write fewer rows at a time"
            raise NodeBusyError(
                f"{what}: {total - size} + {size} bytes of rows that wait to be sent > {self.limit_bytes} bytes of "
                f"this node; {hint}, lend them (borrow=True), or raise unsent_max_bytes"
            )

    def reserve_anyway(self, size: int) -> None:
        """Count `size` bytes in, whatever the limit.

        They are for rows in blocks that somebody needs, so they are at most a pool.
        """
        self._lanes.add_unsent(self._lane, size)

    def take(self, size: int) -> Bytes:
        """Memory of `size` bytes (`size_of`) that are counted in."""
        try:
            held = self._warm[size]
            memory = held.pop()
        except (KeyError, IndexError):
            return np.empty(size, np.uint8)
        if not held:
            self._warm.pop(size, None)  # memory that the other thread has just put there is lost to us, and freed
        return memory

    def give_back(self, memory: Bytes) -> None:
        """Count the memory out, because nothing of it is needed any more."""
        size = memory.nbytes
        self._lanes.add_unsent(self._lane, -size)
        if LEAST_WARM_BYTES <= size <= self._warm_limit - self.warm_bytes:
            self._warm.setdefault(size, deque()).append(memory)

    @property
    def warm_bytes(self) -> int:
        """How many bytes were given back and are kept for the next rows."""
        return sum([size * len(held) for size, held in list(self._warm.items())])

    def forget(self, size: int) -> None:
        """Count out bytes that were counted in and never taken."""
        self._lanes.add_unsent(self._lane, -size)
