"""Many small requests at once: what an encoder and a scheduler do for a test, as an `Agent` calls it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from embridge import Client, EmbeddingRequest, EmbeddingSender, PreallocQueue, TransferQueue, attach
from embridge.pipeline.client.client import library_of
from support.rows import arrived, difference, rows_of


class Crowd(NamedTuple):
    """How a side's requests have ended."""

    num_arrived: int
    failures: list[str]
    most_waiting: int  # for a slot, in this client
    seconds: float


def receive(
    state: SimpleNamespace, run_dir: Path, addr: str, rooms: Sequence[int], total: int, at_once: int, timeout_s: float
) -> Crowd:
    """Ask for these rooms in their order, so many at once; every byte is looked at."""
    with attach(run_dir) as client:
        transfer = TransferQueue(client)
        prealloc = PreallocQueue(client, transfer)
        ended: list[EmbeddingRequest] = []
        failures: list[str] = []
        most = 0

        def open_room(room: int) -> None:
            prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=addr, timeout_s=timeout_s))

        def take() -> int:
            nonlocal most
            client.poll()
            most = max(most, library_of(client)._num_lacking)
            finished, failed = transfer.pop_transferred()
            for request in (*finished, *failed):
                wrong = str(request.failure or "") or _difference(client, request)
                if wrong:
                    failures.append(wrong)
                request.release()
                ended.append(request)
            return len(ended)

        seconds = _go_through(client, rooms, at_once, timeout_s, open_room, take)
        return Crowd(len(ended) - len(failures), failures[:3], most, seconds)


def _difference(client: Client, request: EmbeddingRequest) -> str:
    it = request.result
    assert it is not None
    rows = arrived(it)
    return difference(client.geometry, request.room, 0, rows)


def send(
    state: SimpleNamespace, run_dir: Path, rooms: Sequence[int], total: int, at_once: int, timeout_s: float
) -> Crowd:
    """Open these rooms in their order, so many at once, and give all rows."""
    with attach(run_dir) as client:
        rising: set[EmbeddingSender] = set()
        failures: list[str] = []
        num_ended = most = 0

        def open_room(room: int) -> None:
            sender = client.sender(room, total, timeout_s=timeout_s)
            sender.send_embedding(*rows_of(client.geometry, room, 0, total))
            rising.add(sender)

        def take() -> int:
            nonlocal num_ended, most
            most = max(most, len(library_of(client).slot_queue))
            for sender in client.poll():
                assert isinstance(sender, EmbeddingSender)
                if sender.poll().is_terminal and sender in rising:
                    rising.discard(sender)
                    num_ended += 1
                    if error := sender.failure_exception():
                        failures.append(str(error))
            return num_ended

        seconds = _go_through(client, rooms, at_once, timeout_s, open_room, take)
        return Crowd(num_ended - len(failures), failures[:3], most, seconds)


def _go_through(
    client: Client,
    rooms: Sequence[int],
    at_once: int,
    timeout_s: float,
    open_room: Callable[[int], None],
    take: Callable[[], int],
) -> float:
    began = time.monotonic()
    num_opened = num_ended = 0
    while num_ended < len(rooms):
        while num_opened < len(rooms) and num_opened - num_ended < at_once:
            open_room(rooms[num_opened])
            num_opened += 1
        before, num_ended = num_ended, take()
        if num_ended == before:
            assert time.monotonic() - began < 2 * timeout_s, f"{num_ended} of {num_opened} opened have ended"
            if client.arm():
                select.select([client.fileno()], [], [], 0.1)
    return time.monotonic() - began
