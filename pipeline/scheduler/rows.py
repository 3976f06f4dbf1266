"""The rows of one request as tensors, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.geometry import DTYPE_BYTES, POSITION_AXES, Geometry

Bytes = npt.NDArray[np.uint8]

DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in DTYPE_BYTES}


class Rows(ABC):
    """The rows of each buffer, one behind the other from row 0, and `aux_datas`."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @property
    @abstractmethod
    def aux(self) -> npt.NDArray[np.int32]:
        """(16,) int32."""

    @abstractmethod
    def _view(self, name: str, first: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, end) of one buffer, flat."""

    def input_embeddings(self, first: int, end: int) -> torch.Tensor:
        """(end - first, hidden), the geometry's dtype."""
        g = self.geometry
        flat = self._view("input_embeddings", first, end, DTYPES[g.dtype])
        return flat.resize_(end - first, g.hidden_size)  # `view` would make one tensor more

    def deepstack_embeddings(self, first: int, end: int) -> torch.Tensor | None:
        """(end - first, D, hidden), or None."""
        g = self.geometry
        if not g.deepstack_layers:
            return None
        flat = self._view("deepstack_embeddings", first, end, DTYPES[g.dtype])
        return flat.view(end - first, g.deepstack_layers, g.hidden_size)

    def fill_ids(self, first: int, end: int) -> torch.Tensor | None:
        """(end - first,) int32, or None."""
        return self._view("fill_ids", first, end, torch.int32) if self.geometry.fill_ids else None

    def mrope_positions(self, first: int, end: int) -> torch.Tensor | None:
        """(end - first, 3) int32, or None."""
        if not self.geometry.mrope_positions:
            return None
        return self._view("mrope_positions", first, end, torch.int32).view(end - first, POSITION_AXES)
