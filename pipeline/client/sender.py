"""`EmbeddingSender`: the encoder's side of one request.

The encoder gives its rows once and knows nothing of resumes: the sender keeps what was not sent at once until the
request has ended. The caller's rows are the caller's again when `write` returns (P22): its thread copies them, into the
blocks of a destination on this host that has granted them (`direct_path`), into source blocks if whole blocks of the
request may be staged now, else into host memory, of which a node has a limit (`unsent_memory`). Or the caller lends
them (`borrow=True`), and is told when it has them back.

The caller's thread takes blocks and pieces of host memory, fills them, and hands them over: it enters them first and
raises `_ready` then. The library thread reads `_ready` first, and then what was entered. Whoever has the turn shows
blocks to the worker, drops them, and ends the request: the library thread, or the caller's in `_show_worker` and
`end_here` (docs/design/client.md). Nobody ends it while the caller's thread is in `write` (`_writing`), because the
slot may be another request's at once.
"""

from __future__ import annotations

import time
from array import array
from threading import get_ident
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import STAGE_STAGED, SlotRecord, StageEntry
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.at_once import WritesAtOnce
from embridge.pipeline.client.given_rows import Given, given_rows, num_rows, place
from embridge.pipeline.client.handle import NO_SLOT
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.stock import Stock
from embridge.pipeline.shared_keys import share_keys

CLOSE_LOOK_S: Final = 0.001


