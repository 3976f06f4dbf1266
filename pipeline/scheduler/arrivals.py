"""`receive()`: one request from its room to its rows, for those who need no queues of a scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Self

from embridge.allocator.errors import TransferError
from embridge.pipeline.arguments import is_time, said
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest, EmbeddingResult
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.pipeline.scheduler.wakeups import Wakeups
from embridge.workers.timing import NS

MOST_S: Final = 1e9
LOOK_S: Final = 0.001


class Arrival:
    """One request on its way, made by `receive`; a context manager that releases it.

    One thread at a time calls the methods of all arrivals of a client; or the coroutines of one loop await them.
    """

    def __init__(self, arrivals: _Arrivals, request: EmbeddingRequest) -> None:
        self.request = request
        """What the scheduler's queues make of it: its room, its phases, its rounds."""
        self._arrivals = arrivals

    @property
    def is_done(self) -> bool:
        """Whether it has ended, as far as was looked: `poll` looks."""
        return self.request.result is not None or self.request.failure is not None

    def poll(self) -> bool:
        """Look, without waiting; whether it has ended. Raises RuntimeError after `Client.close`."""
        if not self.is_done:
            self._arrivals.look()
        return self.is_done

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it has ended, for so many seconds at most; whether it has. Raises ValueError, and as `poll`."""
        if not is_time(timeout_s) or timeout_s < 0:
            raise ValueError(f"timeout_s: {said(timeout_s)} s must not be negative")
        clock = self._arrivals.clock
        until_ns = clock() + int(min(float(timeout_s), MOST_S) * NS)
        was_awake = False
        while not self.poll():
            if (left_ns := until_ns - clock()) <= 0:
                return False
            if was_awake:  # at once, for something that only `Client.poll` takes: the caller drives a receiver by hand
                time.sleep(LOOK_S)
            was_awake = self._arrivals.client.wait(left_ns / NS)
        return True

    def exception(self) -> TransferError | None:
        """Why it has failed; None: it has not."""
        return self.request.failure

    def result(self) -> EmbeddingResult:
        """Its rows, which stay until `release`. Raises the failure; ValueError: it has not ended, or is released."""
        if self.request.failure is not None:
            raise self.request.failure
        if self.request.result is None:
            raise ValueError(f"room {self.request.room}: it has not ended, or was released; `wait` for it")
        return self.request.result

    def abort(self, reason: str = "aborted by its receiver") -> None:
        """Give it up: unless it has ended, it fails, on both sides."""
        self.request.abort(reason)

    def release(self) -> None:
        """Give its rows back, and give it up if it has not ended. A second call does nothing."""
        if not self.is_done and not self._arrivals.client.is_closed:
            self.request.abort("released by its receiver")
        self._arrivals.forget(self.request)
        self.request.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __await__(self) -> Generator[Any, None, EmbeddingResult]:
        yield from self._arrivals.until_done(self).__await__()
        return self.result()


class _Arrivals:
    """All arrivals of one client: a transfer queue, and a task of the loop whose coroutines wait for some."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.clock = library_of(client).attachment.clock
        self._transfer = TransferQueue(client)
        self._prealloc = PreallocQueue(client, self._transfer)
        self._released: set[EmbeddingRequest] = set()  # given up before they had ended
        self._waiting: dict[asyncio.Future[None], Arrival] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, request: EmbeddingRequest) -> Arrival:
        self._prealloc.add(request)
        return Arrival(self, request)

    def look(self) -> None:
        finished, failed = self._transfer.pop_transferred()
        for request in (*finished, *failed):
            if request in self._released:
                self._released.discard(request)
                request.release()

    def forget(self, request: EmbeddingRequest) -> None:
        if request.result is None and request.failure is None:
            self._released.add(request)

    async def until_done(self, arrival: Arrival) -> None:
        loop = asyncio.get_running_loop()
        if self._task is not None and self._task.get_loop() is not loop:  # that one is over: nobody waits there
            self._task, self._waiting = None, {}
        ended = loop.create_future()
        self._waiting[ended] = arrival
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._drive(loop))
        try:
            await ended
        finally:
            self._waiting.pop(ended, None)

    async def _drive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look whenever something has changed, for as long as a coroutine waits."""
        view, was_awake = library_of(self.client).view, False
        try:
            with Wakeups(loop, view, self.client.fileno()) as wakeups:
                while self._waiting:
                    self.look()
                    wakeups.clear()
                    for ended, arrival in list(self._waiting.items()):
                        if arrival.is_done and not ended.done():
                            ended.set_result(None)
                        if ended.done():
                            del self._waiting[ended]
                    if self._waiting and view.arm_beside():
                        await wakeups.wait()
                        was_awake = False
                    else:
                        await asyncio.sleep(LOOK_S if was_awake else 0)  # as `Arrival.wait`
                        was_awake = True
        except Exception as error:
            for ended in self._waiting:
                if not ended.done():
                    ended.set_exception(error)
            self._waiting.clear()


def receive(
    client: Client,
    bootstrap_addr: str,
    room: int,
    *,
    required_dst_info_num: int = 1,
    timeout_s: float | None = None,
) -> Arrival:
    """Receive the rows of a room, from the encode node at `bootstrap_addr`, by a client of a language node.

    `required_dst_info_num` is the number of language nodes that receive the room; `timeout_s` the deadline in seconds
    from now. It returns at once: poll the arrival, wait for it, or await it; a loop that has a reader of its own for
    the client's `fileno` keeps it. A fault of the request, now or later, comes out as its failure.

    Raises:
        ValueError: the client has ranks, which follow a queue.
        NodeBusyError: as many requests as may wait for a slot do.
        NodeGoneError: the client's own node is gone.
        RuntimeError: after `Client.close`, or in a forked child.
    """
    library = library_of(client)
    if library.ranks is not None:
        raise ValueError("client: it has ranks, which follow a queue; make a TransferQueue")
    arrivals = library.arrivals
    if not isinstance(arrivals, _Arrivals):
        arrivals = library.arrivals = _Arrivals(client)
    return arrivals.add(
        EmbeddingRequest(
            room=room,
            bootstrap_addr=bootstrap_addr,
            required_dst_info_num=required_dst_info_num,
            timeout_s=timeout_s,
        )
    )
