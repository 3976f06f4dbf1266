"""The scheduler's queues: `PreallocQueue` -> `TransferQueue` -> `WaitingQueue`.

    prealloc.add(request)      the room is opened; handshake; the default is allocated and granted (initial transfer)
    transfer                   drains what lands, frees blocks, allocates and grants the rest (resumed transfers)
    transfer.pop_transferred() finished and failed requests, since the last call
    waiting                    finished requests that wait for their prefill
    prealloc.retry(request)    a failed request, whose encode node is lost, goes on where it was, from another one

The documents resume inside `pop_transferred`, once a step of the scheduler. Here the client's library thread does it, as rows land: a
resume then waits for a block and not for a step, and `pop_transferred` only takes what is finished off a queue: it copies nothing, waits
for nothing, and needs no lock, for all of a request's state belongs to the library thread until it is finished.

First come, first served, among those who can use a block now: a request at the head that has no rows waiting does not stop those
behind it (R22), and the reserve goes only to one whose rows are waiting (R21). What has landed can always be copied out, because no more
is granted than host memory is reserved for: so blocks are never held by a request that waits for something else (D8).
"""

from __future__ import annotations

import logging
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from embridge.allocator.errors import FailureCode, failure
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.records import NodeState
from embridge.allocator.status import Phase
from embridge.pipeline.arguments import is_time, whole
from embridge.pipeline.client.handle import MAX_ROOM
from embridge.pipeline.client.receiver import EmbeddingReceiver, first_missing_block
from embridge.pipeline.client.slot_queue import MAX_WAITING, check_room
from embridge.pipeline.scheduler.default_grant import AdaptiveDefault, free_for_all_of, most_ahead, share_without_rows
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows
from embridge.pipeline.scheduler.request import EmbeddingRequest, EmbeddingResult
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client

log = logging.getLogger(__name__)


LOOK_BEHIND_NS = NS // 10
NO_SLOT_IN_TIME = "deadline passed while waiting for a slot"


