"""The scheduler's side of the rendezvous: its client grants by itself, and posts where encoders look (R37).

What is done in shared memory is native (`allocator/native/grant.h`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from embridge.allocator.records import Slot
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.neighbours import Neighbour


class Posting:
    """One client's. Whoever has the turn calls it, or whoever drives a receiver by hand."""

    def __init__(self, attachment: Attachment) -> None:
        self._poster = attachment.control.poster
        self._slots = attachment.control.slots
        self._windows = attachment.control.windows
        self._clock = attachment.clock

    def post(self, handle: TransferHandle, near: Neighbour, blocks: Sequence[int], tokens: int) -> int:
        """Grants, steps 2 and 3, where the encoder's client finds the grant: record the blocks, expose them, write down
        what is granted, offer the claim, and post. `Rendezvous` applies it (step 4).

        0 where the encode node has to be sent what is recorded: the table is full, or a block is not this request's any
        more. `POSTED_LATE` where its encoder waits for it already, and may not look once more.
        """
        indices = array("I", blocks)
        return self._poster.post(handle.slot, handle.epoch, handle.room, *near.node, indices, tokens, self._clock())

    def record(self, slot: int, granted: int, blocks: Sequence[int], tokens: int) -> None:
        """Grants, step 2, for the bootstrap: record blocks behind `granted` others; `tokens` are granted in all."""
        slots, count = self._slots, len(blocks)
        for i, index in enumerate(blocks):
            self._windows.set(slot, granted + i, index)
        if count:
            slots.set(slot, Slot.NUM_ROUNDS, slots.get(slot, Slot.NUM_ROUNDS) + 1)
            slots.raise_to(slot, Slot.GRANTED, granted + count << 32 | tokens)
            slots.raise_to(slot, Slot.MOVED_NS, self._clock())
        slots.set(slot, Slot.INIT_ASKED, 1)

    def release(self, handle: TransferHandle) -> bool:
        """Give back blocks and slot of a request that has succeeded, if its node was not told of it (R78)."""
        return self._poster.release(handle.slot, handle.epoch, handle.room, self._clock())
