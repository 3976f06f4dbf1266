"""What does it cost to take blocks that have an owner, and to give them back, while another process does the same?

1, 8 and 64 of 65 536 blocks, two processes, p50 of acquire and release together. The peer is a free list in shared
memory under a `multiprocessing.Lock`; the floors are the same cells in C, and in C a bitmap that keeps no owner. Then:
how many grants of 64 blocks come as one run of neighbours, after churn in mixed sizes at 80 % use?
"""

from __future__ import annotations

import random
from functools import partial
from time import monotonic_ns
from typing import Any

import numpy as np
from _harness import FORK, Benchmark, Case, Figures, Start, quantiles_between, shared, together
from _native import native

from embridge.allocator._core import BlockCells

NUM_BLOCKS = 65_536
COUNTS = (1, 8, 64)
GOALS_US = {1: 0.5, 8: 1.0, 64: 3.0}

bench = Benchmark(__file__, __doc__)


def contend(call: Any) -> Figures:
    """Both processes take and give back at the same time; the figures of the first."""
    quantiles: Figures = together(partial(call, 0), partial(call, 1), pinned=True)[0]
    return quantiles


def owned(num: int, count: int) -> Figures:
    mapping = shared(16 * NUM_BLOCKS)

    def run(process: int, start: Start) -> Figures:
        cells = BlockCells(mapping, 0, 8 * NUM_BLOCKS, NUM_BLOCKS)
        acquire, release, indices = cells.acquire, cells.release, np.empty(count, np.uint32)
        stamps = [0] * num
        start()
        for i in range(num):
            stamps[i] = monotonic_ns()
            taken = acquire(process, 1, count, 0, indices, 0)
            release(indices, 0, taken, process, 1)
        start()  # the other is not left without its rival
        assert not process or cells.counts()[0] == NUM_BLOCKS
        return quantiles_between(stamps)

    return contend(run)


def locked_list(num: int, count: int) -> Figures:
    mapping, lock = shared(4 * NUM_BLOCKS + 4096), FORK.Lock()
    free = memoryview(mapping).cast("I")
    free[0] = NUM_BLOCKS
    for index in range(NUM_BLOCKS):
        free[1 + index] = index

    def run(process: int, start: Start) -> Figures:
        stamps = [0] * num
        start()
        for i in range(num):
            stamps[i] = monotonic_ns()
            with lock:
                top = free[0]
                taken = free[1 + top - count : 1 + top].tolist()
                free[0] = top - count
            with lock:
                top = free[0]
                for position, index in enumerate(taken, 1 + top):
                    free[position] = index
                free[0] = top + count
        start()
        return quantiles_between(stamps)

    return contend(run)


class Cells:
    """The blocks under test, as a pool of lists."""

    def __init__(self) -> None:
        self._cells = BlockCells(shared(16 * NUM_BLOCKS), 0, 8 * NUM_BLOCKS, NUM_BLOCKS)

    def take(self, want: int) -> np.ndarray[Any, Any]:
        indices = np.empty(want, np.uint32)
        return indices[: self._cells.acquire(1, 1, want, 0, indices, 0)]

    def give(self, indices: np.ndarray[Any, Any]) -> None:
        assert self._cells.release(indices, 0, len(indices), 1, 1) == len(indices)


class Stack:
    """The usual free list: what was freed last goes first."""

    def __init__(self) -> None:
        self._free = list(range(NUM_BLOCKS - 1, -1, -1))

    def take(self, want: int) -> np.ndarray[Any, Any]:
        taken = self._free[-want:][::-1]
        del self._free[-want:]
        return np.array(taken, np.uint32)

    def give(self, indices: np.ndarray[Any, Any]) -> None:
        self._free += indices[::-1].tolist()


def churn(make: type[Cells] | type[Stack], steps: int, sizes: tuple[int, ...]) -> Figures:
    """Requests of mixed sizes come and go in random order, with four fifths of the blocks in use; every 64 of them are
    watched.
    """
    pool, dice, held = make(), random.Random(7), []
    used = grants = one_run = 0
    for step in range(steps):
        while used > NUM_BLOCKS * 0.8:
            place = dice.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            used -= len(held[-1])
            pool.give(held.pop())
        taken = pool.take(dice.choice(sizes))
        held.append(taken)
        used += len(taken)
        if step > steps // 2 and len(taken) == 64:
            grants += 1
            one_run += int(taken[-1]) - int(taken[0]) == 63 and bool(np.all(np.diff(taken.astype(np.int64)) == 1))
    return {"runs": 100 * one_run / grants}


def main() -> None:
    count = bench.scaled
    for want in COUNTS:
        cases: dict[str, Case] = {
            "C, a bitmap without owners": partial(native, "blocks", "bitmap", count(200_000), want),
            "C, owner cells": partial(native, "blocks", "cells", count(200_000), want),
            "embridge, owner cells": partial(owned, count(100_000 // max(1, want // 8)), want),
            "Python free list under a multiprocessing.Lock": partial(locked_list, count(10_000), want),
        }
        results = bench.interleave(cases)
        title = f"acquire and release {want} of {NUM_BLOCKS} blocks, two processes contending"
        bench.show(title, results, {"p50": "p50, µs", "p99": "p99, µs"})
        text = f"acquire and release {want} block{'s' * (want > 1)}, p50"
        bench.at_most(text, results.median("embridge, owner cells", "p50"), GOALS_US[want], "µs")
    mixed, steps = (1, 2, 4, 8, 16, 32, 64), count(40_000)
    runs = bench.interleave(
        {"owner cells": partial(churn, Cells, steps, mixed), "a stack": partial(churn, Stack, steps, mixed)}, rounds=1
    )
    bench.show("grants of 64 that came as one run, 1 to 64 blocks a request, 80 % in use", runs, {"runs": "%"})
    bench.at_least("grants of 64 blocks as one run after churn", runs.median("owner cells", "runs"), 95, "%")
    bench.finish()


if __name__ == "__main__":
    main()
