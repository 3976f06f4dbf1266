"""What do 5000 rooms cost that wait? The core that they take in all processes of two nodes and their clients, and how
much slower one more request is beside them.

Rooms wait in two ways: their encoders have opened them and have no rows yet, or their encoders have not come. Two
pairs of nodes with such rooms and one without any stand side by side; the CPU time of their processes is counted while
nobody does anything, and requests of a few rows go through all of them in turn. The cost is the difference to the pair
where nobody waits. Goals: at most 0.02 of a core, at most 1.5 times the median of a request alone.

    python bench/waiting_rooms.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from _harness import Benchmark, Figures, Results

from embridge import EmbeddingRequest, Geometry, PipelineConfig, PreallocQueue, TransferQueue, attach, launch
from embridge.allocator.geometry import Limits
from embridge.pipeline.client.client import library_of
from embridge.workers.timing import Timing

TOKENS, HIDDEN = 16, 64
SLOTS = 16384
ALONE, SILENT, ABSENT = "nobody waits", "encoders without rows", "encoders that have not come"


class Pair:
    """Two nodes with a client each, and rooms that wait."""

    def __init__(self, stack: contextlib.ExitStack, root: Path, rooms: Iterator[int]) -> None:
        limits = Limits(num_slots=SLOTS, max_peer_slots=SLOTS)
        geometry = Geometry(hidden_size=HIDDEN, block_size=TOKENS, num_blocks=SLOTS)  # all that wait have theirs
        self.rooms = rooms
        self.encode, self.language = (
            stack.enter_context(
                launch(
                    PipelineConfig(
                        role=role, run_dir=root / role, geometry=geometry, limits=limits,
                        timing=Timing(request_timeout_s=3600.0), default_allocate_tokens=TOKENS,
                    )
                )
            )
            for role in ("encode", "language")
        )  # fmt: skip
        self.encoder = stack.enter_context(attach(self.encode.run_dir))
        self.scheduler = stack.enter_context(attach(self.language.run_dir))
        self.transfer = TransferQueue(self.scheduler)
        self.prealloc = PreallocQueue(self.scheduler, self.transfer)
        self.rows = (
            torch.zeros(TOKENS, HIDDEN).bfloat16(),
            torch.zeros(TOKENS, dtype=torch.int32),
            torch.zeros(TOKENS, 3, dtype=torch.int32),
        )

    def wait_with(self, count: int, *, encoders_come: bool) -> None:
        """Have so many rooms wait; the clients do not outlive the nodes, nor do the rooms."""
        for _ in range(count):
            room = next(self.rooms)
            self.prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=self.encode.bootstrap_addr))
            if encoders_come:
                self.encoder.sender(room, TOKENS)
        deadline = time.monotonic() + 120
        while len(library_of(self.scheduler).requests.by_slot) < count:
            assert time.monotonic() < deadline, "rooms do not open"
            time.sleep(0.05)

    def request(self) -> float:
        """One more request, in seconds from its opening to its result."""
        room, begun = next(self.rooms), time.perf_counter()
        self.prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=self.encode.bootstrap_addr))
        self.encoder.sender(room, TOKENS).send_embedding(*self.rows)
        while True:
            finished, failed = self.transfer.pop_transferred()
            assert not failed, failed[0].failure
            if finished:
                took = time.perf_counter() - begun
                for request in finished:
                    request.release()
                self.encoder.poll()
                return took
            time.sleep(0)

    def cpu_seconds(self) -> float:
        """Of all processes of the two nodes, and of the library threads of the two clients."""
        nodes = [psutil.Process(node.pid) for node in (self.encode, self.language)]
        pids = [process.pid for node in nodes for process in (node, *node.children(recursive=True))]
        tasks = [str(thread) for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
        clients = (self.encoder, self.scheduler)
        tasks += [f"/proc/self/task/{t.native_id}" for c in clients for t in library_of(c).attachment.threads]
        return sum(int(Path(task, "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rooms", type=int, default=5000, help="how many wait")

    bench = Benchmark(__file__, __doc__, options=options, rounds=5, quick_rounds=2)
    count, seconds, requests = bench.options.rooms, 2.0 if bench.quick else 10.0, bench.scaled(200)
    rooms = itertools.count(1)
    with tempfile.TemporaryDirectory(prefix="eb-") as root, contextlib.ExitStack() as stack:
        pairs = {name: Pair(stack, Path(root, str(i)), rooms) for i, name in enumerate((ALONE, SILENT, ABSENT))}
        for pair in pairs.values():
            pair.request()
        pairs[SILENT].wait_with(count, encoders_come=True)
        pairs[ABSENT].wait_with(count, encoders_come=False)
        time.sleep(5.0 if bench.quick else 90.0)  # until first grants that nobody answers are sent again rarely
        results = Results()
        for _ in range(bench.rounds):
            before = {name: pair.cpu_seconds() for name, pair in pairs.items()}
            time.sleep(seconds)
            took: dict[str, list[float]] = {name: [] for name in pairs}
            after = {name: pair.cpu_seconds() for name, pair in pairs.items()}
            for _ in range(requests):
                for name, pair in pairs.items():
                    took[name].append(pair.request())
            for name in pairs:
                results.figures.setdefault(name, []).append(
                    figures((after[name] - before[name]) / seconds, took[name])
                )
        bench.show(
            f"{count} rooms",
            results,
            {"core": "of a core", "p50": "one request, p50, ms", "p99": "one request, p99, ms"},
        )
        for name in (SILENT, ABSENT):
            both = zip(results.rounds(name, "core"), results.rounds(ALONE, "core"), strict=True)
            cost = [waiting - alone for waiting, alone in both]
            bench.at_most(f"{name}: of a core, above {ALONE}", statistics.median(cost), 0.02, "of a core")
            bench.at_most(f"{name}: p50 of one request, to alone", results.ratio("p50", name, ALONE), 1.5)
    bench.finish()


def figures(core: float, took: list[float]) -> Figures:
    ms = sorted(1000 * seconds for seconds in took)
    return {"core": core, "p50": statistics.median(ms), "p99": ms[len(ms) * 99 // 100]}


if __name__ == "__main__":
    main()
