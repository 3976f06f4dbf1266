"""`EmbeddingSender`: the encoder's side of one request.

The sender is told once and knows nothing of resumes: it keeps the rows until the request has ended. The caller's rows
are the caller's again when `write` returns (P22): its thread copies them, straight into source blocks where whole
blocks of the request may be staged now, else into host memory, of which a node has a limit (`unsent`). Or the caller
lends them (`borrow=True`), and is told when it has them back.

The library thread copies rows from host memory into source blocks as destinations grant room. Source blocks are a
cache, not a place to wait in: a row that nobody can take yet, or that was written already, is staged only in blocks
above the reserve, and the reserve holds a row only while a write needs it; what stands in a block alone goes to host
memory before the block goes to somebody else. So any length passes through any pool of at least one block a side (R21,
D8).

Who does what: the caller's thread takes blocks for its request and fills them, makes pieces of host memory and fills
them, and hands both over: they are entered first, then `_ready` rises. The library thread reads `_ready` first, then
what was entered. It alone shows blocks to the worker, drops them, and ends the request; not while the caller's thread
is in `write` (`_writing`), for the slot may be another request's at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.blocks import RESERVE_BLOCK
from embridge.allocator.geometry import MAX_TOKENS, Role
from embridge.allocator.records import Destination, Slot
from embridge.allocator.request_tables import STAGE_STAGED, StageEntry
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.given_rows import Given, aux_words, given_rows, num_rows, place
from embridge.pipeline.client.handle import NO_SLOT, TransferHandle
from embridge.pipeline.client.kept_rows import KeptRows, Part
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.staged_blocks import StagedBlocks

log = logging.getLogger(__name__)

CLOSE_LOOK_S: Final = 0.001
AHEAD_BLOCKS: Final = 32  # staged beyond what is sent, for each destination
PIECE_BYTES: Final = 16 << 20  # copied by the caller's thread before the library thread is told: a worker's attempt


class EmbeddingSender(TransferHandle):
    """Made by `Client.sender(room, total_tokens)`.

    All methods return at once; one thread at a time calls those that give rows.
    """

    _library: Library

    def __init__(self, library: Library, room: int, total_tokens: int, aux: npt.NDArray[np.int32]) -> None:
        super().__init__(library, room)
        self._aux = aux
        self._is_announced = False
        self.total_tokens = total_tokens
        self._geometry = geometry = library.attachment.geometry
        self._dsts = library.destinations
        self._staging = library.staging
        self._bs = geometry.block_size
        self._kept = KeptRows(geometry, library.unsent, total_tokens)
        self._staged = StagedBlocks(library, self, self._kept)
        self._placed: deque[StageEntry] = deque()  # filled by the caller's thread, not shown to the worker yet
        self._ready = 0
        self._seen = 0  # `_ready`, as the library thread goes by it
        self._writing = False
        self._writer = 0
        self._letting_go = Lock()
        self._done = False
        self._done_callbacks: deque[Callable[[EmbeddingSender], object]] = deque()
        self._hungry = False
        self._told_ready = 0
        self._piece_blocks = max(1, PIECE_BYTES // (self._bs * geometry.token_bytes))

    # ---- the caller's thread

    def announce(self) -> None:
        """Send the length ahead of the rows, so that the language side can grant all of it in one round."""
        self._is_announced = True
        if self.slot != NO_SLOT and self._slots.get(self.slot, Slot.TOTAL) == 0:
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)
            self._attachment.kick_bootstrap(Kick.LOOK, self.slot, self.epoch)

    def write(
        self,
        start: int,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32],
        mrope_positions: torch.Tensor | npt.NDArray[np.int32],
        deepstack_embeddings: torch.Tensor | None = None,
        *,
        borrow: bool = False,
    ) -> bool:
        """Give rows [start, start + n), as the encoder makes them; never waits.

        `input_embeddings` (n, hidden) and `deepstack_embeddings` (n, D, hidden) in the node's dtype, `fill_ids` (n,)
        and `mrope_positions` (n, 3), or (3, n), integers within int32. Rows come in order: `start` is the number of
        rows given so far.

        They are copied, and the caller's again when this returns. With `borrow` they are not: they must stay as they
        are until `done`.

        Returns:
            False, with no effect, when the request has already ended (see `failure_exception`).

        Raises:
            ValueError: a shape or dtype is not the geometry's, rows are out of order, or exceed the total; with
                `borrow`, embeddings are not contiguous in host memory.
            NodeBusyError: source blocks and host memory (`unsent_max_bytes` of the node) are full. No row was taken;
                try again when rows have been sent (a `Client.poll` names their senders), with fewer rows, or lend them.
        """
        self._attachment.check_usable()
        start = whole("start", start, 0, MAX_TOKENS)
        given = given_rows(self._geometry, start, input_embeddings, fill_ids, mrope_positions, deepstack_embeddings)
        if given.end > self.total_tokens:
            raise ValueError(f"rows: {given.end} > {self.total_tokens} tokens that this request was opened with")
        lent = given.lent() if borrow else None
        self._writing = True  # before the look at the phase: from here on the library thread does not end this request
        self._writer = get_ident()
        try:
            self._attachment.check_usable()  # once more: nor does `Client.close` give up the seat from here on
            if self.poll() >= Phase.Success:
                # before the look at `start`: who streams on into a request that has failed did nothing wrong
                return False
            if start != self._ready:
                raise ValueError(f"start: {start} is not {self._ready}, the number of rows given so far")
            if lent is not None:
                self._kept.lend(lent)
                self._tell(lent.end)
            else:
                self._take(given)
        except BufferError:  # the payload of a node that has gone meanwhile is no more
            if not self._attachment.node_gone:
                raise
            return False
        finally:
            self._writing = False
            # the library thread may have waited for us
            if not self._attachment.is_closed and self.poll() >= Phase.Success:
                self._library.wake(self)
                if self.slot == NO_SLOT:
                    self.let_go()
        return True

    def _take(self, given: Given) -> None:
        """Copy rows into source blocks or host memory: all of them, or none if there is no room."""
        bs = self._bs
        sources = self._sources(given)
        rooms = {}
        try:
            rooms = self._kept.make_room(
                given.first, given.end, sources, f"room {self.room}, rows {given.first} to {given.end - 1}"
            )
            first = given.first
            while first < given.end:
                end = min(given.end, (first // bs + self._piece_blocks) * bs)
                blocks = range(first // bs, -(-end // bs))
                chunk = given.chunk(first, end)
                here = {k: sources[k] for k in blocks if k in sources}
                if here:
                    place(self._attachment.payload, self._geometry, chunk, here)
                self._kept.put(chunk, rooms)
                for k in here:
                    self._placed.append(
                        StageEntry(k, sources.pop(k), min(self.total_tokens - k * bs, bs), STAGE_STAGED)
                    )
                self._tell(end)
                first = end
        except BaseException:
            self._kept.discard(rooms)
            self._staged.release(list(sources.values()))
            raise

    def _sources(self, given: Given) -> dict[int, int]:
        """Source blocks by request block, for blocks given whole that may be staged now; none if somebody waits."""
        if self.slot == NO_SLOT or self._library.is_starving or self._control.blocks.waiters():
            return {}
        _, wanted, least = self._wanted(given.end)
        bs, spare = self._bs, self._library.spare_blocks()
        first, last = -(-given.first // bs), given.end // bs + (given.end == self.total_tokens and given.end % bs > 0)
        whole_blocks = []
        for k in range(first, min(last, least + self._staging.window)):
            if k in wanted or spare > 0:
                whole_blocks.append(k)
                spare -= 1
        blocks = self._control.blocks.acquire(self.slot, self.epoch, len(whole_blocks), may_take_reserve=False)
        return dict(zip(whole_blocks, blocks.tolist(), strict=False))

    def _tell(self, end: int) -> None:
        """Rows up to `end` are there, for everybody to see."""
        self.announce()
        if self.slot != NO_SLOT:
            self._slots.raise_to(self.slot, Slot.READY, end)
            self._slots.raise_to(self.slot, Slot.MOVED_NS, self._attachment.clock())
        self._ready = end  # after the word: the library thread tells the worker once of what it finds here
        self._library.wake(self)

    def send_embedding(
        self,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32],
        mrope_positions: torch.Tensor | npt.NDArray[np.int32],
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
        self._attachment.check_attached()
        if self._ready:
            return False
        count = num_rows(self._geometry, input_embeddings)
        if count != self.total_tokens:
            raise ValueError(f"input_embeddings: {count} rows, the request was opened with {self.total_tokens} tokens")
        return self.write(0, input_embeddings, fill_ids, mrope_positions, deepstack_embeddings, borrow=borrow)

    @property
    def done(self) -> bool:
        """Whether the request has ended and no row that was lent is looked at any more: all of them are the caller's
        again.

        That is later than the end in `poll()`, by a copy at most.
        """
        return self._done

    def add_done_callback(self, callback: Callable[[EmbeddingSender], object]) -> None:
        """The library thread calls `callback(sender)` once when it is `done`, or this does at once; keep it brief."""
        self._done_callbacks.append(callback)
        if self._done:
            self._call_back()

    def _call_back(self) -> None:
        while self._done_callbacks:
            try:
                callback = self._done_callbacks.popleft()
            except IndexError:  # the other thread was quicker
                return
            try:
                callback(self)
            except Exception:
                log.exception("room %d: a done callback failed", self.room)

    def clear(self) -> None:
        """Let go of the rows once the request has ended; does nothing before (a sender clears itself then)."""
        if self.poll() >= Phase.Success:
            self._library.wake(self)

    def refuse(self, why: str) -> None:
        super().refuse(why)
        self._staged.refuse(why)

    # ---- the library thread

    def prepare(self, slot: int) -> None:
        self._dsts.reset(slot)
        self._staging.reset(slot)
        self._slots.aux(slot)[:] = self._aux

    def catch_up(self) -> None:
        if self._is_announced:
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)
        super().catch_up()

    def end_without_slot(self) -> None:
        super().end_without_slot()
        self.let_go()

    @property
    def wants_block(self) -> bool:
        return self._hungry

    def service(self) -> None:
        if self._final is not None:
            self.let_go()  # the node is gone
            return
        seen = self._ready  # first: what belongs to these rows has been entered
        self._show_placed()
        self._seen = seen
        if split(self._status.load(self.slot)).phase >= TERMINAL:
            self._end()
            return
        self._stage()
        if seen != self._told_ready:
            self._told_ready = seen
            self._slots.raise_to(self.slot, Slot.READY, seen)  # what was written before it had its slot
            self._attachment.kick_worker(self.room, self.slot, self.epoch)

    def _end(self) -> None:
        """Give the source blocks back, but those that a worker still reads (R8); it wakes us when it is done."""
        if self._writing:  # it wakes us, too
            return
        self._hungry = False
        self.let_go()
        self._staged.drop_all()
        if not self._staged:
            self._settle()
            self._library.leave(self)

    def let_go(self) -> None:
        """The request is over: no row of it is looked at any more; `Client.close` calls it, too."""
        while self._writing and self._attachment.is_closed and self._writer != get_ident():
            time.sleep(CLOSE_LOOK_S)  # the thread that closes waits for the one that writes
        # once: either thread may come to it
        if self._done or self._writing or not self._letting_go.acquire(blocking=False):
            return
        self._staged.release([entry.source for entry in self._placed])
        self._placed.clear()
        self._kept.clear()
        self._done = True
        self._call_back()

    def _show_placed(self) -> None:
        """Enter the blocks that the caller's thread has filled."""
        while self._placed:
            entry = self._placed[0]
            if self._staged.make_place(entry.block, ()):
                self._staged.show(entry.block, entry)
            else:  # what stands in its place is still being read
                self._kept.bring_back(self._attachment.payload, entry.block, entry.source, entry.rows)
                self._staged.release([entry.source])
            self._placed.popleft()

    def _demand(self, ready: int) -> tuple[dict[int, int], list[tuple[int, int]], int]:
        """What destinations can take of `ready` rows now.

        Returns:
            heads, the block each destination needs next, and to which row; ranges of blocks behind them; the least
            block that some destination has yet to get.
        """
        get, bs = self._dsts.get, self._bs
        count = self._slots.get(self.slot, Slot.NUM_DESTINATIONS)
        heads: dict[int, int] = {}
        ranges = []
        least = self.total_tokens
        for d in range(count):
            sent = get(self.slot, d, Destination.SENT)
            limit = min(ready, get(self.slot, d, Destination.GRANTED_TOKENS))
            least = min(least, sent)
            if sent < limit:
                k = sent // bs
                heads[k] = max(heads.get(k, 0), min(limit, (k + 1) * bs))
                ranges.append((k, min(-(-limit // bs), k + AHEAD_BLOCKS)))
        if count < max(self._slots.get(self.slot, Slot.REQUIRED), 1):
            least = 0
        return heads, ranges, least // bs

    def _wanted(self, ready: int) -> tuple[dict[int, int], set[int], int]:
        """`_demand`, with the request blocks that some destination can take, or will next, as a set."""
        heads, ranges, least = self._demand(ready)
        return heads, {k for first, end in ranges for k in range(first, end)}, least

    def _stage(self) -> None:
        ready = self._seen
        heads, wanted, least = self._wanted(ready)
        self._kept.let_go(least)
        for k in self._staged:
            held = self._staged.get(k)
            if k < least or (held is not None and held.source == RESERVE_BLOCK and k not in heads):
                self._staged.drop(k)
        if not wanted and least * self._bs < ready and not self._library.blocks_are_short():
            end = min(-(-ready // self._bs), least + AHEAD_BLOCKS)
            wanted = set(range(least, end))  # nobody has granted yet: ahead of time, from what others do not need
        parts: list[Part] = []
        fresh: dict[int, StageEntry] = {}
        missing = []
        places: set[int] = set()  # entries that are given away in this turn
        for k in sorted(wanted, key=lambda k: (k not in heads, k)):
            held = self._staged.get(k)
            rows = min(ready - k * self._bs, self._bs)
            if held is None:
                if k % self._staging.window not in places and self._staged.make_place(
                    k, heads if k in heads else wanted
                ):
                    places.add(k % self._staging.window)
                    missing.append(k)
            elif held.rows < rows:
                parts.append((held.source, k * self._bs + held.rows, k * self._bs + rows))
                fresh[k] = held._replace(rows=rows)
        self._hungry = False
        if missing:
            blocks = self._acquire(missing, heads)
            for k, block in zip(missing, blocks, strict=False):
                rows = min(ready - k * self._bs, self._bs)
                parts.append((block, k * self._bs, k * self._bs + rows))
                fresh[k] = StageEntry(k, block, rows, STAGE_STAGED)
            self._hungry = any(k in heads for k in missing[len(blocks) :])
        if parts:
            self._copy(parts, fresh)
            self._attachment.kick_worker(self.room, self.slot, self.epoch)

    def _acquire(self, missing: list[int], heads: dict[int, int]) -> list[int]:
        """Blocks for these; the reserve only for one that a destination needs next, when there is no other."""
        pool = self._control.blocks
        blocks: list[int] = pool.acquire(self.slot, self.epoch, len(missing), may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads and self._library.evict(self):
            blocks = pool.acquire(self.slot, self.epoch, 1, may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads:
            blocks = pool.acquire(self.slot, self.epoch, 1, may_take_reserve=True).tolist()
        return blocks

    def _copy(self, parts: list[Part], fresh: dict[int, StageEntry]) -> None:
        self._kept.stage(self._attachment.payload, parts)
        for k, entry in fresh.items():
            self._staged.show(k, entry)

    def evict(self, *, copying: bool = False) -> int:
        """Drop what no destination can take now: somebody else needs a block. Returns how many were dropped.

        First what is kept in host memory, too; one that is not, only if asked, for it must be copied there.
        """
        if self._done:
            return self._staged.drop_all()
        _, wanted, _ = self._wanted(self._seen)
        idle = [k for k in self._staged if k not in wanted and self._kept.has(k) is not copying]
        return sum(self._staged.free(k) for k in (idle[-1:] if copying else idle))


def open_sender(
    library: Library,
    room: int,
    total_tokens: int,
    *,
    aux_datas: Any = None,
    mrope_position_delta: int = 0,
    timeout_s: float | None = None,
) -> EmbeddingSender:
    """Open a room to be sent, as `Client.sender` says."""
    room = library.check_open(room, Role.ENCODE, "sender")
    total_tokens = whole("total_tokens", total_tokens, 1, MAX_TOKENS)
    aux = aux_words(aux_datas, total_tokens, mrope_position_delta)
    sender = EmbeddingSender(library, room, total_tokens, aux)
    library.open(sender, timeout_s)
    return sender
