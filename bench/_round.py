"""One round of one carrier: an encoder's process and a scheduler's, and what they and the nodes took for it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _carriers import Carrier, Job
from _harness import FORK, Case, Figures, Start, percentile, shared, together
from _native import address_of, functions

WITHIN_S = 60.0
WARM_REQUESTS = 500  # an encoder and a scheduler run for days; each round begins with processes that have just joined
GREAT_BYTES = 1_000_000_000  # in flight: carriers of more exist one at a time; together they would fill the machine
SC_LEVEL3_CACHE_SIZE = 194  # of glibc; Python has no name for it
SWEEP_BYTES = min(2 * max(os.sysconf(SC_LEVEL3_CACHE_SIZE), 16 << 20), 256 << 20)


class Cold:
    """Empties the caches between requests that travel one at a time, as the work of a model does, so that what will
    hold the rows is equally cold for all carriers, wherever it lies. What it takes is not the carrier's.
    """

    def __init__(self, job: Job, size: int) -> None:
        self._is_needed = job.in_flight == 1
        self._memory = np.ones(size if self._is_needed else 8, np.uint8)
        self._sweep = functions().sweep
        self.cpu_s = 0.0

    def __call__(self, write: Callable[..., int], *arguments: int) -> None:
        """And then writes rows, if there are any."""
        if not self._is_needed:
            write(*arguments)
            return
        begun = time.thread_time()
        self._sweep(self._memory.ctypes.data, self._memory.nbytes // 8)
        write(*arguments)
        self.cpu_s += time.thread_time() - begun


class Round:
    """What both processes do, and what they write down for the benchmark's own.

    The scheduler gives a credit for every request that has ended. An encoder without credits sleeps until a quarter of
    what may be in flight has ended: so with 64 at once there are 48 to 64, and the encoder's wake-ups, which are the
    same for all carriers, hide little of what the carriers cost.
    """

    def __init__(self, carrier: Carrier, total: int) -> None:
        self.carrier = carrier
        self.job = job = carrier.job
        self.total = total
        self.skipped = min(total // 4, max(2 * job.in_flight, WARM_REQUESTS))  # what comes first finds nothing warm
        self.c = functions()
        self._words = shared(4096)
        self.credits = address_of(self._words)
        self.begun = FORK.RawArray(ctypes.c_int64, total)
        self.ended = FORK.RawArray(ctypes.c_int64, total)
        self.freed = FORK.RawArray(ctypes.c_int64, total)  # the numbers of the requests, as they ended
        self.nodes_s = FORK.RawValue(ctypes.c_double)  # CPU time of the nodes until all are warm
        self.is_ready = FORK.Event()

    def encoder(self, start: Start) -> float:
        assert self.is_ready.wait(WITHIN_S), "the scheduler is not ready"
        send, source, job, total = self.carrier.sender(), self.carrier.source, self.job, self.total
        tokens, hidden, in_flight = job.tokens, job.hidden, job.in_flight
        sources = [job.empty() for _ in range(in_flight)]
        self.carrier.adopt(sources)
        tensor_of = [0] * total
        credits, begun, freed = self.credits, self.begun, self.freed
        wait, now = self.c.wait_for_credit, time.monotonic_ns
        write = self.c.write_rows if in_flight == 1 else self.c.write_ends
        cold = Cold(job, SWEEP_BYTES)
        start()
        cpu = time.process_time()
        for number in range(total):
            if number == self.skipped:
                cpu, cold.cpu_s = time.process_time(), 0.0
            wait(credits, number, in_flight)
            tensor = number if number < in_flight else tensor_of[freed[number - in_flight]]
            tensor_of[number] = tensor
            rows = source(number, sources[tensor])
            cold(write, rows.data_ptr(), tokens, hidden, number % 30_000 + 1)
            begun[number] = now()
            send(number, rows)
        wait(credits, total, 1)  # all have ended
        return time.process_time() - cpu - cold.cpu_s

    def scheduler(self, start: Start) -> float:
        receive, release = self.carrier.receiver()
        ended, now = self.ended, time.monotonic_ns
        cold = Cold(self.job, SWEEP_BYTES // 8)  # its own core's; the encoder sees to what they share
        self.is_ready.set()
        start()
        cpu = time.process_time()
        for count in range(self.total):
            if count == self.skipped:
                self.nodes_s.value = sum(map(cpu_s_of, self.carrier.pids()))
                cpu, cold.cpu_s = time.process_time(), 0.0
            number, rows = receive()
            ended[number] = now()
            self.end(count, number, rows)
            release(number)
            cold(lambda: 0)
            self.credit(count, number)
        return time.process_time() - cpu - cold.cpu_s

    def end(self, count: int, number: int, rows: torch.Tensor) -> None:
        """Looks at the rows' corners."""
        if self.carrier.has_rows:
            job = self.job
            assert self.c.ends_are(rows.data_ptr(), job.tokens, job.hidden, number % 30_000 + 1), f"{number}: wrong"

    def credit(self, count: int, number: int) -> None:
        self.freed[count] = number
        self.c.give_credit(self.credits, max(1, self.job.in_flight // 4), self.total)

    def run(self) -> Figures:
        self.carrier.begin(self.total)
        encoder_s, scheduler_s = together(self.encoder, self.scheduler, within_s=WITHIN_S)
        nodes_s = sum(map(cpu_s_of, self.carrier.pids())) - self.nodes_s.value
        return self.figures(encoder_s + scheduler_s + nodes_s)

    def figures(self, cpu_s: float) -> Figures:
        begun, ended = np.array(self.begun), np.array(self.ended)
        skip = self.skipped
        took = (ended - begun)[skip:]
        count = self.total - skip
        seconds = (ended.max() - begun[skip]) / 1e9
        figures = spread_of(took)
        figures["per_s"] = count / seconds
        figures["cpu_us"] = cpu_s / count * 1e6
        if self.carrier.has_rows:
            one_at_a_time = self.job.size / np.median(took)
            figures["gb_per_s"] = one_at_a_time if self.job.in_flight == 1 else self.job.size * count / seconds / 1e9
        if self.carrier.copied is not None:
            copies = (np.array(self.carrier.copied) - begun)[skip:]
            mean = copies.mean() if self.job.in_flight > 1 else np.median(copies)
            alone = spread_of(copies) | {"gb_per_s": self.job.size / mean, "per_s": 1e9 / mean, "cpu_us": mean / 1e3}
            figures |= {f"copy_{metric}": value for metric, value in alone.items()}
        return {metric: float(value) for metric, value in figures.items()}


def spread_of(took_ns: np.ndarray) -> Figures:
    """p50 and p99, in µs."""
    return {f"p{percent}": percentile(took_ns.tolist(), percent) / 1e3 for percent in (50, 99)}


def cpu_s_of(pid: int) -> float:
    """CPU time that the process has taken so far, all its threads together."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid answers


def cases(job: Job, total: int, kinds: tuple[type[Carrier], ...]) -> tuple[dict[str, Case], Callable[[], None]]:
    """The carriers for one job, each made when it is first measured, and what ends them."""
    made: dict[type[Carrier], Carrier] = {}

    def once(kind: type[Carrier]) -> Figures:
        if kind not in made:
            made[kind] = kind(job)
        try:
            return Round(made[kind], total).run()
        finally:
            if job.size * job.in_flight > GREAT_BYTES:
                made.pop(kind).close()

    def close() -> None:
        for carrier in made.values():
            carrier.close()

    return {kind.name: partial(once, kind) for kind in kinds}, close
