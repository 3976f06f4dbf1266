"""Fetching: a published item by its key, from the node at an address, by a client of a language node.

Where that node is on another host, or does not let this client in, the item comes as the rows of a request
(`far_fetch.py`) and is copied.

Where the node is on this host, the item is read where it lies (`shelf_doors.py`): once the door is open, a fetch is a
lookup and a pin, in microseconds, and no process hears of it. The item stays for as long as somebody has a view of its
rows, and after that may be evicted. An unknown key is said to be so at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from embridge.allocator.errors import (
    Busy,
    EmbridgeError,
    FailureCode,
    FetchError,
    FetchFailed,
    FetchTimeout,
    GenerationGone,
    NodeBusyError,
    NotPublished,
    SegmentError,
)
from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.shelf import ItemKey
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.cache_memory import Bytes, fresh_memory
from embridge.pipeline.client.far_fetch import CopiedRows, FarFetch, PartOfRows
from embridge.pipeline.client.fetch import MOST_S, Fetch, Item
from embridge.pipeline.client.refusals import Refusals
from embridge.pipeline.client.shelf_doors import Reached, ShelfDoor, ShelfDoors
from embridge.workers.addresses import numeric
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.library import Library

log = logging.getLogger(__name__)

LOOK_AT_DOORS_NS: Final = NS // 10
UNMET_NS: Final = NS  # for a node that may be on this host to register; then it is asked as one that is not
LATE_NS: Final = NS // 10  # without an answer, after which it is tried whether anybody listens there
ASK_AGAIN_NS: Final = NS // 10

_ERRORS: Final[dict[int, type[FetchError]]] = {
    FailureCode.NOT_PUBLISHED: NotPublished,
    FailureCode.GENERATION_GONE: GenerationGone,
    FailureCode.BUSY: Busy,
    FailureCode.TIMEOUT: FetchTimeout,
}


class Fetching:
    """All fetches of one client. The caller and the library thread take turns at those that wait."""

    def __init__(self, library: Library) -> None:
        """Raises ValueError: this is no language node."""
        attachment = library.attachment
        if attachment.control.role != Role.LANGUAGE:
            raise ValueError("fetch: this client is attached to an encode node; attach to the language node")
        self._attachment = attachment
        self.clock = attachment.clock
        """Monotonic nanoseconds."""
        self._library = library
        self._doors = ShelfDoors(attachment)
        self.row_bytes = attachment.geometry.embedding_bytes
        """Of a row of the node's own, in which items come from afar."""
        self._doors_ns = 0
        self._refusals = Refusals()
        self._metrics = attachment.control.metrics
        self._waiting: dict[Fetch, None] = {}  # and none that has ended: it would keep its item
        self._turn = threading.RLock()  # a signal handler may fetch in the midst of a fetch
        library.add_turn(self._library_turn, self.close)
        _all.add(self)

    def fetch(
        self,
        key: str | bytes,
        addr: str,
        generation: int = 0,
        wait_s: float = 0.0,
        deadline_s: float | None = None,
        admit: Callable[[int], bool] | None = None,
        take: Callable[[int], Bytes] = fresh_memory,
        part: PartOfRows | None = None,
    ) -> Fetch:
        """As `Client.fetch`; no row moves until `admit` says that there is memory, which `take` gives. `part`: what has
        come of it before, from there.
        """
        attachment = self._attachment
        attachment.check_usable()
        ItemKey.of(key, (0, 0))  # whether it is one
        deadline_s = attachment.request_timeout_s if deadline_s is None else deadline_s
        for name, value in (("wait_s", wait_s), ("deadline_s", deadline_s)):
            if not is_time(value) or not 0 <= value <= MOST_S:
                raise ValueError(f"{name}: {said(value)} s must be from 0 to {MOST_S:g} s")
        it = Fetch(self, key, numeric(addr), whole("generation", generation, 0, 1 << 63))
        it.admit, it.take, it.part = admit, take, part
        now_ns = it.begun_ns = attachment.clock()
        it.until_ns, it.deadline_ns = now_ns + int(wait_s * NS), now_ns + int(deadline_s * NS)
        with self._turn:
            if not self._look(it):
                self._waiting[it] = None
        if not it.is_done:
            self._library.wake()
        return it

    def reach(self, key: str | bytes, address: str) -> Reached | None:
        """An item on a shelf that is open to this client, pinned; None: `fetch` it. `address` is numeric. It waits for
        nobody.
        """
        if not self._turn.acquire(blocking=False):
            return None
        try:
            door = self._doors.opened(address)
            found = door.reach(key, self.clock()) if door is not None else None
            if found is not None:
                self._metrics.count_for_client(Metric.FETCHED_IN_PLACE)
            return found
        except SegmentError:  # which a fetch says
            return None
        finally:
            self._turn.release()

    def retry(self, it: Fetch, addr: str, deadline_s: float | None) -> Fetch:
        """As `Fetch.retry`, of one that has failed."""
        address = numeric(addr)
        with self._turn:
            part, it.part = it.part, None  # one goes on with it
        try:
            here = part if address == it.address else None
            return self.fetch(it.key, address, it.generation, 0.0, deadline_s, it.admit, it.take, here)
        except (ValueError, EmbridgeError, RuntimeError):
            it.part = part
            raise

    def look(self, it: Fetch) -> None:
        """Look after one that waits, and no others."""
        self._attachment.check_attached()
        with self._turn:
            has_ended = self._has_ended(it)
        if has_ended:
            it.call_back()

    def _library_turn(self) -> bool:
        ended: list[Fetch] = []
        try:
            with self._turn:
                self._look_at_doors()
                ended += (it for it in list(self._waiting) if self._has_ended(it))
        finally:
            for it in ended:
                it.call_back()
            if ended:
                self._attachment.user_bell.ring()
        return any(it.far is not None and it.far.waits_for_block for it in list(self._waiting))

    def _has_ended(self, it: Fetch) -> bool:
        if not it.is_done and not self._look(it):
            return False
        self._waiting.pop(it, None)
        return True

    def _look_at_doors(self) -> None:
        now_ns = self.clock()
        if now_ns >= self._doors_ns:
            self._doors_ns = now_ns + LOOK_AT_DOORS_NS
            self._doors.drop_dead()
            self._refusals.forget_old(now_ns)

    def give_up(self, it: Fetch, error: FetchError) -> None:
        """End a fetch, unless it has ended."""
        with self._turn:
            if not it.is_done:
                it.end(None, error)
            self._waiting.pop(it, None)
            far, it.far = it.far, None
            if far is not None:
                self._keep_part(it, far)
            if far is not None and not self._attachment.is_closed:
                with contextlib.suppress(RuntimeError):  # this client leaves just now, which gives up all that it has
                    far.give_up(error.reason)
        it.call_back()

    def _look(self, it: Fetch) -> bool:
        """Whether a fetch has ended. What fails ends it, and no other."""
        try:
            return self._look_at(it)
        except Exception as error:
            log.exception("item %r: its fetch failed", it.key)
            far, it.far = it.far, None
            why = f"{type(error).__name__}: {error}"
            it.end(None, FetchFailed(it.key, why))
            if far is not None:
                with contextlib.suppress(EmbridgeError, RuntimeError):  # its node is gone, which ends it
                    far.give_up(why)
            return True

    def _look_at(self, it: Fetch) -> bool:
        now_ns, key = self._attachment.clock(), it.key
        if it.far is not None:
            is_over = not it.far.is_answered and self._end_if_refused(it, now_ns)
            return is_over or self._look_at_request(it, it.far, now_ns)
        if now_ns < it.again_ns:
            return False
        door = self._doors.find(it.address)
        if isinstance(door, ShelfDoor):
            return self._look_on_shelf(it, door, now_ns)
        if isinstance(door, str):
            it.end(None, FetchFailed(key, door))
        elif door is None and self._end_if_refused(it, now_ns):
            return True
        elif door is not None or UNMET_NS <= now_ns - it.begun_ns < it.deadline_ns - it.begun_ns:
            self._begin_far(it, now_ns)
        elif now_ns >= it.deadline_ns:
            why = f"no encode node at {it.address} has let this client in; check its address, and that it is up"
            it.end(None, FetchTimeout(key, why))
        return it.is_done

    def _look_on_shelf(self, it: Fetch, door: ShelfDoor, now_ns: int) -> bool:
        try:
            pin = door.pin(it.key, now_ns)
            if pin is not None and it.generation in (0, pin.number):
                if it.admit is not None and not it.admit(pin.bytes):
                    if now_ns >= it.deadline_ns:
                        it.end(None, FetchTimeout(it.key, f"there was no memory for its {pin.bytes} bytes"))
                    return it.is_done
                item = Item(it.key, pin)
                door.lend(item)
                it.end(item, None)
                self._metrics.count_for_client(Metric.FETCHED_IN_PLACE)
                return True
        except SegmentError as error:
            it.end(None, FetchFailed(it.key, str(error)))
            return True
        if now_ns < min(it.until_ns, it.deadline_ns) and not (pin is not None and pin.number > it.generation):
            return False
        self._metrics.count_for_client(Metric.NOT_PUBLISHED)
        if pin is None:
            it.end(None, NotPublished(it.key, f"it is not published at {it.address}"))
        elif pin.number < it.generation:
            why = f"generation {it.generation} is not published yet; {pin.number} is at {it.address}"
            it.end(None, NotPublished(it.key, why))
        else:
            it.end(None, GenerationGone(it.key, f"generation {it.generation} is gone; {pin.number} is there"))
        return True

    def _end_if_refused(self, it: Fetch, now_ns: int) -> bool:
        if now_ns - it.begun_ns < LATE_NS or not self._refusals.is_refused(it.address, now_ns):
            return False
        why = f"nobody listens at {it.address}; fetch it from another node, or have it encoded again"
        far, it.far = it.far, None
        if far is not None:
            far.give_up(why)
        it.end(None, FetchFailed(it.key, why))
        return True

    # ---- on other hosts

    def _begin_far(self, it: Fetch, now_ns: int) -> None:
        raw, left_s = ItemKey.of(it.key, (0, 0)).key, max(it.deadline_ns - now_ns, 1) / NS
        it.again_ns = now_ns + ASK_AGAIN_NS  # a signal handler that looks at it meanwhile begins no other
        try:
            it.far = FarFetch(
                self._library, it.address, raw, it.generation, left_s, it.admit, it.take, it.part
            )
        except NodeBusyError as error:
            it.end(None, Busy(it.key, str(error)))
        except (EmbridgeError, RuntimeError, ValueError) as error:
            it.end(None, FetchFailed(it.key, str(error)))
        if it.is_done and it.far is not None:  # by a signal handler that has given it up meanwhile
            it.far.give_up("its fetch was given up")
            it.far = None

    def _look_at_request(self, it: Fetch, far: FarFetch, now_ns: int) -> bool:
        found = far.step()
        if found is None or it.is_done:  # a signal handler has given it up meanwhile
            return it.is_done
        it.far = None
        if isinstance(found, CopiedRows):
            it.end(Item(it.key, found), None)
            self._metrics.count_for_client(Metric.FETCHED_COPIES)
            return True
        code, reason = found
        if it.part is not None and code in (FailureCode.NOT_PUBLISHED, FailureCode.GENERATION_GONE):
            it.part, it.again_ns = None, now_ns  # what has come is of an item that is there no more (R57)
            return False
        self._keep_part(it, far)
        may_ask = now_ns < it.until_ns and now_ns + ASK_AGAIN_NS < it.deadline_ns
        if code == FailureCode.NOT_PUBLISHED and may_ask:
            it.again_ns = now_ns + ASK_AGAIN_NS  # as a new request: this one is refused for ever (R50)
            return False
        if code in (FailureCode.NOT_PUBLISHED, FailureCode.GENERATION_GONE):
            self._metrics.count_for_client(Metric.NOT_PUBLISHED)
        if code == FailureCode.NOT_PUBLISHED:
            reason = f"{reason} at {it.address}"
        elif code in (FailureCode.PEER_LOST, FailureCode.UNREACHABLE) and not self._attachment.node_gone:
            reason = f"{reason}; fetch it from another node, or have it encoded again"
        it.end(None, _ERRORS.get(code, FetchFailed)(it.key, reason))
        return True

    @staticmethod
    def _keep_part(it: Fetch, far: FarFetch) -> None:
        """Keep what has come, in memory of its own: a cache counts what it has given."""
        it.part = far.part if it.take is fresh_memory else None

    def close(self) -> None:
        """End those that wait, and let go of the doors; views keep theirs."""
        _all.discard(self)
        with self._turn:
            waiting, self._waiting = list(self._waiting), {}
            self._doors.close()
            self._refusals.close()
        for it in waiting:
            self.give_up(it, FetchFailed(it.key, "this client is closed"))

    def hang_up(self) -> None:
        """Let go in a forked child; another thread of the parent may have had the turn."""
        self._turn = threading.RLock()
        self._waiting.clear()
        self._refusals.close()
        self._doors.close()


_all: weakref.WeakSet[Fetching] = weakref.WeakSet()


def _hang_up_in_child() -> None:
    for fetching in list(_all):
        fetching.hang_up()


os.register_at_fork(after_in_child=_hang_up_in_child)
