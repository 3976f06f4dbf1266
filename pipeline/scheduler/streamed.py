"""Streamed requests: which of them have more rows to look at, and how their scheduler hears of it."""

from __future__ import annotations

from embridge.allocator.status import Phase
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.request import EmbeddingRequest


class StreamedRequests:
    """Those of one transfer queue of which rows have landed that its scheduler has not heard of."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._risen: dict[EmbeddingRequest, None] = {}

    def show(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        """Let the scheduler look at what has landed, if it stays where it is (by whoever has the turn, R82).

        The look whether it has failed comes last. So rows that were copied out of blocks are its own, and rows in
        blocks are where its poller leaves them until it is released, because their slot is marked.
        """
        record, total = request.record, request.total_embedding_length
        if not request.is_streamed or request.transferred_tokens <= record.available_tokens:
            return
        stays = record.lent is not None or (record.rows is not None and record.rows.capacity_tokens >= total > 0)
        if not stays or receiver.poll() == Phase.Failed:
            return
        record.available_tokens = request.transferred_tokens
        self._risen[request] = None
        self._library.view.has_more_rows = True  # after it was entered, and before the ring
        self._library.attachment.user_bell.ring()

    def pop(self) -> list[EmbeddingRequest]:
        """Those that have risen since this was asked last (caller's thread)."""
        self._library.view.has_more_rows = False
        risen = []
        for request in list(self._risen):
            del self._risen[request]  # first: what is shown from here on enters it again
            if not request.is_released:
                risen.append(request)
        return risen

    def forget(self, request: EmbeddingRequest) -> None:
        """Its scheduler has it whole, or knows that it has failed (caller's thread)."""
        self._risen.pop(request, None)
