"""How fast do 64-byte records pass from one process to another, one producer and one consumer?

One way: million messages a second. Ours pushed one at a time while the reader takes what is there, as a node's
processes do; one at a time at both ends, as most of the peers; and in batches of 32. Round trip: one record there and
one back, both ends spinning, p50 and p99 of single trips. The floors are two C processes over the same ring, and one
cache line that two C processes write in turns.
"""

from __future__ import annotations

import ctypes
import os
import queue
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from time import monotonic_ns
from typing import Any

from _harness import FORK, Benchmark, Case, Figures, Start, need, quantiles_between, shared, together
from _native import native

from embridge.allocator._core import RECORD_BYTES, RING_HEADER_BYTES, Consumer, Producer, format_ring

CAPACITY, BATCH = 1024, 32
RING_BYTES = RING_HEADER_BYTES + CAPACITY * RECORD_BYTES
RECORD = bytes(range(RECORD_BYTES))

bench = Benchmark(__file__, __doc__)


def timed(num: int, send: Callable[[Start], int], receive: Callable[[Start], int], *, spins: bool = False) -> Figures:
    """Both return a time: of the first message's departure, of the last one's arrival.

    Those who spin are pinned, as in C.
    """
    begun_ns, ended_ns = together(send, receive, pinned=spins)
    return {"rate": num / (ended_ns - begun_ns) * 1e3}


# ---- ours


def ring_pair() -> tuple[Producer, Consumer, Producer, Consumer]:
    mapping = shared(2 * RING_BYTES)
    for offset in (0, RING_BYTES):
        format_ring(mapping, offset, CAPACITY)
    return Producer(mapping, 0), Consumer(mapping, 0), Producer(mapping, RING_BYTES), Consumer(mapping, RING_BYTES)


def ours_pushed_one_at_a_time(num: int, most: int) -> Figures:
    """The reader takes up to `most` at a time."""
    producer, consumer, *_ = ring_pair()

    def send(start: Start) -> int:
        push, record = producer.push_bytes, RECORD
        start()
        begun = monotonic_ns()
        for _ in range(num):
            while not push(record):
                pass
        return begun

    return timed(num, send, partial(read, consumer, num, most), spins=True)


def read(consumer: Consumer, num: int, most: int, start: Start) -> int:
    peek, commit, left = consumer.peek_bytes, consumer.commit, num
    start()
    while left:
        records = peek(most)
        if records:
            count = len(records) // RECORD_BYTES
            commit(count)
            left -= count
    return monotonic_ns()


def ours_words(num: int) -> Figures:
    producer, consumer, *_ = ring_pair()

    def send(start: Start) -> int:
        push = producer.push
        start()
        begun = monotonic_ns()
        for i in range(num):
            while not push(1, 2, 3, i, 5, 6, 7, 8):
                pass
        return begun

    def receive(start: Start) -> int:
        peek, commit, left = consumer.peek, consumer.commit, num
        start()
        while left:
            records = peek(BATCH)
            if records:
                commit(len(records))
                left -= len(records)
        return monotonic_ns()

    return timed(num, send, receive, spins=True)


def ours_batches(num: int) -> Figures:
    producer, consumer, *_ = ring_pair()

    def send(start: Start) -> int:
        push, batch, left = producer.push_bytes, RECORD * BATCH, num
        start()
        begun = monotonic_ns()
        while left >= BATCH:
            left -= push(batch)
        while left:
            left -= push(batch[: left * RECORD_BYTES])
        return begun

    return timed(num, send, partial(read, consumer, num, BATCH), spins=True)


def ours_round_trip(num: int) -> Figures:
    there_in, there_out, back_in, back_out = ring_pair()

    def ask(start: Start) -> list[int]:
        push, peek, commit, record = there_in.push_bytes, back_out.peek_bytes, back_out.commit, RECORD
        stamps = [0] * num
        start()
        for i in range(num):
            stamps[i] = monotonic_ns()
            push(record)
            while not peek(1):
                pass
            commit(1)
        return stamps

    def answer(start: Start) -> None:
        push, peek, commit, record = back_in.push_bytes, there_out.peek_bytes, there_out.commit, RECORD
        start()
        for _ in range(num):
            while not peek(1):
                pass
            push(record)  # a record is consumed when its work is done
            commit(1)

    return quantiles_between(together(ask, answer, pinned=True)[0])


# ---- peers: functions that make (send, receive) in the process that uses them

Ends = Callable[[], tuple[Callable[[], None], Callable[[], None]]]


