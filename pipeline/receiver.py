"""`EmbeddingReceiver`: the scheduler's side of one request, without the queues' policy.

It holds a window of destination blocks, block-aligned and absolute: `init` grants the first of them, `resume_transfer` appends more,
and `release_drained` frees those whose rows have been copied out. What stands in the window, and how far it is granted, are words in
shared memory, so a grant that is lost can be sent again by the node (R1, R24).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embridge.allocator.errors import FailureCode
from embridge.allocator.layout import Peer, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.handle import TransferHandle

if TYPE_CHECKING:
    from embridge.pipeline.client import Client


class EmbeddingReceiver(TransferHandle):
    """Made by `Client.receiver(bootstrap_addr, room)`. All methods return at once; grants come from one thread at a time."""

    def __init__(self, client: Client, slot: int, epoch: int, room: int) -> None:
        super().__init__(client, slot, epoch, room)
        self._windows = client.windows
        self._sessions = client.sessions
        self._bs = client.geometry.block_size
        self._cleared = False
        self.on_change: Callable[[], None] | None = None

    # ---- what is known

    @property
    def handshake_done(self) -> bool:
        """Whether the encode node is registered, so that blocks can be granted to it."""
        return self._slots.get(self.slot, Slot.PEER) != 0

    @property
    def total_embedding_length(self) -> int:
        """The request's real length in tokens; 0 until the encode side has told it."""
        return self._slots.get(self.slot, Slot.TOTAL)

    @property
    def ready_tokens(self) -> int:
        """Rows that the encode side has said it has."""
        return self._slots.get(self.slot, Slot.PEER_READY)

    @property
    def granted_tokens(self) -> int:
        return self._slots.granted(self.slot)[1]

    @property
    def granted_blocks(self) -> int:
        """Request blocks granted so far, from block 0."""
        return self._slots.granted(self.slot)[0]

    @property
    def drained_blocks(self) -> int:
        """Request blocks that were given back, from block 0."""
        return self._slots.get(self.slot, Slot.DRAINED_BLOCKS)

    @property
    def num_rounds(self) -> int:
        """Grants that carried blocks."""
        return self._slots.get(self.slot, Slot.NUM_ROUNDS)

    @property
    def needs_resume(self) -> bool:
        """All that was granted has been sent, and rows remain (R5): decided from the counters, never from the phase."""
        now = self.progress()
        total, granted = self.total_embedding_length, self.granted_tokens
        return now.phase < Phase.Success and now.sent == granted < total

    @property
    def is_tainted(self) -> bool:
        """An attempt under our session ended other than done: its bytes may still land (R7)."""
        worker = self._control.worker_of(self.room)
        tainted = self._slots.get(self.slot, Slot.TAINTED)
        return self._slots.get(self.slot, Slot.SESSION) != 0 and tainted > self._sessions.number(worker)

    @property
    def max_window_blocks(self) -> int:
        """The most blocks this request may hold at one time: the lesser of both nodes' windows."""
        peer = self._slots.get(self.slot, Slot.PEER) - 1
        there = self._control.peers.get(peer, Peer.WINDOW) if peer >= 0 else self._windows.window
        return min(self._windows.window, there)

    def current_allocation(self) -> npt.NDArray[np.uint32]:
        """The blocks held now, in the order of the request's rows."""
        first, end = self.drained_blocks, self.granted_blocks
        return np.array([self._windows.get(self.slot, k) for k in range(first, end)], np.uint32)

    def block_of(self, request_block: int) -> int:
        """The destination block of one request block that is held."""
        return self._windows.get(self.slot, request_block)

    # ---- grants

    def allocate(self, want: int, *, may_take_reserve: bool = True) -> npt.NDArray[np.uint32]:
        """Up to `want` blocks of this node for this request, not yet granted; fewer, or none, when memory is short."""
        self._client.check_usable()
        blocks = self._control.blocks.acquire(self.slot, self.epoch, want, may_take_reserve=may_take_reserve)
        if len(blocks) and self.poll() >= Phase.Success:  # ended meanwhile: whoever cleans up may have passed already
            self._control.blocks.release(blocks, self.slot, self.epoch)
            return blocks[:0]
        return blocks

    def init(self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None = None) -> None:
        """The initial transfer: grant the first blocks; none at all is allowed, and tells the encode side that we are here (R19).

        `allocated_tokens` (default: all that fits) is what is granted: more than one block less than the blocks hold.

        Raises:
            ValueError: the indices or the tokens do not fit together, or blocks were granted before.
        """
        if self.granted_blocks:
            raise ValueError("init: blocks were granted already; use resume_transfer")
        self._grant(embedding_indices, allocated_tokens)

    def resume_transfer(
        self,
        embedding_indices: Sequence[int] | npt.NDArray[np.uint32],
        sent_tokens: int,
        allocated_tokens: int | None = None,
    ) -> None:
        """The resumed transfer: append *new* blocks. `sent_tokens` is what the caller has seen sent; it is checked, not obeyed (R2).

        Raises:
            ValueError: as `init`, or `sent_tokens` exceeds what has been sent.
        """
        if sent_tokens < 0:
            raise ValueError(f"sent_tokens: {sent_tokens} < 0")
        if sent_tokens > self.progress().sent:
            raise ValueError(f"sent_tokens: {sent_tokens} > {self.progress().sent} tokens that have landed")
        self._grant(embedding_indices, allocated_tokens)

    def _grant(self, embedding_indices: Sequence[int] | npt.NDArray[np.uint32], allocated_tokens: int | None) -> None:
        self._client.check_usable()
        if self._cleared:
            raise ValueError(f"room {self.room}: this receiver was cleared; it takes no more grants")
        indices = [int(index) for index in embedding_indices]
        count, bs = len(indices), self._bs
        tokens = count * bs if allocated_tokens is None else allocated_tokens
        if not ((count - 1) * bs < tokens <= count * bs or tokens == count == 0):
            raise ValueError(
                f"allocated_tokens: {tokens} does not end in the last of {count} blocks of {bs} tokens; "
                f"expected {max(count - 1, 0) * bs + bool(count)} to {count * bs}"
            )
        if any(not 0 <= index < self._control.blocks.num_blocks for index in indices):
            raise ValueError(f"embedding_indices: outside 0 to {self._control.blocks.num_blocks - 1}: {indices}")
        granted, drained = self.granted_blocks, self.drained_blocks
        if granted + count - drained > self.max_window_blocks:
            raise ValueError(f"embedding_indices: {granted + count - drained} blocks held > window of {self.max_window_blocks}")
        holder = (self.slot, self.epoch)
        foreign = [index for index in indices if self._control.blocks.cells.cell(index)[1:3] != holder]
        if foreign or len(set(indices)) < count:
            if self.poll() >= Phase.Success:
                return  # it ended meanwhile, and what it held was taken back
            raise ValueError(f"embedding_indices: {foreign or indices} are not blocks of this request, each once; use allocate()")
        for i, index in enumerate(indices):
            self._windows.set(self.slot, granted + i, index)
        if count:
            self._slots.set(self.slot, Slot.NUM_ROUNDS, self.num_rounds + 1)
            self._slots.raise_to(self.slot, Slot.GRANTED, granted + count << 32 | granted * bs + tokens)
            self._slots.raise_to(self.slot, Slot.MOVED_NS, self._client.clock())
        self._slots.set(self.slot, Slot.INIT_ASKED, 1)
        self._client.kick_bootstrap(Kick.GRANT, self.slot, self.epoch)

    def release_drained(self, num_tokens: int) -> int:
        """Rows [0, num_tokens) have been copied out: free the blocks that are wholly behind (R3). Returns how many.

        A block into which a late write may still land is quarantined instead (R7).

        Raises:
            ValueError: `num_tokens` exceeds what has been sent: rows may still come into those blocks.
        """
        if self._final is not None:
            return 0
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
        self._slots.raise_to(self.slot, Slot.MOVED_NS, self._client.clock())
        if self.is_tainted:
            self._control.blocks.cells.quarantine(blocks, 0, len(blocks), self.slot, self.epoch)
        else:
            self._control.blocks.release(blocks, self.slot, self.epoch)
        self._client.blocks_freed()
        return end - first

    # ---- the end

    def clear(self) -> None:
        """The caller needs nothing of this request any more: its blocks and its slot go back. Before the end, this aborts it."""
        if self.poll() < Phase.Success:
            self.abort("cleared by the caller before its end")
        self._cleared = True
        self._client.wake(self)

    def fail(self, code: FailureCode, reason: str) -> None:
        """End the request as Failed for a reason of this side's own."""
        self._fail(code, reason)

    def service(self) -> None:
        """Library thread: hand changes to the queue that drives this receiver, and end a cleared one."""
        if self.on_change is not None:
            self.on_change()
        if self._cleared and self._final is None and self.poll() >= Phase.Success:
            if self.poll() == Phase.Success:
                self.release_drained(self.total_embedding_length)
            self._settle()
            self._client.leave(self)
