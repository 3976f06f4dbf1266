"""The scheduler's loop of the demo: open a few requests, step the queues, sleep when nothing moves, check what arrives.

It also plays the router, which in a deployment gives the same room number to both sides.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from embridge import EmbeddingRequest, PreallocQueue, TransferQueue
from embridge.allocator.errors import EmbridgeError
from embridge.allocator.status import Phase
from embridge.demo.display import Display, Line
from embridge.demo.encoder import Ended, Job, Ready, Report, Written
from embridge.demo.prompt import Prompt
from embridge.demo.settings import DemoSettings
from embridge.demo.verify import problem_with

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client

ENCODER_START_S = 90.0
NAP_S = 0.1  # how often the screen and the stall limit are looked after while nothing happens


class DemoError(EmbridgeError):
    """The demo can't go on: what failed, what was seen, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLink:
    """The encoder process and the connection to it."""

    connection: Connection
    process: BaseProcess

    def send(self, job: Job | None) -> None:
        with suppress(BrokenPipeError):  # it has ended: `reports` says so
            self.connection.send(job)

    def reports(self) -> list[Report]:
        """What it has said since the last call; never blocks.

        Raises:
            DemoError: it has ended.
        """
        reports: list[Report] = []
        try:
            while self.connection.poll():
                reports.append(self.connection.recv())
        except (EOFError, ConnectionResetError):
            self.process.join(NAP_S)
            raise DemoError(
                f"encoder process {self.process.pid} ended: exit status {self.process.exitcode}; "
                "its error stands above"
            ) from None
        return reports


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """One request of the run, from the queue to the check."""

    line: Line
    prompt: Prompt
    request: EmbeddingRequest | None = None
    written: Written | None = None


class Scheduler:
    def __init__(self, *, client: Client, link: EncoderLink, encode_addr: str, settings: DemoSettings) -> None:
        self._client = client
        self._link = link
        self._encode_addr = encode_addr
        self._settings = settings
        self._transfer = TransferQueue(client)
        self._prealloc = PreallocQueue(client, self._transfer)
        self._open: dict[int, Item] = {}
        self._arrived: list[EmbeddingRequest] = []

    def run(self, items: Sequence[Item], display: Display) -> None:
        """Carry every item to its end, and check it.

        Raises:
            DemoError: the encoder ended, or nothing moved for `stall_s`.
        """
        self._await_encoder()
        queued = deque(items)
        moved_s = time.monotonic()
        while queued or self._open:
            while queued and len(self._open) < self._settings.in_flight:
                self._start(queued.popleft())
            if self._step(display):
                moved_s = time.monotonic()
            elif time.monotonic() - moved_s > self._settings.stall_s:
                stuck = ", ".join(f"#{item.line.number} {item.line.path_text()}" for item in self._open.values())
                raise DemoError(
                    f"demo stalled: nothing moved for {self._settings.stall_s:g} s > its limit; open requests: {stuck}"
                )
            else:
                self._sleep()
        self._link.send(None)

    def _await_encoder(self) -> None:
        deadline_s = time.monotonic() + ENCODER_START_S
        while time.monotonic() < deadline_s:
            wait([self._link.connection], timeout=NAP_S)
            if any(isinstance(report, Ready) for report in self._link.reports()):
                return
        raise DemoError(f"encoder process did not attach: {ENCODER_START_S:g} s passed; look at the machine's load")

    def _start(self, item: Item) -> None:
        room = secrets.randbits(63)
        item.request = EmbeddingRequest(room=room, bootstrap_addr=self._encode_addr, required_dst_info_num=1)
        self._open[room] = item
        self._link.send(
            Job(room=room, photograph=item.line.photograph, prompt=item.prompt, streamed=item.line.streamed)
        )
        self._prealloc.add(item.request)

    def _step(self, display: Display) -> bool:
        """One turn of the loop; whether anything moved."""
        moved = False
        for report in self._link.reports():
            moved = True
            item = None if isinstance(report, Ready) else self._open.get(report.room)
            if item is None:
                continue
            if isinstance(report, Written):
                item.written = report
            elif isinstance(report, Ended) and report.failure is not None:
                item.line.problem = item.line.problem or f"encoder: {report.failure}"
        self._client.poll()
        finished, failed = self._transfer.pop_transferred()
        for item in self._open.values():
            moved |= _follow(item)
        for request in failed:
            item = self._open.pop(request.room)
            item.line.problem = str(request.failure)
            display.finished(item.line)
        self._arrived += finished
        for request in [*self._arrived]:
            if self._open[request.room].written is not None:  # its digests may come a moment later than its rows
                self._arrived.remove(request)
                self._check(self._open.pop(request.room), display)
                moved = True
        return moved or bool(finished or failed)

    def _check(self, item: Item, display: Display) -> None:
        request, written, line = item.request, item.written, item.line
        assert request is not None
        assert written is not None
        assert request.result is not None
        stamps_ns = request.stamps_ns
        ended_ns = stamps_ns[Phase.Success]
        line.latency_ms = (ended_ns - stamps_ns[Phase.Bootstrapping]) / 1e6
        line.moving_ms = (ended_ns - written.first_ns) / 1e6
        line.behind_ms = (ended_ns - written.last_ns) / 1e6
        line.problem = problem_with(
            request.result, item.prompt, written.digests, deepstack_layers=self._settings.deepstack_layers
        )
        line.checked = True
        request.release()
        display.finished(line)

    def _sleep(self) -> None:
        if self._client.arm():
            wait([self._link.connection, self._client.fileno()], timeout=NAP_S)


def _follow(item: Item) -> bool:
    """Bring the line up to date with its request; whether that changed it."""
    line, request = item.line, item.request
    assert request is not None
    path = request.phase_path()
    seen = (tuple(path), request.transferred_tokens, request.num_rounds)
    before = (tuple(line.path), line.received_tokens, line.rounds)
    line.path, line.received_tokens, line.rounds = seen
    line.phase = path[-1] if path else Phase.Bootstrapping
    return seen != before
