"""What a scheduler can read of one request: words of shared memory, each of which is one load."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embridge.allocator.records import Peer, Slot
from embridge.allocator.request_tables import WindowTable
from embridge.allocator.status import Phase
from embridge.pipeline.client.handle import NO_SLOT, TransferHandle
from embridge.pipeline.client.library import Library


class ReceiverWords(TransferHandle):
    """The part of an `EmbeddingReceiver` that reads. Any thread."""

    _library: Library
    required_dst_info_num = 1
    first_block = 0
    _total = 0  # the length that another encode node had announced

    @property
    def _windows(self) -> WindowTable:
        return self._library.windows

    @property
    def _bs(self) -> int:
        return self._library.attachment.geometry.block_size

    @property
    def handshake_done(self) -> bool:
        """Whether the encode node is registered, so that blocks can be granted to it."""
        return self.slot != NO_SLOT and self._slots.get(self.slot, Slot.PEER) != 0

    @property
    def total_embedding_length(self) -> int:
        """The request's length in tokens; 0 until the encode side has announced it, or has written rows directly. After
        its success it is the number of its rows.
        """
        if self.slot == NO_SLOT:
            return self._total
        now, announced = self.progress(), self._slots.get(self.slot, Slot.TOTAL)
        return now.sent if now.phase == Phase.Success else announced or self._library.claims.length(self.slot)

    @property
    def ready_tokens(self) -> int:
        """How many rows the encode side has said that its encoder has given, in tokens."""
        return 0 if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.PEER_READY)

    @property
    def granted_tokens(self) -> int:
        """How many rows may be written here so far, in tokens, counted from row 0."""
        return self.first_block * self._bs if self.slot == NO_SLOT else self._slots.granted(self.slot)[1]

    @property
    def granted_blocks(self) -> int:
        """How many request blocks were granted so far, counted from block 0."""
        return self.first_block if self.slot == NO_SLOT else self._slots.granted(self.slot)[0]

    @property
    def drained_blocks(self) -> int:
        """How many request blocks were given back, or had been sent before (`first_block`), counted from block 0."""
        return self.first_block if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.DRAINED_BLOCKS)

    @property
    def num_rounds(self) -> int:
        """How many grants have carried blocks."""
        return 0 if self.slot == NO_SLOT else self._slots.get(self.slot, Slot.NUM_ROUNDS)

    @property
    def needs_resume(self) -> bool:
        """Whether all that was granted has been sent and rows remain (R5), by the counters and never by the phase."""
        now = self.progress()
        return now.phase < Phase.Success and now.sent == self.granted_tokens < self.total_embedding_length

    @property
    def is_tainted(self) -> bool:
        """Whether an attempt under our session has ended other than done, so that its bytes may still land (R7)."""
        if self.slot == NO_SLOT or not self._slots.get(self.slot, Slot.SESSION):
            return False
        tainted = self._slots.get(self.slot, Slot.TAINTED)
        return tainted > self._library.sessions.number(self._control.worker_of(self.room))

    @property
    def max_window_blocks(self) -> int:
        """How many blocks the request may hold at one time, by this node's window and its share of the sender's."""
        peer = self._slots.get(self.slot, Slot.PEER) - 1 if self.slot != NO_SLOT else -1
        there = self._control.peers.get(peer, Peer.WINDOW) if peer >= 0 else self._windows.window
        return min(self._windows.window, there // self.required_dst_info_num)

    def current_allocation(self) -> npt.NDArray[np.uint32]:
        """The destination blocks held now, as uint32 indices in the order of the request's rows."""
        held = range(self.drained_blocks, self.granted_blocks)
        return np.array([self._windows.get(self.slot, k) for k in held], np.uint32)

    def block_of(self, request_block: int) -> int:
        """The destination block of one request block. Meaningful only while the request holds that block."""
        return self._windows.get(self.slot, request_block)
