"""How long until a process that waits for a record has it?

Round trip between two processes that both sleep on a futex; the floor is two C programs that do nothing else. Then
sparse traffic, a record a millisecond, while two busy processes take all the time they can get: one way, p50, for each
manner of waiting.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Any

from _harness import FORK, Benchmark, Case, Figures, Start, quantiles, quantiles_between, shared, together
from _native import native

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

CAPACITY = 64
BELL = RING_HEADER_BYTES + CAPACITY * RECORD_BYTES
END_BYTES = BELL + DOORBELL_BYTES
NUM_BUSY = 2
TIMEOUT_S = 0.2

bench = Benchmark(__file__, __doc__)

Wait = Callable[[Consumer, Doorbell], None]


def sleeping(spin_s: float) -> Wait:
    def wait(consumer: Consumer, bell: Doorbell) -> None:
        while not consumer.wait(bell, TIMEOUT_S, spin_s):
            pass

    return wait


def spinning(consumer: Consumer, bell: Doorbell) -> None:
    while not consumer.pending():
        pass


def yielding(consumer: Consumer, bell: Doorbell) -> None:
    while not consumer.pending():
        os.sched_yield()


def round_trip(num: int, wait: Wait) -> Figures:
    mapping = shared(2 * END_BYTES)
    for offset in (0, END_BYTES):
        format_ring(mapping, offset, CAPACITY)

    def end(asks: bool, start: Start) -> list[int]:
        to, back = (0, END_BYTES) if asks else (END_BYTES, 0)
        producer, consumer = Producer(mapping, to), Consumer(mapping, back)
        ring, bell = Doorbell(mapping, to + BELL).ring, Doorbell(mapping, back + BELL)
        stamps = []
        start()
        for _ in range(num):
            if asks:
                stamps.append(monotonic_ns())
                producer.push(1)
                ring()
            wait(consumer, bell)
            consumer.commit(1)
            if not asks:
                producer.push(1)
                ring()
        return stamps

    return quantiles_between(together(partial(end, True), partial(end, False))[0])


def queue_round_trip(num: int, make: Callable[[], Any]) -> Figures:
    there, back = make(), make()

    def ask(start: Start) -> list[int]:
        stamps = []
        start()
        for _ in range(num):
            stamps.append(monotonic_ns())
            there.put(1)
            back.get()
        return stamps

    def answer(start: Start) -> None:
        start()
        for _ in range(num):
            back.put(there.get())

    return quantiles_between(together(ask, answer)[0])


def beside_busy_neighbours(send: Callable[[Start], None], receive: Callable[[Start], list[int]]) -> Figures:
    """`receive` returns how long each record was under way, in ns."""
    stop = Words(shared(4096), 0, 1)

    def neighbour(start: Start) -> None:
        start()
        while not stop.load(0):
            pass

    def receive_then_stop(start: Start) -> list[int]:
        try:
            return receive(start)
        finally:
            stop.store(0, 1)

    return quantiles(together(receive_then_stop, send, *[neighbour] * NUM_BUSY)[0])


def sparse(num: int, wait: Wait) -> Figures:
    mapping = shared(END_BYTES)
    format_ring(mapping, 0, CAPACITY)

    def send(start: Start) -> None:
        producer, ring = Producer(mapping, 0), Doorbell(mapping, BELL).ring
        start()
        for _ in range(num):
            time.sleep(1e-3)
            producer.push(monotonic_ns())
            ring()

    def receive(start: Start) -> list[int]:
        consumer, bell = Consumer(mapping, 0), Doorbell(mapping, BELL)
        times: list[int] = []
        start()
        while len(times) < num:
            wait(consumer, bell)
            now = monotonic_ns()
            records = consumer.peek(CAPACITY)
            times += [now - sent for sent, *_ in records]
            consumer.commit(len(records))
        return times

    return beside_busy_neighbours(send, receive)


def sparse_queue(num: int, make: Callable[[], Any]) -> Figures:
    channel = make()

    def send(start: Start) -> None:
        start()
        for _ in range(num):
            time.sleep(1e-3)
            channel.put(monotonic_ns())

    def receive(start: Start) -> list[int]:
        start()
        return [-(channel.get() - monotonic_ns()) for _ in range(num)]

    return beside_busy_neighbours(send, receive)


def main() -> None:
    count = bench.scaled
    asleep: dict[str, Case] = {
        "C, futex": lambda: native("wake", count(4_000)),
        "embridge, futex only": lambda: round_trip(count(4_000), sleeping(0.0)),
        "embridge, spin 20 µs, then futex": lambda: round_trip(count(20_000), sleeping(20e-6)),
        "multiprocessing.SimpleQueue": lambda: queue_round_trip(count(2_000), FORK.SimpleQueue),
        "multiprocessing.Queue": lambda: queue_round_trip(count(2_000), FORK.Queue),
    }
    trips = bench.interleave(asleep)
    bench.show("round trip, the machine otherwise idle", trips, {"p50": "p50, µs", "p99": "p99, µs"})
    busy: dict[str, Case] = {
        "embridge, spin 20 µs, then futex": lambda: sparse(count(300), sleeping(20e-6)),
        "embridge, futex only": lambda: sparse(count(300), sleeping(0.0)),
        "embridge, spin for ever": lambda: sparse(count(300), spinning),
        "embridge, sched_yield loop": lambda: sparse(count(300), yielding),
        "multiprocessing.SimpleQueue": lambda: sparse_queue(count(300), FORK.SimpleQueue),
        "multiprocessing.Queue": lambda: sparse_queue(count(300), FORK.Queue),
    }
    ways = bench.interleave(busy)
    bench.show(
        f"one way, a record a millisecond, {NUM_BUSY} busy neighbours", ways, {"p50": "p50, µs", "p99": "p99, µs"}
    )
    bench.at_most("a sleeping peer woken, p50 over C's", trips.ratio("p50", "embridge, futex only", "C, futex"), 1.2)
    bench.at_most(
        "sparse traffic beside busy neighbours, p50", ways.median("embridge, spin 20 µs, then futex", "p50"), 25, "µs"
    )
    bench.finish()


if __name__ == "__main__":
    main()
