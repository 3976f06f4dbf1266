"""What a worker reads of each step, and says that it has."""

from __future__ import annotations

import torch

from embridge import StepLoads
from embridge.pipeline.client.cache_memory import CacheMemory
from embridge.pipeline.client.step_reader import StepReader


def test_a_step_is_read_but_for_what_is_there_and_told_of_once() -> None:
    """R70."""
    memory, reader = CacheMemory(1 << 16), StepReader()
    taken = {name: memory.take(64) for name in "ab"}
    for name, rows in taken.items():
        rows[:] = ord(name)
    places = {name: memory.where(rows, (2, 32), "uint8") for name, rows in taken.items()}
    here = {"b": torch.zeros(1)}
    reader.load_step(StepLoads(3, places, is_owed=True), here, "cpu")
    assert torch.equal(here["a"], torch.full((2, 32), ord("a"), dtype=torch.uint8))
    assert torch.equal(here["b"], torch.zeros(1))
    assert (reader.take_done(), reader.take_done()) == (3, 0)
    taken["a"][:] = 0
    assert here["a"][0, 0] == ord("a")  # a copy
    reader.load_step(StepLoads(4, {}, is_owed=False), here, "cpu")
    assert reader.take_done() == 0
    reader.load_step(StepLoads(5, {}, is_owed=True), here, "cpu")  # of a step before
    assert reader.take_done() == 5
