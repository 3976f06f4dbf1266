"""Fetching: a published item by its key, from the node at an address, by a client of a language node.

Where that node is on another host, or does not let this client in, the item comes as the rows of a request
(`far_fetch.py`) and is copied.

Where the node is on this host, the item is read where it lies (`shelf_doors.py`): once the door is open, a fetch is a
lookup and a pin, in microseconds, and no process hears of it. The item stays for as long as somebody has a view of its
rows, and after that may be evicted. An unknown key is said to be so at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from embridge.allocator._core import Pin
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
from embridge.allocator.fetches import ItemShape
from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.shelf import ItemKey, dtype_of
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.cache_memory import Bytes, fresh_memory
from embridge.pipeline.client.far_fetch import CopiedRows, FarFetch
from embridge.pipeline.client.refusals import Refusals
from embridge.pipeline.client.shelf_doors import ShelfDoor, ShelfDoors
from embridge.workers.addresses import numeric
from embridge.workers.timing import NS

if TYPE_CHECKING:
    import torch

    from embridge.pipeline.client.library import Library

log = logging.getLogger(__name__)

# between two looks of `Fetch.wait`: nobody rings for what is published, and who has waited long can wait a little more
LOOK_NS: Final = NS // 1000
MOST_LOOK_NS: Final = NS // 50
LOOKS: Final = 16  # a pause is this part of what has been waited
LOOK_AT_DOORS_NS: Final = NS // 10
UNMET_NS: Final = NS  # for a node that may be on this host to register; then it is asked as one that is not
LATE_NS: Final = NS // 10  # without an answer, after which it is tried whether anybody listens there
ASK_AGAIN_NS: Final = NS // 10
MOST_S: Final = 1e9


_ERRORS: Final[dict[int, type[FetchError]]] = {
    FailureCode.NOT_PUBLISHED: NotPublished,
    FailureCode.GENERATION_GONE: GenerationGone,
    FailureCode.BUSY: Busy,
    FailureCode.TIMEOUT: FetchTimeout,
}


class Item:
    """One item that was fetched, read where it lies, or copied here. Any thread may use it; nothing changes it.

    It keeps its place for as long as this or a view of its rows is there; `release` says that this needs it no more.
    """

    def __init__(self, key: str | bytes, pin: Pin | CopiedRows) -> None:
        self.key = key
        """Under which it is published."""
        self.generation = pin.number
        """Which of the items of its key it is: later ones have greater numbers."""
        self.shape = (pin.rows, pin.width)
        """(num_rows, width)."""
        self.dtype = dtype_of(pin.dtype)
        """The name of the dtype of its rows."""
        self.where = "in place" if isinstance(pin, Pin) else "host"
        """Where its rows are: on the shelf of their node ("in place"), or in memory of this process ("host")."""
        self._pin: Pin | CopiedRows | None = pin

    @property
    def rows(self) -> torch.Tensor:
        """The rows, of shape `shape`. In place they are a view of memory that is mapped read-only; to write to it is a
        SIGSEGV, for torch has no tensors that can be read only. Raises ValueError after `release`.
        """
        import torch

        kind = getattr(torch, self.dtype)
        count = self.shape[0] * self.shape[1]
        held = self._need()
        return torch.frombuffer(held if isinstance(held, Pin) else held.bytes, dtype=kind, count=count).view(self.shape)

    def copy_to(self, destination: torch.Tensor) -> None:
        """Copy the rows into a tensor of as many elements, on whichever device. Raises ValueError as `rows`."""
        destination.copy_(self.rows.view(destination.shape))

    def copied(self, take: Callable[[int], Bytes] = fresh_memory) -> CopiedRows:
        """Its rows in memory of this process, or in what `take` gives. Raises ValueError, MemoryError."""
        pin = self._need()
        if isinstance(pin, CopiedRows):
            return pin
        copy = CopiedRows(ItemShape(pin.number, pin.rows, pin.width, pin.dtype, pin.bytes), take)
        copy.bytes[:] = np.frombuffer(pin, np.uint8, pin.bytes)
        return copy

    def _need(self) -> Pin | CopiedRows:
        if self._pin is None:
            raise ValueError(f"item {self.key!r} was released")
        return self._pin

    def release(self) -> None:
        """Need it no more; views that are still held keep it. Again: nothing happens."""
        self._pin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Fetch:
    """One fetch, which ends by itself: with an item, or with an error. Made by `Client.fetch`."""

    def __init__(self, fetching: Fetching, key: str | bytes, address: str, generation: int) -> None:
        self.key = key
        """Of the item."""
        self.address = address
        """Of its node, numeric."""
        self.generation = generation
        """That is wanted; 0: any."""
        self.begun_ns = self.until_ns = self.deadline_ns = 0
        """When it began, when it stops to look for what is not published, and when it ends without an answer."""
        self.far: FarFetch | None = None
        """Its request, while it has one."""
        self.admit: Callable[[int], bool] | None = None
        """Asked, again and again, whether there is memory for so many bytes, before any of them moves."""
        self.take: Callable[[int], Bytes] = fresh_memory  # gives that memory
        self.again_ns = 0
        """When it is asked for again, on another host."""
        self._fetching = fetching
        self._item: Item | None = None
        self._error: FetchError | None = None
        self._callbacks: list[Callable[[Fetch], object]] = []

    @property
    def is_done(self) -> bool:
        """Whether it has ended, as far as was looked: `poll` looks."""
        return self._item is not None or self._error is not None

    def poll(self) -> bool:
        """Look, without waiting; whether it has ended. Raises RuntimeError after `Client.close`."""
        if not self.is_done:
            self._fetching.look(self)
        return self.is_done

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end for so many seconds; whether it has ended. Raises ValueError, and as `poll`."""
        if not is_time(timeout_s) or timeout_s < 0:
            raise ValueError(f"timeout_s: {said(timeout_s)} s must not be negative")
        now_ns = begun_ns = self._fetching.clock()
        until_ns = begun_ns + int(min(float(timeout_s), MOST_S) * NS)
        while not self.poll():
            if now_ns >= until_ns:
                return False
            pause_ns = min(max((now_ns - begun_ns) // LOOKS, LOOK_NS), MOST_LOOK_NS)
            time.sleep(min(pause_ns, until_ns - now_ns) / NS)
            now_ns = self._fetching.clock()
        return True

    def exception(self) -> FetchError | None:
        """Why it has failed, made anew, for whoever catches it may keep it; None: it has not failed."""
        return None if self._error is None else _again(self._error)

    def result(self) -> Item:
        """The item. Raises what `exception` gives; ValueError: it has not ended, `wait` for it."""
        if self._error is not None:
            raise _again(self._error)  # of which nothing here keeps the frames, and the items in them
        if self._item is None:
            raise ValueError(f"item {self.key!r}: its fetch has not ended; wait for it")
        return self._item

    def abort(self) -> None:
        """Give it up: unless it has ended, it fails."""
        self._fetching.give_up(self, FetchFailed(self.key, "its fetch was given up"))

    def add_done_callback(self, callback: Callable[[Fetch], object]) -> None:
        """Have `callback(fetch)` called at its end, by whichever thread notices; now, if it has ended."""
        self._callbacks.append(callback)
        if self.is_done:
            self.call_back()

    def call_back(self) -> None:
        """Call those that wait for its end, which has come (any thread that has not the turn)."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:  # another thread has it
                return
            try:
                callback(self)
            except Exception as error:  # a kept record would keep the error's frames, and what they have
                why = f"{type(error).__name__}: {error}"
                log.error("item %r: a callback of its fetch failed: %s", self.key, why)

    def end(self, item: Item | None, error: FetchError | None) -> None:
        """End it (who has the turn, and calls `call_back` behind it)."""
        self._item, self._error = item, error

    def __await__(self) -> Generator[Any, None, Item]:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        yield from ended.wait().__await__()
        return self.result()


def _again(error: FetchError) -> FetchError:
    return type(error)(error.key, error.reason)


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
    ) -> Fetch:
        """As `Client.fetch`; no row moves until `admit` says that there is memory, which `take` gives."""
        attachment = self._attachment
        attachment.check_usable()
        ItemKey.of(key, (0, 0))  # whether it is one
        deadline_s = attachment.request_timeout_s if deadline_s is None else deadline_s
        for name, value in (("wait_s", wait_s), ("deadline_s", deadline_s)):
            if not is_time(value) or not 0 <= value <= MOST_S:
                raise ValueError(f"{name}: {said(value)} s must be from 0 to {MOST_S:g} s")
        it = Fetch(self, key, numeric(addr), whole("generation", generation, 0, 1 << 63))
        it.admit, it.take = admit, take
        now_ns = it.begun_ns = attachment.clock()
        it.until_ns, it.deadline_ns = now_ns + int(wait_s * NS), now_ns + int(deadline_s * NS)
        with self._turn:
            if not self._look(it):
                self._waiting[it] = None
        if not it.is_done:
            self._library.wake()
        return it

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

    def give_up(self, it: Fetch, error: FetchError) -> None:
        """End a fetch, unless it has ended."""
        with self._turn:
            if not it.is_done:
                it.end(None, error)
            self._waiting.pop(it, None)
            far, it.far = it.far, None
            if far is not None and not self._attachment.is_closed:
                with contextlib.suppress(RuntimeError):  # this client leaves just now, which gives up all that it has
                    far.give_up(error.reason)
        it.call_back()

    def _look(self, it: Fetch) -> bool:
        """Whether a fetch has ended."""
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
                it.end(Item(it.key, pin), None)
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
            it.far = FarFetch(self._library, it.address, raw, it.generation, left_s, it.admit, it.take)
        except NodeBusyError as error:
            it.end(None, Busy(it.key, str(error)))
        except (EmbridgeError, RuntimeError, ValueError) as error:
            it.end(None, FetchFailed(it.key, str(error)))

    def _look_at_request(self, it: Fetch, far: FarFetch, now_ns: int) -> bool:
        try:
            found = far.step()
        except Exception as error:  # it ends this fetch, and no other
            log.exception("item %r: its fetch failed", it.key)
            found = FailureCode.INTERNAL, f"{type(error).__name__}: {error}"
        if found is None:
            return False
        it.far = None
        if isinstance(found, CopiedRows):
            it.end(Item(it.key, found), None)
            self._metrics.count_for_client(Metric.FETCHED_COPIES)
            return True
        code, reason = found
        if code == FailureCode.NOT_PUBLISHED and now_ns < min(it.until_ns, it.deadline_ns):
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
