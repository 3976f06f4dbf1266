"""`EmbeddingReceiver`: the scheduler's side of one request, without the queues' policy.

It holds a window of destination blocks, block-aligned and absolute. `init` grants the first blocks, `resume_transfer`
appends more, and `release_drained` frees those whose rows have been copied out. The window, and how far it is granted,
are words in shared memory, so the node can send a grant again that was lost (R1, R24).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embridge.allocator._core import PHASE_BITS, RENEWED_BUT_TOLD
from embridge.allocator.blocks import RESERVE_BLOCK
from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_BLOCKS, MAX_TOKENS, Role
from embridge.allocator.posts import POSTED_LATE
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase
from embridge.pipeline.arguments import check_address, grant_of, whole
from embridge.pipeline.client.handle import NO_SLOT, PHASE_SHIFT, SUCCESS
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.neighbours import Neighbour
from embridge.pipeline.client.receiver_words import ReceiverWords
from embridge.pipeline.client.retrying import first_missing_block, why_in_vain
from embridge.pipeline.shared_keys import share_keys


class Driver(NamedTuple):
    """Who grants and frees for receivers, in place of their callers. Whoever has the turn calls it."""

    serve: Callable[[EmbeddingReceiver], None]
    """Look at a request whose words have changed."""
    end_at_once: Callable[[EmbeddingReceiver], bool]
    """End a request that has succeeded, if its rows may stay in their blocks. False: it is to be served."""
    take_back: Callable[[EmbeddingReceiver], bool]
    """Take the grant of a late request back. False: it keeps what it has."""


class EmbeddingReceiver(ReceiverWords):
    """One request of a scheduler, made by `Client.receiver(bootstrap_addr, room)`.

    No method blocks. One thread at a time grants, frees and retries (`allocate`, `init`, `resume_transfer`,
    `release_drained`, `retry`, `clear`): the library thread where a `TransferQueue` drives the receiver, else the
    caller's. Any thread may read the properties, each of which loads one or two words of shared memory. While the
    request waits for a slot they say 0, or what a retry begins with; once `Client.close` was called, reading those
    words raises RuntimeError.

    `first_block` is the request block from which this encode node sends. It is not 0 after a `retry`, if another encode
    node had sent the blocks before it.
    """

    neighbour: Neighbour | None = None
    """The encode node, where this client finds it by itself."""
    driver: Driver | None = None
    request: Any = None
    """What its driver knows it by."""
    num_returned = 0  # blocks that count as lent until this has left
    may_end_here = True
    _has_asked = _cleared = False

    def __init__(
        self, library: Library, room: int, bootstrap_addr: str, total: int = 0, first_block: int = 0
    ) -> None:
        self._library = library
        self.room = room
        self.bootstrap_addr = bootstrap_addr
        if total or first_block:  # behind what another encode node has sent
            self._total, self.first_block = total, first_block

    # ---- grants

    def allocate(self, want: int, *, may_take_reserve: bool = True) -> npt.NDArray[np.uint32]:
        """Take up to `want` blocks of this node's pool for the request, without granting them yet.

        Returns their indices: fewer than `want`, or none, if blocks are short; none while the request waits for a slot
        or once it has ended. Without `may_take_reserve` block 0 is left to requests whose rows wait (R21).

        Raises:
            ValueError: `want` is out of range.
            NodeGoneError: the node is gone.
            RuntimeError: after `Client.close`, or in a forked child.
        """
        return np.array(self.take(whole("want", want, 0, MAX_BLOCKS), may_take_reserve=may_take_reserve), np.uint32)

    def take(self, want: int, *, may_take_reserve: bool = True, room: int = 0) -> array[int]:
        """`allocate`, for a queue, with `room` behind the first ones for so many more, if there is such a place."""
        self._attachment.check_usable()
        if self.slot == NO_SLOT:
            return array("I")
        granted, pool = self.granted_blocks, self._control.blocks
        last = self.block_of(granted - 1) if granted > self.drained_blocks else RESERVE_BLOCK
        blocks = pool.acquire(
            self.slot, self.epoch, want, may_take_reserve=may_take_reserve, behind=last, room=room
        )
        if len(blocks) and self.progress().phase >= TERMINAL:  # whoever cleans up may have passed already
            pool.release(blocks, self.slot, self.epoch)
            return blocks[:0]
        return blocks

    def init(
        self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None = None
    ) -> None:
        """The initial transfer: grant the first blocks. None at all tells the encode side that we are here (R19).

        `allocated_tokens` says how many rows are granted (default: as many as the blocks hold). It must end in the last
        of the blocks.

        Raises:
            ValueError: the indices or the tokens do not fit together, a block is not of this request, the window would
                be exceeded, the request is cleared, or blocks were granted before.
            NodeGoneError, RuntimeError: as `allocate`.
        """
        if self.granted_blocks > self.first_block:
            raise ValueError("init: blocks were granted already; use resume_transfer")
        self._grant(embedding_indices, allocated_tokens)

    def resume_transfer(
        self,
        embedding_indices: Sequence[int] | npt.NDArray[np.uint32],
        sent_tokens: int,
        allocated_tokens: int | None = None,
    ) -> None:
        """The resumed transfer: append *new* blocks behind those granted before.

        `sent_tokens` is how many rows the caller has seen sent; it is checked, not obeyed (R2). `allocated_tokens`
        counts the rows of the new blocks alone, as in `init`.

        Raises:
            ValueError: as `init`, except that blocks may have been granted before; or `sent_tokens` exceeds what has
                been sent.
            NodeGoneError, RuntimeError: as `allocate`.
        """
        sent_tokens = whole("sent_tokens", sent_tokens, 0, MAX_TOKENS)
        if sent_tokens > self.progress().sent:
            raise ValueError(f"sent_tokens: {sent_tokens} > {self.progress().sent} tokens that have landed")
        self._grant(embedding_indices, allocated_tokens)

    def _grant(self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None) -> None:
        self._attachment.check_usable()
        if self._cleared:
            raise ValueError(f"room {self.room}: this receiver was cleared; it takes no more grants")
        indices, tokens = grant_of(embedding_indices, allocated_tokens, self._control.blocks.num_blocks, self._bs)
        count = len(indices)
        if self.slot == NO_SLOT:
            if count:
                why = "are not blocks of this request, which waits for a slot; use allocate()"
                raise ValueError(f"embedding_indices: {indices} {why}")
            self._has_asked = True
            if self.slot == NO_SLOT:  # else it has got its slot meanwhile
                return
        if (held := self.granted_blocks + count - self.drained_blocks) > self.max_window_blocks:
            raise ValueError(f"embedding_indices: {held} blocks held > window of {self.max_window_blocks}")
        foreign = [index for index in indices if not self.holds(index)]
        if foreign or len(set(indices)) < count:
            if self.poll() >= Phase.Success:
                return  # it ended meanwhile, and what it held was taken back
            raise ValueError(
                f"embedding_indices: {foreign or indices} are not blocks of this request, each once; use allocate()"
            )
        self.grant(indices, tokens)

    def grant(self, indices: Sequence[int], tokens: int) -> None:
        """Grants, step 2, recorded: write the blocks into the window and kick the language bootstrap.

        `TransferQueue._grant` decided them (step 1), and they are this request's, as `init` and `resume_transfer` ask;
        `GrantSender._send_grant` sends the window to the encode node (step 3), where `Posting.post` does not do both.
        """
        granted, posting = self.granted_blocks, self._library.posting
        if self.neighbour is not None and len(indices) > 0 == granted and self.is_untold:
            if posted := posting.post(self, self.neighbour, indices, tokens):
                if posted == POSTED_LATE:
                    self._library.requests.untold.tell_soon(self)
                return
        else:
            posting.record(self.slot, granted, indices, granted * self._bs + tokens)
        self.send_granted()

    def send_granted(self) -> None:
        """Have the bootstrap send what is granted, now or when it is told of the request."""
        if not self.tell():
            self._attachment.kick_bootstrap(Kick.GRANT, self.slot, self.epoch)

    def release_drained(self, num_tokens: int) -> int:
        """Free the blocks whose rows all lie in [0, num_tokens), which the caller has copied out (R3).

        Returns how many blocks were freed. A block into which a late write may still land is quarantined instead (R7).
        Once the end is settled nothing is left to free, and it returns 0.

        Raises:
            ValueError: `num_tokens` exceeds what has been sent, so rows may still come into those blocks.
            RuntimeError: after `Client.close`.
        """
        if self._final is not None:
            return 0
        num_tokens = whole("num_tokens", num_tokens, 0, MAX_TOKENS)
        if num_tokens > self.progress().sent:
            raise ValueError(f"num_tokens: {num_tokens} > {self.progress().sent} tokens that have landed")
        return self._free(num_tokens, self.total_embedding_length)

    def _free(self, num_tokens: int, total: int) -> int:
        """Free the blocks of drained rows, of a request of which `total` is known. Returns how many."""
        first, granted = self.drained_blocks, self.granted_blocks
        end = granted if total and num_tokens >= total else min(num_tokens // self._bs, granted)
        if end <= first:
            return 0
        blocks = array("I", [self._windows.get(self.slot, k) for k in range(first, end)])
        self._slots.set(self.slot, Slot.DRAINED_BLOCKS, end)
        self._slots.raise_to(self.slot, Slot.MOVED_NS, self._attachment.clock())
        if self.is_tainted:
            self._control.blocks.cells.quarantine(blocks, 0, len(blocks), self.slot, self.epoch)
        else:
            self._control.blocks.release(blocks, self.slot, self.epoch)
        self._library.blocks_freed()
        return end - first

    # ---- after a failure

    def holds(self, block: int) -> bool:
        """Whether a destination block still belongs to this request.

        After a failure the block may be taken back at any moment and given to another request. So a caller who copies
        committed rows out of it asks *afterwards*: if the block is still ours, the copy has what had landed.
        """
        return self._control.blocks.cells.cell(block)[1:3] == (self.slot, self.epoch)

    @property
    def why_not_retryable(self) -> str:
        """Why another encode node could not do better, in words; empty if `retry` may be called.

        It may be called if the request has failed because its encode node, or its encoder, is lost. Raises RuntimeError
        after `Client.close`, unless the end had been settled before.
        """
        found = self.failure_exception()
        if found is None:
            return "it has not failed"
        if self._cleared:
            return "it was cleared; retry before that"
        if self._attachment.node_gone:
            return "this client's own node is gone"
        return why_in_vain(found, waits_for_grant=self.ready_tokens > self.granted_tokens)

    def retry(
        self,
        bootstrap_addr: str,
        num_tokens: int,
        *,
        room: int | None = None,
        required_dst_info_num: int | None = None,
        timeout_s: float | None = None,
    ) -> EmbeddingReceiver:
        """Open a new request at another encode node for the rows that are missing. Call it before `clear()` (R26).

        Rows [0, `num_tokens`) have been copied out. They may be up to `sent_tokens`, and rows that were copied after
        the failure count if this request still `holds` their blocks. The new request begins behind the last whole block
        of them; it sends the last block of all in any case. It gets new blocks. Those of this request stay out of use
        until nobody can write into them any more.

        The room may stay the same at a node that has not seen it, and a node that was restarted has not; at any other
        node it needs another number. The encoder there sends the whole request, of the same length.
        `required_dst_info_num` is the number of destinations that retry, if others have finished. `timeout_s` is the
        deadline in seconds from now.

        Raises:
            ValueError: it may not be retried, for the reason `why_not_retryable`; or `num_tokens` exceeds what has
                landed; or the address, the room or the time is out of range.
            NodeBusyError: every slot is in use, and as many requests as may wait for one do.
            NodeUnhealthyError, NodeGoneError, RuntimeError: as `Client.sender`.
        """
        if why_not := self.why_not_retryable:
            raise ValueError(f"room {self.room}: not to be retried: {why_not}")
        landed = max(self.sent_tokens, self.first_block * self._bs)
        num_tokens = whole("num_tokens", num_tokens, 0, landed, f"0 to {landed}, the tokens that have landed")
        total = self.total_embedding_length
        return open_receiver(
            self._library,
            bootstrap_addr,
            self.room if room is None else room,
            self.required_dst_info_num if required_dst_info_num is None else required_dst_info_num,
            timeout_s,
            begin=first_missing_block(num_tokens, total, self._bs),
            total=total,
            instead_of=self,
        )

    # ---- the end

    def clear(self) -> None:
        """Give the request's blocks and its slot back, because the caller needs nothing of it any more.

        A request that has not ended is aborted, and the library thread does the rest; a second call does nothing.

        Raises:
            RuntimeError: after `Client.close`, or in a forked child, if the end had not been settled before.
        """
        library = self._library
        if not self._has_landed() and self.poll() < Phase.Success:
            self.abort("cleared by the caller before its end")
        self._cleared = True
        if self.driver is not None or not library.view.do(self._leave_here):
            library.wake(self)

    def _leave_here(self) -> bool:
        """Leave a request that has ended. False: the library thread is to see to it."""
        library = self._library
        if self._final is None and self._leave_untold():
            return not library.num_waiting
        self.service()
        library.attachment.flush()
        return self._final is not None and not library.num_waiting

    def _leave_untold(self) -> bool:
        """Release blocks and slot of a request that has succeeded, and of which no process of the node was told (R78),
        in one native call. False: it is to be left as any other.
        """
        library = self._library
        ended = library.untold.release(
            self.slot, self.epoch, self.room, self.num_returned, library.attachment.clock()
        )
        if ended is None:
            return False
        self.keep_outcome(*ended)
        library.blocks_freed()
        library.left(self, ended[0])
        return True

    def prepare(self, slot: int, record: SlotRecord) -> None:
        begin, words = self.first_block, record.words
        record.set_address(self.bootstrap_addr)
        words[Slot.REQUIRED], words[Slot.TOTAL] = self.required_dst_info_num, self._total
        if begin:
            words[Slot.DRAINED_BLOCKS], words[Slot.VERIFIED] = begin, RowSum(begin * self._bs, 0).pack()
            words[Slot.GRANTED] = begin << 32 | begin * self._bs
        if self.neighbour is not None:
            words[Slot.PEER] = self.neighbour.peer + 1

    def renew(self) -> bool:
        """Take back the grant to which no encoder has come, and open the request anew in the same slot: nothing is
        granted then, and the node is told (R34; whoever has the turn). False: it has its grant still.
        """
        library = self._library
        said = library.untold.renew(self.slot, self.epoch, self.room, library.attachment.clock())
        if said == RENEWED_BUT_TOLD:
            self.fail(FailureCode.PROTOCOL, "its encode node has reported a request that it had not been told of")
        if said > RENEWED_BUT_TOLD:
            self.epoch = said
            library.attachment.kick_bootstrap(Kick.OPEN, self.slot, said)
            library.blocks_freed()
        return said > RENEWED_BUT_TOLD

    def release_untold(self) -> bool:
        library = self._library
        if library.posting.release(self):
            library.blocks_freed()
            return True
        if (now := self.progress()).phase == Phase.Success:
            self._free(now.sent, now.sent)
        return False

    def catch_up(self) -> None:
        """Do in the slot what the caller asked for before there was one: its `init`, or its end (either thread)."""
        self.check_neighbour()
        if self._has_asked:
            self._slots.set(self.slot, Slot.INIT_ASKED, 1)
            self.send_granted()
        super().catch_up()

    def check_neighbour(self) -> None:
        """Look once more, when the slot keeps the entry of the encode node from being another's."""
        if self.neighbour is not None and not self._library.neighbours.is_there(self.neighbour):
            self._slots.set(self.slot, Slot.PEER, 0)  # the bootstrap finds it
            self.neighbour = None
            self.tell()

    def _has_landed(self) -> bool:
        """Whether it has succeeded, and nobody has settled that yet."""
        if self._final is not None or self.slot == NO_SLOT:
            return False
        return self._library.status.load(self.slot) >> PHASE_SHIFT == self.epoch << PHASE_BITS | SUCCESS

    @property
    def is_by_hand(self) -> bool:
        return self.driver is None

    def wake(self) -> None:
        """Have the library thread serve it (any thread)."""
        self._library.wake(self)

    def service(self) -> None:
        """Hand changes to the queue that drives this receiver, and end a cleared one (library thread)."""
        if (driver := self.driver) is not None:
            driver.serve(self)
        if self._cleared and self._final is None and self.progress().phase >= TERMINAL:
            self._settle()
            self._library.leave(self)
            if self.num_returned:
                self._control.lanes.add_lent(self._attachment.lane, -self.num_returned)


