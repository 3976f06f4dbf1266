"""The requests of a transfer queue that could use a block, in the order of their arrival."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from embridge.pipeline.scheduler.request import EmbeddingRequest


class WantingRequests:
    """One transfer queue's. Whoever has the turn calls it."""

    def __init__(self) -> None:
        self._requests: list[EmbeddingRequest] = []
        self._entered: set[EmbeddingRequest] = set()

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __iter__(self) -> Iterator[EmbeddingRequest]:
        return iter(self._requests)

    def enter(self, request: EmbeddingRequest) -> None:
        """Enter a request, once, at the place of its arrival."""
        if request not in self._entered:
            self._entered.add(request)
            insort(self._requests, request, key=lambda it: it.record.arrival)

    def keep(self, requests: list[EmbeddingRequest]) -> None:
        """Keep these, which are some of those that are here, and no others."""
        self._requests = requests
        self._entered = set(requests)

    def clear(self) -> None:
        self.keep([])
