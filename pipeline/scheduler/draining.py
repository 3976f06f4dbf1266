"""Copies landed rows out of destination blocks into a request's host memory.

That memory is counted before anything is granted.
"""

from __future__ import annotations

from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.retrying import first_missing_block
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows
from embridge.pipeline.scheduler.request import EmbeddingRequest

PIECE_BYTES = 4 << 20  # copied out before blocks are freed


class Draining:
    """The drains of one transfer queue. Library thread only."""

    def __init__(self, attachment: Attachment, memory: HostMemory) -> None:
        self._attachment = attachment
        self._memory = memory
        self._geometry = attachment.geometry
        self._bs = attachment.geometry.block_size

    def drain(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, sent: int) -> None:
        """Copy rows [drained, sent) to their final place and free the blocks behind them, piece by piece."""
        rows, record = self.rows_for(request), request.record
        piece = max(1, PIECE_BYTES // (self._bs * self._geometry.token_bytes)) * self._bs
        first, begun = record.drained_tokens, request.transferred_tokens
        while first < sent:
            end = min(sent, (first // piece + 1) * piece)
            parts = []
            for k in range(first // self._bs, -(-end // self._bs)):
                parts.append((receiver.block_of(k), max(first, k * self._bs), min(end, (k + 1) * self._bs)))
            if first == 0:
                rows.aux[:] = self._attachment.buffers.aux_datas[parts[0][0]]
            rows.drain(self._attachment.payload, parts)
            receiver.release_drained(end)
            record.drained_tokens = first = end
            request.transferred_tokens = max(request.transferred_tokens, end)
        if sent > begun:
            request.chunk_info.append((begun, sent))

    def keep(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        """Copy out, for a retry, the whole blocks of a failed request that are committed and were not drained.

        The blocks are quarantined, and may be freed and filled with another request's rows at any moment. A copy counts
        if its block was still this request's afterwards. What may have landed late by then were the same rows (R8).
        """
        bs, total, record = self._bs, receiver.total_embedding_length, request.record
        begun = request.transferred_tokens
        for k in range(begun // bs, first_missing_block(receiver.sent_tokens, total, bs)):
            rows, block = self.rows_for(request), receiver.block_of(k)
            if k == 0:
                rows.aux[:] = self._attachment.buffers.aux_datas[block]
            rows.drain(self._attachment.payload, [(block, max(request.transferred_tokens, k * bs), (k + 1) * bs)])
            if not receiver.holds(block):
                break
            request.transferred_tokens = record.drained_tokens = (k + 1) * bs
        if request.transferred_tokens > begun:
            request.chunk_info.append((begun, request.transferred_tokens))
        record.first_block = first_missing_block(request.transferred_tokens, total, bs)
        record.total_there = total
        record.failed_receiver = receiver

    def rows_for(self, request: EmbeddingRequest) -> HostRows:
        """Host memory for all rows that are reserved. If that has grown, what was copied out before moves along.

        Of a streamed request it is for all rows at once, because somebody may look at those that are there (R82).
        """
        record, rows = request.record, request.record.rows
        num_tokens = max(record.reserved_tokens, request.total_embedding_length if request.is_streamed else 0)
        if rows is None:
            rows = record.rows = self._memory.take(num_tokens)
        elif rows.capacity_tokens < num_tokens:
            larger = self._memory.take(num_tokens)
            larger.take_over(rows, record.drained_tokens)
            self._memory.give_back(rows)
            rows = record.rows = larger
        return rows

    def reserve(self, request: EmbeddingRequest, tokens: int, *, may_exceed: bool) -> int:
        """Count host memory in for this many tokens, as far as the limit allows. Returns for how many tokens it is."""
        record = request.record
        more = tokens - record.reserved_tokens
        if more > 0 and self._memory.reserve(more, may_exceed=may_exceed):
            record.reserved_tokens = tokens
        return record.reserved_tokens
