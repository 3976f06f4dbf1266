"""`TransferQueue`: requests on their way, from the opened room to the result, driven by the client's library thread.

The documents resume inside `pop_transferred`, once a step of the scheduler. Here the library thread resumes as rows
land, so a resume waits for a block and not for a step. `pop_transferred` takes finished requests off a queue, and ends
those whose rows stay in their blocks. It copies nothing and waits for nothing: until a request has ended its state
belongs to whoever has the turn (docs/design/client.md).

Requests that can use a block now are served first come, first served: a request at the head that has no rows waiting
does not stop those behind it (R22), and the reserve goes only to a request whose rows are waiting (R21). What has
landed can always be copied out, because no more is granted than host memory is reserved for. So no request holds blocks
while it waits for something else (D8).
"""

from __future__ import annotations

from collections import deque

from embridge.allocator.errors import FailureCode, failure
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.records import NodeState, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.client.receiver import Driver, EmbeddingReceiver, open_receiver
from embridge.pipeline.scheduler.default_grant import AdaptiveDefault, most_ahead, share_of
from embridge.pipeline.scheduler.delivery import Delivery
from embridge.pipeline.scheduler.draining import Draining
from embridge.pipeline.scheduler.host_memory import HostMemory
from embridge.pipeline.scheduler.incoming import NO_SLOT_IN_TIME, IncomingRequests
from embridge.pipeline.scheduler.lending import Lending, all_of
from embridge.pipeline.scheduler.request import EmbeddingRequest, EmbeddingResult
from embridge.pipeline.scheduler.shared_rooms import SharedRooms
from embridge.pipeline.scheduler.straight import StraightRequests
from embridge.pipeline.scheduler.streamed import StreamedRequests
from embridge.pipeline.scheduler.wanting import WantingRequests
from embridge.pipeline.scheduler.withdrawing import Withdrawing
from embridge.workers.timing import NS


