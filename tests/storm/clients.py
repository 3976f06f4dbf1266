"""The processes that put load on the nodes: an encoder or a scheduler, each of which writes down all that it sees.

The runner sends ("open", room, address), ("abort", room, why), ("strike", step) and ("leave",) through a pipe; it hears
("joined",), ("gone",), ("struck", room) and ("ended", room, verdict), where a verdict is "" for a request that arrived
with every byte, else a word.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from support.direct import signal_here, strike
from support.encoding import give, open_sender
from support.scheduling import Queues, aux_is_right

from embridge import Client, EmbeddingRequest, EmbeddingSender, attach
from embridge.allocator.errors import AttachError, NodeGoneError
from embridge.allocator.status import Phase
from storm.history import Recorder, messages_of, speak_into
from storm.items import Fetches, Publishing
from storm.plan import LONGEST, Request, request_of

IDLE_S = 0.001
KEEP_S = 0.3  # a result, while others go on
ABORTED = "the storm gave it up"
STRIKES = ("half copied", "half copied", "taken", "sent", "own word")  # steps of a write at which an encoder stops
FAILED_BEFORE = " failed here before: "  # what a destination hears that comes after its encoder's side has ended


def was_given_up(verdict: str) -> bool:
    """Whether a request ended so because the storm gave it up, on whichever side."""
    return verdict == ABORTED or f"{FAILED_BEFORE}{ABORTED};" in verdict


@dataclass(slots=True)
class Seat:
    """What a client is told when it gets its place."""

    name: str
    side: str
    node: str
    run_dir: Path
    history: Path
    seed: int
    deadline_s: float
    longest: int = LONGEST
    without: frozenset[str] = frozenset()


def serve(connection: Connection, history: Path) -> None:
    """The life of a client process: it waits for its seat, and works until it is told to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    speak_into(messages_of(history))
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s client %(message)s")
    torch.set_num_threads(1)
    try:
        seat: Seat | None = connection.recv()
        if seat is not None:
            (Encoder if seat.side == "encode" else Scheduler)(connection, seat).run()
    except (EOFError, BrokenPipeError):
        return  # the runner is gone


class Load(ABC):
    """One client of one node, attached again whenever its node is back."""

    def __init__(self, connection: Connection, seat: Seat) -> None:
        self._connection = connection
        self._seat = seat
        self._note = Recorder(seat.history, without=seat.without)
        self._client: Client | None = None
        self._join_at = 0.0
        self._seen: dict[int, tuple[int, int]] = {}

    def run(self) -> None:
        while True:
            while self._connection.poll(IDLE_S):
                command = self._connection.recv()
                if command[0] == "leave":
                    self._leave()
                    return
                getattr(self, f"_{command[0]}")(*command[1:])
            if self._client is None:
                self._join()
            else:
                self._client.poll()
                self._step(time.monotonic())
                if self._client.node_gone and not self._pending():
                    self._leave()
                    self._connection.send(("gone",))

    def _join(self) -> None:
        if time.monotonic() < self._join_at:
            return
        try:
            self._client = attach(self._seat.run_dir)
        except AttachError:
            self._join_at = time.monotonic() + 0.05
            return
        self._note("joined", client=self._seat.name, node=self._seat.node)
        self._connection.send(("joined",))
        self._attached(self._client)

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _open(self, room: int, addr: str) -> None:
        why = "not attached"
        if self._client is not None:
            try:
                self._begin(room, addr, request_of(self._seat.seed, room, self._seat.longest))
            except (NodeGoneError, RuntimeError) as error:
                why = str(error)
            else:
                return
        self._note("refused", room=room, side=self._seat.side, client=self._seat.name, why=why)
        self._connection.send(("ended", room, "refused"))

    def _opened(self, room: int) -> None:
        self._note("opened", room=room, side=self._seat.side, client=self._seat.name, deadline_s=self._seat.deadline_s)

    def _saw(self, room: int, phase: int, sent: int) -> None:
        if self._seen.get(room) != (phase, sent):
            self._seen[room] = (phase, sent)
            self._note(
                "phase", room=room, side=self._seat.side, client=self._seat.name, phase=Phase(phase).name, sent=sent
            )

    def _aborting(self, room: int, why: str) -> None:
        self._note("aborting", room=room, side=self._seat.side, why=why)

    def _ended(self, room: int, **fields: Any) -> None:
        self._seen.pop(room, None)
        self._note("ended", room=room, side=self._seat.side, client=self._seat.name, **fields)
        self._connection.send(("ended", room, fields["difference"] or fields["reason"]))

    @abstractmethod
    def _attached(self, client: Client) -> None: ...

    @abstractmethod
    def _begin(self, room: int, addr: str, request: Request) -> None: ...

    @abstractmethod
    def _step(self, now: float) -> None: ...

    @abstractmethod
    def _pending(self) -> bool: ...

    @abstractmethod
    def _abort(self, room: int, why: str) -> None: ...


