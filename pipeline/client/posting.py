"""The scheduler's side of the rendezvous: its client grants by itself, and posts where encoders look (R37).

What is done in shared memory is native (`allocator/native/grant.h`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord, WindowTable
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.neighbours import Neighbour


class Posting:
    """One receiver's. Whoever has the turn calls it, or whoever drives the receiver by hand."""

    def __init__(self, library: Library, handle: TransferHandle) -> None:
        self._library = library
        self._poster = library.attachment.control.poster
        self._neighbours = library.neighbours
        self._clock = library.attachment.clock
        self._slots = library.attachment.control.slots
        self._handle = handle
        self.neighbour: Neighbour | None = None  # the encode node, where this client finds it by itself

    def find(self, address: str) -> bool:
        """Whether a client of the encode node at this address may find a grant by itself."""
        self.neighbour = self._neighbours.find(address)
        return self.neighbour is not None

    def prepare(self, record: SlotRecord) -> None:
        """Write the encode node into the record of the slot, before its epoch is opened."""
        if self.neighbour is not None:
            record.words[Slot.PEER] = self.neighbour.peer + 1

    def check(self) -> None:
        """Look once more, when the slot keeps the entry of the encode node from being another's."""
        if self.neighbour is not None and not self._neighbours.is_there(self.neighbour):
            self._slots.set(self._handle.slot, Slot.PEER, 0)  # the bootstrap finds it
            self.neighbour = None
            self._handle.tell()

    @property
    def is_near(self) -> bool:
        """Whether `post` is worth a try."""
        return self.neighbour is not None

    def post(self, blocks: Sequence[int], tokens: int) -> bool:
        """Grants, steps 2 and 3, where the encoder's client finds the grant: record the blocks, expose them, write down
        what is granted, offer the claim, and post. `Rendezvous` applies it (step 4).

        False where the encode node has to be sent what is recorded: its encoder waits for it already, the table is
        full, or a block is not this request's any more.
        """
        handle, near = self._handle, self.neighbour
        assert near is not None
        indices = array("I", blocks)
        return self._poster.post(handle.slot, handle.epoch, handle.room, *near.node, indices, tokens, self._clock())

    def record(self, windows: WindowTable, granted: int, blocks: Sequence[int], tokens: int) -> None:
        """Grants, step 2, for the bootstrap: record blocks behind `granted` others; `tokens` are granted in all."""
        slots, slot, count = self._slots, self._handle.slot, len(blocks)
        for i, index in enumerate(blocks):
            windows.set(slot, granted + i, index)
        if count:
            slots.set(slot, Slot.NUM_ROUNDS, slots.get(slot, Slot.NUM_ROUNDS) + 1)
            slots.raise_to(slot, Slot.GRANTED, granted + count << 32 | tokens)
            slots.raise_to(slot, Slot.MOVED_NS, self._clock())
        slots.set(slot, Slot.INIT_ASKED, 1)

    def leave(self, num_lent: int) -> bool:
        """Release blocks and slot of a request that has succeeded, and of which no process of the node was told (R78),
        in one native call; `num_lent` of the blocks count as lent. False: it is to be left as any other.
        """
        handle, library = self._handle, self._library
        ended = library.untold.release(handle.slot, handle.epoch, handle.room, num_lent, self._clock())
        if ended is None:
            return False
        handle.keep_outcome(*ended)
        library.blocks_freed()
        library.left(handle, ended[0])
        del self._handle  # which leads here: nothing is granted any more
        return True

    def release(self) -> bool:
        """Give back blocks and slot of a request that has succeeded, if its node was not told of it (R78)."""
        handle = self._handle
        return self._poster.release(handle.slot, handle.epoch, handle.room, self._clock())
