"""Requests of one host that stay untold for long, so that a test says when a node is told of which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from embridge import Client, EmbeddingReceiver, EmbeddingSender
from embridge.allocator.records import Slot
from embridge.pipeline.client.client import library_of
from embridge.pipeline.inspection.node_status import node_status
from embridge.workers.timing import NS
from support.direct import open_door
from support.nodes import Station
from support.posted import grants_in
from support.scheduling import Queues
from support.waiting import wait_until

TOTAL: Final = 100  # less than a block
LONGER: Final = 120
_LONG_NS: Final = 25 * NS


@contextmanager
def untold_for_long(encode: Station, sending: Client, receiving: Queues, room: int) -> Iterator[None]:
    """Both clients find each other's grants and offers, and neither tells its node of a request because that takes
    long. `room` is used up.
    """
    open_door(encode, sending, receiving, room)
    neighbours = library_of(receiving.client).neighbours
    wait_until(lambda: neighbours.find(encode.addr) is not None)
    settle(encode)
    with pytest.MonkeyPatch.context() as patch:
        for client in (sending, receiving.client):
            patch.setattr(library_of(client).requests.untold, "late_ns", _LONG_NS)
        yield


def post(encode: Station, receiving: Queues, room: int) -> EmbeddingReceiver:
    """The scheduler's side of a request of which nobody else knows."""
    request = receiving.add(encode.addr, room)
    wait_until(lambda: is_posted(receiving, room))
    assert request.receiver is not None
    assert request.receiver.is_untold
    return request.receiver


def settle(encode: Station) -> None:
    """Until no process of the encode node has a request in flight."""
    wait_until(lambda: not node_status(encode.run_dir)["requests"])


def kicks(*nodes: Station) -> dict[str, int]:
    """How many kicks the processes of these nodes have taken, and requests that have ended well, by whom."""
    rows = {f"{node.run_dir.name}/{name}": row for node in nodes for name, row in node.control.metrics.all().items()}
    return {name: row["succeeded" if name.endswith("clients") else "records"] for name, row in rows.items()}


def is_posted(receiving: Queues, room: int) -> bool:
    return bool(grants_in(library_of(receiving.client).attachment.control.posts, room))


def tell_all(client: Client) -> None:
    """Let it be late for all requests of a client."""
    library = library_of(client)
    for handle in library.requests.untold.handles():
        handle.tell()


def tell_both(sending: Client, scheduling: Client) -> None:
    tell_all(sending)
    tell_all(scheduling)


def joined_by(sender: EmbeddingSender) -> int:
    return sender._slots.get(sender.slot, Slot.JOINED_BY)
