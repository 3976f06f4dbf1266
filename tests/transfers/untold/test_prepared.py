"""What a request is lent with is made while its rows are on their way, over real nodes; and none of it is left where it
is not used.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from support.encoding import give, open_sender
from support.nodes import Station
from support.scheduling import Queues
from support.untold import LONGER, TOTAL, post
from support.waiting import wait_until

from embridge import Client, attach
from embridge.pipeline.client.client import library_of
from embridge.pipeline.scheduler import straight
from embridge.pipeline.scheduler.request import EmbeddingRequest

pytestmark = pytest.mark.process


@pytest.fixture
def receiving(receiving: Queues) -> Queues:
    """Its default is one of the nine blocks."""
    default = receiving.transfer.default
    default.now = default.longest = receiving.client.geometry.block_size
    return receiving


def _prepared(encode: Station, receiving: Queues, rooms: Iterator[int]) -> tuple[EmbeddingRequest, torch.Tensor]:
    """A request of which no row is there, and the tensor that was made for it."""
    request: EmbeddingRequest = post(encode, receiving, next(rooms)).request
    while request.record.prepared is None:  # the library thread had the turn just then
        request.abort()
        request = post(encode, receiving, next(rooms)).request
    made = request.record.prepared.ahead
    assert made is not None
    return request, made


def _arrives(sending: Client, receiving: Queues, request: EmbeddingRequest, total: int) -> None:
    """Its rows come, and it is popped as it is."""
    assert give(open_sender(sending, request.room, total))
    wait_until(lambda: request in receiving.transfer.pop_transferred()[0])
    assert request.result is not None


@pytest.mark.parametrize("total", [TOTAL, TOTAL - 1, LONGER], ids=["as long as the one before", "shorter", "longer"])
def test_the_tensor_of_a_request_is_there_before_its_rows(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], total: int
) -> None:
    """R35: also where its length is another one, in the same blocks; and the rows are right."""
    receiving.add(encode.addr, room := next(rooms))
    assert give(open_sender(sending, room, TOTAL))
    assert receiving.take(room, 20).difference == ""
    request, made = _prepared(encode, receiving, rooms)
    assert len(made) == TOTAL
    _arrives(sending, receiving, request, total)
    assert request.result is not None
    assert request.result.input_embeddings is made
    assert (len(made), receiving.check(request).difference) == (total, "")
    assert request.result.input_embeddings is made
    request.release()


def test_rows_that_fill_other_blocks_than_those_that_were_granted_are_lent_with_others(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R35: the blocks behind them are somebody else's then."""
    receiving.transfer.default.now = 2 * receiving.client.geometry.block_size
    monkeypatch.setattr(straight, "FEW", 4)
    request, made = _prepared(encode, receiving, rooms)
    _arrives(sending, receiving, request, TOTAL)
    assert request.result is not None
    assert request.result.input_embeddings is not made
    assert receiving.check(request).difference == ""
    row_bytes = receiving.client.geometry.hidden_size * 2
    assert request.result.input_embeddings.untyped_storage().nbytes() == TOTAL * row_bytes
    request.release()


def test_what_is_made_in_inference_mode_can_be_used_outside_of_it(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    with torch.inference_mode():
        request, made = _prepared(encode, receiving, rooms)
    _arrives(sending, receiving, request, TOTAL)
    assert request.result is not None
    assert request.result.input_embeddings is made
    assert not made.is_inference()
    request.release()


def test_what_is_made_ahead_is_the_collectors_when_somebody_has_it(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    request, made = _prepared(encode, receiving, rooms)
    assert not gc.is_tracked(made)
    assert not gc.is_tracked(request.record.prepared)
    _arrives(sending, receiving, request, TOTAL)
    assert request.result is not None
    assert gc.is_tracked(request.result.input_embeddings)
    request.release()


def test_of_many_requests_nothing_is_made_ahead(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would only get cold again."""
    monkeypatch.setattr(straight, "MOST_AHEAD", 0)
    request: EmbeddingRequest = post(encode, receiving, next(rooms)).request
    assert request.record.prepared is None
    request.abort()


def _is_given_up(sending: Client, receiving: Queues, request: EmbeddingRequest) -> None:
    request.abort()


def _is_copied_out(sending: Client, receiving: Queues, request: EmbeddingRequest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiving.transfer._lending, "_may_lend", False)
        _arrives(sending, receiving, request, TOTAL)
    assert request.record.rows is not None


def _is_withdrawn(sending: Client, receiving: Queues, request: EmbeddingRequest) -> None:
    assert request.receiver is not None
    assert receiving.transfer._withdrawing._take_back(request.receiver)


def _is_released(sending: Client, receiving: Queues, request: EmbeddingRequest) -> None:
    request.release()


@pytest.mark.parametrize("ends", [_is_given_up, _is_copied_out, _is_withdrawn, _is_released])
def test_what_was_made_for_rows_that_are_not_lent_is_not_kept(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int],
    ends: Callable[[Client, Queues, EmbeddingRequest], None],
) -> None:  # fmt: skip
    """R35: whoever keeps the request keeps nothing of the node's memory mapped."""
    request, made = _prepared(encode, receiving, rooms)
    del made
    ends(sending, receiving, request)
    wait_until(lambda: receiving.transfer.pop_transferred() is not None and request.record.prepared is None)
    assert library_of(receiving.client).attachment.node_gone is False
    request.abort()


def test_a_node_that_is_gone_leaves_nothing_of_its_memory_with_a_request_that_is_kept(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R35: the node that takes its place may need the room."""
    with attach(language.run_dir) as client:
        library, queues = library_of(client), Queues(client)
        queues.transfer.default.now = queues.transfer.default.longest = client.geometry.block_size
        library.requests.untold.late_ns = library_of(receiving.client).requests.untold.late_ns
        wait_until(lambda: library.neighbours.find(encode.addr) is not None)
        request, made = _prepared(encode, queues, rooms)
        del made
        library.attachment.node_gone = True
        library.attachment.library_bell.ring()
        wait_until(lambda: not library.attachment.has_payload)
        assert request.record.prepared is None