class TransferQueue:
    """Requests on their way. `add` is `PreallocQueue`'s; the caller's are `pop_transferred`, `pop_available`, `len`."""

    def __init__(self, client: Client, *, default_allocate_tokens: int | None = None, adaptive: bool = True) -> None:
        """`default_allocate_tokens` are granted while a length is not known (default: the node's setting).

        If `adaptive`, a better number is learned from the lengths that are seen.

        Raises:
            ValueError: the tokens are out of range, or the client has ranks, which follow another queue.
        """
        library = library_of(client)
        attachment = library.attachment
        self._library = library
        self._attachment = attachment
        self._bs = attachment.geometry.block_size
        self._token_bytes = attachment.geometry.token_bytes
        self._status = attachment.control.status
        ranks = library.ranks
        assert ranks is None or isinstance(ranks, Delivery)
        self._ranks = ranks
        if ranks is None:
            self.memory = HostMemory(attachment.geometry, attachment.settings["host_buffer_bytes"])
        else:
            ranks.take()
            self.memory = ranks.memory
        self._draining = Draining(attachment, self.memory)
        if default_allocate_tokens is None:
            default_allocate_tokens = attachment.settings["default_allocate_tokens"]
        start = whole("default_allocate_tokens", default_allocate_tokens, 1, MAX_TOKENS)
        self.default = AdaptiveDefault(start, self._bs, adaptive=adaptive)
        # the other ranks see host memory only
        self._lending = Lending(library, self._draining, self.memory, self.default, may_lend=ranks is None)
        self._incoming = IncomingRequests(library, self._refuse)
        self._active: dict[EmbeddingRequest, None] = {}  # in the order of arrival
        self._shared = SharedRooms()
        self._streamed = StreamedRequests(library)
        self._wanting = WantingRequests()
        self._waits_a_little = False  # a request, and nobody else is told
        self._num_arrived = 0
        self._finished: deque[EmbeddingRequest] = deque()
        self._failed: deque[EmbeddingRequest] = deque()
        self._withdrawing = Withdrawing(library, self.memory, self.default, self._active, self._wanting.enter)
        self._driver = Driver(self._serve, self._end_at_once, self._withdrawing.late)
        self._straight = StraightRequests(
            library, self.default, self.memory, self._lending, has_ranks=ranks is not None
        )
        library.add_turn(self._turn, self._abandon)

    def __len__(self) -> int:
        return len(self._incoming) + len(self._active) + (len(self._ranks) if self._ranks is not None else 0)

    # ---- the scheduler's thread

    def add(self, request: EmbeddingRequest) -> None:
        """Hand a request over (any thread).

        Raises ValueError if it is streamed and the client has ranks, NodeBusyError as `IncomingRequests.check_room`,
        RuntimeError as `pop_transferred`.
        """
        if request.is_streamed and self._ranks is not None:
            raise ValueError(f"room {request.room}: is_streamed: ranks get whole requests; leave it out, or num_ranks")
        attachment = self._attachment
        if attachment.is_closed or attachment.is_forked:
            attachment.check_attached()
        if self._ranks is None and not self._incoming:
            request.record.added_s = (now_ns := attachment.clock()) / NS
            if self._library.view.do(self._go_straight, request, now_ns):
                return
        if request.receiver is not None:
            self._library.wake()
            return
        self._incoming.add(request)
        if self._ranks is not None or not self._library.view.do(self._begin):
            self._library.wake()

    def check_room(self) -> None:
        """Check that one more request may be handed over; raises as `IncomingRequests.check_room`."""
        self._incoming.check_room()

    def pop_transferred(self) -> tuple[list[EmbeddingRequest], list[EmbeddingRequest]]:
        """(finished, failed): the requests that have ended since the last call; never blocks.

        Finished ones have their `result`, failed ones their `failure`. With ranks, the `pop_transferred` of each other
        rank returns the same, batch for batch.

        Raises RuntimeError: after `Client.close`, or in a forked child.
        """
        attachment, view = self._attachment, self._library.view
        if attachment.is_closed or attachment.is_forked:
            attachment.check_attached()
        view.look()
        view.ended_for.discard(self)
        finished, failed = all_of(self._finished), all_of(self._failed)
        for request in finished:
            self._lending.hand_over(request)
            if request.is_streamed:
                self._streamed.forget(request)
        if self._ranks is not None and (finished or failed):
            self._ranks.publish(finished, failed)
        return finished, failed

    def pop_available(self) -> list[EmbeddingRequest]:
        """The streamed requests of which more rows are `available` than at the last call; raises as `pop_transferred`.
        """
        self._attachment.check_attached()
        return self._streamed.pop()

    def _abandon(self) -> None:
        """Release all requests that are still here, because the client leaves and nobody can pop them."""
        waiting = self._ranks.abandon() if self._ranks is not None else []
        for request in (*self._incoming, *self._active, *self._finished, *self._failed, *waiting):
            request.release()
            if request.receiver is not None:
                request.receiver.driver = request.receiver.request = None  # they lead to each other
        for held in (self._incoming, self._active, self._wanting, self._finished, self._failed):
            held.clear()
        self._shared.clear()
        self.memory.end()
        self._lending.end()

    # ---- the library thread, or whoever has its turn

    def _begin(self) -> bool:
        """Open and grant what came, on the thread that adds it. False: the library thread is to see to it."""
        waits = self._turn()
        self._attachment.flush()
        return not waits and not self._incoming

    def _turn(self) -> bool:
        """Open the requests that came, and grant what is possible, in their order. True if some wait for a block."""
        self.memory.collect()
        waits = False
        self._incoming.turn(self._open)
        if self._attachment.node_gone:
            for request in list(self._active):
                self._end_failed(request, lost=True)
        if self._ranks is not None:
            waits |= self._ranks.turn(self._pass_on)
        short = self._lending.make_room(self._grant_all(), self._finished, self._grant_all)
        return short or waits or self._waits_a_little

    def _grant_all(self) -> bool:
        """Give blocks to requests that can use one now, first come, first served. True if some wait for a block."""
        waits = self._waits_a_little = False
        keep: list[EmbeddingRequest] = []
        cells = self._attachment.control.blocks.cells
        may_exceed = {next(iter(self._active), None), self._shared.lowest(self._active)}
        for request in self._wanting:
            free, record = cells.num_free(2), request.record
            if request not in self._active:
                continue
            if record.is_contacted and (free == 0 or (free == 1 and not record.fills_a_block)):
                keep.append(request)
                waits = True
                continue
            if self._straight.is_to_wait(request):
                keep.append(request)
                self._waits_a_little = True
                continue
            is_begun = record.reserved_tokens > 0 or request.required_dst_info_num > 1
            if self._grant(request, request in may_exceed and (self.memory.admits or is_begun)):
                keep.append(request)
                waits |= record.has_rows_waiting or not cells.num_free(2)
        self._wanting.keep(keep)
        if self._withdrawing.make_room(keep):
            return self._grant_all()
        return waits

    def _open(self, request: EmbeddingRequest) -> bool:
        """Give a request its slot. False if no slot is free: the request stays in the queue until its deadline."""
        timeout_s = self._incoming.timeout_s(request)
        if not is_time(timeout_s):  # such a request would stop those behind it, too
            return self._refuse(request, FailureCode.REFUSED, f"timeout_s: {said(timeout_s)} is no number of seconds")
        record = request.record
        left_s = record.added_s + float(timeout_s) - self._attachment.clock() / NS
        if left_s <= 0:
            return self._refuse(request, FailureCode.TIMEOUT, NO_SLOT_IN_TIME)
        try:
            receiver = open_receiver(
                self._library,
                request.bootstrap_addr,
                request.room,
                request.required_dst_info_num,
                left_s,
                begin=record.first_block,
                total=record.total_there,
                instead_of=record.failed_receiver,
                may_wait=False,
            )
        except RuntimeError:
            # without a slot its encoder cannot be told, and waits for its own deadline
            if request.abort_reason:
                return self._refuse(request, FailureCode.ABORTED, request.abort_reason)
            if self._attachment.control.state == NodeState.READY and not self._attachment.node_gone:
                return False
            return self._refuse(request, FailureCode.REFUSED, "this client's node is gone, or is being stopped")
        except Exception as error:  # a bad request is the request's failure, not the queue's
            return self._refuse(request, FailureCode.REFUSED, str(error))
        self._enter(request, receiver)
        if request.abort_reason:  # it is opened all the same, so that its encoder hears why
            receiver.abort(request.abort_reason)
        elif receiver.is_untold:
            self._wanting.enter(request)  # nobody else looks at it: it may be granted at once
        return True

    def _go_straight(self, request: EmbeddingRequest, now_ns: int) -> bool:
        """Open and grant a request at once, if all is as usual. False: if it has a receiver now, the library thread is
        to see to it; else it is to be added as any other.
        """
        self.memory.collect()
        receiver = None if self._wanting else self._straight.open(request, now_ns)
        if receiver is None:
            return False
        self._enter(request, receiver)
        if not request.record.is_contacted and receiver.is_untold:
            self._wanting.enter(request)
        return request.record.is_contacted or self._begin()

    def _enter(self, request: EmbeddingRequest, receiver: EmbeddingReceiver) -> None:
        """Note a request that has just got its slot."""
        record = request.record
        request.receiver = receiver
        record.failed_receiver = None
        record.memory = self.memory
        self._num_arrived += 1
        record.arrival = self._num_arrived
        self._active[request] = None
        if request.required_dst_info_num > 1:
            self._shared.enter(request)
        receiver.driver, receiver.request = self._driver, request

    def _refuse(self, request: EmbeddingRequest, code: FailureCode, reason: str) -> bool:
        """End a request as Failed before it had a slot."""
        request.failure = failure(code, reason, request.room)
        request.record.why_not_retryable = f"it never had a slot: {reason}"
        request.release()
        self._end(request)
        return True

    def _serve(self, receiver: EmbeddingReceiver) -> None:
        """Look at a request whose words have changed: learn the length, copy out what landed, notice the end."""
        request = receiver.request
        if request.receiver is not receiver or request not in self._active:
            return
        now = receiver.progress()
        if now.phase == Phase.Failed:
            self._end_failed(request)
            return
        if now.phase == Phase.Success and self._end_at_once(receiver):
            self._attachment.user_bell.ring()
            return
        self._learn(request, receiver, receiver.total_embedding_length)
        granted, record = receiver.granted_tokens, request.record
        record.note_waiting(receiver, granted, self._bs)
        may_have_more = receiver.ready_tokens > 0 or not record.has_share
        if (
            receiver.handshake_done
            and may_have_more
            and granted < (request.total_embedding_length or self.default.tokens())
        ):
            self._wanting.enter(request)
        has_ended = now.phase == Phase.Success
        if now.sent > record.drained_tokens and (has_ended or not self._lending.keep(request, receiver, now.sent)):
            self._draining.drain(request, receiver, now.sent)
            self._library.drained_ns = self._attachment.clock()
        self._streamed.show(request, receiver)
        if now.phase == Phase.Success and request.transferred_tokens == request.total_embedding_length:
            self._end_finished(request)

    def _learn(self, request: EmbeddingRequest, receiver: EmbeddingReceiver, total: int) -> None:
        if total in (0, request.total_embedding_length):
            return
        record, request.total_embedding_length = request.record, total
        record.has_share = record.is_withdrawn = False  # the share it has had was one of the default
        self.default.observe(total)
        if (need := total * self._token_bytes) > self.memory.limit_bytes:
            receiver.fail(
                FailureCode.TOO_LARGE,
                f"{total} tokens need {need} bytes of host memory > {self.memory.limit_bytes}; raise host_buffer_bytes",
            )

    # ---- granting

    def _grant(self, request: EmbeddingRequest, may_exceed: bool) -> bool:
        """Grants, step 1, decided: give a request the blocks it can use. True if it could use more.
        `EmbeddingReceiver.grant` records what is given (step 2).
        """
        receiver = request.receiver
        assert receiver is not None
        now, control = receiver.progress(), self._attachment.control
        words = control.slots.get_all(receiver.slot)
        if not words[Slot.PEER] or now.phase >= Phase.Success:
            return False
        num_granted, granted, ready = words[Slot.GRANTED] >> 32, receiver.granted_tokens, words[Slot.PEER_READY]
        total, shows_rows = request.total_embedding_length, ready > 0
        rows = max(ready, now.sent, receiver.first_block * self._bs)
        target = total or max(self.default.tokens(), granted)
        if target > (rows // self._bs + 1) * self._bs:  # one block ahead is always allowed
            most = rows // self._bs + most_ahead(control.blocks.num_blocks, control.lanes.num_lent())
            target = min(target, most * self._bs)
        record = request.record
        if not shows_rows:
            missing = 0 if record.is_withdrawn else max(-(-target // self._bs) - num_granted, 0)
            share = missing if self._straight.may_have(receiver, missing) else share_of(control.blocks, missing)
            target = min(target, max((num_granted + share) * self._bs, granted))
        if self.memory.bytes_for(total) > self.memory.limit_bytes:
            return False
        record.has_share = True
        if record.is_contacted and granted >= target:
            return False
        reserved = min(target, max(self._draining.reserve(request, target, may_exceed=may_exceed), granted))
        held = num_granted - words[Slot.DRAINED_BLOCKS]
        missing = min(-(-reserved // self._bs) - num_granted, receiver.max_window_blocks - held)
        room = self._straight.room_behind(receiver, total, missing) if missing > 0 == num_granted else 0
        blocks = receiver.take(max(missing, 0), may_take_reserve=record.fills_a_block, room=room).tolist()
        record.note_granted(num_granted, blocks)
        if blocks:
            after = min((num_granted + len(blocks)) * self._bs, reserved)
            receiver.grant(blocks, after - num_granted * self._bs)
            granted = after
        elif not record.is_contacted:
            receiver.grant(blocks, 0)
        record.is_contacted = True
        record.note_waiting(receiver, granted, self._bs)
        return shows_rows and granted < target

    # ---- the end

    def _end_finished(self, request: EmbeddingRequest) -> None:
        receiver, rows = request.receiver, request.record.rows
        assert receiver is not None
        assert rows is not None
        if rows.capacity_tokens < request.total_embedding_length:
            self._draining.rows_for(request)
        request.num_rounds += receiver.num_rounds
        self._leave(request)
        self._end(request)

    def _end_at_once(self, receiver: EmbeddingReceiver) -> bool:
        """End a request that has succeeded, if its rows may stay in their blocks (by whoever has the turn)."""
        request: EmbeddingRequest = receiver.request
        if request not in self._active:
            return True
        total = self._status.load(receiver.slot) & MAX_TOKENS
        if total != request.total_embedding_length:
            self._learn(request, receiver, total)
        lending = self._lending
        num_rounds = lending.lend_straight(request, receiver, total) or lending.lend(request, receiver)
        if not num_rounds:
            return False
        if request.is_streamed:
            self._streamed.show(request, receiver)
        request.num_rounds += num_rounds
        self._active.pop(request, None)
        receiver.driver = receiver.request = None
        self._finished.append(request)
        self._library.view.ended_for.add(self)
        return True

    def _end_failed(self, request: EmbeddingRequest, *, lost: bool = False) -> None:
        receiver = request.receiver
        assert receiver is not None
        receiver.driver = receiver.request = None
        request.num_rounds += receiver.num_rounds
        request.failure = receiver.failure_exception()
        request.record.why_not_retryable = receiver.why_not_retryable
        if request.is_retryable:
            try:
                self._draining.keep(request, receiver)
            except MemoryError as error:
                request.record.why_not_retryable = f"no memory to keep its rows in: {error}"
        is_looked_at = request.record.available_tokens > 0  # its owner releases it (R82)
        if lost or (is_looked_at and request.record.lent is not None):
            self._active.pop(request, None)
        else:
            self._leave(request)
        if not request.is_retryable and not is_looked_at:
            request.release()
        self._end(request)

    def _end(self, request: EmbeddingRequest) -> None:
        """Hand over a request that has its outcome; with ranks, as soon as all of them can have it."""
        if self._ranks is None:
            self._pass_on(request)
        else:
            self._ranks.enter(request)  # `_turn` asks the ranks next

    def _pass_on(self, request: EmbeddingRequest) -> None:
        """Put a request where `pop_transferred` takes it."""
        if request.failure is not None:
            self._failed.append(request)
        else:
            assert request.record.rows is not None
            request.result = EmbeddingResult(request.record.rows, request.total_embedding_length)
            self._finished.append(request)
        self._attachment.user_bell.ring()

    def _leave(self, request: EmbeddingRequest) -> None:
        """Give a request's blocks and its slot back. Its rows stay in its host memory."""
        receiver = request.receiver
        assert receiver is not None
        self._active.pop(request, None)
        request.record.prepared = None
        receiver.driver = receiver.request = None
        receiver.clear()

