"""How a coroutine hears that something has changed for a client, beside whatever its caller does with the descriptor.

A loop has one reader a descriptor, and a ring is gone once somebody has read it. So `Client.fileno` is left to the
caller: an epoll of its own watches it, by its edges, which takes nothing from it. That misses the rings that the caller
clears (`Client.arm`) before the loop has looked; the caller looks after those, and each look that has found something
is told of (`CallersView.on_change`).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
from types import TracebackType
from typing import Self

from embridge.pipeline.client.callers_view import CallersView


class Wakeups:
    """A context manager, of one loop's thread. One at a time for a client."""

    def __init__(self, loop: asyncio.AbstractEventLoop, view: CallersView, descriptor: int) -> None:
        self._loop = loop
        self._view = view
        self._thread = threading.get_ident()
        self._changed = asyncio.Event()
        self._epoll = select.epoll()
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)

    def __enter__(self) -> Self:
        self._loop.add_reader(self._epoll.fileno(), self._rung)
        self._view.on_change = self._looked
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view.on_change == self._looked:  # else another loop has taken over
            self._view.on_change = None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def clear(self) -> None:
        """Forget what was told so far: it is looked at."""
        self._changed.clear()

    async def wait(self) -> None:
        """Sleep until something has changed since `clear`."""
        await self._changed.wait()

    def _rung(self) -> None:
        self._epoll.poll(0)
        self._changed.set()

    def _looked(self) -> None:
        if threading.get_ident() == self._thread:
            self._changed.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._changed.set)
