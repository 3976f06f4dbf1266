"""What a transfer queue keeps of one request for itself."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows


@dataclass(eq=False, slots=True)
class TransferRecord:
    """One request's, through all its attempts.

    The library thread's, but for `release`, and for `added_s`, which `add` sets.
    """

    added_s: float = 0.0  # when it was added, or retried, on the client's monotonic clock; 0: never
    arrival: int = 0  # its place among those that had a slot, from 1
    memory: HostMemory | None = None  # where its rows lie; None before it had a slot
    rows: HostRows | None = None
    reserved_tokens: int = 0  # counted in there
    is_contacted: bool = False  # its encode node was told of it, with blocks or without
    has_share: bool = False  # it gets no more until its length, or a row, is known
    has_rows_waiting: bool = False  # the encode node has rows for which nothing is granted
    why_not_retryable: str = ""
    first_block: int = 0  # request blocks before it have come from an encode node that is lost
    total_there: int = 0  # the length that that one has told, in tokens; 0: none
    failed_receiver: EmbeddingReceiver | None = None  # which the next attempt is instead of

    def release(self) -> None:
        """Give its rows back to the memory that they came from (any thread)."""
        self.failed_receiver = None
        if self.memory is not None:
            self.memory.give_back_later(self.rows, self.reserved_tokens)
            self.rows = None
