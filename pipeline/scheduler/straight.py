"""Opens and grants a request in one native call, where nothing about it is out of the ordinary.

That is a request with one destination, at an encode node of this host, of which no process need be told (R78), while
there are slots, blocks and host memory for all. What `TransferQueue` decides of it step by step is then known ahead: it
gets the default, all at once. Whatever is otherwise, nothing has happened yet, and the transfer queue goes its way.
"""

from __future__ import annotations

from array import array
from typing import Final

from embridge.allocator._core import (
    OPENED,
    OPENED_AND_POSTED_LATE,
    OPENED_WITH_BLOCKS,
    RECEIVER_CAME_BITS,
    RECEIVER_EPOCH_SHIFT,
)
from embridge.allocator.request_tables import address_words
from embridge.pipeline.arguments import is_time
from embridge.pipeline.client.handle import MAX_ROOM
from embridge.pipeline.client.library import MAX_TIMEOUT_S, Library
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.default_grant import AdaptiveDefault, free_for_withdrawable
from embridge.pipeline.scheduler.host_memory import HostMemory
from embridge.pipeline.scheduler.lending import Lending
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.workers.timing import NS

CAME_MASK: Final = (1 << RECEIVER_CAME_BITS) - 1  # of what `UntoldReceiver.open` returns, as the next
COUNT_MASK: Final = (1 << RECEIVER_EPOCH_SHIFT - RECEIVER_CAME_BITS) - 1
WORTH_A_RUN_BYTES: Final = 4 << 20  # copying less out costs little
WAITS_NS: Final = NS // 10  # for blocks, before its encode node is told that there are none
MOST_AHEAD: Final = 32  # requests: of more it only gets cold again, what was made ahead of their rows
FEW: Final = 8  # so small a part of the pool is granted to a request ahead of its rows, whatever is lent


class StraightRequests:
    """Those of one transfer queue. Whoever has the turn calls it."""

    def __init__(
        self, library: Library, default: AdaptiveDefault, memory: HostMemory, lending: Lending, *, has_ranks: bool
    ) -> None:
        attachment = library.attachment
        self._library = library
        self._attachment = attachment
        self._requests, self._slot_queue, self._neighbours = library.requests, library.slot_queue, library.neighbours
        self._timeout_ns = int(attachment.request_timeout_s * NS)
        self._default = default
        self._memory = memory
        self._lending = lending
        self._bs = attachment.geometry.block_size
        self._token_bytes = attachment.geometry.token_bytes
        self._num_blocks = attachment.control.blocks.num_blocks
        self._has_ranks = has_ranks
        self._plans: tuple[int, int, int, array[int]] = (0, 0, 0, array("I"))

    def _plan(self, tokens: int) -> tuple[int, int, int, array[int]]:
        """(tokens of the default, as bytes of host memory, how many blocks must be free, room for the blocks)."""
        blocks = -(-tokens // self._bs)
        enough = free_for_withdrawable(blocks, self._num_blocks)
        may = blocks * FEW <= self._num_blocks and enough < self._num_blocks
        self._plans = (tokens, tokens * self._token_bytes, enough, array("I", bytes(4 * blocks * may)))
        return self._plans

    def open(self, request: EmbeddingRequest, now_ns: int) -> EmbeddingReceiver | None:
        """Open and grant a request, which has just been added, as far as that is possible at once.

        None: it is to be opened as any other. Else its record says what it has been granted.
        """
        record, library, room, requests = request.record, self._library, request.room, self._requests
        address, neighbours = request.bootstrap_addr, self._neighbours
        near = neighbours.by_address.get(address) or neighbours.look_again(address, now_ns)
        if (
            near is None or request.required_dst_info_num != 1 or request.abort_reason or record.total_there
            or record.failed_receiver is not None or type(room) is not int or not 0 <= room <= MAX_ROOM
            or room in requests.by_room or self._slot_queue.waiting or self._attachment.node_gone
            or self._attachment.is_closed
        ):
            return None
        if request.timeout_s is None:
            timeout_ns = self._timeout_ns
        elif is_time(request.timeout_s) and 0 < request.timeout_s <= MAX_TIMEOUT_S:
            timeout_ns = int(request.timeout_s * NS)
        else:
            return None
        tokens, memory = self._default.now, self._memory
        _, size, enough, out = self._plans if self._plans[0] == tokens else self._plan(tokens)
        if (
            not out or self._default.longest * self._token_bytes >= WORTH_A_RUN_BYTES
            or memory.reserved_bytes + size > memory.limit_bytes
            or timeout_ns <= 2 * requests.untold.late_ns or (slot := requests.lease.take()) is None
        ):
            return None
        deadline_ns = now_ns + timeout_ns
        said = library.untold.open(
            slot, room, now_ns, deadline_ns, address_words(request.bootstrap_addr), near.peer, *near.node,
            tokens, enough, out,
        )
        if not said:
            requests.lease.put_back(slot)
            return None
        receiver = EmbeddingReceiver(library, room, request.bootstrap_addr)
        receiver.opened_ns, receiver.deadline_ns, receiver.neighbour = now_ns, deadline_ns, near
        requests.enter_opened(receiver, slot, said >> RECEIVER_EPOCH_SHIFT)
        count, came = said >> RECEIVER_CAME_BITS & COUNT_MASK, said & CAME_MASK
        if came == OPENED:
            receiver.check_neighbour()
        if count:
            record.has_share = record.is_contacted = True
            record.reserved_tokens = tokens
            memory.reserved_bytes += size
            record.note_granted(0, out[:count].tolist())
            if len(requests.by_room) <= MOST_AHEAD:
                self._lending.prepare(record, receiver)
            if came == OPENED_WITH_BLOCKS:
                receiver.send_granted()
            elif came == OPENED_AND_POSTED_LATE:
                requests.untold.tell_soon(receiver)
        return receiver

    def may_have(self, receiver: EmbeddingReceiver, num_blocks: int) -> bool:
        """Whether a request of which nobody is told may have all of so few blocks: it leaves others some, and they can
        be taken back from it (R34); or its rows are there.
        """
        if not 0 < num_blocks * FEW <= self._num_blocks or receiver.neighbour is None or not receiver.is_untold:
            return False
        control, enough = self._attachment.control, free_for_withdrawable(num_blocks, self._num_blocks)
        if control.posts.has_offer(receiver.room):
            enough = num_blocks + 1
        return control.blocks.cells.num_free(enough) >= enough

    def is_to_wait(self, request: EmbeddingRequest) -> bool:
        """Whether a request waits for so few blocks while nobody is told of it, because others that are on their way
        will soon give theirs back.
        """
        receiver, num_blocks = request.receiver, -(-self._default.now // self._bs)
        if receiver is None or request.record.is_contacted or num_blocks * FEW > self._num_blocks:
            return False
        is_young = self._attachment.clock() < receiver.opened_ns + WAITS_NS
        is_alone = receiver.neighbour is not None and receiver.is_untold
        return is_young and is_alone and not self.may_have(receiver, num_blocks)

    def room_behind(self, receiver: EmbeddingReceiver, total: int, num_blocks: int) -> int:
        """How many blocks a request may need behind its first ones: then they stay one run, which is lent and not
        copied out. None where a copy costs little, or the window holds no more.
        """
        expected = total or self._default.longest
        if self._has_ranks or expected * self._token_bytes < WORTH_A_RUN_BYTES:
            return 0
        needed = -(-expected // self._bs)
        return max(needed - num_blocks, 0) if needed <= receiver.max_window_blocks else 0