class TransferQueue:
    """Requests on their way. `add` is `PreallocQueue`'s; the caller uses `pop_transferred`, `abort`, `len`."""

    def __init__(self, client: Client, *, default_allocate_tokens: int | None = None, adaptive: bool = True) -> None:
        settings = client.settings
        self._client = client
        self._geometry = client.geometry
        self._bs = client.geometry.block_size
        self._ranks = client.ranks
        if self._ranks is None:
            self.memory = HostMemory(client.geometry, settings["host_buffer_bytes"])
        else:
            self._ranks.take()
            self.memory = self._ranks.memory
        given = settings["default_allocate_tokens"] if default_allocate_tokens is None else default_allocate_tokens
        start = whole("default_allocate_tokens", given, 1, MAX_TOKENS)
        self.default = AdaptiveDefault(start, self._bs, adaptive=adaptive)
        self._incoming: deque[EmbeddingRequest] = deque()
        self._refused: set[EmbeddingRequest] = set()  # of those: ended before they had a slot
        self._look_ns = 0
        self._active: dict[EmbeddingRequest, None] = {}  # in the order of arrival
        self._wanting: list[EmbeddingRequest] = []  # those that could use a block, in the order of arrival
        self._wanted: set[EmbeddingRequest] = set()
        self._num_arrived = 0
        self._finished: deque[EmbeddingRequest] = deque()
        self._failed: deque[EmbeddingRequest] = deque()
        client.add_turn(self._turn, self._abandon)

    def __len__(self) -> int:
        return len(self._incoming) - len(self._refused) + len(self._active) + (len(self._ranks) if self._ranks is not None else 0)

    # ---- the scheduler's thread

    def add(self, request: EmbeddingRequest) -> None:
        """Hand a request over (any thread). Raises NodeBusyError as `check_room`."""
        self.check_room()
        request._added = self._client.clock() / NS
        self._incoming.append(request)
        self._client.wake()

    def check_room(self) -> None:
        """Whether one more request may be handed over.

        Raises:
            NodeBusyError: every slot of the node is in use, and as many requests as may wait for one do.
        """
        num_waiting = len(self._incoming)
        if num_waiting >= MAX_WAITING:
            check_room(num_waiting, self._client.clock() / NS - self._incoming[0]._added)

    def pop_transferred(self) -> tuple[list[EmbeddingRequest], list[EmbeddingRequest]]:
        """(finished, failed) since the last call. Finished ones have their `result`, failed ones their `failure`.

        With ranks, the others' `pop_transferred` return the same, batch for batch.
        """
        self._client.check_attached()
        finished, failed = list(_taken(self._finished)), list(_taken(self._failed))
        if self._ranks is not None and (finished or failed):
            self._ranks.publish(finished, failed)
        return finished, failed

    def _abandon(self) -> None:
        """The client leaves: nobody can pop what is still here."""
        waiting = self._ranks.abandon() if self._ranks is not None else []
        for request in (*self._incoming, *self._active, *self._finished, *self._failed, *waiting):
            request.release()
        for held in (self._incoming, self._active, self._wanting, self._wanted, self._finished, self._failed):
            held.clear()
        self.memory.end()

    # ---- the library thread

    def _turn(self) -> bool:
        """Open what came, then grant what is possible, in order of arrival. True if somebody waits for a block."""
        self.memory.collect()
        waits = False
        while self._incoming:
            request = self._incoming[0]
            if request not in self._refused and not self._open(request):
                self._look_behind()
                break
            self._incoming.popleft()
            self._refused.discard(request)
        if self._client.node_gone:
            for request in list(self._active):
                self._end_failed(request, lost=True)
        if self._ranks is not None:
            waits |= self._ranks.turn(self._pass_on)
        return self._grant_all() or waits

    def _look_behind(self) -> None:
        """There is no slot for the first: those behind may be over all the same."""
        self._client.lack_slots(len(self._incoming) - len(self._refused))
        now_ns = self._client.clock()
        if now_ns < self._look_ns:
            return
        self._look_ns = now_ns + LOOK_BEHIND_NS
        for request in list(self._incoming):
            timeout_s = self._timeout_s(request)
            if request in self._refused or not is_time(timeout_s):
                continue
            if request._abort_reason:
                self._refuse(request, FailureCode.ABORTED, request._abort_reason)
            elif request._added + timeout_s <= now_ns / NS:
                self._refuse(request, FailureCode.TIMEOUT, NO_SLOT_IN_TIME)
            else:
                continue
            self._refused.add(request)

    def _timeout_s(self, request: EmbeddingRequest) -> float:
        return self._client.request_timeout_s if request.timeout_s is None else request.timeout_s

    def _want(self, request: EmbeddingRequest) -> None:
        """Enter a request among those that could use a block, at the place of its arrival; once."""
        if request not in self._wanted:
            self._wanted.add(request)
            insort(self._wanting, request, key=_arrival)

    def _grant_all(self) -> bool:
        """Blocks to those who can use one now, first come, first served. True if somebody waits for a block."""
        waits = False
        keep: list[EmbeddingRequest] = []
        cells = self._client.control.blocks.cells
        may_exceed = {next(iter(self._active), None), self._lowest_room()}
        for request in self._wanting:
            free = cells.num_free(2)
            if request not in self._active:
                self._wanted.discard(request)
                continue
            if request._contacted and (free == 0 or (free == 1 and not request._has_rows_waiting)):
                keep.append(request)
                waits = True
                continue
            exceeds = request in may_exceed and (self.memory.admits or request._reserved > 0 or request.required_dst_info_num > 1)
            if self._grant(request, exceeds):
                keep.append(request)
                waits |= request._has_rows_waiting or not cells.num_free(2)
            else:
                self._wanted.discard(request)
        self._wanting = keep
        return waits

    def _lowest_room(self) -> EmbeddingRequest | None:
        """Of the requests with other destinations the one that all of these agree on to be first, whatever came first where.

        A request that has landed here keeps its host memory until it has landed everywhere: if each node let only its own oldest exceed
        the limit, two nodes could wait for each other (D8).
        """
        shared = (request for request in self._active if request.required_dst_info_num > 1)
        return min(shared, key=_room, default=None)

    def _open(self, request: EmbeddingRequest) -> bool:
        """False when no slot is free: the request stays where it is, as long as its time lasts."""
        timeout_s = self._timeout_s(request)
        if not is_time(timeout_s):  # it would stop those behind it, too
            return self._refuse(request, FailureCode.REFUSED, f"timeout_s: {timeout_s!r} is no number of seconds")
        left_s = request._added + float(timeout_s) - self._client.clock() / NS
        if left_s <= 0:
            return self._refuse(request, FailureCode.TIMEOUT, NO_SLOT_IN_TIME)
        try:
            receiver = self._client.open_receiver(
                request.bootstrap_addr,
                request.room,
                request.required_dst_info_num,
                left_s,
                begin=request._first_block,
                total=request._total,
                instead_of=request._failed_receiver,
                may_wait=False,
            )
        except RuntimeError:
            if request._abort_reason:  # without a slot there is no way to tell its encoder, which waits for its own deadline
                return self._refuse(request, FailureCode.ABORTED, request._abort_reason)
            if self._client.control.state == NodeState.READY and not self._client.node_gone:
                return False
            return self._refuse(request, FailureCode.REFUSED, "this client's node is gone, or is being stopped")
        except Exception as error:  # a bad request is the request's failure, not the queue's
            return self._refuse(request, FailureCode.REFUSED, str(error))
        request.receiver = receiver
        request._failed_receiver = None
        request._memory = self.memory
        self._num_arrived += 1
        request._arrival = self._num_arrived
        self._active[request] = None
        receiver.on_change = partial(self._serve, request)
        if request._abort_reason:  # opened all the same: so its encoder hears why
            receiver.abort(request._abort_reason)
        return True

    def _refuse(self, request: EmbeddingRequest, code: FailureCode, reason: str) -> bool:
        """It ends before it had a slot."""
        request.failure = failure(code, reason, request.room)
        request._why_not_retryable = f"it never had a slot: {reason}"
        request.release()
        self._end(request)
        return True

    def _serve(self, request: EmbeddingRequest) -> None:
        """Its words changed: learn the length, copy out what landed, notice the end."""
        receiver = request.receiver
        if receiver is None or request not in self._active:
            return
        now = receiver.progress()
        if now.phase == Phase.Failed:
            self._end_failed(request)
            return
        self._learn(request, receiver)
        granted = receiver.granted_tokens
        request._has_rows_waiting = receiver.ready_tokens > granted
        may_have_more = receiver.ready_tokens > 0 or not request._has_share
        if receiver.handshake_done and may_have_more and granted < (request.total_embedding_length or self.default.tokens()):
            self._want(request)
        if now.sent > request.transferred_tokens:
            self._drain(request, receiver, now.sent)
        if now.phase == Phase.Success and request.transferred_tokens == request.total_embedding_length:
            self._end_finished(request)

    def _learn(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        total = receiver.total_embedding_length
        if not total or request.total_embedding_length:
            return
        request.total_embedding_length = total
        request._has_share = False  # which was one of the default
        self.default.observe(total)
        need = self.memory.bytes_for(total)
        if need > self.memory.limit_bytes:
            receiver.fail(
                FailureCode.TOO_LARGE,
                f"{total} tokens need {need} bytes of host memory > {self.memory.limit_bytes}; raise host_buffer_bytes",
            )

    # ---- copying out

    def _drain(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, sent: int) -> None:
        """Copy rows [transferred, sent) to their final place and free the blocks behind, piece by piece."""
        rows = self._rows_for(request)
        piece = max(1, (4 << 20) // (self._bs * self._geometry.token_bytes)) * self._bs
        first = request.transferred_tokens
        begun = first
        while first < sent:
            end = min(sent, (first // piece + 1) * piece)
            parts = []
            for k in range(first // self._bs, -(-end // self._bs)):
                parts.append((receiver.block_of(k), max(first, k * self._bs), min(end, (k + 1) * self._bs)))
            if first == 0:
                rows.aux[:] = self._client.buffers.aux_datas[parts[0][0]]
            rows.drain(self._client.payload, parts)
            receiver.release_drained(end)
            request.transferred_tokens = first = end
        request.chunk_info.append((begun, sent))

    def _keep(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        """A request has failed: copy out the whole blocks that are committed and were not drained, for a retry to begin behind them.

        They are quarantined, and may be freed and filled with another request's rows at any moment. A copy counts if its block was
        still this request's afterwards; what may have landed late by then were the same rows (R8).
        """
        bs, total = self._bs, receiver.total_embedding_length
        begun = request.transferred_tokens
        for k in range(begun // bs, first_missing_block(receiver.sent_tokens, total, bs)):
            rows, block = self._rows_for(request), receiver.block_of(k)
            if k == 0:
                rows.aux[:] = self._client.buffers.aux_datas[block]
            rows.drain(self._client.payload, [(block, max(request.transferred_tokens, k * bs), (k + 1) * bs)])
            if not receiver.holds(block):
                break
            request.transferred_tokens = (k + 1) * bs
        if request.transferred_tokens > begun:
            request.chunk_info.append((begun, request.transferred_tokens))
        request._first_block = first_missing_block(request.transferred_tokens, total, bs)
        request._total = total
        request._failed_receiver = receiver

    def _rows_for(self, request: EmbeddingRequest) -> HostRows:
        """Host memory for all that is reserved; what was copied out before moves along when that has grown."""
        rows = request._rows
        if rows is None:
            rows = request._rows = self.memory.take(request._reserved)
        elif rows.capacity_tokens < request._reserved:
            larger = self.memory.take(request._reserved)
            larger.take_over(rows, request.transferred_tokens)
            self.memory.give_back(rows)
            rows = request._rows = larger
        return rows

    def _reserve(self, request: EmbeddingRequest, tokens: int, may_exceed: bool) -> int:
        """Have host memory counted in for so many tokens; returns for how many it is."""
        more = tokens - request._reserved
        if more > 0 and self.memory.reserve(more, may_exceed=may_exceed):
            request._reserved = tokens
        return request._reserved

    # ---- granting

    def _grant(self, request: EmbeddingRequest, may_exceed: bool) -> bool:
        """Give a request the blocks it can use. True if it could use more."""
        receiver = request.receiver
        assert receiver is not None
        if not receiver.handshake_done or receiver.progress().phase >= Phase.Success:
            return False
        total, granted, shows_rows = request.total_embedding_length, receiver.granted_tokens, receiver.ready_tokens > 0
        rows = max(receiver.ready_tokens, receiver.progress().sent, receiver.first_block * self._bs)
        most = rows // self._bs + most_ahead(self._client.control.blocks.num_blocks)
        target = min(total or max(self.default.tokens(), granted), most * self._bs)
        if not shows_rows:
            missing = max(-(-target // self._bs) - receiver.granted_blocks, 0)
            target = min(target, max((receiver.granted_blocks + self._share(missing)) * self._bs, granted))
        if self.memory.bytes_for(total) > self.memory.limit_bytes:
            return False
        request._has_share = True
        if request._contacted and granted >= target:
            return False
        reserved = min(target, max(self._reserve(request, target, may_exceed), granted))
        held = receiver.granted_blocks - receiver.drained_blocks
        missing = min(-(-reserved // self._bs) - receiver.granted_blocks, receiver.max_window_blocks - held)
        blocks = receiver.allocate(max(missing, 0), may_take_reserve=request._has_rows_waiting)
        end = receiver.granted_blocks + len(blocks)
        tokens = min(end * self._bs, reserved) - receiver.granted_blocks * self._bs
        if receiver.granted_blocks > receiver.first_block and len(blocks):
            receiver.resume_transfer(blocks, receiver.progress().sent, tokens)
        elif len(blocks) or not request._contacted:
            receiver.init(blocks, tokens if len(blocks) else 0)
        request._contacted = True
        request._has_rows_waiting = receiver.ready_tokens > receiver.granted_tokens
        return shows_rows and receiver.granted_tokens < target

    def _share(self, blocks: int) -> int:
        """How many of these blocks a request may have that has shown no row; the rest comes with its rows."""
        pool = self._client.control.blocks
        enough = free_for_all_of(blocks, pool.num_blocks)
        free = pool.cells.num_free(enough)
        return blocks if free >= enough and enough < pool.num_blocks else min(blocks, share_without_rows(free, pool.num_blocks))

    # ---- the end

    def _end_finished(self, request: EmbeddingRequest) -> None:
        receiver, rows = request.receiver, request._rows
        assert receiver is not None
        assert rows is not None
        total = request.total_embedding_length
        if rows.capacity_tokens < total:
            rows = self._rows_for(request)
        request.num_rounds += receiver.num_rounds
        self._leave(request)
        self._end(request)

    def _end_failed(self, request: EmbeddingRequest, *, lost: bool = False) -> None:
        receiver = request.receiver
        assert receiver is not None
        request.num_rounds += receiver.num_rounds
        request.failure = receiver.failure_exception()
        request._why_not_retryable = receiver.why_not_retryable
        if request.is_retryable:
            try:
                self._keep(request, receiver)
            except MemoryError as error:
                request._why_not_retryable = f"no memory to keep its rows in: {error}"
        if not lost:
            self._leave(request)
        else:
            self._active.pop(request, None)
        if not request.is_retryable:
            request.release()
        self._end(request)

    def _end(self, request: EmbeddingRequest) -> None:
        """It has its outcome: hand it over, with ranks as soon as all of them can have it."""
        if self._ranks is None:
            self._pass_on(request)
        else:
            self._ranks.enter(request)  # which `_turn` asks, next

    def _pass_on(self, request: EmbeddingRequest) -> None:
        """To `pop_transferred`."""
        if request.failure is not None:
            self._failed.append(request)
        else:
            assert request._rows is not None
            request.result = EmbeddingResult.of(request._rows, request.total_embedding_length)
            self._finished.append(request)
        self._client.ring_user()

    def _leave(self, request: EmbeddingRequest) -> None:
        """Its blocks and its slot go back; what was received stays in its host memory."""
        assert request.receiver is not None
        self._active.pop(request, None)
        request.receiver.on_change = None
        request.receiver.clear()


class PreallocQueue:
    """Where requests enter: waits for the handshake, allocates the default, sends init, and hands over to the transfer queue."""

    def __init__(self, client: Client, transfer: TransferQueue) -> None:
        self._client = client
        self._transfer = transfer

    def add(self, request: EmbeddingRequest) -> None:
        """Take a request in; never blocks. What is wrong with it, and what goes wrong later, comes out as its failure.

        While every slot of the node is in use it waits for one, at most until its deadline.

        Raises:
            ValueError: this very request was added before.
            NodeBusyError: as many requests as may wait for a slot do; it may be added later.
        """
        if request._added:
            raise ValueError(f"room {request.room}: this request was added before; make a new one")
        self._client.check_usable()
        self._transfer.add(request)

    def retry(
        self,
        request: EmbeddingRequest,
        bootstrap_addr: str,
        *,
        room: int | None = None,
        required_dst_info_num: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Have a request that has failed, because its encode node is lost, go on from another one; never blocks.

        Whole blocks that have come are kept and not sent again; the rest comes from `bootstrap_addr`, where an encoder sends the whole
        request in the same room, of the same length. It comes out of `pop_transferred` once more, finished or failed. A node that has
        seen the room already needs another number, `room`. `required_dst_info_num`: the destinations that retry, if others have
        finished. `timeout_s` counts from now; what is not given is as it was. The ranks that follow see the failure, and later the end of
        the same request.

        Raises:
            ValueError: it is not to be retried, for the reason `EmbeddingRequest.why_not_retryable`, or the address or the room is none.
            NodeBusyError: as `add`.
        """
        if why_not := request.why_not_retryable:
            raise ValueError(f"room {request.room}: not to be retried: {why_not}")
        self._client.check_usable()
        self._client.check_address(bootstrap_addr)
        if room is not None:
            room = whole("room", room, 0, MAX_ROOM, "0 to 2**63 - 1")
        self._transfer.check_room()
        request.bootstrap_addr = bootstrap_addr
        request.room = request.room if room is None else room
        if required_dst_info_num is not None:
            request.required_dst_info_num = whole("required_dst_info_num", required_dst_info_num, 1, 64)
        request.timeout_s = request.timeout_s if timeout_s is None else timeout_s
        request._begin_again(self._client.geometry.block_size)
        self._transfer.add(request)

    def extend(self, requests: Iterable[EmbeddingRequest]) -> None:
        for request in requests:
            self.add(request)


class WaitingQueue:
    """Finished requests that wait for their prefill, first come, first served."""

    def __init__(self, transfer: TransferQueue) -> None:
        self._transfer = transfer
        self._waiting: deque[EmbeddingRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def update(self) -> list[EmbeddingRequest]:
        """Take over what has finished since; returns what has failed. Raises RuntimeError once the client is closed."""
        finished, failed = self._transfer.pop_transferred()
        self._waiting.extend(finished)
        return failed

    def pop(self) -> EmbeddingRequest | None:
        """The next one, or None. Its memory goes back with `request.release()`, after the prefill has consumed it.

        What has finished is the caller's, also once the client is closed.
        """
        return self._waiting.popleft() if self._waiting else None


def _taken(queue: deque[EmbeddingRequest]) -> Iterator[EmbeddingRequest]:
    while queue:
        yield queue.popleft()


def _arrival(request: EmbeddingRequest) -> int:
    return request._arrival


def _room(request: EmbeddingRequest) -> int:
    return request.room
