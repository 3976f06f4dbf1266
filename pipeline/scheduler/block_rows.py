"""A request's rows in the blocks in which they have landed; what a result is that is lent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator._core import track, untrack
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
        self.ahead: torch.Tensor | None = None
        """The embeddings, which were made before they were there, until somebody has them."""
        self._num_ahead = 0  # rows of it; torch itself would be asked with cold caches
        self.claims = [None]

    def make_ahead(self, expected: int) -> None:
        """Make the tensor of the embeddings before they are there: with cold caches that takes as long as the copy of a
        small request. `expected`: how many rows, where they end in the last block.
        """
        most = self.num_blocks * self.geometry.block_size
        self._num_ahead = count = expected if most - self.geometry.block_size < expected <= most else most
        with torch.inference_mode(False):  # whoever asks for it may be outside of it
            flat = self._view("input_embeddings", 0, most, DTYPES[self.geometry.dtype])
            self.ahead = flat.resize_(count, self.geometry.hidden_size)
        untrack(self, flat)

    def take_ahead(self, total: int) -> torch.Tensor | None:
        """(total, hidden), if it was made ahead; once."""
        made, self.ahead = self.ahead, None
        if made is None:
            return None
        track(made)
        return made if self._num_ahead == total else made.resize_(total, self.geometry.hidden_size)

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
