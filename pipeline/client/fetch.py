"""One fetch of a published item, and the item that it brings. `Fetching` does the work; this is what a caller has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from embridge.allocator._core import Pin
from embridge.allocator.errors import FetchError, FetchFailed
from embridge.allocator.fetches import ItemShape
from embridge.allocator.shelf import dtype_of
from embridge.pipeline.arguments import is_time, said
from embridge.pipeline.client.cache_memory import Bytes, fresh_memory
from embridge.pipeline.client.far_fetch import CopiedRows, FarFetch, PartOfRows
from embridge.pipeline.client.host_copies import why_no_rows
from embridge.workers.timing import NS

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

# between two looks of `Fetch.wait`, unless another thread notices the end: nobody rings for what is published, and who
# has waited long can wait a little more
LOOK_NS: Final = NS // 1000
MOST_LOOK_NS: Final = NS // 50
LOOKS: Final = 16  # a pause is this part of what has been waited
MOST_S: Final = 1e9
UNSEEN: Final = 2  # references to a pin at which nobody looks: of its item, and of who counts them


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
        """Where its rows are: on the shelf of their node ("in place"), or in memory of this process ("host"), to where
        they move when their node is short of room and nobody looks at them.
        """
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
        """Copy the rows into a tensor of as many elements, on whichever device. Raises ValueError: it is none, or as
        `rows`.
        """
        import torch

        rows = self.rows
        if not isinstance(destination, torch.Tensor) or (kind := why_no_rows(destination)):
            what = kind if isinstance(destination, torch.Tensor) else f"{type(destination).__name__} is no tensor"
            raise ValueError(f"destination: {what}; give one of {rows.numel()} elements")
        if destination.numel() != rows.numel():
            raise ValueError(f"destination: {destination.numel()} elements are not the {rows.numel()} of the rows")
        destination.copy_(rows.view(destination.shape))

    def copied(self, take: Callable[[int], Bytes] = fresh_memory) -> CopiedRows:
        """Its rows in memory of this process, or in what `take` gives. Raises ValueError, MemoryError."""
        pin = self._need()
        if isinstance(pin, CopiedRows):
            return pin
        copy = CopiedRows(ItemShape(pin.number, pin.rows, pin.width, pin.dtype, pin.bytes), take)
        copy.bytes[:] = np.frombuffer(pin, np.uint8, pin.bytes)
        return copy

    def move_out(self) -> None:
        """Have its rows in memory of this process, unless somebody looks at them where they lie (R62, R63): its node
        has no room. Nothing happens where there is no memory for them.
        """
        # not by a variable, which is one more reference up to Python 3.13, and none from 3.14 on
        if not isinstance(self._pin, Pin) or sys.getrefcount(self._pin) > UNSEEN:
            return
        with contextlib.suppress(MemoryError, ValueError):  # it was released meanwhile, say
            copy = self.copied()
            if isinstance(self._pin, Pin):
                self._pin, self.where = copy, "host"

    def move_to(self, pin: Pin, copy: CopiedRows) -> None:
        """Have its rows in a copy of what is pinned, if that is what it has. Views that are held keep that (R63)."""
        if self._pin is pin:
            self._pin, self.where = copy, "host"

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


class FetchTurns(Protocol):
    """What a fetch asks of those of its client (`Fetching`)."""

    @property
    def row_bytes(self) -> int: ...

    @property
    def clock(self) -> Callable[[], int]: ...

    def look(self, it: Fetch) -> None: ...

    def retry(self, it: Fetch, addr: str, deadline_s: float | None) -> Fetch: ...

    def give_up(self, it: Fetch, error: FetchError) -> None: ...


class Fetch:
    """One fetch, which ends by itself: with an item, or with an error. Made by `Client.fetch`."""

    def __init__(self, fetching: FetchTurns, key: str | bytes, address: str, generation: int) -> None:
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
        self.part: PartOfRows | None = None
        """What came of it before it failed, or of the one of which it is a retry."""
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
        ended = threading.Lock()
        ended.acquire()

        def tell(_: Fetch) -> None:
            ended.release()

        self.add_done_callback(tell)
        try:
            while not self.poll():
                if now_ns >= until_ns:
                    return False
                pause_ns = min(max((now_ns - begun_ns) // LOOKS, LOOK_NS), MOST_LOOK_NS)
                ended.acquire(timeout=min(pause_ns, until_ns - now_ns) / NS)
                now_ns = self._fetching.clock()
        finally:
            with contextlib.suppress(ValueError):  # it was called
                self._callbacks.remove(tell)
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

    @property
    def kept_bytes(self) -> int:
        """How many bytes have come of what has failed, which a retry need not fetch again; 0 while it has not failed.
        """
        part = self.part
        if part is None or self._error is None:
            return 0
        return min(part.tokens * self._fetching.row_bytes, part.rows.shape.bytes)

    def retry(self, addr: str = "", *, deadline_s: float | None = None) -> Fetch:
        """Fetch the item again, of which this has failed, from the same node or another one at `addr`.

        What has come over a network stays (`kept_bytes`), and the retry goes on behind it, if the item of its node is
        still that one: else, and at another node, it begins with the first row. So one retry of a fetch has its rows.

        Raises:
            ValueError: this has not failed; and ValueError, NodeGoneError, RuntimeError as `Client.fetch`.
        """
        if self._error is None:
            raise ValueError(f"item {self.key!r}: its fetch has not failed, there is nothing to retry")
        return self._fetching.retry(self, addr or self.address, deadline_s)

    def add_done_callback(self, callback: Callable[[Fetch], object]) -> None:
        """Have `callback(fetch)` called at its end, by whichever thread notices; now, if it has ended."""
        self._callbacks.append(callback)
        if self.is_done:
            self.call_back()

    def call_back(self) -> None:
        """Call those that wait for its end, which has come (any thread that has not the turn)."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # another thread has it
                return
            try:
                callback(self)
            except Exception as error:  # a kept record would keep the error's frames, and what they have
                why = f"{type(error).__name__}: {error}"
                log.error("item %r: a callback of its fetch failed: %s", self.key, why)

    def end(self, item: Item | None, error: FetchError | None) -> None:
        """End it (who has the turn, and calls `call_back` behind it)."""
        if item is not None:
            self.part = None
        self._item, self._error = item, error

    def __await__(self) -> Generator[Any, None, Item]:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell(_: Fetch) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody awaits it any more
                loop.call_soon_threadsafe(ended.set)

        self.add_done_callback(tell)
        yield from ended.wait().__await__()
        return self.result()


def _again(error: FetchError) -> FetchError:
    return type(error)(error.key, error.reason)
