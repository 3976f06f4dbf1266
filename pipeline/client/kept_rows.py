"""The rows of one request that its sender keeps in host memory, by block of the request: copies, or the caller's own.

The caller's thread adds rows at the end; the library thread stages them and frees them from the front. The library
thread reads a row only after `ready` has passed it, and the caller's thread raises `ready` last. So a piece may grow
while another part of it is read. The cost of what either thread does is the same however many rows and pieces there
are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from embridge.allocator._core import Mapping, copy
from embridge.allocator.buffers import Pool, pools
from embridge.allocator.geometry import Geometry
from embridge.allocator.layout import PAGE_BYTES
from embridge.pipeline.client.given_rows import Bytes, Chunk, address_of
from embridge.pipeline.client.unsent_memory import LEAST_WARM_BYTES, UnsentMemory

PIECE_BYTES: Final = 2 << 20  # a piece of its own over a network
Part = tuple[int, int, int]  # (source block, first row, end row), within one block of the request


@dataclass(slots=True, eq=False)
class Piece:
    """Rows [first, end) of one block of a request. Row r of a buffer begins at (r - origin) * row_bytes of its `data`.

    `memory` is our own, with room for rows up to `limit`; None if the rows were lent.
    """

    first: int
    end: int
    limit: int
    origin: int
    data: dict[str, Bytes]
    memory: Bytes | None = None


class KeptRows:
    """The rows that one sender keeps in host memory (see the module)."""

    def __init__(self, geometry: Geometry, unsent: UnsentMemory, total_tokens: int) -> None:
        self._bs = geometry.block_size
        self._geometry = geometry
        self._unsent = unsent
        self._total = total_tokens
        self._pieces: dict[int, list[Piece]] = {}  # by block of the request, in order
        self._first = 0  # the blocks before this one were freed
        self._tail: Piece | None = None  # the caller's thread: the last piece of our own memory

    @cached_property  # most senders keep nothing
    def _pools(self) -> tuple[Pool, ...]:
        return pools(self._geometry)

    @cached_property
    def _token_bytes(self) -> int:
        return self._geometry.token_bytes

    @cached_property
    def piece_blocks(self) -> int:
        """How many blocks are copied before the worker is told of them."""
        return max(1, PIECE_BYTES // (self._bs * self._token_bytes))

    def has(self, block: int) -> bool:
        """Whether rows of a block are kept.

        A block is placed as a whole or not at all, so then all given rows are kept.
        """
        return block in self._pieces

    def is_over(self, block: int) -> bool:
        """Whether the rows of a block are at every destination, and were freed."""
        return block < self._first

    # ---- the caller's thread

    def make_room(self, first: int, end: int, placed: Container[int], what: str) -> dict[int, Piece]:
        """Make pieces with room for rows [first, end), one for each of their blocks that is not `placed`.

        Raises:
            NodeBusyError: the rows do not fit into what is left of the node's limit.
            MemoryError: there is no memory.
        """
        bs, rooms = self._bs, {}
        fresh: list[Piece] = []
        for k in range(first // bs, -(-end // bs)):
            tail = self._tail
            if k in placed:
                continue
            if tail is not None and tail.end == first < tail.limit and tail.first // bs == k:
                rooms[k] = tail
                continue
            low, limit = max(first, k * bs), min((k + 1) * bs, self._total)
            rooms[k] = Piece(low, low, limit, low, {})
            fresh.append(rooms[k])
        size = sum(self._size(piece) for piece in fresh)
        if size:
            self._unsent.reserve(size, what)
        try:
            for piece in fresh:
                self._furnish(piece)
                size -= self._size(piece)
        except BaseException:
            self._unsent.forget(size)
            self.discard(rooms)
            raise
        return rooms

    def discard(self, rooms: dict[int, Piece]) -> None:
        """Give back the pieces of `make_room` into which nothing was put."""
        for piece in rooms.values():
            if piece.end == piece.first and piece.memory is not None:
                self._unsent.give_back(piece.memory)

    def put(self, chunk: Chunk, rooms: dict[int, Piece]) -> None:
        """Copy the rows of a chunk that belong into these pieces, and keep them."""
        bs = self._bs
        for k in range(chunk.first // bs, -(-chunk.end // bs)):
            piece = rooms.get(k)
            if piece is None:
                continue
            end = min(chunk.end, piece.limit)
            for pool in self._pools:
                size = pool.row_bytes
                move = ((piece.end - piece.origin) * size, (piece.end - chunk.first) * size, (end - piece.end) * size)
                copy(piece.data[pool.name], chunk.data[pool.name], np.array([move], np.int64), 1)
            if piece.end == piece.first:
                self._pieces.setdefault(k, []).append(piece)
            piece.end = end
            self._tail = piece

    def lend(self, chunk: Chunk) -> None:
        """Keep the caller's own rows, without a copy."""
        bs = self._bs
        for k in range(chunk.first // bs, -(-chunk.end // bs)):
            low, end = max(chunk.first, k * bs), min(chunk.end, (k + 1) * bs)
            self._pieces.setdefault(k, []).append(Piece(low, end, end, chunk.first, chunk.data))

    # ---- the library thread

    def stage(self, payload: Mapping, parts: list[Part]) -> None:
        """Copy rows into blocks of this node's payload."""
        bs = self._bs
        moves: dict[int, tuple[dict[str, Bytes], list[tuple[int, int, int]]]] = {}  # rows (at, from, count), by data
        for source, first, end in parts:
            for piece, row, high in self._pieces_of(first, end):
                found = moves.setdefault(id(piece.data), (piece.data, []))
                found[1].append((source * bs + row % bs, row - piece.origin, high - row))
        for data, rows in moves.values():
            array = np.array(rows, np.int64)
            for pool in self._pools:
                scaled = array * pool.row_bytes
                scaled[:, 0] += pool.offset
                copy(payload, data[pool.name], scaled, len(scaled))

    def spans(self, first: int, end: int) -> Iterator[int]:
        """Rows of one block of the request as they lie here, as `DirectWriter.write` takes them. They stay there until
        the block is let go of.
        """
        for piece, low, high in self._pieces_of(first, end):
            yield low
            yield high
            for pool in self._pools:
                yield address_of(piece.data[pool.name]) + (low - piece.origin) * pool.row_bytes

    def _pieces_of(self, first: int, end: int) -> Iterator[tuple[Piece, int, int]]:
        """Where rows of one block of the request are kept: the piece, its first row and its end row of them."""
        pieces = self._pieces[first // self._bs]
        at = bisect_right(pieces, first, key=_first) - 1
        while first < end:
            piece = pieces[at]
            high = min(end, piece.end)
            assert piece.first <= first < high, f"row {first} is kept nowhere"
            yield piece, first, high
            first, at = high, at + 1

    def bring_back(self, payload: Mapping, block: int, source: int, num_rows: int) -> None:
        """Copy the rows of a block that stand in a source block alone to host memory. Raises MemoryError."""
        low = block * self._bs
        piece = Piece(low, low + num_rows, low + num_rows, low, {})
        self._unsent.reserve_anyway(self._size(piece))
        try:
            self._furnish(piece)
        except BaseException:
            self._unsent.forget(self._size(piece))
            raise
        for pool in self._pools:
            move = (0, pool.offset + source * self._bs * pool.row_bytes, num_rows * pool.row_bytes)
            copy(piece.data[pool.name], payload, np.array([move], np.int64), 1)
        self._pieces[block] = [piece]

    def let_go(self, end: int) -> None:
        """Free the rows of blocks [0, end), which are at every destination."""
        while self._first < end:
            self._give_back(self._first)
            self._first += 1

    def _give_back(self, block: int) -> None:
        for piece in self._pieces.pop(block, ()):
            if piece.memory is not None:
                self._unsent.give_back(piece.memory)

    def clear(self) -> None:
        """Free all rows, because none is needed any more and none will be given."""
        self._tail = None
        for block in list(self._pieces):
            self._give_back(block)

    def _size(self, piece: Piece) -> int:
        size = (piece.limit - piece.origin) * self._token_bytes
        return -(-size // PAGE_BYTES) * PAGE_BYTES if size >= LEAST_WARM_BYTES else size

    def _furnish(self, piece: Piece) -> None:
        memory = piece.memory = self._unsent.take(self._size(piece))
        at, num_rows = 0, piece.limit - piece.origin
        for pool in self._pools:
            piece.data[pool.name] = memory[at : at + num_rows * pool.row_bytes]
            at += num_rows * pool.row_bytes


def _first(piece: Piece) -> int:
    return piece.first
