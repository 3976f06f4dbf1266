"""What does a scheduler's look at 10 000 requests in flight cost, and raising the status of one?

`StatusTable.changed` takes dirty bits; beside it are a look at every word in C (`compare`, the slow and certain look),
numpy, and a loop in Python. Nothing changed, 1 % (scattered), all changed. `advance` is the raise of one status word
with its stamp and its dirty bits in two views; beside it is a `multiprocessing.Value` with its lock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter_ns

import numpy as np
from _harness import FORK, Benchmark, Case, Figures, percentile, shared

from embridge.allocator._core import StatusTable

IN_FLIGHT, PAGE = 10_000, 64
NUM_SLOTS = -(-IN_FLIGHT // PAGE) * PAGE
NUM_PAGES = NUM_SLOTS // PAGE
STAMPS, DIRTY, SIZE = NUM_SLOTS * 8, NUM_SLOTS * 48, NUM_SLOTS * 48 + NUM_PAGES * 16

bench = Benchmark(__file__, __doc__, rounds=10)
mapping = shared(-(-SIZE // 4096) * 4096)
table = StatusTable(mapping, 0, STAMPS, DIRTY, NUM_SLOTS, num_views=2)
words = np.frombuffer(mapping, np.uint64, IN_FLIGHT)
pages = np.arange(NUM_PAGES, dtype=np.uint32)
out = np.empty(NUM_SLOTS, np.uint32)
epochs = [table.open(slot, 1) for slot in range(NUM_SLOTS)]
sent = 0


def change(slots: list[int]) -> None:
    global sent
    sent += 1
    for slot in slots:
        assert table.advance(slot, epochs[slot], 1, sent, 1)


def look_with_bits() -> Callable[[], int]:
    return lambda: table.changed(0, pages, NUM_PAGES, out)


def look_at_words() -> Callable[[], int]:
    seen = np.zeros(NUM_SLOTS, np.uint64)
    return lambda: table.compare(pages, NUM_PAGES, seen, out)


def look_with_numpy() -> Callable[[], int]:
    seen = np.zeros(IN_FLIGHT, np.uint64)

    def look() -> int:
        differs = np.flatnonzero(words != seen)
        seen[differs] = words[differs]
        return len(differs)

    return look


def look_in_python() -> Callable[[], int]:
    view = memoryview(mapping).cast("Q")
    seen = [0] * IN_FLIGHT

    def look() -> int:
        count = 0
        for slot in range(IN_FLIGHT):
            word = view[slot]
            if word != seen[slot]:
                seen[slot] = word
                count += 1
        return count

    return look


def timed_look(make: Callable[[], Callable[[], int]], times: int) -> Figures:
    look = make()
    dice = random.Random(1)
    look()
    figures: Figures = {}
    for metric, num, repeat in (
        ("none", 0, times),
        ("few", IN_FLIGHT // 100, times),
        ("all", IN_FLIGHT, max(3, times // 20)),
    ):
        samples = []
        for _ in range(repeat):
            change(dice.sample(range(IN_FLIGHT), num))  # others each time, or the branches would be learnt by heart
            begun = perf_counter_ns()
            count = look()
            samples.append(perf_counter_ns() - begun)
            assert count == num, f"{count} found of {num}"
        figures[metric] = (percentile(samples, 50) - CLOCK_NS) / 1e3
    return figures


def timed_loop(steps: range, body: Callable[[range], None]) -> Figures:
    begun = perf_counter_ns()
    body(steps)
    return {"ns": (perf_counter_ns() - begun) / len(steps)}


def advance(times: int) -> Figures:
    global sent
    first, epoch, raise_status = sent + 1, epochs[0], table.advance
    sent += times

    def body(steps: range) -> None:
        for step in steps:
            raise_status(0, epoch, 2, step, 1)

    return timed_loop(range(first, first + times), body)


def locked_value(times: int) -> Figures:
    value = FORK.Value("Q", 0)

    def body(steps: range) -> None:
        for step in steps:
            with value.get_lock():
                if value.value < step:
                    value.value = step

    return timed_loop(range(times), body)


def empty_loop(times: int) -> Figures:
    def body(steps: range) -> None:
        for _ in steps:
            pass

    return timed_loop(range(times), body)


def clock_ns() -> float:
    stamps = [perf_counter_ns() for _ in range(10_000)]
    return percentile([b - a for a, b in pairwise(stamps)], 50)


CLOCK_NS = clock_ns()  # what reading the clock twice costs is taken off a look's time


def main() -> None:
    count = bench.scaled
    looks: dict[str, Case] = {
        "changed: dirty bits": lambda: timed_look(look_with_bits, count(400)),
        "compare: every word, in C": lambda: timed_look(look_at_words, count(400)),
        "numpy compare": lambda: timed_look(look_with_numpy, count(400)),
        "Python loop over a memoryview": lambda: timed_look(look_in_python, count(40)),
    }
    found = bench.interleave(looks)
    bench.show(
        "a look at 10 000 in flight, p50", found, {"none": "none changed, µs", "few": "1 %, µs", "all": "all, µs"}
    )
    raises: dict[str, Case] = {
        "advance: word, stamp, two dirty bits": lambda: advance(count(200_000)),
        "multiprocessing.Value with its lock": lambda: locked_value(count(100_000)),
        "(the empty loop, in both)": lambda: empty_loop(count(200_000)),
    }
    raised = bench.interleave(raises)
    bench.show("raise one status", raised, {"ns": "ns"})
    bits = "changed: dirty bits"
    bench.at_most("none of 10 000 changed", found.median(bits, "none"), 0.5, "µs")
    bench.at_most("1 % changed", found.median(bits, "few"), 3, "µs")
    bench.at_most("all changed", found.median(bits, "all"), 30, "µs")
    bench.at_most("advance", raised.median("advance: word, stamp, two dirty bits", "ns"), 150, "ns")
    bench.finish()


if __name__ == "__main__":
    main()
