"""Dynamo's way of embeddings over embridge: on one host, and to a reader that may not read in place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.engines import stand_in_for_dynamo
from support.fetching import no_door
from support.nodes import Station
from support.waiting import wait_until

from embridge import NotPublished, attach
from embridge.pipeline.client import shelf_doors

stand_in_for_dynamo()
from embridge.integrations.dynamo import EmbridgeEmbeddingReceiver, EmbridgeEmbeddingSender  # noqa: E402

pytestmark = pytest.mark.process


@pytest.fixture
def sender(shelved: Station) -> Iterator[EmbridgeEmbeddingSender]:
    it = EmbridgeEmbeddingSender(shelved.run_dir)
    yield it
    it.close()


@pytest.fixture(params=["in place", "copied", "from afar"])
def receiver(
    language: Station, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbridgeEmbeddingReceiver]:
    if request.param == "from afar":
        monkeypatch.setattr(shelf_doors, "knock", no_door)
    it = EmbridgeEmbeddingReceiver(language.run_dir, copies=request.param != "in place")
    yield it
    it.close()


EMBEDDINGS = [
    torch.randn(3, 1000),
    torch.randn(2, 5, 64).bfloat16(),
    torch.arange(100, dtype=torch.int64),
    torch.randn(64, 32).half().T,
]


async def carried(sender: Any, receiver: Any, embeddings: torch.Tensor) -> None:
    given = embeddings.clone()
    request, sent = await sender.send_embeddings(given, stage_embeddings=True)
    await sent
    given.zero_()  # it is the caller's again
    number, tensor = await receiver.receive_embeddings(request)
    assert tensor.dtype == embeddings.dtype
    assert torch.equal(tensor, embeddings)
    receiver.release_tensor(number)
    receiver.release_tensor(number)


def test_embeddings_of_any_shape_and_dtype_come_as_they_were(
    shelved: Station, sender: EmbridgeEmbeddingSender, receiver: EmbridgeEmbeddingReceiver
) -> None:
    """P6: several at once; nothing is pinned afterwards (P5)."""

    async def all_of_them() -> None:
        await asyncio.gather(*(carried(sender, receiver, it) for it in EMBEDDINGS * 3))

    asyncio.run(all_of_them())
    with attach(shelved.run_dir) as publisher:
        wait_until(lambda: publisher.shelf.counts().pinned == 0)


def test_one_request_may_be_received_twice_and_an_embedding_that_is_gone_is_said_to_be(
    shelved: Station, sender: EmbridgeEmbeddingSender, receiver: EmbridgeEmbeddingReceiver
) -> None:
    async def run() -> None:
        request, _ = await sender.send_embeddings(EMBEDDINGS[0])
        numbers = set()
        for _ in range(2):
            number, tensor = await receiver.receive_embeddings(request)
            assert torch.equal(tensor, EMBEDDINGS[0])
            numbers.add(number)
        assert len(numbers) == 2
        for number in numbers:
            receiver.release_tensor(number)
        del tensor
        with attach(shelved.run_dir) as publisher:
            publisher.shelf.clear()
        with pytest.raises(NotPublished):
            await receiver.receive_embeddings(request)

    asyncio.run(run())


def test_a_sender_that_is_cancelled_keeps_its_turn_until_its_thread_is_done(
    sender: EmbridgeEmbeddingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread at a time calls a client, and a thread goes on when who waits for it is cancelled."""
    begun, may_end, real = threading.Event(), threading.Event(), sender._client.publish

    def publish(*args: Any, **named: Any) -> Any:
        begun.set()
        assert may_end.wait(20)
        return real(*args, **named)

    monkeypatch.setattr(sender._client, "publish", publish)

    async def run() -> None:
        cancelled = asyncio.create_task(sender.send_embeddings(EMBEDDINGS[0]))
        assert await asyncio.to_thread(begun.wait, 20)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        has_turn = sender._turn.locked()
        may_end.set()
        await sender.send_embeddings(EMBEDDINGS[1])
        assert has_turn

    asyncio.run(run())


def test_a_receiver_that_is_cancelled_fetches_no_more(
    shelved: Station, language: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P12: nobody waits for what would come."""
    receiver = EmbridgeEmbeddingReceiver(language.run_dir, wait_s=60)
    fetches, real = list[Any](), receiver._client.fetch

    def fetch(*args: Any, **named: Any) -> Any:
        fetches.append(real(*args, **named))
        return fetches[-1]

    monkeypatch.setattr(receiver._client, "fetch", fetch)
    request = SimpleNamespace(
        serialized_request={"embridge_key": "not there", "embridge_node": shelved.addr},
        embeddings_shape=[1, 1],
        embedding_dtype_str="float32",
    )

    async def run() -> None:
        receiving = asyncio.create_task(receiver.receive_embeddings(request))
        while not fetches:
            await asyncio.sleep(0)
        assert not fetches[0].poll()
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving

    try:
        asyncio.run(run())
        assert fetches[0].is_done
    finally:
        receiver.close()


def test_what_is_no_request_of_a_sender_is_refused(
    sender: EmbridgeEmbeddingSender, receiver: EmbridgeEmbeddingReceiver
) -> None:
    async def run() -> None:
        request, _ = await sender.send_embeddings(EMBEDDINGS[0])
        right = request.serialized_request
        for wrong in ("/tmp/file.safetensors", {}, {"embridge_key": 1, "embridge_node": "tcp://127.0.0.1:1"}):
            request.serialized_request = wrong
            with pytest.raises(ValueError, match="names no item"):
                await receiver.receive_embeddings(request)
        request.serialized_request = right
        for request.embeddings_shape in ([7, 7], [-3, -1000]):
            with pytest.raises(ValueError, match="the request tells of"):
                await receiver.receive_embeddings(request)
        with pytest.raises(ValueError, match="enlarge it"):
            await sender.send_embeddings(torch.zeros(3 << 20, 1))
        with pytest.raises(ValueError, match="no rows"):
            await sender.send_embeddings(torch.zeros(0, 8))

    asyncio.run(run())
