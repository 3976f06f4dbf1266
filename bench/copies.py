"""How fast are bytes copied from one shared-memory segment to another?

Cold: pieces of 64 KiB to 64 MiB in scattered order, out of segments far larger than the cache. Hot: the same small
piece again and again. The peer is numpy's copyto, which is memcpy; the floors are memcpy and the non-temporal copy in
C, with one thread and two.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter_ns

import numpy as np
from _harness import Benchmark, Case, Figures, shared
from _native import native

from embridge.allocator._core import NON_TEMPORAL_BYTES, copy

KIB, MIB = 1 << 10, 1 << 20
COLD = {"64 KiB": 64 * KIB, "1 MiB": MIB, "8 MiB": 8 * MIB, "64 MiB": 64 * MIB}
HOT = {"4 KiB": 4 * KIB, "64 KiB": 64 * KIB, "128 KiB": 128 * KIB, "1 MiB": MIB}
SEGMENT = 256 * MIB
STRIDE = 7919  # a prime: the order in which pieces are visited

bench = Benchmark(__file__, __doc__)
to, source = shared(SEGMENT), shared(SEGMENT)
to_bytes, source_bytes = np.frombuffer(to, np.uint8), np.frombuffer(source, np.uint8)


def scattered(size: int) -> list[int]:
    num = SEGMENT // size
    return [i * STRIDE % num * size for i in range(num)]


def gb_per_s(size: int, times: int, begun_ns: int) -> float:
    return size * times / (perf_counter_ns() - begun_ns)


def ours_cold() -> Figures:
    figures = {}
    for name, size in COLD.items():
        moves = [np.array([at, at, size], np.int64) for at in scattered(size)]
        begun = perf_counter_ns()
        for move in moves:
            copy(to, source, move, 1)
        figures[name] = gb_per_s(size, len(moves), begun)
    return figures


def numpy_cold() -> Figures:
    figures = {}
    for name, size in COLD.items():
        pairs = [(to_bytes[at : at + size], source_bytes[at : at + size]) for at in scattered(size)]
        begun = perf_counter_ns()
        for there, here in pairs:
            np.copyto(there, here)
        figures[name] = gb_per_s(size, len(pairs), begun)
    return figures


def native_cold(how: str) -> Figures:
    rates = native("copy", how, SEGMENT, *COLD.values())
    return {name: rates[str(size)] for name, size in COLD.items()}


def ours_hot(total: int) -> Figures:
    figures = {}
    for name, size in HOT.items():
        move, times = np.array([0, 0, size], np.int64), total // size
        copy(to, source, move, 1)
        begun = perf_counter_ns()
        for _ in range(times):
            copy(to, source, move, 1)
        figures[name] = gb_per_s(size, times, begun)
    return figures


def numpy_hot(total: int) -> Figures:
    figures = {}
    for name, size in HOT.items():
        there, here, times = to_bytes[:size], source_bytes[:size], total // size
        np.copyto(there, here)
        begun = perf_counter_ns()
        for _ in range(times):
            np.copyto(there, here)
        figures[name] = gb_per_s(size, times, begun)
    return figures


def main() -> None:
    source_bytes[:] = 1
    cold: dict[str, Case] = {
        "C, memcpy": partial(native_cold, "memcpy"),
        "C, past the cache, one thread": partial(native_cold, "past_cache"),
        "C, past the cache, two threads": partial(native_cold, "past_cache_2"),
        "embridge": ours_cold,
        "numpy copyto": numpy_cold,
    }
    results = bench.interleave(cold)
    bench.show("cold, GB/s", results, {name: name for name in COLD})
    total = bench.scaled(512 * MIB)
    warm = bench.interleave({"embridge": partial(ours_hot, total), "numpy copyto": partial(numpy_hot, total)})
    bench.show("hot, GB/s", warm, {name: name for name in HOT})
    for name, size in COLD.items():
        if size >= MIB:
            bench.at_least(f"cold, {name}, against numpy", results.ratio(name, "embridge", "numpy copyto"), 1.9)
    for name, size in HOT.items():
        if size < NON_TEMPORAL_BYTES:
            bench.at_least(f"hot, {name}, against numpy", warm.ratio(name, "embridge", "numpy copyto"), 0.95)
    bench.finish()


if __name__ == "__main__":
    main()
