"""What a scheduler asks for and what it gets: a request, its rows as they come, and its result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from operator import index

import torch

from embridge.allocator.errors import TransferError
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.host_memory import HostRows
from embridge.pipeline.scheduler.record import TransferRecord


@dataclass(frozen=True, slots=True)
class EmbeddingChunk:
    """Rows [first, end) that have been copied out; views of the request's host memory."""

    first: int
    end: int
    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor
    mrope_positions: torch.Tensor
    deepstack_embeddings: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """All rows of a request, in token order. Views of recycled host memory: valid until `EmbeddingRequest.release()`.

    `input_embeddings` (total, hidden), `deepstack_embeddings` (total, D, hidden) or None, `fill_ids` (total,) int32,
    `mrope_positions` (total, 3) int32, `aux_datas` (16,) int32: [0] the total, [1] mrope_position_delta.
    """

    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor
    mrope_positions: torch.Tensor
    deepstack_embeddings: torch.Tensor | None
    aux_datas: torch.Tensor

    @property
    def mrope_position_delta(self) -> int:
        """What the encoder gave for it."""
        return int(self.aux_datas[1])

    @classmethod
    def of(cls, rows: HostRows, total: int) -> EmbeddingResult:
        """The first `total` rows, as views."""
        return cls(
            rows.input_embeddings(0, total),
            rows.fill_ids(0, total),
            rows.mrope_positions(0, total),
            rows.deepstack_embeddings(0, total),
            torch.from_numpy(rows.aux),
        )


@dataclass(eq=False, kw_only=True)
class EmbeddingRequest:
    """What a scheduler wants: the embeddings of `room`, from the encode node at `bootstrap_addr`.

    `payload` is the caller's own (its request object, say). `timeout_s` counts from `PreallocQueue.add`, or from
    `retry`. `keep_for_retry`: what has come is kept if the encode node is lost, until `PreallocQueue.retry` or
    `release()`.
    """

    room: int
    bootstrap_addr: str
    required_dst_info_num: int = 1
    timeout_s: float | None = None
    payload: object = None
    keep_for_retry: bool = False
    result: EmbeddingResult | None = field(default=None, init=False)
    failure: TransferError | None = field(default=None, init=False)
    total_embedding_length: int = field(default=0, init=False)
    transferred_tokens: int = field(default=0, init=False)
    num_rounds: int = field(default=0, init=False)
    chunk_info: list[tuple[int, int]] = field(default_factory=list, init=False)
    receiver: EmbeddingReceiver | None = field(default=None, init=False)
    abort_reason: str = field(default="", init=False)
    """Why its owner has given it up; empty while it has not."""
    is_released: bool = field(default=False, init=False)
    record: TransferRecord = field(default_factory=TransferRecord, init=False, repr=False)
    """What its transfer queue keeps of it; its owner has no use for that."""

    def __post_init__(self) -> None:
        with suppress(TypeError):  # what is no whole number is refused when its turn comes, as the request's failure
            self.room, self.required_dst_info_num = index(self.room), index(self.required_dst_info_num)

    @property
    def why_not_retryable(self) -> str:
        """Why `PreallocQueue.retry` would not take it.

        Empty when it would: the request has failed because its encode node is lost, and its rows are kept.
        """
        if self.failure is None:
            return "it has not failed"
        if self.record.why_not_retryable:
            return self.record.why_not_retryable
        if self.abort_reason:
            return f"it was aborted: {self.abort_reason}"
        if not self.keep_for_retry:
            return "nothing of it was kept; add it with keep_for_retry=True"
        return "it was released" if self.is_released else ""

    @property
    def is_retryable(self) -> bool:
        """Whether `PreallocQueue.retry` would take it."""
        return not self.why_not_retryable

    @property
    def needs_resume(self) -> bool:
        """All that was granted has landed, and rows remain."""
        return self.receiver is not None and self.receiver.needs_resume

    @property
    def buffered_chunks(self) -> list[EmbeddingChunk]:
        """What has been copied out so far, one chunk a drain, in token order."""
        rows = self.record.rows
        if rows is None:
            return []
        return [
            EmbeddingChunk(
                first,
                end,
                rows.input_embeddings(first, end),
                rows.fill_ids(first, end),
                rows.mrope_positions(first, end),
                rows.deepstack_embeddings(first, end),
            )
            for first, end in self.chunk_info
        ]

    @property
    def stamps_ns(self) -> tuple[int, ...]:
        """Monotonic ns of the first entry into each phase; 0 where it was not entered."""
        return self.receiver.stamps_ns if self.receiver is not None else (0,) * 5

    def phase_path(self) -> list[Phase]:
        """The phases that this request entered, in order."""
        return self.receiver.phase_path() if self.receiver is not None else []

    def abort(self, reason: str = "aborted by the scheduler") -> None:
        """Give it up; it comes out of `pop_transferred` as failed, unless it is finished already."""
        reason = str(reason or "") or "aborted by the scheduler"  # an empty one says that nobody has given it up
        self.abort_reason = reason
        if self.receiver is not None:
            self.receiver.abort(reason)

    def release(self) -> None:
        """Give the host memory back; `result` is gone after that. A second call does nothing."""
        if self.is_released:
            return
        self.is_released = True
        self.result = None
        self.record.release()
