"""Whole requests between an encoder and a scheduler that are both in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embridge import Client, attach
from support.encoding import give, open_sender
from support.nodes import Station
from support.scheduling import Queues, Received


@contextmanager
def joined(encode: Station, language: Station) -> Iterator[tuple[Client, Queues]]:
    """A client of the encode node, and queues at the language node. Both nodes are idle once these have left."""
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        yield sending, Queues(receiving)
    encode.wait_idle()
    language.wait_idle()


def carried(queues: Queues, addr: str, sending: Client, room: int, total: int, timeout_s: float = 20.0) -> Received:
    """Ask for a room, give all its rows in one call, and take the request out of the queue."""
    queues.add(addr, room)
    assert give(open_sender(sending, room, total))
    return queues.take(room, timeout_s)
