"""The requests of which the node's processes have not been told: their client alone has them, and may release them.

A request that has not ended after a while is told to the node, which then does for it what it does for all others: it
has its deadline, its messages to and from the other node, and its recovery (R78). So a request that goes well costs
nobody else anything, if its rows come within that time: it is longer than most encoders take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from embridge.allocator.status import TERMINAL
from embridge.pipeline.client.handle import TransferHandle
from embridge.workers.timing import NS

LATE_NS: Final = NS // 2
LIBRARY_WAIT_S: Final = 0.1  # how long the library thread sleeps where nobody wakes it
LEAST_WAIT_S: Final = 0.001  # another thread may have the turn
LOOK_NS: Final = 2 * NS // 1000
MOST_LOOKING: Final = 64


class UntoldRequests:
    """One client's. Either thread adds; the library thread looks which are late."""

    def __init__(self, clock: Callable[[], int], ring: Callable[[], object]) -> None:
        """`ring` wakes the library thread."""
        self._clock = clock
        self._ring = ring
        self.late_ns = LATE_NS
        """After which the node is told."""
        self._due: deque[TransferHandle] = deque()
        self._soon: deque[tuple[int, TransferHandle]] = deque()  # when the node is told of it, if nobody has come
        self._looking: dict[TransferHandle, Callable[[], bool]] = {}
        self._look_ns = 0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, handle: TransferHandle) -> None:
        """Note a request."""
        is_first = not self._due
        self._due.append(handle)
        if is_first and self.late_ns < 2 * LIBRARY_WAIT_S * NS:
            self._ring()  # the library thread may sleep until long after

    def turn(self, now_ns: int) -> None:
        """Tell the node of those that are late, or soon will be: one look for many of them."""
        while self._soon and self._soon[0][0] <= now_ns:
            handle = self._soon.popleft()[1]
            if not handle.has_settled and handle.progress().phase < TERMINAL:
                handle.tell()
        if self._looking and now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_NS
            for handle, look in list(self._looking.items()):
                if handle.has_settled or now_ns > handle.opened_ns + self.late_ns or look():
                    self._looking.pop(handle, None)
        while self._due:
            handle = self._due[0]
            is_over = handle.has_settled or handle.progress().phase >= TERMINAL  # its client releases it in time
            if not is_over and handle.opened_ns + self.late_ns > now_ns + self.late_ns // 4:
                return
            self._due.popleft()
            if not is_over and (handle.driver is None or not handle.driver.take_back(handle)):
                handle.tell()

    def take_back(self, least_ns: int, take_back: Callable[[TransferHandle], bool], enough: Callable[[], bool]) -> None:
        """Have the grants of those taken back that were opened so long ago, the oldest first, until that is enough
        (whoever has the turn). `take_back` says whether it has done so: the node is told of that request then.
        """
        kept: list[TransferHandle] = []
        latest_ns = self._clock() - least_ns
        while self._due and self._due[0].opened_ns <= latest_ns and not enough():
            handle = self._due.popleft()
            if not (handle.has_settled or handle.progress().phase >= TERMINAL or take_back(handle)):
                kept.append(handle)
        self._due.extendleft(reversed(kept))

    def tell_soon(self, handle: TransferHandle) -> None:
        """Tell the node of a request in a little while, if the encoder that waits has not found its grant by then
        (whoever has the turn).
        """
        self._soon.append((self._clock() + 2 * LOOK_NS, handle))
        self._ring()

    def look_soon(self, handle: TransferHandle, look: Callable[[], bool]) -> None:
        """Have `look` called each `LOOK_NS` until it says that nothing is to be looked for any more, or the request is
        late (library thread). Of many, the last are told of by their schedulers.
        """
        if len(self._looking) < MOST_LOOKING:
            self._looking.setdefault(handle, look)

    def handles(self) -> list[TransferHandle]:
        """Those that may be untold."""
        return list(self._due)

    def wait_s(self, most_s: float) -> float:
        """How long the library thread may wait until one of them is late; at most `most_s`."""
        if self._looking:
            most_s = min(most_s, LOOK_NS / NS)
        try:
            due_ns = self._due[0].opened_ns + self.late_ns
            if self._soon:
                due_ns = min(due_ns, self._soon[0][0])
            return min(most_s, max((due_ns - self._clock()) / NS, LEAST_WAIT_S))
        except IndexError:
            return most_s

    def clear(self) -> None:
        for held in (self._due, self._soon, self._looking):
            held.clear()
