"""Rows that are made where they are needed: in the blocks of their destination, or where they are sent from.

`EmbeddingSender.rows` takes the claim of the destination's slot and hands out views; `commit` says that the rows count,
and gives the claim back. To everybody else that is one write, and a slow one (R28, R29): a request that fails meanwhile
has its claim revoked, and its blocks stay in quarantine until `commit`, or until this process is dead, so a late write
through a view harms nobody (R30). A door stays open for as long as rows behind it are out (R33).

Over a network the views are of source blocks (`source_rows.py`), which the transfer worker is shown when they are
committed.
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
from embridge.pipeline.client.source_rows import SourceRows

if TYPE_CHECKING:
    from embridge.pipeline.client.direct_path import DirectPath
    from embridge.pipeline.client.held import Held
    from embridge.pipeline.client.library import Library
    from embridge.pipeline.client.stock import Stock


class WritableRows(NamedTuple):
    """Rows [first, end) of a request, to be written to: in blocks, or in host memory that `commit` copies.

    `is_in_place`: in the blocks of the destination, or in those from which they are sent to it.
    """

    first: int
    end: int
    is_in_place: bool
    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor | None
    mrope_positions: torch.Tensor | None
    deepstack_embeddings: torch.Tensor | None

    @classmethod
    def of(cls, geometry: Geometry, first: int, end: int, held: Held | SourceRows | None) -> WritableRows:
        """In the blocks that are held, else in memory of their own."""
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
    _taken: int
    _ready: int
    _told_ready: int
    _is_announced: bool
    _out: WritableRows | None = None
    _held: Held | None = None
    _filling: SourceRows | None = None

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

    @property
    def _geometry(self) -> Geometry:
        raise NotImplementedError

    @property
    def _direct(self) -> DirectPath | None:
        raise NotImplementedError

    @property
    def stock(self) -> Stock:
        """What is kept of its rows, as of an `EmbeddingSender`."""
        raise NotImplementedError

    def _tell(self, end: int, *, is_placed: bool = False) -> None:
        raise NotImplementedError

    def rows(self, start: int, num_rows: int) -> WritableRows:
        """Hand out rows [start, start + num_rows) to be written to, and then committed; never waits.

        They are in the blocks of the destination (`is_in_place`), if it is on this host and has granted them, or in
        blocks of this node, from which they are sent, if it has enough that are free: then nothing is copied, and they
        may be fewer, for those that follow lie elsewhere or are not granted yet. Else they are in host memory, and
        `commit` copies them as `write` does. `start` is the number of rows given so far. One lot is out at a time, and
        until it is committed nothing else can be given.

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
            is_sent = self._held is None and self.slot != NO_SLOT and (direct is None or direct.is_left_to_worker())
            if is_sent and start == self._ready and self.poll() < Phase.Success:
                self._filling = SourceRows.take(self._library, self, self.stock, start, end, self.total_tokens)
        finally:
            self._end_to_give()
        held = self._held or self._filling
        end = end if held is None else held.end
        self._out = WritableRows.of(self._geometry, start, end, held)
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
        out, held, filling = self._out, self._held, self._filling
        if out is None:
            self._attachment.check_attached()
            raise ValueError("commit: no rows are out; call rows() first")
        end = whole("end", end, out.first, out.end, f"{out.first} to {out.end}, the rows that are out")
        self._out = self._held = None
        if held is not None:
            return self._commit_held(held, end)
        if filling is not None and (filling.may_end_at(end) or self.poll() >= Phase.Success):
            return self._commit_blocks(filling, end)
        try:
            is_given = self.write(out.first, *out.until(end)) if end > out.first else self.poll() < Phase.Success
        except NodeBusyError:
            self._out = out
            raise
        except BaseException:
            self._let_go_of_blocks()
            raise
        self._let_go_of_blocks()
        return is_given

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

    def _commit_blocks(self, filling: SourceRows, end: int) -> bool:
        is_live = False
        self._begin_to_give()  # as in `_commit_held`
        try:
            self._attachment.check_attached()
            is_live = self._final is None and self.poll() < Phase.Success and not self._attachment.node_gone
            if is_live and end > filling.first:
                for step in filling.place(end):  # the worker begins with the first while others are shown to it
                    self._tell(step, is_placed=True)
        finally:
            self._let_go_of_blocks()
            self._end_to_give()
        return is_live

    def _let_go_of_blocks(self) -> None:
        filling, self._filling = self._filling, None
        if filling is not None and not self._attachment.is_closed:
            filling.let_go()
            if not self._writing and self.poll() >= Phase.Success:
                self._library.wake(self)  # it may have waited for us

    def _begin_to_give(self) -> None:
        """Before the look at the phase: from here on the library thread does not end this request."""
        self._writing = True
        self._writer = get_ident()

    def _end_to_give(self) -> None:
        self._writing = False
        is_closed = self._attachment.is_closed
        if (self._final is not None or not is_closed) and self.poll() >= Phase.Success:
            if not is_closed:  # the library thread may have waited for us
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