class EmbeddingSender(WritesAtOnce):
    """Made by `Client.sender(room, total_tokens)`.

    No method waits. One thread at a time calls the methods that give rows.
    """

    _is_wanted_whole = False
    _seen = 0  # `_ready`, as the library thread goes by it

    def __init__(self, library: Library, room: int, total_tokens: int, aux: array[int]) -> None:
        self._library = library
        self.room = room
        self.aux = aux
        self.total_tokens = total_tokens
        if library.doors is None:
            self._writes_itself = False

    @property
    def stock(self) -> Stock:
        """What is kept of its rows; made now, if there is none (either thread)."""
        if (stock := self._stock) is None:
            stock = vars(self).setdefault("_stock", Stock(self._library, self, self.total_tokens))
        return stock

    # ---- the caller's thread

    def announce(self) -> None:
        """Send the length ahead of the rows, so that the language side can grant all of it in one round."""
        self._announce()
        if self.is_untold:
            self._is_wanted_whole = True
            self._library.wake(self)  # where a grant of all rows is not there yet, a message asks for it

    def _announce(self) -> None:
        self._is_announced = True
        if self.slot != NO_SLOT and self._slots.get(self.slot, Slot.TOTAL) == 0:
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)
            self._attachment.kick_bootstrap(Kick.LOOK, self.slot, self.epoch)

    def write(
        self,
        start: int,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32] | None = None,
        mrope_positions: torch.Tensor | npt.NDArray[np.int32] | None = None,
        deepstack_embeddings: torch.Tensor | None = None,
        *,
        borrow: bool = False,
    ) -> bool:
        """Give rows [start, start + n), as the encoder makes them; never waits.

        `input_embeddings` (n, hidden) and `deepstack_embeddings` (n, D, hidden) in the node's dtype, `fill_ids` (n,)
        and `mrope_positions` (n, 3), or (3, n), integers within int32: each of them that the node's geometry has, and
        no other. Rows come in order: `start` is the number of rows given so far.

        The rows are copied, and are the caller's again when this returns. With `borrow` they are not copied, and must
        stay as they are until `done`.

        Returns:
            False, with no effect, when the request has already ended (see `failure_exception`).

        Raises:
            ValueError: a shape or dtype is not the geometry's, rows are out of order, or exceed the total; with
                `borrow`, embeddings are not contiguous in host memory.
            NodeBusyError: source blocks and host memory (`unsent_max_bytes` of the node) are full. No row was taken;
                try again when rows have been sent (a `Client.poll` names their senders), with fewer rows, or lend them.
                (Those of them that were granted may have been sent: give the same rows again.)
        """
        rows, was_gone = (input_embeddings, fill_ids, mrope_positions, deepstack_embeddings), self._attachment.node_gone
        if not borrow and self._write_plain(start, *rows):
            return True
        check = self._attachment.check_usable if was_gone else self._attachment.check_attached
        check()  # a node that goes from here on has failed the request
        start = whole("start", start, 0, MAX_TOKENS)
        given = given_rows(self._geometry, start, *rows)
        if given.end > self.total_tokens:
            raise ValueError(f"rows: {given.end} > {self.total_tokens} tokens that this request was opened with")
        lent = given.lent() if borrow else None
        self._begin_to_give()
        try:
            self._attachment.check_attached()  # nor does `Client.close` give up the lane from here on
            if self.poll() >= Phase.Success:  # first: a caller that streams on into a failed request did nothing wrong
                return False
            self._check_next(start, given.end)
            if given.end > self._ready:
                given = given.since(self._ready)
                written = self._write_directly(given)
                if written < given.end and lent is not None:
                    self.stock.kept.lend(given.since(written).lent())
                    self._tell(given.end)
                elif written < given.end:
                    self._take(given.since(written))
            self._taken = given.end
        except BufferError:  # the payload of a node that has gone meanwhile is no more
            if not self._attachment.node_gone:
                raise
            return False
        finally:
            self._end_to_give()
        return True

    def _write_directly(self, given: Given) -> int:
        """Copy what the destination has granted of these rows into its blocks, if that may be done; up to which row."""
        direct = self._direct
        if direct is None or self.slot == NO_SLOT or not direct.may_write(given.first):
            return given.first
        self._is_announced = True
        end = direct.write(given)
        if end > given.first:
            self._ready = self._told_ready = end
        return end

    def _take(self, given: Given) -> None:
        """Copy rows into source blocks or host memory: all of them, or none if there is no room."""
        bs, stock = self._geometry.block_size, self.stock
        sources = self._sources(given)
        rooms = {}
        try:
            rooms = stock.kept.make_room(
                given.first, given.end, sources, f"room {self.room}, rows {given.first} to {given.end - 1}"
            )
            first = given.first
            while first < given.end:
                end = min(given.end, (first // bs + stock.kept.piece_blocks) * bs)
                blocks = range(first // bs, -(-end // bs))
                chunk = given.chunk(first, end)
                here = {k: sources[k] for k in blocks if k in sources}
                if here:
                    place(self._attachment.payload, self._geometry, chunk, here)
                stock.kept.put(chunk, rooms)
                for k in here:
                    stock.placed.append(
                        StageEntry(k, sources.pop(k), min(self.total_tokens - k * bs, bs), STAGE_STAGED)
                    )
                self._tell(end, is_placed=len(here) == len(blocks))
                first = end
        except BaseException:
            stock.kept.discard(rooms)
            stock.staged.release(list(sources.values()))
            raise

    def _sources(self, given: Given) -> dict[int, int]:
        """Take source blocks for blocks given whole that may be staged now, by request block; none if others wait."""
        if self.slot == NO_SLOT or self._library.is_starving or self._control.blocks.waiters():
            return {}
        staging, bs = self.stock.staging, self._geometry.block_size
        _, wanted, least = staging.wanted(given.end)
        spare = self._library.spare_blocks()
        first, last = -(-given.first // bs), given.end // bs + (given.end == self.total_tokens and given.end % bs > 0)
        whole_blocks = []
        for k in range(first, min(last, least + staging.window)):
            if k in wanted or spare > 0:
                whole_blocks.append(k)
                spare -= 1
        blocks = self._control.blocks.acquire(self.slot, self.epoch, len(whole_blocks), may_take_reserve=False)
        return dict(zip(whole_blocks, blocks.tolist(), strict=False))

    def _tell(self, end: int, *, is_placed: bool = False) -> None:
        """Say that the rows up to `end` are there.

        If all that are new are placed in source blocks, the worker is shown them here, unless the library thread has
        its turn just now.
        """
        if self.slot != NO_SLOT and self.stock.staging.is_all_granted():
            self._is_announced = True
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)  # a report of the first rows tells it
        else:
            self._announce()
        if self.slot != NO_SLOT:
            self._slots.raise_to(self.slot, Slot.READY, end)
            self._slots.raise_to(self.slot, Slot.MOVED_NS, self._attachment.clock())
        self._ready = end  # after the word: the library thread tells the worker once of what it finds here
        self._taken = end
        if not is_placed or not self._library.view.do(self._show_worker):
            self._library.wake(self)

    def _show_worker(self) -> bool:
        """Show the worker what is placed, and tell it. False: the library thread is to see to it."""
        is_direct = self._direct is not None and not self._direct.is_the_workers
        if is_direct or self._final is not None or self._attachment.node_gone:
            return False
        self._show_placed()
        self._seen = self._told_ready = self._ready
        self._attachment.kick_worker(self.room, self.slot, self.epoch)
        return True

    def send_embedding(
        self,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32] | None = None,
        mrope_positions: torch.Tensor | npt.NDArray[np.int32] | None = None,
        deepstack_embeddings: torch.Tensor | None = None,
        *,
        borrow: bool = False,
    ) -> bool:
        """Give all rows at once; to be called once.

        A second call, or one after the end, has no effect and returns False.

        Raises:
            ValueError: as `write`, or the rows are not as many as the request was opened with.
            NodeBusyError: as `write`.
        """
        attachment = self._library.attachment
        if attachment.is_closed or attachment.is_forked:
            attachment.check_attached()
        if self._taken:
            return False
        given = (input_embeddings, fill_ids, mrope_positions, deepstack_embeddings)
        if not borrow and self._write_plain(0, *given, is_all=True):
            return True
        count = num_rows(self._geometry, input_embeddings)
        if count != self.total_tokens:
            raise ValueError(f"input_embeddings: {count} rows, the request was opened with {self.total_tokens} tokens")
        return self.write(0, input_embeddings, fill_ids, mrope_positions, deepstack_embeddings, borrow=borrow)

    def clear(self) -> None:
        """Free the rows once the request has ended. Before the end it does nothing: a sender clears itself then."""
        if self.poll() >= Phase.Success:
            self._library.wake(self)

    def refuse(self, why: str) -> None:
        super().refuse(why)
        if self._stock is not None:
            self._stock.refuse(why)
        if self._path is not None:
            self._path.refuse(why)

    # ---- the library thread, or whoever has the turn; `fail` is either thread's

    def fail(self, code: FailureCode, reason: str) -> None:
        # first: a scheduler that has granted, and told nobody, hears of it at once; where the turn is taken, later
        direct = self._direct
        if direct is not None and self.slot != NO_SLOT:
            self._library.view.do(direct.find)
        super().fail(code, reason)

    def prepare(self, slot: int, record: SlotRecord) -> None:
        assert self.aux is not None
        record.set_aux(self.aux)
        record.words[Slot.MAY_WRITE] = self._writes_itself

    def catch_up(self) -> None:
        if self._is_announced:
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)
        super().catch_up()

    def end_without_slot(self) -> int:
        code = super().end_without_slot()
        self.let_go()
        return code

    @property
    def wants_block(self) -> bool:
        stock = self._stock
        return stock is not None and stock.staging.is_hungry

    def service(self) -> None:
        if self._final is not None or self._attachment.node_gone:
            self.let_go()  # the rows may have been let go of already: nothing is copied any more
            return
        seen = self._ready  # first: what belongs to these rows has been entered
        self._show_placed()
        self._seen = seen
        if split(self._status.load(self.slot)).phase >= TERMINAL:
            self._end()
            return
        if seen != self._told_ready:
            self._slots.raise_to(self.slot, Slot.READY, seen)  # what was written before it had its slot
        is_direct = self._direct is not None and self._direct.serve(
            seen, self._stock, is_wanted_whole=self._is_wanted_whole
        )
        if not is_direct and seen:
            self.stock.staging.stage(seen)
        if seen != self._told_ready:
            self._told_ready = seen
            if is_direct:  # the destination is told that rows wait
                self._attachment.kick_poller(self.slot, self.epoch)
            else:
                self._attachment.kick_worker(self.room, self.slot, self.epoch)

    def release_untold(self) -> bool:
        return self._direct is not None and self._direct.release_untold()

    def _end(self) -> None:
        """Give the source blocks back, except those that a worker still reads (R8); it wakes us when it is done."""
        if self._writing or self._filling is not None:  # it wakes us, too; what is written to through views is kept
            return
        self.let_go()
        if (stock := self._stock) is not None:
            stock.staging.is_hungry = False
            stock.staged.drop_all()
            if stock.staged:
                return
        self._settle()
        self._library.leave(self)
        self._leave_direct()
        vars(self).pop("_stock", None)

    def let_go(self) -> None:
        """Free the rows, because the request is over and no row is looked at any more (also by `Client.close`)."""
        while self._writing and self._attachment.is_closed and self._writer != get_ident():
            time.sleep(CLOSE_LOOK_S)  # the thread that closes waits for the one that writes
        if self._done or self._writing:
            return
        first = object()
        if vars(self).setdefault("_let_go_by", first) is not first:  # only once, although either thread may come here
            return
        stock, direct = self._stock, self._path
        if stock is not None:
            stock.clear()
        if direct is not None:
            direct.let_go()
        self._has_done()

    def _show_placed(self) -> None:
        """Enter the blocks that the caller's thread has filled."""
        if self._stock is not None:
            self._stock.show_placed(self._attachment.payload)

    def evict(self, *, copying: bool = False) -> int:
        """Drop what no destination can take now, because another request needs a block. Returns how many were dropped.

        Blocks whose rows are in host memory, too, go first; other blocks only with `copying`, because their rows must
        be copied there.
        """
        if (stock := self._stock) is None:
            return 0
        return stock.staged.drop_all() if self._done else stock.staging.evict(self._seen, copying=copying)


share_keys(
    EmbeddingSender, "_library", "room", "aux", "total_tokens", "opened_ns", "deadline_ns", "slot", "epoch", "_writing",
    "_writer", "_ready", "_told_ready", "_taken", "_is_announced", "_final", "_final_stamps", "has_settled",
    "_writes_itself", "_path", "_done", "reported", "_seen",
)
