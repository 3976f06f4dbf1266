"""embridge as Dynamo's way of embeddings, from encode workers to those that prefill (Dynamo 1.6).

Each embedding is published on the encode node of its worker, under a key of its own, and fetched where it is needed:
read in place on one host, a transfer between hosts. What travels with Dynamo's request is the key and the address of
that node. An embedding that nobody fetches goes when room is needed, and is to be seen for `keep_s` at most; so nothing
waits for a receiver, and nothing is kept for one that has died.

    sender = EmbridgeEmbeddingSender("/run/encode")            # launched with --shelf-bytes
    request, sent = await sender.send_embeddings(embeddings)

    receiver = EmbridgeEmbeddingReceiver("/run/language")
    tensor_id, tensor = await receiver.receive_embeddings(request)
    receiver.release_tensor(tensor_id)
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from dynamo.common.multimodal.embedding_transfer import (
    AbstractEmbeddingReceiver,
    AbstractEmbeddingSender,
    TransferRequest,
)

from embridge import Client, Item, NodeBusyError, Published, PublishStatus, WhyDropped, attach

KEEP_S: Final = 300.0
ROOM_S: Final = 5.0
"""How long a sender tries to publish while readers use the whole shelf."""
AGAIN_S: Final = 0.01
KEY, NODE = "embridge_key", "embridge_node"
"""What a request says: the key of the item, and the tcp://ip:port of its encode node."""


class EmbridgeEmbeddingSender(AbstractEmbeddingSender):  # type: ignore[misc]
    """Publishes embeddings on an encode node of this host. The coroutines of one loop call it."""

    def __init__(self, run_dir: str | Path | None = None, *, keep_s: float = KEEP_S) -> None:
        """Join the node in `run_dir` (default: the default directory of an encode node). Raises as `attach`."""
        self._client = attach(run_dir, role="encode")
        self._keep_s = keep_s
        self._turn = asyncio.Lock()  # one thread at a time calls a client

    async def send_embeddings(
        self, embeddings: torch.Tensor, stage_embeddings: bool = False
    ) -> tuple[TransferRequest, Awaitable[None]]:
        """Publish a copy of the embeddings, of any shape, dtype and device; they are the caller's again on return.

        So the awaitable, which says that they are, is done; `stage_embeddings` makes no difference.

        Raises:
            ValueError: the embeddings have no rows, are larger than the shelf, or of a dtype that it does not know.
            NodeBusyError: readers have used all of the shelf for some seconds.
            NodeGoneError: the node is gone.
        """
        key = f"dynamo/{secrets.token_hex(16)}"
        rows = embeddings.detach()
        rows = rows.reshape(1, -1) if rows.dim() < 2 else rows
        until = asyncio.get_running_loop().time() + ROOM_S
        while True:
            # a caller that is cancelled leaves the thread that publishes, which keeps the turn until it is done
            done = await asyncio.shield(self._publish(key, rows))
            if done.status != PublishStatus.DROPPED:
                break
            if done.why == WhyDropped.TOO_LARGE:
                raise ValueError(f"embeddings: {rows.nbytes} bytes > the shelf of {self._client.run_dir}; enlarge it")
            if asyncio.get_running_loop().time() >= until:
                raise NodeBusyError(f"the shelf of {self._client.run_dir} is in use: {done.why.name}", ROOM_S)
            await asyncio.sleep(AGAIN_S)
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        request = TransferRequest(
            embeddings_shape=list(embeddings.shape),
            embedding_dtype_str=str(embeddings.dtype).removeprefix("torch."),
            serialized_request={KEY: key, NODE: self._client.bootstrap_addr},
        )
        return request, sent

    async def _publish(self, key: str, rows: torch.Tensor) -> Published:
        async with self._turn:
            return await asyncio.to_thread(self._client.publish, key, rows, ttl_s=self._keep_s)

    def close(self) -> None:
        """Leave the node; what was published stays there."""
        self._client.close()


class EmbridgeEmbeddingReceiver(AbstractEmbeddingReceiver):  # type: ignore[misc]
    """Fetches embeddings by a client of a language node of this host. The coroutines of one loop call it."""

    def __init__(self, run_dir: str | Path | None = None, *, copies: bool = True, wait_s: float = 0.0) -> None:
        """Join the node in `run_dir` (default: the default directory of a language node). Raises as `attach`.

        Without `copies`, embeddings of an encode node of this host are views of its memory, to which nobody may write:
        a store to one is a SIGSEGV. `wait_s`: for so many seconds an item may be on its way to the shelf.
        """
        self._client: Client = attach(run_dir, role="language")
        self._copies, self._wait_s = copies, wait_s
        self._numbers = count(1)
        self._held: dict[int, Item] = {}

    async def receive_embeddings(self, request: TransferRequest) -> tuple[int, torch.Tensor]:
        """(id, embeddings on the CPU), which stay until `release_tensor(id)`.

        Raises:
            ValueError: the request is none of an `EmbridgeEmbeddingSender`, or what it names is of another shape.
            FetchError: the item is not there any more, or its node cannot be reached; encode it again.
            NodeGoneError: this client's node is gone.
        """
        key, node = _named(request.serialized_request)
        fetch = self._client.fetch(key, node, wait_s=self._wait_s)
        try:
            item = await fetch
        except asyncio.CancelledError:
            fetch.abort()
            raise
        shape, dtype = list(request.embeddings_shape), request.embedding_dtype_str.removeprefix("torch.")
        rows = item.rows
        if item.dtype != dtype or rows.numel() != math.prod(shape) or min(shape, default=0) < 0:
            item.release()
            raise ValueError(f"item {key!r}: {item.shape} of {item.dtype}; the request tells of {shape} of {dtype}")
        rows = rows.view(shape)
        if self._copies and item.where == "in place":
            rows = await asyncio.to_thread(rows.clone)
            item.release()
        number = next(self._numbers)
        self._held[number] = item
        return number, rows

    def release_tensor(self, tensor_id: int) -> None:
        """Need an embedding no more. An unknown id has no effect."""
        item = self._held.pop(tensor_id, None)
        if item is not None:
            item.release()

    def close(self) -> None:
        """Leave the node; tensors that somebody looks at stay."""
        self._held.clear()
        self._client.close()


def _named(told: Any) -> tuple[str, str]:
    key, node = (told.get(KEY), told.get(NODE)) if isinstance(told, dict) else (None, None)
    if not isinstance(key, str) or not isinstance(node, str):
        raise ValueError(f"serialized_request: it names no item; expected {KEY} and {NODE}")
    return key, node
