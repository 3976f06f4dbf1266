"""A request that has ended is freed with its last use: thousands a second would have the collector walk all that the
process has.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.lending import Scheduler
from support.rows import rows_of

from embridge import EmbeddingRequest
from embridge.allocator._core import untrack
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


def test_handles_keep_their_attributes_in_themselves_also_those_that_are_set_at_the_end() -> None:
    """P20: a dictionary each, of thousands in flight, would be the collector's."""
    node = LanguageAlone()
    receivers = [node.client.receiver(ENCODE_ADDRESS, room) for room in range(1, 61)]
    node.registered()
    for receiver in receivers:
        receiver.clear()
    node.settle()
    node.advance(30)
    assert {receiver.poll() for receiver in receivers} == {Phase.Failed}
    assert not any(type(it) is dict for receiver in receivers for it in gc.get_referents(receiver))


def test_what_leads_nowhere_is_passed_over_by_the_collector() -> None:
    request = EmbeddingRequest(room=1, bootstrap_addr=ENCODE_ADDRESS)
    assert not gc.is_tracked(request.chunk_info)
    numbers, cycle = [1], [2]
    untrack(numbers, cycle, "none of its business", 5)
    assert not gc.is_tracked(numbers)
    numbers.append(3)
    assert numbers == [1, 3]


def test_a_request_whose_client_is_closed_before_its_end_is_freed_without_the_collector() -> None:
    """P20, P9: it and its receiver lead to each other while a queue drives them."""
    node = Scheduler()
    request = node.add(1)
    assert request.receiver is not None
    node.client.close()
    left = weakref.ref(request)
    del request
    assert left() is None
