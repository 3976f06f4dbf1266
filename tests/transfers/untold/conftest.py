"""Clients of one host whose nodes hear of no request because that takes long, and the request of which nobody else
knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.nodes import Station
from support.scheduling import Queues
from support.untold import post, untold_for_long

from embridge import Client, EmbeddingReceiver


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]) -> Iterator[Client]:
    """A client of the encode node that has a door to the language node, whose clients know that. Neither tells its
    node of a request because that takes long.
    """
    with untold_for_long(encode, sending, receiving, next(rooms)):
        yield sending


@pytest.fixture
def posted(encode: Station, sending: Client, receiving: Queues, room: int) -> EmbeddingReceiver:
    """The scheduler's side of a request of which nobody else knows."""
    return post(encode, receiving, room)
