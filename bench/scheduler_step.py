"""What does it cost the scheduler's thread that embeddings arrive, and how soon does it have them?

Requests of 9 MB and of 1 MB (1250 and 140 tokens of hidden size 3584, bf16), eight at once, travel from an encoder's
process to three kinds of scheduler: one that sleeps until something has come; one that works for a millisecond (the GPU
does, the thread waits for it without the GIL) and then looks; one that looks all the time, so that its process's other
threads get the GIL only when the interpreter takes it away. Beside embridge stands what one would write instead: a
thread of the scheduler's process that receives from ZeroMQ without copies and hands on through a queue.

A look is everything that the scheduler does to find what has come; a step is from one look to the next. Each is also
measured while nothing arrives ("idle"). The floor of what arrives is one copy and one wake-up, that of a step the same
step without a look.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial
from typing import Any

import _ours
import numpy as np
from _carriers import Carrier, Job, Look, Release, Send, Sleep, TunedZeroMQIpc
from _floors import COPIES, POSSIBLE, add_floors
from _harness import FORK, Benchmark, Case, Figures, Results, Start
from _ours import OURS
from _round import Round, cpu_s_of, spread_of

HIDDEN, AT_ONCE = 3584, 8
TOKENS = {"9 MB": 1250, "1 MB": 140}
FORWARD_S = 1e-3
MOST_STEPS = 1_000_000  # that are written down
SLEEPS, POLLS, SPINS = "sleeps until something has come", "looks each millisecond", "looks all the time"
METRICS = {
    "step_p50": "step p50, µs",
    "step_p99": "step p99, µs",
    "step_max": "step max, µs",
    "look_p50": "look p50, µs",
    "look_p99": "look p99, µs",
    "p50": "request p50, µs",
    "p99": "request p99, µs",
    "gb_per_s": "GB/s",
    "cpu_us": "CPU µs/request",
}


class Steps(Round):
    """A round whose scheduler steps in its own manner and writes down when it looked.

    Without requests it takes `num_steps`, with nothing to find.
    """

    def __init__(self, carrier: Carrier, manner: str, total: int, num_steps: int = 0) -> None:
        super().__init__(carrier, total)
        self._manner = manner
        self._num_idle = num_steps
        self._stamps = FORK.RawArray(ctypes.c_int64, 2 * MOST_STEPS)
        self._num_steps = FORK.RawValue(ctypes.c_int64, 0)

    def scheduler(self, start: Start) -> float:
        look, sleep, release = self.carrier.looker()
        between = {SLEEPS: sleep, POLLS: partial(time.sleep, FORWARD_S), SPINS: lambda: None}[self._manner]
        ended, stamps, now = self.ended, self._stamps, time.monotonic_ns
        self.is_ready.set()
        start()
        cpu = time.process_time()
        count = steps = 0
        is_warm = not self.skipped
        while count < self.total or steps < self._num_idle:
            if not is_warm and count >= self.skipped:  # what follows counts
                is_warm = True
                self.nodes_s.value = sum(map(cpu_s_of, self.carrier.pids()))
                cpu, steps = time.process_time(), 0
            begun = now()
            found = look()
            seen = now()
            if steps < MOST_STEPS:
                stamps[2 * steps], stamps[2 * steps + 1] = begun, seen
                steps += 1
            for number, rows in found:
                ended[number] = seen
                self.end(count, number, rows)
                release(number)
                self.credit(count, number)
                count += 1
            between()
        self._num_steps.value = steps
        return time.process_time() - cpu

    def figures(self, cpu_s: float) -> Figures:
        begun, ended = np.frombuffer(self._stamps, np.int64)[: 2 * self._num_steps.value].reshape(-1, 2).T
        steps, looks = spread_of(np.diff(begun)), spread_of(ended - begun)
        of_steps = {f"step_{name}": value for name, value in steps.items()}
        of_steps |= {f"look_{name}": value for name, value in looks.items()}
        of_steps["step_max"] = float(np.diff(begun).max()) / 1e3
        return of_steps | (super().figures(cpu_s) if self.total else {})


def add_steps(results: Results) -> None:
    """The floor of a step, into the row that has the floor of a request."""
    for floor, steps in zip(results.figures.get(POSSIBLE, []), results.figures.get(Nothing.name, []), strict=False):
        floor |= {metric: value for metric, value in steps.items() if metric.startswith("step_")}


class Contenders:
    """The carriers, each made when it is first measured, for all three schedulers."""

    def __init__(self, tokens: int, kinds: tuple[type[Carrier], ...]) -> None:
        self._job = Job(tokens, HIDDEN, AT_ONCE)
        self._kinds = kinds
        self._made: dict[type[Carrier], Carrier] = {}

    def _carrier(self, kind: type[Carrier]) -> Carrier:
        if kind not in self._made:
            self._made[kind] = kind(self._job)
        return self._made[kind]

    def cases(self, manner: str, total: int, num_steps: int) -> dict[str, Case]:
        found: dict[str, Case] = {kind.name: partial(self._copy, kind, total) for kind in COPIES}
        if manner != SLEEPS:
            found[Nothing.name] = partial(self._run, Nothing, manner, 0, num_steps)
        for kind in self._kinds:
            if manner != SLEEPS:
                found[f"{kind.name}, idle"] = partial(self._run, kind, manner, 0, num_steps)
            found[kind.name] = partial(self._run, kind, manner, total)
        return found

    def _copy(self, kind: type[Carrier], total: int) -> Figures:
        return Round(self._carrier(kind), total).run()

    def _run(self, kind: type[Carrier], *arguments: Any) -> Figures:
        return Steps(self._carrier(kind), *arguments).run()

    def close(self) -> None:
        for carrier in self._made.values():
            carrier.close()


class ZeroMQThread(TunedZeroMQIpc):
    name = "ZeroMQ thread"


class Nothing(Carrier):
    """A scheduler that has nobody to look for: the floor of a step."""

    name = "floor: a step without a look"

    def looker(self) -> tuple[Look, Sleep, Release]:
        return list, lambda: None, lambda number: None

    def sender(self) -> Send:
        return lambda number, rows: None


def compare(bench: Benchmark, size: str, contenders: Contenders) -> None:
    """All three schedulers, for requests of one size."""
    for manner in (SLEEPS, POLLS, SPINS):
        num_steps = bench.scaled(500) if manner == POLLS else bench.scaled(100_000)
        results = bench.interleave(contenders.cases(manner, bench.scaled(800), num_steps))
        add_floors(results)
        add_steps(results)
        bench.show(f"{size}: a scheduler that {manner}", results, METRICS, floor=POSSIBLE, by="gb_per_s")
        for metric in ("step_p99", "p50") if manner == POLLS else ("p50",):
            ratio = results.ratio(metric, OURS, ZeroMQThread.name)
            what = METRICS[metric].partition(",")[0]
            bench.at_most(f"{size}, {manner}: {what} over that beside a ZeroMQ thread", ratio, 1)


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=2)
    for size, tokens in TOKENS.items():
        contenders = Contenders(tokens, (ZeroMQThread, *_ours.HERE))
        try:
            compare(bench, size, contenders)
        finally:
            contenders.close()
    bench.finish()


if __name__ == "__main__":
    main()
