"""Is a channel still of use after one of its two processes was killed?

SIGKILL at a random moment while records flow, to the producer or to the consumer; then a new process takes its place.
The channel is stuck when the two who live now pass fewer than 2000 records in 2 s. Every record of ours carries its
check; a record that does not fit it counts as torn.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from _harness import FORK, Benchmark, Missing, Results, need, shared

from embridge.allocator._core import (
    DOORBELL_BYTES,
    RECORD_BYTES,
    RING_HEADER_BYTES,
    Consumer,
    Doorbell,
    Producer,
    Words,
    format_ring,
)

CAPACITY, BATCH = 64, 32
MORE_RECORDS, STUCK_S = 2000, 2.0  # more than any of the channels holds
BELL = RING_HEADER_BYTES + CAPACITY * RECORD_BYTES
ROLES = ("producer", "consumer")
PASSED, TORN = 0, 1
MASK = (1 << 64) - 1

bench = Benchmark(__file__, __doc__, rounds=1)
dice = random.Random(int(os.environ.get("SEED", "1")))

Channel = tuple[Callable[[], None], Callable[[Words], None]]  # what the producer does for ever, and the consumer


def ours() -> Channel:
    mapping = shared(BELL + DOORBELL_BYTES)
    format_ring(mapping, 0, CAPACITY)

    def produce() -> None:
        producer, bell, number = Producer(mapping, 0), Doorbell(mapping, BELL), 0
        while True:
            number += 1
            if producer.push(number, number ^ MASK, number, number, number, number, number, number ^ MASK):
                bell.ring()

    def consume(counts: Words) -> None:
        consumer, bell = Consumer(mapping, 0), Doorbell(mapping, BELL)
        while True:
            consumer.wait(bell, 0.2)
            records = consumer.peek(BATCH)
            for number, *rest in records:
                if rest != [number ^ MASK, *[number] * 5, number ^ MASK]:
                    counts.add(TORN, 1)
            consumer.commit(len(records))
            counts.add(PASSED, len(records))

    return produce, consume


def over_queue(make: Callable[[], Any]) -> Channel:
    channel = make()

    def produce() -> None:
        while True:
            try:
                channel.put(b"r" * RECORD_BYTES)
            except queue.Full:
                continue

    def consume(counts: Words) -> None:
        while True:
            try:
                channel.get()
            except queue.Empty:
                continue
            counts.add(PASSED, 1)

    return produce, consume


def fifo() -> Any:
    need("faster_fifo")
    import faster_fifo

    return faster_fifo.Queue(max_size_bytes=20_000, loads=bytes, dumps=bytes)


def start(call: Callable[[], None]) -> Any:
    process = FORK.Process(target=call, daemon=True)
    process.start()
    return process


def passes(counts: Words, more: int) -> bool:
    """Whether `more` records pass from now on, in time."""
    goal, end = counts.load(PASSED) + more, time.monotonic() + STUCK_S
    while counts.load(PASSED) < goal:
        if time.monotonic() > end:
            return False
        time.sleep(1e-3)
    return True


def one_kill(make: Callable[[], Channel], role: str) -> tuple[bool, int]:
    """Whether the channel was stuck after the kill, and how many records were torn."""
    counts = Words(shared(4096), 0, 2)
    produce, consume = make()
    calls: dict[str, Callable[[], None]] = {"producer": produce, "consumer": partial(consume, counts)}
    processes = {name: start(call) for name, call in calls.items()}
    try:
        if not passes(counts, 100):
            raise RuntimeError("no records flow, although nobody was killed")
        time.sleep(dice.uniform(0, 10e-3))
        os.kill(processes[role].pid, signal.SIGKILL)
        processes[role].join()
        processes[role] = start(calls[role])
        return not passes(counts, MORE_RECORDS), counts.load(TORN)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def many_kills(make: Callable[[], Channel], role: str, most: int, limit_s: float) -> dict[str, float]:
    figures = {f"{role} killed": 0.0, f"stuck, {role}": 0.0, "torn": 0.0}
    end = time.monotonic() + limit_s
    while figures[f"{role} killed"] < most and time.monotonic() < end:
        stuck, torn = one_kill(make, role)
        figures[f"{role} killed"] += 1
        figures[f"stuck, {role}"] += stuck
        figures["torn"] += torn
    return figures


def main() -> None:
    num_ours, num_theirs, limit_s = (10, 3, 4.0) if bench.quick else (50, 12, 12.0)
    contenders: dict[str, tuple[Callable[[], Channel], int, float]] = {
        "embridge ring": (ours, num_ours, 60.0),
        "multiprocessing.Queue": (partial(over_queue, FORK.Queue), num_theirs, limit_s),
        "faster-fifo": (partial(over_queue, fifo), num_theirs, limit_s),
    }
    results = Results()
    for name, (make, most, limit) in contenders.items():
        try:
            by_role = [many_kills(make, role, most, limit) for role in ROLES]
        except Missing as reason:
            results.missing[name] = str(reason)
            continue
        results.figures[name] = [by_role[0] | by_role[1] | {"torn": by_role[0]["torn"] + by_role[1]["torn"]}]
    columns = ("producer killed", "stuck, producer", "consumer killed", "stuck, consumer")
    bench.show("SIGKILL at random moments, then a new process in its place", results, {name: name for name in columns})
    for role in ROLES:
        kills = results.median("embridge ring", f"{role} killed") or 0
        bench.at_most(
            f"stuck after {kills:.0f} kills of the {role}",
            results.median("embridge ring", f"stuck, {role}"),
            0,
            "rings",
        )
    bench.at_most("torn records", results.median("embridge ring", "torn"), 0, "records")
    bench.finish()


if __name__ == "__main__":
    main()