@dataclass(slots=True)
class Sending:
    """A room that this encoder has opened."""

    sender: EmbeddingSender
    request: Request
    due: float
    abort_at: float | None
    done: int = field(default=0)  # parts


class Encoder(Load):
    """Opens rooms on its encode node, and gives their rows in parts."""

    def _attached(self, client: Client) -> None:
        self._rooms: dict[int, Sending] = {}
        self._items = Publishing(client, self._seat.name)

    def _begin(self, room: int, addr: str, request: Request) -> None:
        assert self._client is not None
        now = time.monotonic()
        sender = open_sender(self._client, room, request.total, timeout_s=self._seat.deadline_s)
        self._opened(room)
        self._rooms[room] = Sending(
            sender, request, now, now + request.abort_after_s if request.abort_by == "encode" else None
        )

    def _pending(self) -> bool:
        return bool(getattr(self, "_rooms", None))

    def _abort(self, room: int, why: str) -> None:
        held = getattr(self, "_rooms", {}).get(room)
        if held is not None:
            self._aborting(room, why)
            with contextlib.suppress(NodeGoneError):
                held.sender.abort(why)

    def _step(self, now: float) -> None:
        self._items.step(now)
        for room, it in list(self._rooms.items()):
            progress = it.sender.progress()
            self._saw(room, progress.phase, progress.sent)
            if progress.phase >= Phase.Success:
                self._end(room, it)
                continue
            with contextlib.suppress(NodeGoneError):
                if it.abort_at is not None and now >= it.abort_at:
                    it.abort_at = None
                    self._abort(room, ABORTED)
                elif it.done < len(it.request.parts) and now >= it.due:
                    first = it.request.parts[it.done - 1] if it.done else 0
                    give(it.sender, first, it.request.parts[it.done])
                    it.done += 1
                    it.due = now + it.request.pause_s

    def _strike(self, step: str) -> None:
        """Stop this process the next time that it has taken that step of a write, and say so."""

        def stop(room: int) -> None:
            self._connection.send(("struck", room))  # one `write`, whichever thread it is
            signal_here(signal.SIGSTOP)

        strike(step, stop)

    def _end(self, room: int, it: Sending) -> None:
        del self._rooms[room]
        failure, progress = it.sender.failure_exception(), it.sender.progress()
        wrong = ""
        if failure is None and progress.sent != it.request.total:
            wrong = f"Success with {progress.sent} of {it.request.total} tokens sent"
        self._ended(
            room,
            phase=Phase(progress.phase).name,
            error=type(failure).__name__ if failure else "",
            reason=failure.reason if failure else "",
            tokens=progress.sent,
            difference=wrong,
        )


