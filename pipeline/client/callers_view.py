"""What has changed, as the caller's thread sees it, and what that thread then does in place of the library thread.

A request that has landed needs a look and no copy, where its rows may stay in their blocks. So the caller's thread
ends it itself, if nobody has the turn: it need not wait until the library thread has woken up. What belongs to whoever
has the turn, and why nothing is lost where the caller does not get it, is told in docs/design/client.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from embridge.allocator._core import PHASE_BITS, Turn, TurnTaker
from embridge.allocator.records import USER_VIEW
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import NO_SLOT, PHASE_SHIFT, SUCCESS, TransferHandle
from embridge.pipeline.client.open_requests import OpenRequests
from embridge.pipeline.client.rounds import Round
from embridge.workers.timing import NS

# a full compare of the status words, and a share of a round: a mark is a hint, which may be lost
SLOW_LOOK_NS = NS // 10


class CallersView:
    """The caller's thread calls all methods, and any thread `do`; the library thread reads and sets `library_waits`."""

    def __init__(self, attachment: Attachment, requests: OpenRequests) -> None:
        num_slots = attachment.control.limits.num_slots
        self._attachment = attachment
        self._requests = requests
        self.turn = Turn()
        """What the library thread takes for each of its turns, and whoever does a part of its work."""
        self._out = array("I", bytes(4 * num_slots))
        self._words = array("Q", bytes(8 * num_slots))  # of the slots of `_out`
        self._compared = np.zeros(num_slots, np.uint64)
        self._round = Round(requests.by_slot)
        self._seen = -1
        self._slow_ns = 0
        self._looked_at: dict[int, TransferHandle] = {}  # by slot; `rose` has yet to tell which of them have risen
        self._has_seen_by_hand = False  # among them is one that its caller drives, who hears of it from `rose` alone
        self.library_waits = False
        """Whether the library thread has found the turn taken, and is to be rung when it is given back."""
        self.ended_for: set[object] = set()
        """The queues for which a request has ended at once, since they were last popped."""
        self.has_more_rows = False
        """Whether rows of a streamed request were shown that nobody has asked for yet (set by whoever has the turn)."""
        self.on_change: Callable[[], None] | None = None
        """Called by each look that finds something, on the thread that looks: for coroutines, which wait beside it."""

    def look(self) -> bool:
        """Take what has changed, and end here what can be. One load when nothing has; False then."""
        attachment = self._attachment
        sequence, now = attachment.user_bell.sequence(), attachment.clock()
        if sequence == self._seen and now < self._slow_ns:
            return False
        if self.on_change is not None:
            self.on_change()
        if attachment.node_gone:
            return True
        if attachment.is_closed or attachment.is_forked:
            attachment.check_attached()
        self._seen = sequence
        status, pages, out, words = attachment.control.status, self._requests.lease.pages, self._out, self._words
        by_slot, looked_at = self._requests.by_slot, self._looked_at
        count = status.changed(USER_VIEW, pages, len(pages), out, words)
        if now >= self._slow_ns:
            self._slow_ns = now + SLOW_LOOK_NS
            count = self._look_slowly()
        to_end: list[TransferHandle] = []
        for i in range(count):
            if (handle := by_slot.get(out[i])) is None:
                continue
            looked_at[handle.slot] = handle
            if handle.driver is None:
                self._has_seen_by_hand |= handle.is_by_hand
            elif words[i] >> PHASE_SHIFT == handle.epoch << PHASE_BITS | SUCCESS and handle.may_end_here:
                to_end.append(handle)
        if to_end:
            self._end(to_end)
        return True

    def _look_slowly(self) -> int:
        """Find the slots that have changed by a full compare, and add a share of those that are open. Returns how many.
        """
        status, pages, out, words = self._attachment.control.status, self._requests.lease.pages, self._out, self._words
        count = status.compare(pages, len(pages), self._compared, out)
        some = [handle.slot for handle in self._round.some() if handle.slot != NO_SLOT]
        slots = dict.fromkeys([*some, *out[:count]])
        for i, slot in enumerate(slots):
            out[i], words[i] = slot, status.load(slot)
        return len(slots)

    def _end(self, handles: list[TransferHandle]) -> None:
        """End requests that have succeeded; those that need more than a look are left to the library thread."""
        attachment = self._attachment
        has_left = False
        with TurnTaker(self.turn) as has_turn:
            for handle in handles:
                driver = handle.driver  # None: somebody has ended it since
                has_left |= not (has_turn and (driver is None or driver.end_at_once(handle)))
        # a mark of the library's own view names what is left
        if has_left or self.library_waits:
            attachment.library_bell.ring()

    def end(self, handle: TransferHandle) -> bool:
        """End a request whose last row its caller has written. False: the library thread is to see to it."""
        return self.do(handle.end_here)

    def do(self, step: Callable[..., bool], *arguments: object) -> bool:
        """Do on this thread what is the library thread's, if that has no turn now.

        False: it is not done. `step` may have said so, or have failed; the library thread meets that, too, and says so.
        """
        is_done = False
        with TurnTaker(self.turn) as has_turn:
            if has_turn:
                try:
                    is_done = step(*arguments)
                except Exception:  # the library thread says so
                    is_done = False
        if self.library_waits:
            self._attachment.library_bell.ring()
        return is_done

    @property
    def has_looked_at_some(self) -> bool:
        """Whether `rose` has something to tell of."""
        return bool(self._looked_at or self._requests.departed)

    def rose(self) -> list[TransferHandle]:
        """The requests with a slot whose status is higher than when this was asked last (`Client.poll`)."""
        looked_at, self._looked_at, self._has_seen_by_hand = self._looked_at, {}, False
        rose = []
        for handle in looked_at.values():  # no list comprehension, which would be one call more for nearly each request
            if handle.has_risen():
                rose.append(handle)
        return rose

    # ---- waiting

    def arm(self) -> bool:
        """Have the next ring written to the eventfd. False: something has changed since the last look."""
        return not self._has_more() and self._attachment.user_bell.arm(self._seen)

    def arm_beside(self) -> bool:
        """As `arm`, for who hears of `on_change`, too: what `Client.poll` or another queue has yet to take stays theirs
        to be told of.
        """
        return self._attachment.user_bell.arm(self._seen)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until something changes. False: the time is over, or a signal has come."""
        return self._has_more() or self._attachment.user_bell.wait(self._seen, timeout_s) != self._seen

    def _has_more(self) -> bool:
        has_ended_some = bool(self.ended_for)
        self.ended_for.clear()
        has_more_rows, self.has_more_rows = self.has_more_rows, False  # who sets it rings then
        return has_ended_some or has_more_rows or self._has_seen_by_hand or self._seen < 0
