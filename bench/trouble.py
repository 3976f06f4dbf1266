"""How much slower are others while one of a node's users is in trouble? (P21)

A steady load of small requests, eight in flight, through two nodes of 64 blocks; then the same beside each trouble of
`tests/support/troubles.py`, in turn, so that what other work takes of the machine meets both alike. Small requests are
announced, and their rows are there at once. The goal: p99 at most doubles.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from _harness import Benchmark, Figures, Results, percentile

from embridge import attach

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.nodes import station
from support.pipes import full_pipe
from support.remains import run_dirs
from support.scheduling import Queues
from support.troubles import TROUBLES, carry

COUNT = 2000
ALONE = "alone"


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=1)
    count = bench.scaled(COUNT)
    settings = {
        "engine": "shm",
        "num_blocks": 64,
        "block_size": 16,
        "connect_timeout_s": 3.0,
        "client_silent_after_s": 0.0,
    }
    rooms = itertools.count(1)
    with (
        run_dirs() as path,
        full_pipe() as pipe,
        station("encode", path / "e", stderr=pipe.write, **settings) as encode,
        station("language", path / "l", stderr=pipe.write, default_allocate_tokens=1024, **settings) as language,
        attach(encode.run_dir) as sending,
        attach(language.run_dir) as client,
    ):
        queues = Queues(client, adaptive=True)
        carry(encode, sending, queues, rooms, count)
        for name, trouble in TROUBLES.items():
            results = Results()
            for _ in range(bench.rounds):
                alone = figures(carry(encode, sending, queues, rooms, count))
                results.figures.setdefault(ALONE, []).append(alone)
                with trouble(encode, queues, rooms):
                    beside = figures(carry(encode, sending, queues, rooms, count))
                results.figures.setdefault(name, []).append(beside)
            bench.show(f"beside {name}", results, {"p50": "one request, p50, ms", "p99": "one request, p99, ms"})
            bench.at_most(f"{name}: p99 over that without", results.ratio("p99", name, ALONE), 2)
    bench.finish()


def figures(took_ns: list[float]) -> Figures:
    return {"p50": percentile(took_ns, 50) / 1e6, "p99": percentile(took_ns, 99) / 1e6}


if __name__ == "__main__":
    main()
