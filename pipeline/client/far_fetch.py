"""Fetching from a node on another host: a request of this node's own, whose rows come as those of any other (R50 to
R59).

Its first message names a key instead of a room, and grants no block. The encode node answers at once: it refuses, or
says how long the item is. Then blocks are granted, as many as are free, and what has landed is copied out of them, into
memory of this client's own. The request is not the caller's, who sees a `Fetch` alone.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from embridge.allocator.buffers import pools
from embridge.allocator.errors import FailureCode
from embridge.allocator.fetches import ItemShape
from embridge.allocator.geometry import Role
from embridge.allocator.records import Peer, Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.shelf import DTYPE_BYTES, code_of
from embridge.allocator.status import Phase, split
from embridge.pipeline.client.cache_memory import Bytes, fresh_memory
from embridge.pipeline.client.handle import NO_SLOT
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.receiver import Driver, EmbeddingReceiver
from embridge.pipeline.client.retrying import first_missing_block

ROOM_BITS: Final = 62
NO_ANSWER: Final = ItemShape(0, 0, 0, 0, 0)
_WIDTHS: Final = {code_of(dtype): size for dtype, size in DTYPE_BYTES.items()}


# the library thread looks at all fetches in the same turn
_LOOKED_AT: Final = Driver(lambda receiver: None, lambda receiver: False, lambda receiver: False)


class ItemReceiver(EmbeddingReceiver):
    """The request of one fetch."""

    may_end_here = False

    def __init__(
        self, library: Library, room: int, address: str, key: bytes, generation: int, total: int, first_block: int
    ) -> None:
        super().__init__(library, room, address, total, first_block)
        self._question = key, generation
        self.driver = _LOOKED_AT

    def prepare(self, slot: int, record: SlotRecord) -> None:
        super().prepare(slot, record)
        record.words[Slot.INIT_ASKED] = 1
        self._library.fetches.ask(slot, split(self._status.load(slot)).epoch + 1, *self._question)

    @property
    def shape(self) -> ItemShape:
        """What the encode node has answered; of 0 bytes: nothing yet."""
        return self._library.fetches.shape(self.slot) if self.slot != NO_SLOT else NO_ANSWER

    def has_risen(self) -> bool:
        """Not for `Client.poll`: the caller knows of no request."""
        return False

    def leave(self) -> None:
        """Need nothing of it any more (whoever has the turn of fetches)."""
        self.driver = None
        self.clear()


class CopiedRows:
    """The rows of an item that was fetched, in memory of this process; what a `Pin` says of one that is read in place.
    """

    def __init__(self, shape: ItemShape, take: Callable[[int], Bytes] = fresh_memory) -> None:
        """`take` gives memory of so many bytes. Raises MemoryError."""
        self.shape = shape
        self.number, self.rows, self.width, self.dtype, size = shape
        self.bytes = take(size)


class PartOfRows(NamedTuple):
    """What has come of an item whose fetch has failed: rows of the nodes' own, from the first on (R57)."""

    rows: CopiedRows
    tokens: int
    """How many of the nodes' own rows have come."""
    node: tuple[int, int]
    """Id and incarnation of the encode node whose item it is; no other one's are the same bytes (R58)."""