share_keys(
    EmbeddingReceiver, "_library", "room", "bootstrap_addr", "opened_ns", "deadline_ns", "neighbour", "slot", "epoch",
    "driver", "request", "num_returned", "_cleared", "_final", "_final_stamps", "has_settled", "reported",
    "required_dst_info_num",
)


def open_receiver(
    library: Library,
    bootstrap_addr: str,
    room: int,
    required_dst_info_num: int,
    timeout_s: float | None,
    *,
    begin: int = 0,
    total: int = 0,
    instead_of: EmbeddingReceiver | None = None,
    may_wait: bool = True,
) -> EmbeddingReceiver:
    """Open a room to be received, as `Client.receiver` says, with what a retry adds to it.

    Request blocks [0, `begin`) are here already. `total` is the length in tokens, 0 if it is not known. The room may be
    the one of `instead_of`, a request that has failed.

    Raises:
        NodeBusyError: there is no slot, and it may not wait for one (`may_wait`), or as many requests as may wait for
            one do.
        ValueError, NodeUnhealthyError, NodeGoneError, RuntimeError: as `Client.sender`.
    """
    room = library.check_open(room, Role.LANGUAGE, "receiver", instead_of)
    required_dst_info_num = whole("required_dst_info_num", required_dst_info_num, 1, 64)
    check_address(bootstrap_addr)
    receiver = EmbeddingReceiver(library, room, bootstrap_addr, total, begin)
    receiver.required_dst_info_num = required_dst_info_num
    if required_dst_info_num == 1 and total == begin == 0:
        receiver.neighbour = library.neighbours.find(bootstrap_addr)
    library.open(receiver, timeout_s, may_wait=may_wait, may_be_untold=receiver.neighbour is not None)
    return receiver
