"""What an encoder process does for a test: functions that an `Agent` calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

import support.watching  # noqa: F401 - it notes doors as they open
from embridge import Client, EmbeddingSender, attach
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import TransferHandle
from support.rows import DELTA, rows_of
from support.waiting import wait_until


class Outcome(NamedTuple):
    """How a request ended on one side."""

    path: list[str]
    sent: int
    error: str  # the exception's class, or nothing
    reason: str

    @classmethod
    def of(cls, handle: TransferHandle) -> Outcome:
        error = handle.failure_exception()
        path = [phase.name for phase in handle.phase_path()]
        return cls(path, handle.sent_tokens, type(error).__name__ if error else "", error.reason if error else "")


def client_of(state: SimpleNamespace, run_dir: Path) -> Client:
    """This process's client of a node; attached on first use."""
    if not hasattr(state, "clients"):
        torch.set_num_threads(1)
        state.clients, state.senders = {}, {}
    if run_dir not in state.clients:
        state.clients[run_dir] = attach(run_dir)
    client: Client = state.clients[run_dir]
    return client


@contextmanager
def through_workers(client: Client) -> Iterator[None]:
    """Requests that it opens meanwhile go through the transfer workers, as where `direct` is off."""
    library = library_of(client)
    doors, library.doors = library.doors, None
    try:
        yield
    finally:
        library.doors = doors


def num_doors(client: Client) -> int:
    """How many language nodes an encoder's client writes to itself."""
    doors = library_of(client).doors
    return 0 if doors is None else len(doors)


def wait_doors(client: Client) -> None:
    """Until it has a door to every node that has registered with its own."""
    peers = library_of(client).attachment.control.peers
    wait_until(lambda: num_doors(client) == len(peers.alive()))


def open_sender(
    client: Client, room: int, total: int, *, announce: bool = False, timeout_s: float | None = None
) -> EmbeddingSender:
    sender = client.sender(room, total, mrope_position_delta=DELTA, timeout_s=timeout_s)
    if announce:
        sender.announce()
    return sender


def give(sender: EmbeddingSender, first: int = 0, end: int | None = None) -> bool:
    """Write rows [first, end) of the sender's room; all that remain, if no end is given."""
    end = sender.total_tokens if end is None else end
    return sender.write(first, *rows_of(sender._attachment.geometry, sender.room, first, end))


def ended(handle: TransferHandle, timeout_s: float = 30.0) -> Outcome:
    """Wait for the end of a request, on either side."""
    wait_until(lambda: handle.poll().is_terminal, timeout_s, lambda: f"{handle} at its end")
    return Outcome.of(handle)


def leave(state: SimpleNamespace, run_dir: Path) -> None:
    """Close the client of a node, if there is one."""
    client = getattr(state, "clients", {}).pop(run_dir, None)
    if client is not None:
        client.close()


def open_room(
    state: SimpleNamespace,
    run_dir: Path,
    room: int,
    total: int,
    *,
    announce: bool = False,
    timeout_s: float | None = None,
) -> None:
    """Open a room; its rows are sent by `send`, or in parts by `write`."""
    client = client_of(state, run_dir)
    state.senders[room] = open_sender(client, room, total, announce=announce, timeout_s=timeout_s)


def send(state: SimpleNamespace, run_dir: Path, room: int, total: int, *, timeout_s: float | None = None) -> None:
    """Open a room and give all its rows at once."""
    open_room(state, run_dir, room, total, timeout_s=timeout_s)
    send_all(state, room)


def send_all(state: SimpleNamespace, room: int) -> bool:
    sender = _sender(state, room)
    return sender.send_embedding(*rows_of(sender._attachment.geometry, room, 0, sender.total_tokens))


def send_many(state: SimpleNamespace, run_dir: Path, totals: dict[int, int], *, timeout_s: float | None = None) -> None:
    for room, total in totals.items():
        send(state, run_dir, room, total, timeout_s=timeout_s)


def write(state: SimpleNamespace, room: int, first: int, end: int) -> bool:
    return give(_sender(state, room), first, end)


def abort(state: SimpleNamespace, room: int, reason: str) -> None:
    _sender(state, room).abort(reason)


def look(state: SimpleNamespace, room: int) -> tuple[str, int]:
    """(phase, sent) now."""
    now = _sender(state, room).progress()
    return Phase(now.phase).name, now.sent


def wait_sent(state: SimpleNamespace, room: int, sent: int, timeout_s: float = 20.0) -> str:
    """Until so many rows are at all destinations; the phase then."""
    sender = _sender(state, room)
    wait_until(lambda: sender.sent_tokens >= sent, timeout_s, lambda: f"{sender} sent {sent}")
    return sender.poll().name


def wait_phase(state: SimpleNamespace, room: int, phase: str, timeout_s: float = 20.0) -> None:
    sender = _sender(state, room)
    wait_until(lambda: sender.poll() >= Phase[phase], timeout_s, lambda: f"{sender} in {phase}")
    assert sender.poll() == Phase[phase], sender


def outcome(state: SimpleNamespace, room: int, timeout_s: float = 30.0) -> Outcome:
    """Wait for the end of a request."""
    return ended(_sender(state, room), timeout_s)


def outcomes(state: SimpleNamespace, rooms: list[int], timeout_s: float = 60.0) -> dict[int, Outcome]:
    return {room: outcome(state, room, timeout_s) for room in rooms}


def _sender(state: SimpleNamespace, room: int) -> EmbeddingSender:
    sender: EmbeddingSender = state.senders[room]
    return sender
