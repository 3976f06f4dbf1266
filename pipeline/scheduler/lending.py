"""Lends a request's rows where they are: its scheduler gets views of its own blocks, and nothing is copied (R35).

A scheduler keeps its results for as long as it likes, perhaps until others have come. So what is lent leaves the others
enough to go on with: a quarter of the pool, the reserve, and half of the node's pages of slots. A request for which
that does not hold is drained, as is one whose blocks are no single run. Until a result is popped it is not its
scheduler's: while somebody is short, rows that were kept in their blocks are drained as well.

The rows of a streamed request are lent as they land, where the same holds and all of them are granted (R82).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from weakref import ref

import numpy as np

from embridge.allocator._core import untrack
from embridge.allocator.blocks import RESERVE_BLOCK
from embridge.allocator.buffers import pools
from embridge.allocator.records import Lent, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.block_rows import BlockRows
from embridge.pipeline.scheduler.default_grant import AdaptiveDefault
from embridge.pipeline.scheduler.draining import Draining
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows
from embridge.pipeline.scheduler.record import TransferRecord
from embridge.pipeline.scheduler.request import EmbeddingRequest, EmbeddingResult

log = logging.getLogger(__name__)


class Lending:
    """What one transfer queue keeps in blocks, and has lent. Whoever has the turn calls it, but for `hand_over`."""

    def __init__(
        self, library: Library, draining: Draining, memory: HostMemory, default: AdaptiveDefault, *, may_lend: bool
    ) -> None:
        """Without `may_lend` all is drained."""
        self._library = library
        self._attachment = library.attachment
        self._control = library.attachment.control
        self._slots = self._control.slots
        self._places = {pool.name: pool for pool in pools(library.attachment.geometry)}
        self._draining = draining
        self._memory = memory
        self._default = default
        self._may_lend = may_lend
        self._bs = library.attachment.geometry.block_size
        self._quarter = self._control.blocks.num_blocks // 4 + 1
        self._kept: dict[EmbeddingRequest, None] = {}  # on their way, with rows that stay in their blocks
        self._view: ref[memoryview] | None = None  # of the payload, of all that is lent
        self._lent: dict[int, ref[EmbeddingRequest]] = {}  # by slot, which is its request's until that is released

    # ---- as rows land

    def keep(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, sent: int) -> bool:
        """Leave rows that have landed in their blocks, for they may be lent in the end. False: drain them now."""
        if request.record.lent is None:
            drains = request.keep_for_retry or request.record.wants_chunks
            num_blocks, granted = self._slots.granted(receiver.slot)
            num_behind = num_blocks - -(-request.total_embedding_length // self._bs)
            if drains or not self._is_run(request, receiver, granted) or self._is_short(num_behind):
                self._kept.pop(request, None)
                return False
            if not request.is_streamed:
                self._kept[request] = None
            elif not self._lend_as_it_lands(request, receiver):
                return False
        if sent > request.transferred_tokens:
            request.chunk_info.append((request.transferred_tokens, sent))
            request.transferred_tokens = sent
        return True

    def _lend_as_it_lands(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> bool:
        """Lend the rows of a streamed request, of which all are granted, before the last has landed.

        False: they are to be drained. Over a network a fence frees what is in quarantine, whoever looks at it.
        """
        if self._control.slots.get(receiver.slot, Slot.SESSION) or not self._may_hold(receiver):
            return False
        # before rows are shown, which only happens while it has not failed: a poller that fails it after that leaves
        # its blocks alone until it is released
        self._control.slots.raise_to(receiver.slot, Slot.LENT, Lent.STREAM)
        self._enter(request, receiver)
        return True

    def lend(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> int:
        """Lend the rows of a request that has succeeded. Returns how many grants it has had; 0: they are to be drained.

        It keeps its slot and its blocks until it is released; blocks behind its last row come free.
        """
        self._kept.pop(request, None)
        total = request.total_embedding_length
        num_blocks, granted = self._slots.granted(receiver.slot)
        num_behind = num_blocks - -(-total // self._bs)
        if request.record.lent is None:
            is_run = self._is_run(request, receiver, granted)
            if not is_run or self._is_short(num_behind) or not self._may_hold(receiver):
                return 0
            self._enter(request, receiver)
        self._slots.set(receiver.slot, Slot.LENT, Lent.RESULT)
        self._library.requests.forget_room(receiver)
        if num_behind:
            behind = receiver.current_allocation()[-num_behind:]
            self._control.blocks.release(behind, receiver.slot, receiver.epoch)
            self._library.blocks_freed()
        if total > request.transferred_tokens:
            request.chunk_info.append((request.transferred_tokens, total))
            request.transferred_tokens = total
        return receiver.num_rounds

    def lend_straight(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, total: int) -> int:
        """Lend all rows of a request at one look, where they fill the blocks that it was granted. Returns as `lend`; 0,
        and nothing has happened: they are to be looked at more closely.
        """
        record, slot, requests = request.record, receiver.slot, self._library.requests
        needed, lease = -(-total // self._bs), requests.lease
        if (
            record.lent is not None or record.run_blocks != needed or record.drained_tokens or not self._may_lend
            or record.first_of_run == RESERVE_BLOCK or request.transferred_tokens or not lease.hold(slot)
        ):
            return 0
        num_rounds = self._library.untold.lend(slot, receiver.epoch, needed, self._quarter)
        if not num_rounds:
            lease.let_go(slot)
            return 0
        if self._kept:
            self._kept.pop(request, None)
        self._note(request, receiver, needed)
        if requests.by_room.get(receiver.room) is receiver:  # `forget_room`
            del requests.by_room[receiver.room]
        request.chunk_info.append((0, total))
        request.transferred_tokens = total
        if request.is_released:  # as in `_enter`
            self._end_released(request)
        return num_rounds

    def _end_released(self, request: EmbeddingRequest) -> None:
        """Give back what is lent to a request that was released meanwhile: whoever has done so saw nothing of it."""
        lent, request.record.lent = request.record.lent, None
        if lent is not None:
            lent.give_back()

    def _may_hold(self, receiver: EmbeddingReceiver) -> bool:
        return self._library.requests.lease.hold(receiver.slot)

    def _enter(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        num_blocks = -(-request.total_embedding_length // self._bs)
        self._note(request, receiver, num_blocks)
        self._count(num_blocks)
        if request.is_released:
            self._end_released(request)

    def _rows(self, receiver: EmbeddingReceiver, first_block: int, num_blocks: int) -> BlockRows:
        view = self._view() if self._view is not None else None
        if view is None:
            view = memoryview(self._attachment.payload)
            self._view = ref(view)
        rows = BlockRows(self._attachment.geometry, view, receiver, first_block, num_blocks, self._places)
        untrack(rows.claims)
        return rows

    def _note(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, num_blocks: int) -> None:
        record = request.record
        rows, record.prepared = record.prepared, None
        if rows is None or rows.num_blocks != num_blocks:
            rows = self._rows(receiver, record.first_of_run, num_blocks)
        record.lent = rows
        known = self._lent[receiver.slot] = ref(request)
        untrack(known)

    def prepare(self, record: TransferRecord, receiver: EmbeddingReceiver) -> None:
        """Make ahead of the rows of a request what they are lent with, if they fill the blocks that it was granted; it
        may well be as long as the one before.
        """
        if self._may_lend and record.run_blocks and record.first_of_run != RESERVE_BLOCK:
            record.prepared = rows = self._rows(receiver, record.first_of_run, record.run_blocks)
            rows.make_ahead(self._default.latest)

    def hand_over(self, request: EmbeddingRequest) -> None:
        """A request is popped: what is lent is its scheduler's from now on, and needs no host memory (any thread)."""
        record, lent = request.record, request.record.lent
        if lent is not None and not request.is_released:
            total = request.total_embedding_length
            made = None if lent.ahead is None else lent.take_ahead(total)
            request.result = EmbeddingResult(lent, total, made)
            self._memory.give_back_later(None, record.reserved_tokens)
            record.reserved_tokens = 0

    def _count(self, num_blocks: int) -> None:
        self._control.lanes.add_lent(self._attachment.lane, num_blocks)

    # ---- what may be lent

    def _is_run(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, granted: int) -> bool:
        """Whether all rows of a request are granted, in blocks of their own order, and none of these was drained or may
        still be written to.
        """
        total, record = request.total_embedding_length, request.record
        if not self._may_lend or not total or record.drained_tokens or record.first_of_run == RESERVE_BLOCK:
            return False
        return record.run_blocks * self._bs >= total <= granted and not receiver.is_tainted

    def _is_short(self, num_behind: int) -> bool:
        """Whether the others need what would be lent: less than a quarter of the pool is free then, or somebody waits.

        Of what is free now nothing is lent, and each who lends looks first. So a quarter is never lent, however many
        clients cross. `num_behind`: the blocks behind the last row, which come free.
        """
        is_short = self._num_free() + num_behind < self._quarter
        return bool(is_short or self._control.blocks.waiters() or self._control.slot_waiters.lanes())

    def _num_free(self) -> int:
        return self._control.blocks.cells.num_free(self._quarter)

    # ---- while somebody is short

    def make_room(self, waits: bool, finished: deque[EmbeddingRequest], grant: Callable[[], bool]) -> bool:
        """While somebody is short, drain one after the other what was kept, and have `grant` give it away.

        `finished` have yet to be popped; `waits`: a request of this queue waits for a block. Returns whether one still
        does.
        """
        lane = self._attachment.lane
        while (self._kept or finished) and not self._attachment.node_gone:
            others_wait = any(other != lane for other in self._control.blocks.waiters())
            lacks_blocks = (waits or others_wait) and self._num_free() < self._quarter
            if not (lacks_blocks and self._drain_kept()) and not (
                (lacks_blocks or self._control.slot_waiters.lanes()) and self._drain_finished(finished)
            ):
                break
            waits = grant()
        return waits

    def _drain_kept(self) -> bool:
        """Drain one request that is on its way. False if there is none."""
        while self._kept:
            request = next(iter(self._kept))
            del self._kept[request]
            receiver = request.receiver
            if receiver is not None and receiver.driver is not None and receiver.poll() < Phase.Success:
                self._draining.drain(request, receiver, receiver.sent_tokens)
                return True
        return False

    def _drain_finished(self, finished: deque[EmbeddingRequest]) -> bool:
        """Drain one request that has ended, of those that have yet to be popped. False if there is none.

        Whoever takes it out of the deque has it: the scheduler, who pops on the left, or this thread.
        """
        if all(request.record.lent is None for request in list(finished)):
            return False
        passed: list[EmbeddingRequest] = []
        try:
            while True:
                passed.append(finished.pop())
                if self._take_back(passed[-1]):
                    return True
        except IndexError:  # there are no more; the scheduler may have been faster
            return False
        finally:
            finished.extend(reversed(passed))
            self._attachment.user_bell.ring()  # it may have looked meanwhile

    def _take_back(self, request: EmbeddingRequest) -> bool:
        """Drain what is lent and was not popped. False if it is not, or if there is no memory for it."""
        record, receiver, lent = request.record, request.receiver, request.record.lent
        if receiver is None or lent is None or record.available_tokens or not lent.claim():
            return False
        try:
            rows = self._draining.rows_for(request)
        except MemoryError:
            lent.unclaim()
            return False
        record.lent = None
        self._count(-lent.num_blocks)
        self._control.slots.set(receiver.slot, Slot.LENT, Lent.NOTHING)
        self._draining.drain(request, receiver, request.total_embedding_length)
        receiver.clear()
        request.result = None if request.is_released else EmbeddingResult(rows, request.total_embedding_length)
        return True

    # ---- the end

    def end(self) -> None:
        """The client leaves, and its blocks are another's soon: copy out what is lent and was not released.

        What is lent by a node that is gone stays as it is, for nobody writes there any more.
        """
        for request in [found() for found in self._lent.values()]:
            lent = request.record.lent if request is not None else None
            if request is None or lent is None:
                continue
            if not self._attachment.node_gone and lent.claim() and request.failure is None:
                self._copy_out(request, lent)
        self._lent.clear()
        self._kept.clear()

    def _copy_out(self, request: EmbeddingRequest, lent: BlockRows) -> None:
        geometry, total = self._attachment.geometry, request.total_embedding_length
        request.record.lent = request.result = None
        try:
            memory = np.empty(HostRows.size_of(geometry, total), np.uint8)
        except MemoryError:
            log.warning("room %d: its result is gone with its client: there is no memory to copy it into", request.room)
            return
        rows = HostRows(geometry, total, memory)
        rows.drain(
            self._attachment.payload,
            [
                (lent.first_block + k, k * self._bs, min((k + 1) * self._bs, total))
                for k in range(-(-total // self._bs))
            ],
        )
        rows.aux[:] = lent.aux
        request.record.rows, request.result = rows, EmbeddingResult(rows, total)


def all_of(ended: deque[EmbeddingRequest]) -> list[EmbeddingRequest]:
    """Take all requests out, for the scheduler (its thread); the library thread may take one meanwhile, and put it back
    (`Lending.make_room`).
    """
    taken: list[EmbeddingRequest] = []
    try:
        while ended:
            taken.append(ended.popleft())
    except IndexError:
        return taken
    return taken
