"""What a scheduler asks for and what it gets: a request, its rows as they come, and its result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from operator import index

import torch

from embridge.allocator._core import untrack
from embridge.allocator.errors import TransferError
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.status import Phase
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.copying import CopiedRows
from embridge.pipeline.scheduler.record import TransferRecord
from embridge.pipeline.scheduler.rows import Rows
from embridge.pipeline.shared_keys import share_keys


@dataclass(frozen=True, slots=True)
class EmbeddingChunk(CopiedRows):
    """Rows [first, end) of a request; views of its host memory, or of its blocks, as its result is."""

    first: int
    end: int
    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor | None
    mrope_positions: torch.Tensor | None
    deepstack_embeddings: torch.Tensor | None


class EmbeddingResult(CopiedRows):
    """All rows of a request, in token order. Valid until `EmbeddingRequest.release()`.

    They are views of the node's blocks, where the request's rows were lent, or of recycled host memory. Either may be
    used again by others after that. Each view is made when it is first asked for, and is the same tensor from then on.
    """

    __slots__ = ("_aux", "_deepstack", "_embeddings", "_ids", "_positions", "_rows", "_total")

    def __init__(self, rows: Rows, total: int, embeddings: torch.Tensor | None = None) -> None:
        """The first `total` rows, of which the `embeddings` may have been made already."""
        self._rows = rows
        self._total = total
        self._embeddings = embeddings
        self._ids: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None
        self._deepstack: torch.Tensor | None = None
        self._aux: torch.Tensor | None = None

    def __repr__(self) -> str:
        g = self._rows.geometry
        return f"<EmbeddingResult: {self._total} rows of {g.hidden_size} x {g.dtype}>"

    @property
    def input_embeddings(self) -> torch.Tensor:
        """(total, hidden), the geometry's dtype."""
        if self._embeddings is None:
            self._embeddings = self._rows.input_embeddings(0, self._total)
        return self._embeddings

    @property
    def fill_ids(self) -> torch.Tensor | None:
        """(total,) int32, or None."""
        if self._ids is None:
            self._ids = self._rows.fill_ids(0, self._total)
        return self._ids

    @property
    def mrope_positions(self) -> torch.Tensor | None:
        """(total, 3) int32, or None."""
        if self._positions is None:
            self._positions = self._rows.mrope_positions(0, self._total)
        return self._positions

    @property
    def deepstack_embeddings(self) -> torch.Tensor | None:
        """(total, D, hidden), or None."""
        if self._deepstack is None:
            self._deepstack = self._rows.deepstack_embeddings(0, self._total)
        return self._deepstack

    @property
    def aux_datas(self) -> torch.Tensor:
        """(16,) int32: [0] the total, [1] mrope_position_delta."""
        if self._aux is None:
            self._aux = torch.from_numpy(self._rows.aux)
        return self._aux

    @property
    def mrope_position_delta(self) -> int:
        """The request's `mrope_position_delta`, as its encoder gave it."""
        return int(self.aux_datas[1])


