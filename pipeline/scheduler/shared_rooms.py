"""Requests with several destinations: which of them all of these serve first."""

from __future__ import annotations

from collections.abc import Container
from heapq import heappop, heappush

from embridge.pipeline.scheduler.request import EmbeddingRequest


class SharedRooms:
    """Those of one transfer queue, by room. Whoever has the turn calls all methods.

    A request that has landed here keeps its host memory until it has landed everywhere. If each node let only its own
    oldest request exceed the limit, two nodes could wait for each other (D8).
    """

    def __init__(self) -> None:
        self._rooms: list[tuple[int, int, EmbeddingRequest]] = []  # a heap; some have left

    def enter(self, request: EmbeddingRequest) -> None:
        """Take in a request that has just got its slot."""
        if request.required_dst_info_num > 1:
            heappush(self._rooms, (request.room, request.record.arrival, request))

    def lowest(self, active: Container[EmbeddingRequest]) -> EmbeddingRequest | None:
        """The request that all destinations agree to serve first, whatever came first at each."""
        while self._rooms:
            _, arrival, request = self._rooms[0]
            if request in active and request.record.arrival == arrival:
                return request
            heappop(self._rooms)
        return None

    def clear(self) -> None:
        self._rooms.clear()
