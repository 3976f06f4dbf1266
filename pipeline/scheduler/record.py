"""What a transfer queue keeps of one request for itself."""

from __future__ import annotations

from contextlib import suppress

from embridge.allocator.geometry import MAX_TOKENS
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.block_rows import BlockRows
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows
from embridge.pipeline.shared_keys import share_keys


class TransferRecord:
    """What a transfer queue keeps of one request, through all its attempts.

    It belongs to whoever has the turn, except for `release`, and for `added_s`, which `add` sets.
    """

    added_s: float = 0.0  # when it was added, or retried, on the client's monotonic clock; 0: never
    arrival: int = 0  # its place among the requests that have got a slot, from 1
    memory: HostMemory | None = None  # where its rows lie; None before it has a slot
    rows: HostRows | None = None  # what was drained
    lent: BlockRows | None = None  # its rows, in its blocks; None where they are drained
    prepared: BlockRows | None = None  # what will be lent, if its rows fill all blocks that it has been granted
    available_tokens: int = 0  # rows of a streamed request that its scheduler may look at, until it releases it
    drained_tokens: int = 0  # rows that were copied out, or have come from an encode node that is lost
    first_of_run: int = 0  # the block at which its rows begin; 0, the reserve: they are no run that may be lent
    run_blocks: int = 0  # so many of its blocks are one run in the order of its rows, from its first on
    wants_chunks: bool = False  # its rows are looked at as they come, so they are drained
    reserved_tokens: int = 0  # tokens that are counted in `memory`
    is_contacted: bool = False  # its encode node has been told of it, with blocks or without
    has_share: bool = False  # it has had its share, and gets no more until its length, or a row, is known
    is_withdrawn: bool = False  # its grant was taken back; it gets no more until its length, or a row, is known (R34)
    has_rows_waiting: bool = False  # the encode node has rows for which nothing is granted
    fills_a_block: bool = False  # they are enough for a block, or the last ones
    why_not_retryable: str = ""
    first_block: int = 0  # the request blocks before this one have come from an encode node that is lost
    total_there: int = 0  # the length that the lost encode node has announced, in tokens; 0: none
    failed_receiver: EmbeddingReceiver | None = None  # the failed attempt that the next one replaces

    def note_granted(self, granted: int, blocks: list[int]) -> None:
        """Note the blocks that were granted behind `granted` others, as far as all of them are one run."""
        if granted != self.run_blocks or not blocks:
            return
        if granted == 0:
            self.first_of_run = blocks[0]
        begin = self.first_of_run + granted
        if len(blocks) == 1 and blocks[0] == begin:
            self.run_blocks = granted + 1
        elif blocks == list(range(begin, begin + len(blocks))):  # as nearly always
            self.run_blocks = granted + len(blocks)
        else:
            out_of_order = (k for k, block in enumerate(blocks) if block != begin + k)
            self.run_blocks = granted + next(out_of_order)

    def note_waiting(self, receiver: EmbeddingReceiver, granted: int, block_size: int) -> None:
        """Note what its encoder has beyond what is granted. A block is given back when it is full, and an encoder may
        stop at any time, so the reserve is for rows that fill it, or are the last (R21).
        """
        ready = receiver.ready_tokens
        self.has_rows_waiting = waits = ready > granted
        self.fills_a_block = waits and ready >= min(granted + block_size, receiver.total_embedding_length or MAX_TOKENS)

    def ask_for_chunks(self, receiver: EmbeddingReceiver | None) -> None:
        """Have rows drained that have landed, and those that will (any thread). `receiver` is None before it has a
        slot.
        """
        if self.wants_chunks:
            return
        self.wants_chunks = True
        if receiver is not None:
            with suppress(RuntimeError):  # the client has left its node
                receiver.wake()

    def release(self) -> None:
        """Give the request's rows back to the memory that they came from, or its blocks to the pool (any thread)."""
        self.failed_receiver = self.prepared = None
        lent, self.lent = self.lent, None
        if lent is not None:
            lent.give_back()
        if self.memory is not None:
            self.memory.give_back_later(self.rows, self.reserved_tokens)
            self.rows = None


share_keys(
    TransferRecord, "added_s", "memory", "arrival", "has_share", "is_contacted", "reserved_tokens", "first_of_run",
    "run_blocks", "lent", "prepared", "failed_receiver", "rows", "has_rows_waiting", "fills_a_block",
)
