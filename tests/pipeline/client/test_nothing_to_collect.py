"""A request that has ended is freed with its last use: thousands a second would have the collector walk all that the
process has.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.rows import rows_of

from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.doors import Doors


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_sender_is_freed_without_the_collector() -> None:
    """P20: also one whose rows were kept."""
    node = EncodeAlone()
    library = library_of(node.client)
    library.doors = Doors(library.attachment)
    sender = node.sender(1, 8, rows=0)
    assert sender._direct is not None
    node.init(1, [0, 1])
    sender.write(0, *rows_of(node.node.geometry, 1, 0, 8))
    assert sender._stock is not None
    node.settle()
    assert sender.poll() == Phase.Success
    assert library.requests.by_slot == {}
    left = weakref.ref(sender)
    del sender
    node.client.poll()
    assert left() is None


def test_a_receiver_is_freed_without_the_collector() -> None:
    """P20."""
    node = LanguageAlone()
    receiver = node.client.receiver(ENCODE_ADDRESS, 1)
    node.registered()
    receiver.clear()
    node.settle()
    node.advance(30)
    assert receiver.poll() == Phase.Failed
    assert library_of(node.client).requests.by_slot == {}
    left = weakref.ref(receiver)
    del receiver
    node.client.poll()
    assert left() is None
