"""What do pools cost that are too small for what is in flight?

Requests of 1 MB, 64 at once, and of 9 and 42 MB, eight at once, go through pools of a quarter of what is in flight, and
through pools of half of one request: so requests go in rounds, and every result is copied out of its blocks. Beside
them stand pools that hold all, and ZeroMQ, whose rows have no pool.
"""

from __future__ import annotations

from _carriers import Job, TunedZeroMQIpc
from _floors import COPIES, POSSIBLE, add_floors
from _harness import Benchmark
from _ours import Embridge, EmbridgeInHalfOfOne, EmbridgeInQuarter
from _round import cases

HIDDEN = 3584
SIZES = {"1 MB": (140, 64), "9 MB": (1250, 8), "42 MB": (5859, 8)}  # name -> tokens, at once
ROUND_BYTES = 2_000_000_000
METRICS = {"p50": "p50, µs", "p99": "p99, µs", "gb_per_s": "GB/s", "cpu_us": "CPU µs/request"}
SMALL = (EmbridgeInQuarter, EmbridgeInHalfOfOne)


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=2)
    for size, (tokens, at_once) in SIZES.items():
        job = Job(tokens, HIDDEN, at_once)
        total = max(4 * at_once, min(1200, bench.scaled(ROUND_BYTES // job.size)))
        carriers, close = cases(job, total, (*COPIES, TunedZeroMQIpc, Embridge, *SMALL))
        try:
            results = bench.interleave(carriers)
        finally:
            close()
        add_floors(results)
        bench.show(f"{size}, {at_once} at once", results, METRICS, floor=POSSIBLE, by="gb_per_s")
        for kind in SMALL:
            ratio = results.ratio("gb_per_s", kind.name, TunedZeroMQIpc.name)
            bench.at_least(f"{size}: {kind.name.removeprefix('embridge, ')}, of ZeroMQ's GB/s", ratio, 1)
    bench.finish()


if __name__ == "__main__":
    main()
