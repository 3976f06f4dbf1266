"""Requests that were handed over and have no slot yet, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from embridge.allocator.errors import FailureCode
from embridge.pipeline.arguments import is_time
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.slot_queue import MAX_WAITING, check_room
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.workers.timing import NS

LOOK_BEHIND_NS = NS // 10
NO_SLOT_IN_TIME = "deadline passed while waiting for a slot"


class IncomingRequests:
    """One transfer queue's. Any thread adds; whoever has the turn opens."""

    def __init__(self, library: Library, end: Callable[[EmbeddingRequest, FailureCode, str], object]) -> None:
        """`end` ends a request as Failed that has had no slot."""
        self._library = library
        self._attachment = library.attachment
        self._end = end
        self._requests: deque[EmbeddingRequest] = deque()
        self._ended: set[EmbeddingRequest] = set()  # of those, the ones that are over
        self._look_ns = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._requests) - len(self._ended)

    def __iter__(self) -> Iterator[EmbeddingRequest]:
        return iter(self._requests)

    def clear(self) -> None:
        """Forget them, because the client leaves."""
        self._requests.clear()

    # ---- any thread

    def add(self, request: EmbeddingRequest) -> None:
        """Hand a request over. Raises NodeBusyError as `check_room`."""
        self.check_room()
        request.record.added_s = self._attachment.clock() / NS
        self._requests.append(request)

    def check_room(self) -> None:
        """Check that one more request may be handed over.

        Raises:
            NodeBusyError: every slot of the node is in use, and as many requests as may wait for one do.
        """
        num_waiting = len(self._requests)
        if num_waiting >= MAX_WAITING:
            check_room(num_waiting, self._attachment.clock() / NS - self._requests[0].record.added_s)

    # ---- whoever has the turn

    def turn(self, open_one: Callable[[EmbeddingRequest], bool]) -> bool:
        """Open them in the order of arrival, as far as there are slots. False: some wait for one."""
        while self._requests:
            request = self._requests[0]
            if request not in self._ended and not open_one(request):
                self._look_behind()
                return False
            self._requests.popleft()
            self._ended.discard(request)
        return True

    def timeout_s(self, request: EmbeddingRequest) -> float:
        """From when it was handed over; not checked."""
        return self._attachment.request_timeout_s if request.timeout_s is None else request.timeout_s

    def _look_behind(self) -> None:
        """Look at the requests behind the first, which has no slot: some of them may be over all the same."""
        self._library.lack_slots(len(self))
        now_ns = self._attachment.clock()
        if now_ns < self._look_ns:
            return
        self._look_ns = now_ns + LOOK_BEHIND_NS
        for request in list(self._requests):
            timeout_s = self.timeout_s(request)
            if request in self._ended or not is_time(timeout_s):
                continue
            if request.abort_reason:
                self._end(request, FailureCode.ABORTED, request.abort_reason)
            elif request.record.added_s + timeout_s <= now_ns / NS:
                self._end(request, FailureCode.TIMEOUT, NO_SLOT_IN_TIME)
            else:
                continue
            self._ended.add(request)
