"""How long from rows in the encoder's tensor to rows that the scheduler can use, and how many a second?

Two processes: one has rows in memory of its own, the other waits for them. A request begins when its rows are complete
and ends when the scheduler holds a tensor with all of them. One at a time, the rows are written anew before each
request; several at a time, there are as many tensors as requests in flight. Every contender is written as its users
would write it (`_carriers.py`), none is slowed down, and both ends check the first and the last row of each request.
The floor is the faster of two ways to copy once, with one thread, into the same kind of memory, and one wake-up.

CPU time is that of both processes, and of the nodes' where there are any. Nothing is kept warm that would not be warm
in use: all memory has its pages, and what is received lies where it was received last time.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _carriers import (
    Carrier,
    Job,
    PlainCopy,
    RawMooncake,
    Safetensors,
    SharedBlock,
    StreamingCopy,
    TorchQueue,
    ZeroMQIpc,
    ZeroMQTcp,
)
from _harness import FORK, Benchmark, Case, Figures, Start, percentile, together
from _ours import Embridge, EmbridgeMooncake

HIDDEN = 3584
MB = 1_000_000
ROW = HIDDEN * 2
FLOORS: tuple[type[Carrier], ...] = (PlainCopy, StreamingCopy)
HERE_ONLY: tuple[type[Carrier], ...] = (SharedBlock, ZeroMQIpc, ZeroMQTcp, Safetensors, TorchQueue, Embridge)
NETWORK: tuple[type[Carrier], ...] = (RawMooncake, EmbridgeMooncake)
SIZES = {"0.45 MB": 64, "1 MB": 140, "9 MB": 1250, "42 MB": 5859, "200 MB": 27902}
AT_ONCE = (1, 8, 64)
MOST_BYTES = 3_000 * MB  # in flight
ROUND_BYTES = 1_200 * MB


class Round:
    """One contender, one round: what both processes write down for the benchmark's own."""

    def __init__(self, carrier: Carrier, total: int) -> None:
        self.carrier = carrier
        self.job = carrier.job
        self.total = total
        self.credits = FORK.Semaphore(self.job.in_flight)
        self.begun = FORK.RawArray(ctypes.c_int64, total)
        self.ended = FORK.RawArray(ctypes.c_int64, total)
        self.freed = FORK.RawArray(ctypes.c_int64, total + self.job.in_flight)
        self.is_ready = FORK.Event()
        for tensor in range(self.job.in_flight):
            self.freed[tensor] = tensor

    def encoder(self, start: Start) -> float:
        self.is_ready.wait(20)
        send, job = self.carrier.sender(), self.job
        sources = [job.empty() for _ in range(job.in_flight)]
        self.carrier.adopt(sources)
        words = [source.view(torch.int16) for source in sources]
        tensor_of = [0] * self.total
        credits, begun, freed = self.credits, self.begun, self.freed
        start()
        cpu = _cpu_s()
        for number in range(self.total):
            credits.acquire()
            tensor = freed[number] if number < job.in_flight else tensor_of[freed[number]]
            tensor_of[number] = tensor
            tag = number % 30_000 + 1
            if job.in_flight == 1:
                words[tensor].fill_(tag)
            else:
                words[tensor][0] = words[tensor][-1] = tag
            begun[number] = time.monotonic_ns()
            send(number, sources[tensor])
        for _ in range(job.in_flight):  # all have come
            credits.acquire()
        return _cpu_s() - cpu

    def scheduler(self, start: Start) -> float:
        receive, release = self.carrier.receiver()
        in_flight, credits, ended, freed = self.job.in_flight, self.credits, self.ended, self.freed
        self.is_ready.set()
        start()
        cpu = _cpu_s()
        for count in range(self.total):
            number, rows = receive()
            ended[number] = time.monotonic_ns()
            words = rows.view(torch.int16)
            tag = number % 30_000 + 1
            assert words[0, 0] == words[0, -1] == words[-1, 0] == words[-1, -1] == tag, f"request {number}: wrong rows"
            release(number)
            freed[in_flight + count] = number
            credits.release()
        return _cpu_s() - cpu

    def run(self) -> Figures:
        before = _cpu_of(self.carrier.pids())
        self.carrier.begin(self.total)
        encoder_s, scheduler_s = together(self.encoder, self.scheduler)
        nodes_s = _cpu_of(self.carrier.pids()) - before
        begun, ended = np.array(self.begun), np.array(self.ended)
        skip = min(self.total // 10, 2 * self.job.in_flight)  # what comes first finds nothing warm
        took = ended[skip:] - begun[skip:]
        seconds = (ended.max() - begun[skip]) / 1e9
        count = self.total - skip
        return {
            "p50": percentile(took.tolist(), 50) / 1e3,
            "p99": percentile(took.tolist(), 99) / 1e3,
            "gb_per_s": self.job.size * count / seconds / 1e9
            if self.job.in_flight > 1
            else self.job.size / percentile(took.tolist(), 50),
            "per_s": count / seconds,
            "cpu_us": (encoder_s + scheduler_s + nodes_s) / self.total * 1e6,
        }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _cpu_of(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cases(job: Job, total: int, kinds: tuple[type[Carrier], ...]) -> tuple[dict[str, Case], Callable[[], None]]:
    """The contenders for one job, made when each is first measured, and what ends them."""
    made: dict[type[Carrier], Carrier] = {}

    def once(kind: type[Carrier]) -> Figures:
        if kind not in made:
            made[kind] = kind(job)
        return Round(made[kind], total).run()

    def close() -> None:
        for carrier in made.values():
            carrier.close()

    return {kind.name: partial(once, kind) for kind in kinds}, close


METRICS = {"p50": "p50, µs", "p99": "p99, µs", "gb_per_s": "GB/s", "per_s": "requests/s", "cpu_us": "CPU µs/request"}


def compare(bench: Benchmark, title: str, job: Job, total: int, kinds: tuple[type[Carrier], ...]) -> Any:
    contenders, close = cases(job, total, kinds)
    try:
        results = bench.interleave(contenders)
    finally:
        close()
    bench.show(title, results, METRICS)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--engines", default="shm,mooncake", help="shm, mooncake or both")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=2)
    kinds = (*FLOORS, *(HERE_ONLY if "shm" in own.engines else ()), *(NETWORK if "mooncake" in own.engines else ()))
    for name, tokens in SIZES.items():
        for in_flight in AT_ONCE:
            title = f"{name}, {in_flight} at once" if in_flight > 1 else f"{name}, one at a time"
            job = Job(tokens, HIDDEN, in_flight)
            if own.only not in title or job.size * in_flight > MOST_BYTES:
                continue
            total = max(12, 4 * in_flight, min(400, bench.scaled(ROUND_BYTES // job.size)))
            compare(bench, title, job, total, kinds)
    for tokens, hidden in ((64, 64), (64, HIDDEN)):
        title = f"{tokens} x {hidden}, 256 in flight"
        if own.only in title:
            small = (*FLOORS, SharedBlock, ZeroMQIpc, ZeroMQTcp, TorchQueue, Embridge)
            compare(bench, title, Job(tokens, hidden, 256), bench.scaled(8000 if hidden == 64 else 2000), small)
    bench.finish()


if __name__ == "__main__":
    main()
