"""The block pools of a payload segment as arrays, with no copy.

Every view keeps the mapping alive (numpy's and torch's do); once the mapping is closed there are no new views
(BufferError). The numpy arrays are bytes per token, which is all that moving rows needs. The torch views have the
model's dtype and are made on demand, so that a process that handles no tensor need import neither torch nor numpy.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from embridge.allocator._core import Mapping
from embridge.allocator.geometry import AUX_WORDS, DTYPE_BYTES, POSITION_AXES, Geometry
from embridge.allocator.layout import PayloadLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


class Pool(NamedTuple):
    """One per-token buffer of the payload: where it begins, and the bytes of one token's row."""

    name: str
    offset: int
    row_bytes: int


@lru_cache(maxsize=64)  # each write of rows asks, for a geometry that does not change
def pools(geometry: Geometry) -> tuple[Pool, ...]:
    """The per-token buffers of a payload segment that have bytes. `aux_datas` is per request and not among them."""
    at = PayloadLayout.of(geometry)
    every = [
        Pool("input_embeddings", at.embeddings, geometry.embedding_bytes),
        Pool("deepstack_embeddings", at.deepstack, geometry.deepstack_bytes),
        Pool("mrope_positions", at.positions, geometry.position_bytes),
        Pool("fill_ids", at.ids, geometry.id_bytes),
    ]
    return tuple(pool for pool in every if pool.row_bytes)


def aux_offset(geometry: Geometry, block: int) -> int:
    """Byte offset of one block's `aux_datas`."""
    return PayloadLayout.of(geometry).aux + block * 4 * AUX_WORDS


class PayloadBuffers:
    """The pools of one payload segment.

    `input_embeddings` (num_blocks, block_size, hidden) dtype; `deepstack_embeddings` (num_blocks, block_size, D,
    hidden) dtype, or None; `mrope_positions` (num_blocks, block_size, 3) int32; `fill_ids` (num_blocks, block_size)
    int32; `aux_datas` (num_blocks, 16) int32.
    """

    def __init__(self, mapping: Mapping, geometry: Geometry) -> None:
        self.mapping = mapping
        self.geometry = geometry
        self._at = PayloadLayout.of(geometry)
        if mapping.size < self._at.size:
            raise ValueError(f"payload segment: {mapping.size} bytes < {self._at.size} bytes of this geometry")

    def _array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        import numpy as np

        return np.frombuffer(self.mapping, dtype=dtype, count=prod(shape), offset=offset).reshape(shape)

    @property
    def fill_ids(self) -> npt.NDArray[np.int32]:
        g = self.geometry
        return self._array(self._at.ids, (g.num_blocks, g.block_size), "i4")

    @property
    def mrope_positions(self) -> npt.NDArray[np.int32]:
        g = self.geometry
        return self._array(self._at.positions, (g.num_blocks, g.block_size, POSITION_AXES), "i4")

    @property
    def aux_datas(self) -> npt.NDArray[np.int32]:
        return self._array(self._at.aux, (self.geometry.num_blocks, AUX_WORDS), "i4")

    @property
    def input_embeddings(self) -> torch.Tensor:
        g = self.geometry
        return self._tensor(self._at.embeddings, (g.num_blocks, g.block_size, g.hidden_size))

    @property
    def deepstack_embeddings(self) -> torch.Tensor | None:
        g = self.geometry
        if not g.deepstack_layers:
            return None
        return self._tensor(self._at.deepstack, (g.num_blocks, g.block_size, g.deepstack_layers, g.hidden_size))

    def _tensor(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        num_bytes = prod(shape) * DTYPE_BYTES[self.geometry.dtype]
        return as_tensor(self._array(offset, (num_bytes,), "u1"), self.geometry.dtype, shape)


def as_tensor(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A torch view of bytes; it keeps the array, and so the mapping under it."""
    import torch

    return torch.from_numpy(data).view(getattr(torch, dtype)).view(shape)
