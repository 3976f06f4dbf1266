"""When a sender is *done*: its request has ended, and all rows are the caller's again; and who is told of that."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from embridge.pipeline.client.handle import TransferHandle

log = logging.getLogger(__name__)


class IsDone(TransferHandle):
    """A request whose rows its caller has lent."""

    _done = False
    _done_callbacks: deque[Callable[[Any], object]] | None = None  # if there are any

    @property
    def done(self) -> bool:
        """Whether the request has ended and no lent row is looked at any more, so that all are the caller's again.

        That is later than the end in `poll()`, by a copy at most. Any thread may ask.
        """
        return self._done

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Have the library thread call `callback(sender)` once it is `done`, or call it now if it is; keep it brief."""
        if self._done_callbacks is None:
            self._done_callbacks = deque()
        self._done_callbacks.append(callback)
        if self._done:
            self._call_back()

    async def until_done(self) -> None:
        """Wait until it is `done`, in a coroutine. Raises TransferError: the request has failed."""
        loop, is_done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(is_done.set)

        self.add_done_callback(tell)
        await is_done.wait()
        if (error := self.failure_exception()) is not None:
            raise error

    def _has_done(self) -> None:
        self._done = True
        self._call_back()

    def _call_back(self) -> None:
        callbacks = self._done_callbacks
        while callbacks:
            try:
                callback = callbacks.popleft()
            except IndexError:  # the other thread has taken it
                return
            try:
                callback(self)
            except Exception:
                log.exception("room %d: a done callback failed", self.room)
