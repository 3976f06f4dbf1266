"""How requests that have ended reach `pop_transferred` where other ranks of the node are to have them, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from embridge.pipeline.scheduler.host_memory import HostMemory
from embridge.pipeline.scheduler.request import EmbeddingRequest


class Delivery(ABC):
    """What a transfer queue asks of the other ranks (`embridge.pipeline.ranks.leader.Ranks`).

    The library thread calls all methods but `take` and `publish`, which are the caller's thread's.
    """

    memory: HostMemory
    """Where requests are received."""

    @abstractmethod
    def take(self) -> None:
        """Note that one transfer queue delivers this way. Raises ValueError: another one does."""

    @abstractmethod
    def __len__(self) -> int:
        """Requests that have ended and wait until all ranks can have them."""

    @abstractmethod
    def enter(self, request: EmbeddingRequest) -> None:
        """Take in a request that has ended, one way or the other."""

    @abstractmethod
    def turn(self, pass_on: Callable[[EmbeddingRequest], None]) -> bool:
        """Pass on every request that all ranks can have now. True while somebody waits for what others hold."""

    @abstractmethod
    def publish(self, finished: list[EmbeddingRequest], failed: list[EmbeddingRequest]) -> None:
        """Tell the other ranks what `pop_transferred` is about to return, as one batch."""

    @abstractmethod
    def abandon(self) -> list[EmbeddingRequest]:
        """The client leaves: give up what waits, and return it."""
