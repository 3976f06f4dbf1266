"""`EmbeddingReceiver`: the scheduler's side of one request, without the queues' policy.

It holds a window of destination blocks, block-aligned and absolute: `init` grants the first of them, `resume_transfer`
appends more, and `release_drained` frees those whose rows have been copied out. What stands in the window, and how far
it is granted, are words in shared memory, so a grant that is lost can be sent again by the node (R1, R24).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_BLOCKS, MAX_TOKENS, Role
from embridge.allocator.records import ADDRESS_BYTES, Peer, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.handle import NO_SLOT, TransferHandle
from embridge.pipeline.client.library import Library
from embridge.workers.addresses import split_address

LOST = frozenset({FailureCode.PEER_LOST, FailureCode.UNREACHABLE, FailureCode.CLIENT_DIED, FailureCode.UNKNOWN_ROOM})
"""Codes that say: the encode node, its encoder, or what it knew of the request is gone."""


class EmbeddingReceiver(TransferHandle):
    """Made by `Client.receiver(bootstrap_addr, room)`.

    All methods return at once; grants come from one thread at a time.

    `first_block`: the request block from which this encode node sends; not 0 where another one had sent those before it
    (`retry`).
    """

    _library: Library

    def __init__(
        self,
        library: Library,
        room: int,
        bootstrap_addr: str,
        required_dst_info_num: int,
        total: int = 0,
        first_block: int = 0,
    ) -> None:
        super().__init__(library, room)
        self.bootstrap_addr = bootstrap_addr
        self.required_dst_info_num = required_dst_info_num
        self.first_block = first_block
        self._total = total  # as another encode node had told it
        self._has_asked = False
        self._windows = library.windows
        self._sessions = library.sessions
        self._bs = library.attachment.geometry.block_size
        self._cleared = False
        self.on_change: Callable[[], None] | None = None

    # ---- what is known

    @property
    def handshake_done(self) -> bool:
        """Whether the encode node is registered, so that blocks can be granted to it."""
        return self.slot != NO_SLOT and self._slots.get(self.slot, Slot.PEER) != 0

    @property
    def total_embedding_length(self) -> int:
        """The request's real length in tokens; 0 until the encode side has told it."""
        return self._total if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.TOTAL)

    @property
    def ready_tokens(self) -> int:
        """Rows that the encode side has said it has."""
        return 0 if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.PEER_READY)

    @property
    def granted_tokens(self) -> int:
        return self.first_block * self._bs if self.slot == NO_SLOT else self._slots.granted(self.slot)[1]

    @property
    def granted_blocks(self) -> int:
        """Request blocks granted so far, from block 0."""
        return self.first_block if self.slot == NO_SLOT else self._slots.granted(self.slot)[0]

    @property
    def drained_blocks(self) -> int:
        """Request blocks that were given back, or never asked for (`first_block`), from block 0."""
        return self.first_block if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.DRAINED_BLOCKS)

    @property
    def num_rounds(self) -> int:
        """Grants that carried blocks."""
        return 0 if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.NUM_ROUNDS)

    @property
    def needs_resume(self) -> bool:
        """All that was granted has been sent, and rows remain (R5): decided from the counters, never from the phase."""
        now = self.progress()
        total, granted = self.total_embedding_length, self.granted_tokens
        return now.phase < Phase.Success and now.sent == granted < total

    @property
    def is_tainted(self) -> bool:
        """An attempt under our session ended other than done: its bytes may still land (R7)."""
        if self.slot == NO_SLOT:
            return False
        worker = self._control.worker_of(self.room)
        tainted = self._slots.get(self.slot, Slot.TAINTED)
        return self._slots.get(self.slot, Slot.SESSION) != 0 and tainted > self._sessions.number(worker)

    @property
    def max_window_blocks(self) -> int:
        """The most blocks this request may hold at one time: this node's window, or its share of the encode node's."""
        peer = self._slots.get(self.slot, Slot.PEER) - 1 if self.slot != NO_SLOT else -1
        there = self._control.peers.get(peer, Peer.WINDOW) if peer >= 0 else self._windows.window
        return min(self._windows.window, there // self.required_dst_info_num)

    def current_allocation(self) -> npt.NDArray[np.uint32]:
        """The blocks held now, in the order of the request's rows."""
        first, end = self.drained_blocks, self.granted_blocks
        return np.array([self._windows.get(self.slot, k) for k in range(first, end)], np.uint32)

    def block_of(self, request_block: int) -> int:
        """The destination block of one request block that is held."""
        return self._windows.get(self.slot, request_block)

    # ---- grants

    def allocate(self, want: int, *, may_take_reserve: bool = True) -> npt.NDArray[np.uint32]:
        """Up to `want` blocks of this node for this request, not yet granted; fewer, or none, when memory is short.

        None while it waits for a slot.
        """
        self._attachment.check_usable()
        want = whole("want", want, 0, MAX_BLOCKS)
        if self.slot == NO_SLOT:
            return np.empty(0, np.uint32)
        blocks = self._control.blocks.acquire(self.slot, self.epoch, want, may_take_reserve=may_take_reserve)
        if len(blocks) and self.poll() >= Phase.Success:  # ended meanwhile: whoever cleans up may have passed already
            self._control.blocks.release(blocks, self.slot, self.epoch)
            return blocks[:0]
        return blocks

    def init(
        self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None = None
    ) -> None:
        """The initial transfer: grant the first blocks; none at all is allowed, and tells the encode side that we are
        here (R19).

        `allocated_tokens` (default: all that fits) is what is granted: more than one block less than the blocks hold.

        Raises:
            ValueError: the indices or the tokens do not fit together, or blocks were granted before.
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
        """The resumed transfer: append *new* blocks.

        `sent_tokens` is what the caller has seen sent; it is checked, not obeyed (R2).

        Raises:
            ValueError: as `init`, or `sent_tokens` exceeds what has been sent.
        """
        sent_tokens = whole("sent_tokens", sent_tokens, 0, MAX_TOKENS)
        if sent_tokens > self.progress().sent:
            raise ValueError(f"sent_tokens: {sent_tokens} > {self.progress().sent} tokens that have landed")
        self._grant(embedding_indices, allocated_tokens)

    def _grant(self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None) -> None:
        self._attachment.check_usable()
        if self._cleared:
            raise ValueError(f"room {self.room}: this receiver was cleared; it takes no more grants")
        last = self._control.blocks.num_blocks - 1
        indices = [whole("embedding_indices", index, 0, last) for index in embedding_indices]
        count, bs = len(indices), self._bs
        tokens = count * bs if allocated_tokens is None else whole("allocated_tokens", allocated_tokens, 0, MAX_TOKENS)
        if not ((count - 1) * bs < tokens <= count * bs or tokens == count == 0):
            raise ValueError(
                f"allocated_tokens: {tokens} does not end in the last of {count} blocks of {bs} tokens; "
                f"expected {max(count - 1, 0) * bs + bool(count)} to {count * bs}"
            )
        if self.slot == NO_SLOT:
            if count:
                raise ValueError(
                    f"embedding_indices: {indices} are not blocks of this request, which waits for a slot; "
                    "use allocate()"
                )
            self._has_asked = True
            if self.slot == NO_SLOT:  # else it was opened meanwhile
                return
        granted, drained = self.granted_blocks, self.drained_blocks
        if granted + count - drained > self.max_window_blocks:
            raise ValueError(
                f"embedding_indices: {granted + count - drained} blocks held > window of {self.max_window_blocks}"
            )
        holder = (self.slot, self.epoch)
        foreign = [index for index in indices if self._control.blocks.cells.cell(index)[1:3] != holder]
        if foreign or len(set(indices)) < count:
            if self.poll() >= Phase.Success:
                return  # it ended meanwhile, and what it held was taken back
            raise ValueError(
                f"embedding_indices: {foreign or indices} are not blocks of this request, each once; use allocate()"
            )
        for i, index in enumerate(indices):
            self._windows.set(self.slot, granted + i, index)
        if count:
            self._slots.set(self.slot, Slot.NUM_ROUNDS, self.num_rounds + 1)
            self._slots.raise_to(self.slot, Slot.GRANTED, granted + count << 32 | granted * bs + tokens)
            self._slots.raise_to(self.slot, Slot.MOVED_NS, self._attachment.clock())
        self._slots.set(self.slot, Slot.INIT_ASKED, 1)
        self._attachment.kick_bootstrap(Kick.GRANT, self.slot, self.epoch)

    def release_drained(self, num_tokens: int) -> int:
        """Rows [0, num_tokens) have been copied out: free the blocks that are wholly behind (R3). Returns how many.

        A block into which a late write may still land is quarantined instead (R7).

        Raises:
            ValueError: `num_tokens` exceeds what has been sent: rows may still come into those blocks.
        """
        if self._final is not None:
            return 0
        num_tokens = whole("num_tokens", num_tokens, 0, MAX_TOKENS)
        if num_tokens > self.progress().sent:
            raise ValueError(f"num_tokens: {num_tokens} > {self.progress().sent} tokens that have landed")
        total = self.total_embedding_length
        end = self.granted_blocks if total and num_tokens >= total else num_tokens // self._bs
        first = self.drained_blocks
        end = min(end, self.granted_blocks)
        if end <= first:
            return 0
        blocks = np.array([self._windows.get(self.slot, k) for k in range(first, end)], np.uint32)
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
        """Whether a destination block is still this request's.

        After a failure it may be taken back at any moment, and be another's.

        So who copies committed rows out of it then asks this *afterwards*: if it is still ours, what was read is what
        had landed.
        """
        return self._control.blocks.cells.cell(block)[1:3] == (self.slot, self.epoch)

    @property
    def why_not_retryable(self) -> str:
        """Why another encode node could not do better; empty when the request has failed because this one, or its
        encoder, is lost.
        """
        found = self.failure_exception()
        if found is None:
            return "it has not failed"
        if self._cleared:
            return "it was cleared; retry before that"
        if self._attachment.node_gone:
            return "this client's own node is gone"
        # it was not we who kept it waiting
        is_silent = found.code == FailureCode.TIMEOUT and self.ready_tokens <= self.granted_tokens
        if found.code in LOST or is_silent:
            return ""
        return f"it failed as {found.code.name}, which is not for want of the encode node: {found.reason}"

    def retry(
        self,
        bootstrap_addr: str,
        num_tokens: int,
        *,
        room: int | None = None,
        required_dst_info_num: int | None = None,
        timeout_s: float | None = None,
    ) -> EmbeddingReceiver:
        """A new request, to another encode node, for the rows that are missing; to be called before `clear()` (R26).

        Rows [0, `num_tokens`) have been copied out: at most `sent_tokens` of them, and those that were copied after the
        failure from blocks that this request still `holds`. The new request begins at the last whole block of them (and
        sends the last block of all in any case). Its own blocks are new ones: those of this request stay out of use
        until nobody can write into them any more.

        The room may stay the same on a node that has not seen it, which a node that was restarted has not; else it
        needs another number. The encoder there sends the whole request, of the same length. `required_dst_info_num`:
        the destinations that retry, if others have finished. `timeout_s` counts from now.

        Raises:
            ValueError: it may not be retried, for the reason `why_not_retryable`, or `num_tokens` exceeds what has
                landed.
            NodeBusyError: every slot is in use, and as many requests as may wait for one do.
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
        """The caller needs nothing of this request any more: its blocks and its slot go back.

        Before the end, this aborts it.
        """
        if self.poll() < Phase.Success:
            self.abort("cleared by the caller before its end")
        self._cleared = True
        self._library.wake(self)

    def prepare(self, slot: int) -> None:
        begin = self.first_block
        self._slots.set_address(slot, self.bootstrap_addr)
        self._slots.set(slot, Slot.REQUIRED, self.required_dst_info_num)
        self._slots.set(slot, Slot.TOTAL, self._total)
        self._slots.set(slot, Slot.DRAINED_BLOCKS, begin)
        self._slots.set(slot, Slot.VERIFIED, RowSum(begin * self._bs, 0).pack())
        self._slots.set(slot, Slot.GRANTED, begin << 32 | begin * self._bs)

    def catch_up(self) -> None:
        if self._has_asked:
            self._slots.set(self.slot, Slot.INIT_ASKED, 1)
            self._attachment.kick_bootstrap(Kick.GRANT, self.slot, self.epoch)
        super().catch_up()

    def service(self) -> None:
        """Library thread: hand changes to the queue that drives this receiver, and end a cleared one."""
        if self.on_change is not None:
            self.on_change()
        if self._cleared and self._final is None and self.poll() >= Phase.Success:
            if self.poll() == Phase.Success:
                self.release_drained(self.total_embedding_length)
            self._settle()
            self._library.leave(self)


def check_address(bootstrap_addr: str) -> None:
    """Raises ValueError for what is no encode node's address."""
    if not isinstance(bootstrap_addr, str):
        raise ValueError(
            f"bootstrap_addr: {bootstrap_addr!r} is not of the form tcp://host:port; see Node.bootstrap_addr"
        )
    try:
        split_address(bootstrap_addr)
    except ValueError as error:
        raise ValueError(f"bootstrap_addr: {error}; see Node.bootstrap_addr") from None
    size = len(bootstrap_addr.encode())
    if size > ADDRESS_BYTES:
        raise ValueError(f"bootstrap_addr: {size} bytes > {ADDRESS_BYTES} bytes")


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

    Request blocks [0, `begin`) are here already, and the request has `total` tokens (0: its length is not known). The
    room may be that of the request that it is `instead_of`, which has failed. If it may not wait for a slot,
    NodeBusyError says that there is none.
    """
    room = library.check_open(room, Role.LANGUAGE, "receiver", instead_of)
    required_dst_info_num = whole("required_dst_info_num", required_dst_info_num, 1, 64)
    check_address(bootstrap_addr)
    receiver = EmbeddingReceiver(library, room, bootstrap_addr, required_dst_info_num, total, begin)
    library.open(receiver, timeout_s, may_wait=may_wait)
    return receiver


def first_missing_block(num_tokens: int, total: int, block_size: int) -> int:
    """From where a request is sent again, of which rows [0, num_tokens) are here: whole blocks are kept, but never the
    last of all.

    So each retry has rows to wait for, and ends as every request does, by what its encode node says (R20).
    """
    return max(min(num_tokens, total - 1), 0) // block_size
