"""A worker's side of what the scheduler of its engine tells of each step (`RequestItems.tell`)."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from embridge.pipeline.client.cache_memory import CacheReader
from embridge.pipeline.client.request_items import StepLoads

if TYPE_CHECKING:
    import torch


class StepReader(CacheReader):
    """A `CacheReader` that knows which step it has read last. One thread at a time calls it."""

    def __init__(self) -> None:
        super().__init__()
        self._done = 0

    def load_step(self, told: StepLoads, into: MutableMapping[str, torch.Tensor], device: str) -> None:
        """Load the items of a step, under their names, but for those that are there; complete on return.

        Raises as `CacheReader.load`.
        """
        for name, at in told.rows.items():
            if name not in into:
                into[name] = self.load(at, device)
        if told.is_owed:
            self._done = told.step

    def take_done(self) -> int:
        """The step for `RequestItems.has_read`, once all workers are past it. 0: nothing is owed since the last one."""
        done, self._done = self._done, 0
        return done
