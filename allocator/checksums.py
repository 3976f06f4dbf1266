"""Running checksums over the rows of a request.

Each (request, destination) has one running CRC-32C: first over `aux_datas`, then over the rows in order, all buffers of
a row together. So one word says all, `tokens:32 | checksum:32`: that of the first so many rows. It needs no table of
blocks, is absolute whatever rounds and attempts the rows came in, and goes on from any row in both nodes, wherever
their blocks are. A retry that begins at a later row begins with 0 there, on both sides: what came before was checked
with the encode node that is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embridge.allocator._core import Mapping, checksum
from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.geometry import AUX_WORDS, Geometry


class RowSum(NamedTuple):
    """The checksum of a request's first `tokens` rows; of none, 0."""

    tokens: int
    checksum: int

    def pack(self) -> int:
        return self.tokens << 32 | self.checksum

    @classmethod
    def of(cls, word: int) -> RowSum:
        return cls(word >> 32, word & 0xFFFF_FFFF)


class RowSums:
    """Computes running checksums over the blocks of one payload."""

    def __init__(self, payload: Mapping, geometry: Geometry) -> None:
        self._payload = payload
        self._geometry = geometry
        self._bs = geometry.block_size
        self._columns = np.array([(pool.offset, pool.row_bytes) for pool in pools(geometry)], np.int64)

    def extend(self, before: RowSum, end: int, blocks: list[int]) -> RowSum:
        """The checksum of rows [0, end), from that of the rows before and the blocks with rows [before.tokens, end).

        Raises:
            IndexError: a block is none of this payload.
        """
        first, value = before
        if first == 0 and end:
            value = checksum(
                self._payload, np.array([(aux_offset(self._geometry, blocks[0]), 4 * AUX_WORDS)], np.int64), 1, value
            )
        columns = self._columns.copy()
        for k, block in enumerate(blocks, first // self._bs):
            low, high = max(first, k * self._bs), min(end, (k + 1) * self._bs)
            columns[:, 0] = self._columns[:, 0] + (block * self._bs + low - k * self._bs) * self._columns[:, 1]
            value = checksum(self._payload, columns, high - low, value)
        return RowSum(end, value)
