"""What a scheduler asks for and what it gets: a request, its rows as they come, and its result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from operator import index

import torch

from embridge.allocator.errors import TransferError
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows


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

    `payload` is the caller's own (its request object, say). `timeout_s` counts from `PreallocQueue.add`, or from `retry`.
    `keep_for_retry`: what has come is kept if the encode node is lost, until `PreallocQueue.retry` or `release()`.
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
    _added: float = field(default=0.0, init=False)
    _rows: HostRows | None = field(default=None, init=False)
    _memory: HostMemory | None = field(default=None, init=False)
    _reserved: int = field(default=0, init=False)
    _arrival: int = field(default=0, init=False)
    _abort_reason: str = field(default="", init=False)
    _contacted: bool = field(default=False, init=False)
    _has_share: bool = field(default=False, init=False)  # it gets no more until its length, or a row, is known
    _has_rows_waiting: bool = field(default=False, init=False)
    _released: bool = field(default=False, init=False)
    _why_not_retryable: str = field(default="", init=False)
    _first_block: int = field(default=0, init=False)  # what is before it has come from another encode node
    _total: int = field(default=0, init=False)  # that one's
    _failed_receiver: EmbeddingReceiver | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        with suppress(TypeError):  # what is no whole number is refused when its turn comes, as the request's failure
            self.room, self.required_dst_info_num = index(self.room), index(self.required_dst_info_num)

    @property
    def why_not_retryable(self) -> str:
        """Why `PreallocQueue.retry` would not take it; empty when it would: it has failed, its encode node is lost, its rows are kept."""
        if self.failure is None:
            return "it has not failed"
        if self._why_not_retryable or self._abort_reason:
            return self._why_not_retryable or f"it was aborted: {self._abort_reason}"
        if not self.keep_for_retry:
            return "nothing of it was kept; add it with keep_for_retry=True"
        return "it was released" if self._released else ""

    @property
    def is_retryable(self) -> bool:
        return not self.why_not_retryable

    @property
    def needs_resume(self) -> bool:
        """All that was granted has landed, and rows remain."""
        return self.receiver is not None and self.receiver.needs_resume

    @property
    def buffered_chunks(self) -> list[EmbeddingChunk]:
        """What has been copied out so far, one chunk a drain, in token order."""
        rows = self._rows
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
        return self.receiver.stamps_ns if self.receiver is not None else (0,) * 5

    def phase_path(self) -> list[Phase]:
        """The phases that this request entered, in order."""
        return self.receiver.phase_path() if self.receiver is not None else []

    def abort(self, reason: str = "aborted by the scheduler") -> None:
        """Give it up; it comes out of `pop_transferred` as failed, unless it is finished already."""
        self._abort_reason = reason
        if self.receiver is not None:
            self.receiver.abort(reason)

    def _begin_again(self, block_size: int) -> None:
        """As it was when it was added, but for the whole blocks that have come."""
        self.failure = self.receiver = None
        self._contacted = self._has_share = self._has_rows_waiting = False
        self.transferred_tokens = first = self._first_block * block_size
        self.chunk_info = [(begin, min(end, first)) for begin, end in self.chunk_info if begin < first]

    def release(self) -> None:
        """Give the host memory back; `result` is gone after that. A second call does nothing."""
        if self._released:
            return
        self._released = True
        self.result = self._failed_receiver = None
        if self._memory is not None:
            self._memory.give_back_later(self._rows, self._reserved)
            self._rows = None
