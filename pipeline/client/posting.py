"""The scheduler's side of the rendezvous: its client grants by itself, and posts where encoders look (R37).

What is done in shared memory is native (`allocator/native/grant.h`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.neighbours import Neighbour


class Posting:
    """One receiver's. Whoever has the turn calls it, or whoever drives the receiver by hand."""

    def __init__(self, library: Library, handle: TransferHandle) -> None:
        self._poster = library.attachment.control.poster
        self._neighbours = library.neighbours
        self._clock = library.attachment.clock
        self._slots = library.attachment.control.slots
        self._handle = handle
        self._neighbour: Neighbour | None = None  # the encode node, where this client finds it by itself

    def find(self, address: str) -> bool:
        """Whether a client of the encode node at this address may find a grant by itself."""
        self._neighbour = self._neighbours.find(address)
        return self._neighbour is not None

    def prepare(self, record: SlotRecord) -> None:
        """Write the encode node into the record of the slot, before its epoch is opened."""
        if self._neighbour is not None:
            record.words[Slot.PEER] = self._neighbour.peer + 1

    def check(self) -> None:
        """Look once more, when the slot keeps the entry of the encode node from being another's."""
        if self._neighbour is not None and not self._neighbours.is_there(self._neighbour):
            self._slots.set(self._handle.slot, Slot.PEER, 0)  # the bootstrap finds it
            self._neighbour = None
            self._handle.tell()

    @property
    def is_near(self) -> bool:
        """Whether `post` is worth a try."""
        return self._neighbour is not None

    def post(self, blocks: Sequence[int], tokens: int) -> bool:
        """Grants, steps 2 and 3, where the encoder's client finds the grant: record the blocks, expose them, write down
        what is granted, offer the claim, and post. `Rendezvous` applies it (step 4).

        False where the encode node has to be sent what is recorded: its encoder waits for it already, the table is
        full, or a block is not this request's any more.
        """
        handle, near = self._handle, self._neighbour
        assert near is not None
        indices = array("I", blocks)
        return self._poster.post(handle.slot, handle.epoch, handle.room, *near.node, indices, tokens, self._clock())

    def release(self) -> bool:
        """Give back blocks and slot of a request that has succeeded, if its node was not told of it (R78)."""
        handle = self._handle
        return self._poster.release(handle.slot, handle.epoch, handle.room, self._clock())