class FarFetch:
    """One fetch from a node on another host. Whoever has the turn of fetches calls a method."""

    def __init__(
        self,
        library: Library,
        address: str,
        key: bytes,
        generation: int,
        timeout_s: float,
        admit: Callable[[int], bool] | None = None,
        take: Callable[[int], Bytes] = fresh_memory,
        part: PartOfRows | None = None,
    ) -> None:
        """`admit` is asked whether there is memory for so many bytes, until it says so; then `take` gives it. `part`:
        what has come before; it goes on behind that, or fails as GENERATION_GONE.

        Raises NodeBusyError, NodeUnhealthyError, NodeGoneError, RuntimeError as `Client.receiver`."""
        self._library = library
        self._admit, self._take = admit, take
        self._control = library.attachment.control
        room = library.check_open(secrets.randbits(ROOM_BITS), Role.LANGUAGE, "fetch")
        geometry = library.attachment.geometry
        self._bs, self._row_bytes = geometry.block_size, geometry.embedding_bytes
        total = first_block = 0
        if part is not None:
            generation, total = part.rows.shape.number, -(-part.rows.shape.bytes // self._row_bytes)
            first_block = first_missing_block(part.tokens, total, self._bs)
        self._receiver = ItemReceiver(library, room, address, key, generation, total, first_block)
        library.open(self._receiver, timeout_s)
        self._begin = pools(geometry)[0].offset
        self._drained = first_block * self._bs
        self._before = part
        self._rows: CopiedRows | None = None
        self._node = (0, 0)
        self._is_stepping = False
        self._given_up: str | None = None
        self.waits_for_block = False
        """Whether it could use a block, and there is none."""

    @property
    def is_answered(self) -> bool:
        """Whether the encode node has said anything."""
        return self._rows is not None or bool(self._receiver.shape.bytes)

    @property
    def part(self) -> PartOfRows | None:
        """What has come, for a fetch that goes on behind it; None: not a whole block has."""
        if self._rows is None or self._drained < self._bs:
            return self._before
        return PartOfRows(self._rows, self._drained, self._node)

    def step(self) -> CopiedRows | tuple[int, str] | None:
        """Go on. Returns the rows; or the code of a failure, and why; None: it has not ended.

        After its end it is nobody's request any more. A signal handler may look in the midst of a step, and sees
        nothing.
        """
        if self._is_stepping:
            return None
        self._is_stepping = True
        try:
            return self._step()
        finally:
            self._is_stepping = False
            if self._given_up is not None:
                self.give_up(self._given_up)

    def _step(self) -> CopiedRows | tuple[int, str] | None:
        receiver = self._receiver
        self.waits_for_block = False
        now = receiver.progress()
        if now.phase == Phase.Failed:
            found = receiver.failure_exception()
            assert found is not None
            receiver.leave()
            return found.code, found.reason
        total = receiver.total_embedding_length
        if not total or (self._rows is None and not self._learn(total)):
            return None
        assert self._rows is not None
        if now.sent > self._drained:
            self._drain(self._rows, now.sent)
        if now.phase == Phase.Success:
            receiver.leave()
            return self._rows
        if receiver.granted_tokens < total:
            self._grant(total)
        return None

    def _learn(self, total: int) -> bool:
        """Take the memory for the rows, once it is known what they are. False: it is not, or cannot be right."""
        shape = self._receiver.shape
        if not shape.bytes:  # the length alone was announced
            return False
        size = shape.rows * shape.width * _WIDTHS.get(shape.dtype, 0)
        if not size or size != shape.bytes or total != -(-size // self._row_bytes):
            told = f"{shape.bytes} bytes of {shape.rows} x {shape.width} rows, in {total} tokens"
            self._receiver.fail(FailureCode.PROTOCOL, f"the encode node tells of {told}")
            return False
        peers, peer = self._control.peers, self._control.slots.get(self._receiver.slot, Slot.PEER) - 1
        self._node = peers.get(peer, Peer.NODE_ID), peers.get(peer, Peer.INCARNATION)
        if self._before is not None:
            self._go_on(self._before, shape)
            return self._rows is not None
        if self._admit is not None and not self._admit(size):
            return False
        try:
            self._rows = CopiedRows(shape, self._take)
        except MemoryError:
            self._receiver.fail(FailureCode.TOO_LARGE, f"{size} bytes: this process has no memory for them")
        return self._rows is not None

    def _go_on(self, part: PartOfRows, shape: ItemShape) -> None:
        """Have the rest written behind what has come before, if it is the rest of that (R57, R58)."""
        if (part.node, part.rows.shape) == (self._node, shape):
            self._rows, self._before = part.rows, None
        else:
            self._before = None
            self._receiver.fail(FailureCode.GENERATION_GONE, "what came before is of another item")

    def _drain(self, rows: CopiedRows, sent: int) -> None:
        """Copy out what has landed, and free the blocks behind it."""
        bs, row_bytes, receiver = self._bs, self._row_bytes, self._receiver
        there = np.frombuffer(self._library.attachment.payload, np.uint8)
        for k in range(self._drained // bs, -(-sent // bs)):
            low, high = max(self._drained, k * bs), min(sent, (k + 1) * bs)
            start, stop = low * row_bytes, min(high * row_bytes, len(rows.bytes))
            here = self._begin + (receiver.block_of(k) * bs + low - k * bs) * row_bytes
            rows.bytes[start:stop] = there[here : here + stop - start]
        self._drained = sent
        receiver.release_drained(sent)
        self._library.drained_ns = self._library.attachment.clock()

    def _grant(self, total: int) -> None:
        """Grant the blocks that the rest needs, as far as there are any: its rows can move at once (R21)."""
        receiver, bs = self._receiver, self._bs
        if not receiver.handshake_done:
            return
        granted = receiver.granted_blocks
        missing = -(-total // bs) - granted
        may_hold = min(receiver.max_window_blocks, max(self._control.blocks.num_blocks // 2, 1))
        want = min(missing, may_hold - (granted - receiver.drained_blocks))
        if want <= 0:
            return
        blocks: array[int] = receiver.take(want)
        self.waits_for_block = len(blocks) < want
        if blocks:
            after = min((granted + len(blocks)) * bs, total)
            receiver.grant(blocks.tolist(), after - granted * bs)

    def give_up(self, why: str) -> None:
        """End it here; its node does the rest. In the midst of a step, by a signal handler: behind that."""
        if self._is_stepping:
            self._given_up = why
            return
        self._receiver.fail(FailureCode.ABORTED, why)
        self._receiver.leave()