class Scheduler(Load):
    """Puts requests into the queues of its language node, and checks every byte of what comes out."""

    def _attached(self, client: Client) -> None:
        self._queues = Queues(client)
        self._aborts: dict[int, float] = {}
        self._granted: dict[int, tuple[int, int]] = {}
        self._kept: deque[tuple[float, EmbeddingRequest]] = deque()  # every third result, and until when
        self._items = Fetches(client, self._seat.name, self._seat.deadline_s, self._note)

    def _begin(self, room: int, addr: str, request: Request) -> None:
        self._items.met(addr)
        try:
            self._queues.add(addr, room, timeout_s=self._seat.deadline_s)
        except NodeGoneError:
            self._queues.requests.pop(room, None)
            raise
        self._opened(room)
        if request.abort_by == "language":
            self._aborts[room] = time.monotonic() + request.abort_after_s

    def _pending(self) -> bool:
        return bool(self._queues.requests) or bool(len(self._items))

    def _abort(self, room: int, why: str) -> None:
        request = self._queues.requests.get(room) if self._client is not None else None
        if request is not None:
            self._aborting(room, why)
            with contextlib.suppress(NodeGoneError):
                request.abort(why)

    def _step(self, now: float) -> None:
        for room, at in list(self._aborts.items()):
            if now >= at:
                del self._aborts[room]
                self._abort(room, ABORTED)
        self._items.step(now)
        self._queues.step()
        self._queues.order.clear()  # it would grow for an hour
        for room, request in self._queues.requests.items():
            if request.receiver is not None and room not in self._queues.done:
                self._look(room, request)
        for room, request in list(self._queues.done.items()):
            self._end(room, request)
        while self._kept and self._kept[0][0] <= now:
            request = self._kept.popleft()[1]
            if wrong := self._queues.check(request).difference:  # it was right before
                self._ended(request.room, phase="Success", error="", reason="", tokens=0, difference=wrong)
            request.release()

    def _look(self, room: int, request: EmbeddingRequest) -> None:
        receiver = request.receiver
        assert receiver is not None
        progress = receiver.progress()
        self._saw(room, progress.phase, progress.sent)
        grant = (receiver.granted_tokens, receiver.granted_blocks)
        if grant != self._granted.get(room, (0, 0)):
            self._granted[room] = grant
            self._note("grant", room=room, tokens=grant[0], blocks=grant[1])

    def _end(self, room: int, request: EmbeddingRequest) -> None:
        if request.receiver is not None:
            last = request.receiver.progress()
            self._saw(room, last.phase, last.sent)
        received = self._queues.check(request)
        total = request_of(self._seat.seed, room, self._seat.longest).total
        wrong = received.difference
        if not received.error and (received.total != total or not aux_is_right(received)):
            wrong = wrong or f"{received.total} tokens with {received.aux}, {total} were given"
        if received.error or room % 3:
            request.release()
        else:
            self._kept.append((time.monotonic() + KEEP_S, request))
        del self._queues.done[room], self._queues.requests[room]
        self._granted.pop(room, None)
        self._aborts.pop(room, None)
        self._ended(
            room,
            phase="Failed" if received.error else "Success",
            error=received.error,
            reason=received.reason,
            tokens=received.total,
            difference=wrong,
        )


def watch(connection: Connection, history: Path) -> None:
    """The observer's process: it looks at every status word of the nodes that it is told of
    (`support.observer.Sampler`).
    """
    from support.observer import Sampler

    speak_into(messages_of(history))
    os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note = Recorder(history)
    tables: dict[str, Sampler] = {}

    def forget(node: str) -> None:
        sampler = tables.pop(node, None)
        if sampler is not None:
            note("observed", node=node, looks=sampler.looks, changes=sampler.changes)

    try:
        while True:
            while connection.poll(0.0005):
                match connection.recv():
                    case ("watch", node, run_dir):
                        forget(node)
                        with contextlib.suppress(AttachError):  # it was killed at once
                            tables[node] = Sampler(run_dir)
                    case ("forget", node):
                        forget(node)
                    case _:
                        return
            for node, sampler in tables.items():
                for what in sampler.look():
                    note("word", node=node, what=what)
    except (EOFError, BrokenPipeError):
        return
