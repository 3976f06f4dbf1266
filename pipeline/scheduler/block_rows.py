"""A request's rows in the blocks in which they have landed; what a result is that is lent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.buffers import Pool, aux_offset
from embridge.allocator.geometry import AUX_WORDS, Geometry
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.rows import DTYPES, Rows


class BlockRows(Rows):
    """The rows of one request in the blocks in which they have landed, which are one run from `first_block` on."""

    def __init__(
        self,
        geometry: Geometry,
        memory: memoryview,
        receiver: EmbeddingReceiver,
        first_block: int,
        num_blocks: int,
        places: Mapping[str, Pool],
    ) -> None:
        """`memory`: of the payload, which stays mapped for as long as somebody has these rows; `places`: its buffers by
        name.
        """
        self.geometry = geometry
        self._places = places
        self._memory = memory
        self.first_block = first_block
        self.num_blocks = num_blocks
        self._receiver = receiver
        self._ahead: torch.Tensor | None = None
        self._num_ahead = 0  # rows of it
        self._is_inference = False  # what it was made in
        self.claims = [None]

    def make_ahead(self, expected: int) -> None:
        """Make the tensor of the embeddings before they are there, for whoever asks for all of them first: with cold
        caches that takes as long as the copy of a small request. `expected`: how many rows, where they end in the last
        block.
        """
        most = self.num_blocks * self.geometry.block_size
        self._num_ahead = expected if most - self.geometry.block_size < expected <= most else most
        self._is_inference = torch.is_inference_mode_enabled()
        flat = self._view("input_embeddings", 0, most, DTYPES[self.geometry.dtype])
        self._ahead = flat.resize_(self._num_ahead, self.geometry.hidden_size)

    def input_embeddings(self, first: int, end: int) -> torch.Tensor:
        made, self._ahead = self._ahead, None
        if made is None or first or (self._is_inference and not torch.is_inference_mode_enabled()):
            return super().input_embeddings(first, end)
        return made if end == self._num_ahead else made.resize_(end, self.geometry.hidden_size)

    @property
    def aux(self) -> npt.NDArray[np.int32]:
        return np.frombuffer(self._memory, np.int32, AUX_WORDS, aux_offset(self.geometry, self.first_block))

    def _view(self, name: str, first: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        _, offset, row_bytes = self._places[name]
        begin = offset + (self.first_block * self.geometry.block_size + first) * row_bytes
        count = (end - first) * row_bytes // dtype.itemsize
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=begin)

    def claim(self) -> bool:
        """Be the one who gives the blocks back, or takes the rows out of them (any thread). False: somebody else is."""
        try:
            self.claims.pop()
        except IndexError:
            return False
        return True

    def unclaim(self) -> None:
        """Leave that to others again."""
        self.claims.append(None)

    def give_back(self) -> None:
        """Free the blocks and the slot, or have the library thread do so in its next turn (any thread)."""
        if not self.claim():
            return
        receiver = self._receiver
        receiver.num_returned += self.num_blocks  # they count as lent until it leaves
        try:
            receiver.clear()
        except RuntimeError:  # the client has left its node, and all that it held went back with its lane
            return
