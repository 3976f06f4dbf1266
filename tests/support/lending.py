"""A language node with a transfer queue, whose encode node and its writes the test plays."""

from __future__ import annotations

from typing import Any

import numpy as np

from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, LanguageAlone
from support.rows import arrived, difference, rows_of


class Scheduler(LanguageAlone):
    """A language node with a transfer queue; the test plays the encode node, and writes the rows."""

    def __init__(self, *, num_blocks: int = 16, default_tokens: int = BLOCK_SIZE, **options: Any) -> None:
        super().__init__(num_blocks=num_blocks, **options)
        self.attachment = library_of(self.client).attachment
        self.queue = TransferQueue(self.client, default_allocate_tokens=default_tokens, adaptive=False)
        self.settle()

    def add(self, room: int, **options: Any) -> EmbeddingRequest:
        request = EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS, **options)
        self.queue.add(request)
        self.settle()
        if not self.receiver_of(request).handshake_done:
            self.registered()
        return request

    def receiver_of(self, request: EmbeddingRequest) -> EmbeddingReceiver:
        assert request.receiver is not None
        return request.receiver

    def announce(self, request: EmbeddingRequest, total: int) -> EmbeddingReceiver:
        """All rows are ready there, and none was sent."""
        receiver = self.receiver_of(request)
        sent = receiver.sent_tokens
        self.status(receiver, Phase.WaitingForInput, sent, total_tokens=total, ready_tokens=total)
        return receiver

    def write(self, request: EmbeddingRequest, first: int, end: int) -> None:
        """What the encode node's engine does."""
        receiver, buffers = self.receiver_of(request), self.attachment.buffers
        rows = rows_of(self.node.geometry, request.room, first, end)
        for row in range(first, end):
            block, at = receiver.block_of(row // BLOCK_SIZE), row % BLOCK_SIZE
            buffers.input_embeddings[block, at] = rows[0][row - first]
            buffers.fill_ids[block, at] = rows[1][row - first]
            buffers.mrope_positions[block, at] = rows[2][row - first]
            buffers.aux_datas[block] = np.arange(16)

    def finish(self, request: EmbeddingRequest, total: int) -> None:
        """The rest of it lands, it succeeds, and the library thread has looked at it."""
        receiver = self.announce(request, total)
        while receiver.granted_tokens < total:
            granted = receiver.granted_tokens
            self.write(request, receiver.sent_tokens, granted)
            self.status(receiver, Phase.Transferring, granted, total_tokens=total, ready_tokens=total)
            assert receiver.granted_tokens > granted
        self.write(request, receiver.sent_tokens, total)
        self.status(receiver, Phase.Success, total, total_tokens=total, ready_tokens=total)
        self.turn()

    def turn(self) -> None:
        """Have the library thread look, which may leave a success to a caller who is awake."""
        self.attachment.library_bell.ring()
        self.settle()

    def arrive(self, room: int, total: int) -> EmbeddingRequest:
        """A request from its beginning to its end, popped."""
        request = self.add(room)
        self.finish(request, total)
        assert self.queue.pop_transferred() == ([request], [])
        return request

    def is_lent(self, request: EmbeddingRequest) -> bool:
        """Whether its result is views of the payload, and not of host memory: what is written there, is seen."""
        assert request.result is not None
        payload = np.frombuffer(self.attachment.payload, np.uint8)
        begin = payload.ctypes.data
        within = [
            begin <= tensor.data_ptr() < begin + payload.nbytes
            for tensor in (*arrived(request.result)[:3], request.result.aux_datas)
        ]
        assert all(within) or not any(within)
        return within[0]

    def check(self, request: EmbeddingRequest) -> None:
        """Every row is right."""
        result = request.result
        assert result is not None
        rows = arrived(result)
        assert len(rows.fill_ids) == request.total_embedding_length
        assert difference(self.node.geometry, request.room, 0, rows) == ""
        assert result.aux_datas.tolist() == list(range(16))
