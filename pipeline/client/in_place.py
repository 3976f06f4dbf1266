"""Rows that are made where they are needed: an encoder writes into the blocks of their destination.

`EmbeddingSender.rows` takes the claim of the destination's slot and hands out views; `commit` says that the rows count,
and gives the claim back. To everybody else that is one write, and a slow one (R28, R29): a request that fails meanwhile
has its claim revoked, and its blocks stay in quarantine until `commit`, or until this process is dead, so a late write
through a view harms nobody (R30). A door stays open for as long as rows behind it are out (R33).
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from embridge.allocator.errors import NodeBusyError
from embridge.allocator.geometry import MAX_TOKENS, Geometry
from embridge.allocator.status import Phase
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.given_rows import kinds_of
from embridge.pipeline.client.handle import NO_SLOT, TransferHandle

if TYPE_CHECKING:
    from embridge.pipeline.client.direct_path import DirectPath, Held
    from embridge.pipeline.client.library import Library


class WritableRows(NamedTuple):
    """Rows [first, end) of a request, to be written to: in the blocks of the destination, or in host memory."""

    first: int
    end: int
    is_in_place: bool
    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor | None
    mrope_positions: torch.Tensor | None
    deepstack_embeddings: torch.Tensor | None

    @classmethod
    def of(cls, geometry: Geometry, first: int, end: int, held: Held | None) -> WritableRows:
        """In the blocks whose claim is held, else in memory of their own."""
        views: dict[str, torch.Tensor] = {}
        for name, (dtype, tail) in kinds_of(geometry).items():
            shape = (end - first, *tail)
            if held is None:
                views[name] = torch.empty(shape, dtype=dtype)
            else:
                offset, count = held.offset_of(name), int(np.prod(shape))
                views[name] = torch.frombuffer(held.memory, dtype=dtype, count=count, offset=offset).view(shape)
        names = ("input_embeddings", "fill_ids", "mrope_positions", "deepstack_embeddings")
        return cls(first, end, held is not None, *(views.get(name) for name in names))  # type: ignore[arg-type]

    def until(self, end: int) -> tuple[Any, ...]:
        """The rows before `end`, as `EmbeddingSender.write` takes them."""
        return tuple(None if rows is None else rows[: end - self.first] for rows in self[3:])


class GivesInPlace(TransferHandle):
    """The part of an `EmbeddingSender` that hands out rows. Caller's thread."""

    total_tokens: int
    _library: Library
    _writing: bool
    _writer: int
    _geometry: Geometry
    _direct: DirectPath | None
    _taken: int
    _ready: int
    _told_ready: int
    _is_announced: bool
    _out: WritableRows | None = None
    _held: Held | None = None

    def write(
        self,
        start: int,
        input_embeddings: Any,
        fill_ids: Any = None,
        mrope_positions: Any = None,
        deepstack_embeddings: Any = None,
        *,
        borrow: bool = False,
    ) -> bool:
        """Give rows, as `EmbeddingSender.write`."""
        raise NotImplementedError

    def rows(self, start: int, num_rows: int) -> WritableRows:
        """Hand out rows [start, start + num_rows) to be written to, and then committed; never waits.

        They are in the blocks of the destination (`is_in_place`), if it is on this host and has granted them: then
        nothing is copied, and they may be fewer, for those that follow lie elsewhere or are not granted yet. Else they
        are in host memory, and `commit` copies them as `write` does. `start` is the number of rows given so far. One
        lot is out at a time, and until it is committed nothing else can be given.

        Raises:
            ValueError: rows are out already, or these are not the next ones, or exceed the total.
            NodeGoneError: the node is gone.
            RuntimeError: after `Client.close`, or in a forked child.
        """
        self._attachment.check_usable()
        start = whole("start", start, 0, MAX_TOKENS)
        end = start + whole("num_rows", num_rows, 1, MAX_TOKENS)
        self._check_next(start, end)
        self._begin_to_give()
        try:
            direct = self._direct
            may_be_held = direct is not None and self.slot != NO_SLOT and start == self._ready
            if may_be_held and self.poll() < Phase.Success and direct is not None and direct.may_write(start):
                self._held = direct.hold(start, end)
        finally:
            self._end_to_give()
        end = end if self._held is None else self._held.end
        self._out = WritableRows.of(self._geometry, start, end, self._held)
        return self._out

    def commit(self, end: int) -> bool:
        """Give the rows before `end` that `rows` has handed out; the views are not to be written to any more.

        `end` may be the first of them: then none is given. Those from `end` on are handed out anew by `rows`. Where
        rows were handed out it is called in any case, also if the request has failed: until then the destination can
        use their blocks for nothing else.

        Returns:
            False, with no effect, when the request has already ended.

        Raises:
            ValueError: no rows are out, or `end` is none of them.
            NodeBusyError: as `write`, for rows in host memory; they stay out.
            RuntimeError: after `Client.close`; in-place rows are given up all the same.
        """
        out, held = self._out, self._held
        if out is None:
            self._attachment.check_attached()
            raise ValueError("commit: no rows are out; call rows() first")
        end = whole("end", end, out.first, out.end, f"{out.first} to {out.end}, the rows that are out")
        self._out = self._held = None
        if held is not None:
            return self._commit_held(held, end)
        if end == out.first:
            return self.poll() < Phase.Success
        try:
            return self.write(out.first, *out.until(end))
        except NodeBusyError:
            self._out = out
            raise

    def _commit_held(self, held: Held, end: int) -> bool:
        written, direct = 0, self._direct  # the library thread may be about to end the request
        self._begin_to_give()  # before the look at the end: from here on the slot is not another request's
        try:
            self._attachment.check_attached()
            if end > held.first and self._final is None and not self._attachment.node_gone and direct is not None:
                written = direct.commit(held, end)
        except BufferError:  # the payload of a node that has gone meanwhile is no more
            pass
        finally:
            held.let_go(is_given_back=written != 0)
            self._end_to_give()
        if written:
            self._is_announced = True
            self._taken = self._ready = self._told_ready = abs(written)
        return written > 0 if end > held.first else self.poll() < Phase.Success

    def _begin_to_give(self) -> None:
        """Before the look at the phase: from here on the library thread does not end this request."""
        self._writing = True
        self._writer = get_ident()

    def _end_to_give(self) -> None:
        self._writing = False
        # the library thread may have waited for us
        if not self._attachment.is_closed and self.poll() >= Phase.Success:
            self._library.wake(self)
            if self.slot == NO_SLOT:
                self.let_go()

    def _check_next(self, start: int, end: int) -> None:
        """Check that these are the next rows. Raises ValueError."""
        if self._out is not None:
            raise ValueError(f"start: rows {self._out.first} to {self._out.end - 1} are out; commit them first")
        if end > self.total_tokens:
            raise ValueError(f"rows: {end} > {self.total_tokens} tokens that this request was opened with")
        if start != self._taken:
            raise ValueError(f"start: {start} is not {self._taken}, the number of rows given so far")
