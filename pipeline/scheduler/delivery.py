"""How requests that have ended reach `pop_transferred` when other ranks of the node get them, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from embridge.pipeline.scheduler.host_memory import HostMemory
from embridge.pipeline.scheduler.request import EmbeddingRequest


class Delivery(ABC):
    """What a transfer queue asks of the other ranks (`embridge.pipeline.ranks.leader.Ranks`).

    The library thread calls all methods, except `take` and `publish`, which the caller's thread calls.
    """

    memory: HostMemory
    """Where requests are received."""

    @abstractmethod
    def take(self) -> None:
        """Note that one transfer queue delivers this way. Raises ValueError if another queue does already."""

    @abstractmethod
    def __len__(self) -> int:
        """How many requests have ended and wait until all ranks can have them."""

    @abstractmethod
    def enter(self, request: EmbeddingRequest) -> None:
        """Take in a request that has ended, finished or failed."""

    @abstractmethod
    def turn(self, pass_on: Callable[[EmbeddingRequest], None]) -> bool:
        """Pass on every request that all ranks can have now. True while a request waits for what other ranks hold."""

    @abstractmethod
    def publish(self, finished: list[EmbeddingRequest], failed: list[EmbeddingRequest]) -> None:
        """Tell the other ranks what `pop_transferred` is about to return, as one batch."""

    @abstractmethod
    def abandon(self) -> list[EmbeddingRequest]:
        """Give up the requests that still wait, because the client leaves. Returns them."""