@dataclass(eq=False, kw_only=True)
class EmbeddingRequest:
    """What a scheduler wants: the embeddings of `room`, from the encode node at `bootstrap_addr`.

    `payload` is the caller's own (its request object, say). `timeout_s` is the deadline in seconds from
    `PreallocQueue.add`, or from `retry`. With `keep_for_retry`, rows that have come are kept if the encode node is
    lost, until `PreallocQueue.retry` or `release()`. If it is `is_streamed`, rows can be looked at as they land
    (`available`), and its owner releases it in any case, also if it has failed.
    """

    room: int
    bootstrap_addr: str
    required_dst_info_num: int = 1  # the number of language nodes that receive the room
    timeout_s: float | None = None
    payload: object = None
    keep_for_retry: bool = False
    is_streamed: bool = False
    result: EmbeddingResult | None = field(default=None, init=False)  # of a finished one, until `release`
    failure: TransferError | None = field(default=None, init=False)  # of a failed one
    total_embedding_length: int = field(default=0, init=False)  # in tokens; 0 until it is known
    transferred_tokens: int = field(default=0, init=False)  # that have landed here
    num_rounds: int = field(default=0, init=False)  # grants that have carried blocks
    chunk_info: list[tuple[int, int]] = field(default_factory=list, init=False)
    receiver: EmbeddingReceiver | None = field(default=None, init=False)
    abort_reason: str = field(default="", init=False)
    """Why its owner has given it up; empty while it has not."""
    is_released: bool = field(default=False, init=False)
    record: TransferRecord = field(default_factory=TransferRecord, init=False, repr=False)
    """What its transfer queue keeps of it; its owner has no use for that."""

    def __post_init__(self) -> None:
        untrack(self.chunk_info)
        if type(self.room) is int is type(self.required_dst_info_num):
            return
        with suppress(TypeError):  # a value that is no whole number becomes the request's failure when its turn comes
            self.room, self.required_dst_info_num = index(self.room), index(self.required_dst_info_num)

    @property
    def why_not_retryable(self) -> str:
        """Why `PreallocQueue.retry` would refuse the request, in words; empty if it would take it.

        It takes a request that has failed because its encode node is lost, and whose rows are kept.
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
    def available_tokens(self) -> int:
        """Rows [0, available_tokens) have landed and can be looked at; 0 after `release()`.

        Before the request is popped that is so for a streamed one alone. It only rises, except that a retry begins
        behind the whole blocks that have come.
        """
        if self.is_released:
            return 0
        return self.record.available_tokens if self.result is None else self.total_embedding_length

    def available(self, start: int = 0) -> list[EmbeddingChunk]:
        """Views of rows [start, available_tokens), in runs, in token order; none if there is no such row.

        They are views of the node's blocks, or of host memory, and not to be changed. They stay right until
        `release()`, whatever becomes of the request; a retry may change those that it sends again.

        Raises:
            ValueError: `start` is out of range.
        """
        start = whole("start", start, 0, MAX_TOKENS)
        end, record = self.available_tokens, self.record
        rows: Rows | None = record.lent
        rows = record.rows if rows is None else rows
        return [_chunk(rows, start, end)] if rows is not None and start < end else []

    @property
    def buffered_chunks(self) -> list[EmbeddingChunk]:
        """The rows that have been copied out so far, in token order; all rows, once the request was popped.

        Asking before that has rows copied out as they come from then on, instead of lent in the end. Of a streamed
        request it is what is `available`.
        """
        if self.is_streamed:
            return self.available()
        record = self.record
        rows: Rows | None = record.lent if self.result is not None else None
        rows = record.rows if rows is None else rows
        if rows is None:
            record.ask_for_chunks(self.receiver)
            return []
        return [_chunk(rows, first, end) for first, end in self.chunk_info]

    @property
    def stamps_ns(self) -> tuple[int, ...]:
        """Monotonic ns of the first entry into each phase; 0 where it was not entered."""
        return self.receiver.stamps_ns if self.receiver is not None else (0,) * 5

    def phase_path(self) -> list[Phase]:
        """The phases that this request entered, in order."""
        return self.receiver.phase_path() if self.receiver is not None else []

    def abort(self, reason: str = "aborted by the scheduler") -> None:
        """Give the request up. It comes out of `pop_transferred` as failed, unless it is finished already."""
        reason = str(reason or "") or "aborted by the scheduler"  # an empty one would mean: not given up
        self.abort_reason = reason
        if self.receiver is not None:
            self.receiver.abort(reason)

    def release(self) -> None:
        """Give the memory back; `result`, and what was `available`, are gone after that. A second call does nothing.

        A streamed request that has not ended is aborted.
        """
        if self.is_released:
            return
        self.is_released = True
        self.result = None
        self.record.release()


share_keys(
    EmbeddingRequest, "room", "bootstrap_addr", "required_dst_info_num", "timeout_s", "payload", "keep_for_retry",
    "is_streamed", "chunk_info", "record", "receiver", "total_embedding_length", "transferred_tokens", "num_rounds",
    "result", "is_released", "failure",
)


def _chunk(rows: Rows, first: int, end: int) -> EmbeddingChunk:
    return EmbeddingChunk(
        first,
        end,
        rows.input_embeddings(first, end),
        rows.fill_ids(first, end),
        rows.mrope_positions(first, end),
        rows.deepstack_embeddings(first, end),
    )
