"""Running checksums over the rows of a request.

Each (request, destination) has one running CRC-32C: first over `aux_datas`, then over the rows in order, all buffers of
a row together. So one word, `tokens:32 | checksum:32`, says all: the checksum of the first `tokens` rows. It needs no
table of blocks, is absolute whatever rounds and attempts the rows came in, and goes on from any row in both nodes,
wherever their blocks are. A retry that begins at a later row begins with 0 there, on both sides, because the rows
before it were checked with the encode node that is lost.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from embridge.allocator._core import Mapping, checksum
from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.geometry import AUX_WORDS, Geometry


class RowSum(NamedTuple):
    """The checksum of a request's first `tokens` rows; 0 for no rows."""

    tokens: int
    checksum: int

    def pack(self) -> int:
        return self.tokens << 32 | self.checksum

    @classmethod
    def of(cls, word: int) -> RowSum:
        return cls(word >> 32, word & 0xFFFF_FFFF)


class RowSums:
    """Computes running checksums over the blocks of one payload."""

    def __init__(self, payload: Mapping, geometry: Geometry, shelf: Mapping | None = None) -> None:
        """`shelf`: the rows of published items, on a node that has them."""
        self._payload = payload
        self._shelf = shelf
        self._geometry = geometry
        self._bs = geometry.block_size
        self._columns = [(pool.offset, pool.row_bytes) for pool in pools(geometry)]

    def extend(self, before: RowSum, end: int, blocks: list[int]) -> RowSum:
        """The checksum of rows [0, end).

        `before` is the one of the rows so far, and `blocks` hold rows [before.tokens, end).

        Raises:
            IndexError: a block is none of this payload.
        """
        first, value = before
        if first == 0 and end:
            aux = array("q", [aux_offset(self._geometry, blocks[0]), 4 * AUX_WORDS])
            value = checksum(self._payload, aux, 1, value)
        for k, block in enumerate(blocks, first // self._bs):
            low, high = max(first, k * self._bs), min(end, (k + 1) * self._bs)
            row = block * self._bs + low - k * self._bs
            columns = array("q", [word for offset, size in self._columns for word in (offset + row * size, size)])
            value = checksum(self._payload, columns, high - low, value)
        return RowSum(end, value)

    # ---- fetches: of the bytes of one item, without `aux_datas`, ids and positions

    def extend_item(self, before: RowSum, end: int, blocks: list[int], num_bytes: int) -> RowSum:
        """As `extend`, of a fetch of an item of so many bytes, which are fewer than its last row has room for.

        Raises:
            IndexError: a block is none of this payload.
        """
        first, value = before
        base, row_bytes = self._columns[0]
        for k, block in enumerate(blocks, first // self._bs):
            low, high = max(first, k * self._bs), min(end, (k + 1) * self._bs)
            at = base + (block * self._bs + low - k * self._bs) * row_bytes
            value = self._run(self._payload, at, low, high, num_bytes, value)
        return RowSum(end, value)

    def extend_on_shelf(self, before: RowSum, end: int, begin: int, num_bytes: int) -> RowSum:
        """The same, of an item that begins at this byte of the shelf."""
        assert self._shelf is not None
        first, value = before
        at = begin + first * self._columns[0][1]
        return RowSum(end, self._run(self._shelf, at, first, end, num_bytes, value))

    def _run(self, memory: Mapping, at: int, low: int, high: int, num_bytes: int, value: int) -> int:
        """Go on over rows [low, high), which begin there."""
        row_bytes = self._columns[0][1]
        size = min(high * row_bytes, num_bytes) - low * row_bytes
        return checksum(memory, array("q", [at, size]), 1, value)
