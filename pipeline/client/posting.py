"""The scheduler's side of the rendezvous: its client grants by itself, and posts where encoders look (R37)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from embridge.allocator.control import Control
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.sessions import SHM_EXPOSURE
from embridge.allocator.status import Phase
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.neighbours import Neighbour, Neighbours


class Posting:
    """One receiver's. Whoever has the turn calls it, or whoever drives the receiver by hand."""

    def __init__(self, control: Control, neighbours: Neighbours, handle: TransferHandle) -> None:
        self._cells = control.blocks.cells
        self._slots = control.slots
        self._claims = control.claims
        self._posts = control.posts
        self._neighbours = neighbours
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

    def post(self, blocks: Sequence[int], tokens: int) -> bool:
        """Grants, step 3, where the encoder's client finds the grant: expose its blocks, write down what is granted,
        offer the claim, and post. `EmbeddingReceiver.grant` has recorded it (step 2), `Rendezvous` applies it (step 4).

        False where the encode node has to be sent the grant: it is no neighbour, its encoder waits for it already, the
        table is full, or a block is not this request's any more.
        """
        slot, epoch, room = self._handle.slot, self._handle.epoch, self._handle.room
        indices = array("I", blocks)
        if self._neighbour is None:
            return False
        if self._cells.expose(indices, 0, len(indices), slot, epoch, SHM_EXPOSURE) < len(indices):
            return False
        self._posts.begin(slot, epoch, room, self._neighbour.node, len(indices), tokens)
        self._claims.offer(slot, epoch)
        return self._posts.post_grant(room, slot, epoch) and not self._posts.offers(room)

    def release(self) -> bool:
        """Release the slot of a request that has succeeded, if its node was not told of it (R78)."""
        slot, epoch = self._handle.slot, self._handle.epoch
        if self._handle.progress().phase != Phase.Success or not self._slots.is_untold(slot, epoch):
            return False
        self._posts.take_off_grant(self._handle.room, slot, epoch)
        return self._slots.release_untold(slot, epoch)