def over_queue(num: int, make: Callable[[], Any]) -> Figures:
    channel = make()

    def send(start: Start) -> int:
        put = channel.put
        put(RECORD)  # starts what has to be started
        start()
        begun = monotonic_ns()
        for _ in range(num):
            put(RECORD)
        return begun

    def receive(start: Start) -> int:
        get = channel.get
        get()
        start()
        for _ in range(num):
            get()
        return monotonic_ns()

    return timed(num, send, receive)


def queue_round_trip(num: int, make: Callable[[], Any]) -> Figures:
    there, back = make(), make()

    def ask(start: Start) -> list[int]:
        stamps = []
        start()
        for _ in range(num):
            stamps.append(monotonic_ns())
            there.put(RECORD)
            back.get()
        return stamps

    def answer(start: Start) -> None:
        start()
        for _ in range(num):
            back.put(there.get())

    return quantiles_between(together(ask, answer)[0])


def fifo() -> Any:
    need("faster_fifo")
    import faster_fifo

    return faster_fifo.Queue(max_size_bytes=CAPACITY * 100, loads=bytes, dumps=bytes)


def fifo_batches(num: int) -> Figures:
    channel = fifo()
    batch = [RECORD] * BATCH

    def send(start: Start) -> int:
        start()
        begun = monotonic_ns()
        for _ in range(num // BATCH):
            while True:
                try:
                    channel.put_many(batch)
                    break
                except queue.Full:
                    continue
        return begun

    def receive(start: Start) -> int:
        left = num // BATCH * BATCH
        start()
        while left:
            left -= len(channel.get_many(max_messages_to_get=BATCH))
        return monotonic_ns()

    return timed(num // BATCH * BATCH, send, receive)


def zmq_socket(kind: str, address: str, *, bind: bool) -> Any:
    import zmq

    socket = zmq.Context.instance().socket(getattr(zmq, kind))
    (socket.bind if bind else socket.connect)(address)
    return socket


def zmq_end(*sockets: Any) -> None:
    """Returns when what was sent has left: a forked process ends without that."""
    import zmq

    for socket in sockets:
        socket.close()
    zmq.Context.instance().term()


def zmq_one_way(num: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="embridge-bench-") as directory:
        address = f"ipc://{directory}/there"

        def send(start: Start) -> int:
            socket = zmq_socket("PUSH", address, bind=True)
            socket.send(RECORD)
            start()
            begun = monotonic_ns()
            for _ in range(num):
                socket.send(RECORD)
            zmq_end(socket)
            return begun

        def receive(start: Start) -> int:
            socket = zmq_socket("PULL", address, bind=False)
            socket.recv()
            start()
            for _ in range(num):
                socket.recv()
            return monotonic_ns()

        return timed(num, send, receive)


def zmq_round_trip(num: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="embridge-bench-") as directory:

        def ask(start: Start) -> list[int]:
            there = zmq_socket("PUSH", f"ipc://{directory}/there", bind=True)
            back = zmq_socket("PULL", f"ipc://{directory}/back", bind=True)
            stamps = []
            start()
            for _ in range(num):
                stamps.append(monotonic_ns())
                there.send(RECORD)
                back.recv()
            zmq_end(there, back)
            return stamps

        def answer(start: Start) -> None:
            start()
            there = zmq_socket("PULL", f"ipc://{directory}/there", bind=False)
            back = zmq_socket("PUSH", f"ipc://{directory}/back", bind=False)
            for _ in range(num):
                back.send(there.recv())
            zmq_end(there, back)

        return quantiles_between(together(ask, answer)[0])


Payload = ctypes.c_uint64 * 8


class Line(ctypes.Structure):
    """One record, as iceoryx2 wants it."""

    _fields_ = (("words", Payload),)


services = count()


def service_name() -> str:
    """Never the same twice: the last round's service may still be on its way out."""
    return f"embridge-bench/{os.getpid()}/{next(services)}"


def iceoryx_service(name: str) -> tuple[Any, Any]:
    """A publish/subscribe service that loses nothing, and the node that has to be kept."""
    import iceoryx2

    iceoryx2.set_log_level(iceoryx2.LogLevel.Fatal)
    node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
    builder = node.service_builder(iceoryx2.ServiceName.new(name)).publish_subscribe(Line)
    return builder.enable_safe_overflow(False).subscriber_max_buffer_size(CAPACITY).open_or_create(), node


def iceoryx_one_way(num: int) -> Figures:
    need("iceoryx2")
    name = service_name()

    def send(start: Start) -> int:
        service, node = iceoryx_service(name)
        publisher, line = service.publisher_builder().create(), Line()
        start()
        begun = monotonic_ns()
        for _ in range(num):
            publisher.send_copy(line)
        start()  # a publisher that leaves takes along what was not received
        del publisher, service, node
        return begun

    def receive(start: Start) -> int:
        service, node = iceoryx_service(name)
        subscriber = service.subscriber_builder().buffer_size(CAPACITY).create()
        start()
        for _ in range(num):
            while (sample := subscriber.receive()) is None:
                pass
            sample.delete()
        ended = monotonic_ns()
        start()
        del subscriber, service, node
        return ended

    return timed(num, send, receive, spins=True)


def iceoryx_round_trip(num: int) -> Figures:
    need("iceoryx2")
    names = [service_name(), service_name()]

    def end(asks: bool, start: Start) -> list[int]:
        (to, to_node), (back, back_node) = (iceoryx_service(name) for name in (names if asks else names[::-1]))
        publisher, line = to.publisher_builder().create(), Line()
        subscriber = back.subscriber_builder().buffer_size(CAPACITY).create()
        stamps = []
        start()
        for _ in range(num):
            if asks:
                stamps.append(monotonic_ns())
                publisher.send_copy(line)
            while (sample := subscriber.receive()) is None:
                pass
            sample.delete()
            if not asks:
                publisher.send_copy(line)
        start()  # nobody leaves before the last answer has arrived
        del publisher, subscriber, to, back, to_node, back_node
        return stamps

    return quantiles_between(together(partial(end, True), partial(end, False), pinned=True)[0])


def main() -> None:
    scaled = bench.scaled
    one_way: dict[str, Case] = {
        "C ring, one at a time": lambda: native("ring", "one_way", scaled(2_000_000), 1),
        "C ring, batches of 32": lambda: native("ring", "one_way", scaled(3_000_000), BATCH),
        "embridge, one at a time": lambda: ours_pushed_one_at_a_time(scaled(600_000), BATCH),
        "embridge, one at a time at both ends": lambda: ours_pushed_one_at_a_time(scaled(600_000), 1),
        "embridge, one at a time, integers and tuples": lambda: ours_words(scaled(300_000)),
        "embridge, batches of 32": lambda: ours_batches(scaled(2_000_000)),
        "pyzmq ipc PUSH/PULL": lambda: zmq_one_way(scaled(80_000)),
        "faster-fifo, batches of 32": lambda: fifo_batches(scaled(100_000)),
        "faster-fifo, one at a time": lambda: over_queue(scaled(30_000), fifo),
        "iceoryx2, publish/subscribe, polled": lambda: iceoryx_one_way(scaled(60_000)),
        "multiprocessing.Queue": lambda: over_queue(scaled(30_000), FORK.Queue),
    }
    rates = bench.interleave(one_way)
    bench.show("one way, 64-byte records", rates, {"rate": "M msg/s"})
    round_trip: dict[str, Case] = {
        "C, one cache line": lambda: native("ring", "line", scaled(100_000)),
        "C ring": lambda: native("ring", "round_trip", scaled(100_000)),
        "embridge": lambda: ours_round_trip(scaled(100_000)),
        "iceoryx2, publish/subscribe, polled": lambda: iceoryx_round_trip(scaled(10_000)),
        "pyzmq ipc PUSH/PULL": lambda: zmq_round_trip(scaled(2_000)),
        "faster-fifo": lambda: queue_round_trip(scaled(2_000), fifo),
        "multiprocessing.Queue": lambda: queue_round_trip(scaled(2_000), FORK.Queue),
    }
    trips = bench.interleave(round_trip)
    bench.show("round trip, both ends spin (the last three sleep)", trips, {"p50": "p50, µs", "p99": "p99, µs"})
    single, batched = "embridge, one at a time", "embridge, batches of 32"
    bench.at_least(
        "one at a time against multiprocessing.Queue", rates.ratio("rate", single, "multiprocessing.Queue"), 40
    )
    bench.at_least("one at a time against pyzmq", rates.ratio("rate", single, "pyzmq ipc PUSH/PULL"), 5)
    bench.at_least(
        "one at a time against iceoryx2", rates.ratio("rate", single, "iceoryx2, publish/subscribe, polled"), 20
    )
    bench.at_least(
        "batches against faster-fifo's batches", rates.ratio("rate", batched, "faster-fifo, batches of 32"), 20
    )
    bench.at_least(
        "round trip p50 against iceoryx2", trips.ratio("p50", "iceoryx2, publish/subscribe, polled", "embridge"), 12
    )
    bench.at_most("round trip p50 over the C ring's", trips.ratio("p50", "embridge", "C ring"), 1.6)
    tails = [
        p99 / p50 for p50, p99 in zip(trips.rounds("embridge", "p50"), trips.rounds("embridge", "p99"), strict=True)
    ]
    bench.at_most("round trip p99 over p50", sorted(tails)[len(tails) // 2], 2)
    bench.finish()


if __name__ == "__main__":
    main()
