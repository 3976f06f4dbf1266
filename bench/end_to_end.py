"""How long from rows in the encoder's tensor to rows that the scheduler can use, and how many a second?

Two processes: one has rows in memory of its own, the other waits for them. A request begins when its rows are complete
and ends when the scheduler holds a tensor with all of them. One at a time, the rows are written anew before each
request; several at a time, there are as many tensors as requests in flight, and the first and the last row are. Every
carrier is written as its users would write it (`_carriers.py`), none is slowed down, and the corners of the rows of
each request are checked. The floors (`_floors.py`) are one copy with one thread into the same kind of memory, one
wake-up, and the two together: what is possible.

CPU time is that of both processes, and of the nodes' where there are any. Nothing is kept warm that would not be warm
in use: all memory has its pages, and what is received lies where it was received last time.

`compare.py` holds a run against another one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _ours
import _plot
from _carriers import (
    Carrier,
    Job,
    RawMooncake,
    Safetensors,
    SharedBlock,
    TorchQueue,
    TunedZeroMQIpc,
    TunedZeroMQTcp,
    ZeroMQIpc,
)
from _floors import COPIES, ONE_COPY, POSSIBLE, WAKE_UP, WakeUp, add_floors
from _harness import HERE, Benchmark, Results
from _ours import IN_PLACE, OURS
from _round import GREAT_BYTES, cases

HIDDEN = 3584
MB = 1_000_000
Kinds = tuple[type[Carrier], ...]
QUICK_PEERS: Kinds = (SharedBlock, TunedZeroMQIpc, TunedZeroMQTcp, TorchQueue)
PEERS: Kinds = (*QUICK_PEERS, ZeroMQIpc, Safetensors)
SIZES = {"0.45 MB": 64, "1 MB": 140, "9 MB": 1250, "42 MB": 5859, "200 MB": 27902}  # name -> tokens
SMALL = (64, HIDDEN)  # hidden sizes of 64 tokens, in a closed loop
AT_ONCE = (1, 8, 64)
MOST_BYTES = 3_000 * MB  # in flight
ROUND_BYTES = 1_200 * MB
METRICS = {"p50": "p50, µs", "p99": "p99, µs", "gb_per_s": "GB/s", "per_s": "requests/s", "cpu_us": "CPU µs/request"}


def compare(bench: Benchmark, title: str, job: Job, total: int, kinds: Kinds) -> Results:
    carriers, close = cases(job, total, kinds)
    try:
        results = bench.interleave(carriers)
    finally:
        close()
    add_floors(results)
    bench.show(title, results, METRICS, floor=POSSIBLE, by="gb_per_s")
    return results


def title_of(size: str, in_flight: int) -> str:
    return f"{size}, {in_flight} at once" if in_flight > 1 else f"{size}, one at a time"


def small_title(hidden: int) -> str:
    return f"64 x {hidden}, 256 in flight"


def ask_for_goals(bench: Benchmark, seen: dict[str, Results]) -> None:
    """What was measured beside what it should be, of the cases that were not left out."""
    for size in ("0.45 MB", "1 MB", "9 MB", "42 MB"):
        for in_flight in AT_ONCE:
            title = title_of(size, in_flight)
            if title not in seen:
                continue
            results = seen[title]
            goal = {"1 MB": 0.65 if in_flight == 1 else None, "9 MB": 0.9, "42 MB": 0.9}.get(size)
            if goal:
                bench.at_least(f"{title}: of one copy's GB/s", results.ratio("gb_per_s", OURS, ONE_COPY), goal)
            by_hand = results.ratio("gb_per_s", OURS, SharedBlock.name)
            bench.at_least(f"{title}: of the hand-written block's", by_hand, 1)
            goal = 4 if size == "42 MB" else 2.5
            zeromq = results.ratio("gb_per_s", OURS, TunedZeroMQIpc.name)
            bench.at_least(f"{title}: of tuned ZeroMQ's (ipc)", zeromq, goal)
            if title == title_of("1 MB", 1):
                bench.at_most(f"{title}: p99 over p50", results.ratio("p99", OURS, OURS, "p50"), 3)
            if in_flight == 1:
                in_place = results.ratio("p50", IN_PLACE, WAKE_UP)
                bench.at_most(f"{title}, in place: p50 over a wake-up's", in_place, 2)
    if (title := small_title(64)) in seen:
        zeromq = seen[title].ratio("per_s", OURS, TunedZeroMQIpc.name)
        bench.at_least(f"{title}: of ZeroMQ's requests/s (ipc)", zeromq, 1)
        cpu = seen[title].ratio("cpu_us", OURS, TunedZeroMQIpc.name)
        bench.at_most(f"{title}: CPU a request over ZeroMQ's (ipc)", cpu, 1)
    if (title := small_title(HIDDEN)) in seen:
        by_hand = seen[title].ratio("per_s", OURS, SharedBlock.name)
        bench.at_least(f"{title}: of the hand-written block's requests/s", by_hand, 1)


def plot(file: Path, seen: dict[str, Results]) -> None:
    """One at a time: size against GB/s and against latency, a line a carrier."""
    names = list(dict.fromkeys(name for results in seen.values() for name in results.figures))
    hidden = {kind.name for kind in COPIES}
    panels = []
    for metric, heading in (("gb_per_s", "GB/s"), ("p50", "latency, p50, µs")):
        series = {}
        for name in names:
            points = [
                (tokens * HIDDEN * 2 / MB, value)
                for size, tokens in SIZES.items()
                if (value := seen.get(title_of(size, 1), Results()).median(name, metric)) is not None
            ]
            if points and name not in hidden:
                series[name] = points
        panels.append(_plot.Panel(heading, series))
    styles = {name: "floor" if name.startswith("floor") else "ours" for name in names if name.startswith(("f", OURS))}
    text = _plot.draw("From the encoder's tensor to rows that the scheduler can use", "MB", panels, styles)
    file.write_text(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--engines", default="shm,mooncake", help="shm, mooncake or both")
    parser.add_argument(
        "--plot", type=Path, help="where to draw size against GB/s and latency (default: docs/performance.svg)"
    )


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=2, options=add_options)
    options = bench.options
    is_whole = not options.only and not bench.quick
    if not is_whole:
        bench.json = options.json  # what has been recorded is a whole run
    here = (*PEERS, *_ours.HERE) if "shm" in options.engines else ()
    network = (RawMooncake, *_ours.NETWORK) if "mooncake" in options.engines else ()
    seen: dict[str, Results] = {}
    for size, tokens in SIZES.items():
        for in_flight in AT_ONCE:
            title, job = title_of(size, in_flight), Job(tokens, HIDDEN, in_flight)
            if options.only not in title or job.size * in_flight > MOST_BYTES:
                continue
            least = in_flight * (2 if job.size * in_flight > GREAT_BYTES else 4)
            enough = 600 if in_flight == 1 else 2400
            total = max(12, least, min(bench.scaled(enough), bench.scaled(ROUND_BYTES // job.size)))
            floors = (WakeUp, *COPIES) if in_flight == 1 else COPIES
            seen[title] = compare(bench, title, job, total, (*floors, *here, *network))
    for hidden in SMALL:
        title, total = small_title(hidden), bench.scaled(12_000 if hidden < HIDDEN else 6_000)
        if options.only in title and here:
            seen[title] = compare(bench, title, Job(64, hidden, 256), total, (*COPIES, *QUICK_PEERS, *_ours.HERE))
    ask_for_goals(bench, seen)
    if options.plot or is_whole:
        plot(options.plot or HERE.parent / "docs" / "performance.svg", seen)
    bench.finish()


if __name__ == "__main__":
    main()
