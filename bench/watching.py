"""What does it cost to watch a node: to scrape its metrics, to keep its page open, and to have it log?

First, how long a scrape of `/metrics` and an answer of `/status.json` take beside 10 000 requests in flight. Then what
of a core the web process of a node takes while nothing is in flight: unasked, with a scrape each 15 s, and with a page
open, which asks once a second. Last, what of the data path's throughput is left: two pairs of nodes take turns, one
without a web process that logs warnings alone, the other one scraped each second, with a page open on both nodes, and
logs of level INFO in JSON. (What metrics count in shared memory, both count: that cannot be turned off.)

Goals: a scrape beside 10 000 requests within 20 ms, at most 1 % of a core at idle, at most 3 % of the throughput.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from _carriers import Job
from _harness import FORK, Benchmark, Figures, Results, percentile
from _ours import Embridge, children
from _round import Round, cpu_s_of
from waiting_rooms import Pair

IN_FLIGHT = 10_000
SCRAPE_S, PAGE_S = 15.0, 1.0  # as Prometheus is mostly set, and as the page asks
METRICS, STATUS = "/metrics", "/status.json"
JOBS = {  # title -> (job, requests a round)
    "64 x 64, 256 in flight": (Job(64, 64, 256), 60_000),
    "1 MB, 8 in flight": (Job(140, 3584, 8), 12_000),
}


def ask(node: str, path: str) -> int:
    """Ask a node, by its `http://host:port`; the bytes of its answer."""
    host, _, port = node.removeprefix("http://").rpartition(":")
    size = 0
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        while chunk := sock.recv(1 << 16):
            assert size or chunk.startswith(b"HTTP/1.1 200 "), chunk[:80]
            size += len(chunk)
    return size


def web_pid(launcher: int) -> int:
    """The web process of a node; its title is its name."""
    (pid,) = (pid for pid in children(launcher) if b"web" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return pid


# ---- answers beside many requests


def answers(bench: Benchmark, pair: Pair, count: int) -> None:
    """Show how long both nodes take to answer."""
    nodes = {"encode": pair.encode, "language": pair.language}
    results = Results()
    for _, (role, node), path in itertools.product(range(bench.rounds), nodes.items(), (METRICS, STATUS)):
        pid, took = web_pid(node.pid), []
        before = cpu_s_of(pid)
        for _ in range(count):
            begun = time.perf_counter_ns()
            size = ask(node.web_addr, path)
            took.append((time.perf_counter_ns() - begun) / 1e6)
        figures = {"p50": percentile(took, 50), "p99": percentile(took, 99), "kb": size / 1000}
        figures["cpu"] = 1000 * (cpu_s_of(pid) - before) / count
        results.figures.setdefault(f"{path} of the {role} node", []).append(figures)
    headings = {"p50": "p50, ms", "p99": "p99, ms", "cpu": "CPU of the web process, ms", "kb": "KB"}
    bench.show(f"an answer beside {IN_FLIGHT} requests in flight", results, headings)
    for role in nodes:
        name = f"{METRICS} of the {role} node"
        bench.at_most(f"{name}: p99", results.median(name, "p99"), 20, "ms")


# ---- at idle


def asks_each(node: str, path: str, every_s: float, until: float) -> None:
    """Ask at once, and then each so often."""
    due = time.monotonic()
    while due < until:
        ask(node, path)
        due += every_s
        time.sleep(max(0.0, min(due, until) - time.monotonic()))


def idle(bench: Benchmark, pair: Pair, seconds: float) -> Results:
    """Show what of a core the encode node's web process takes; in less than `SCRAPE_S` there is one scrape all the
    same.
    """
    node, results = pair.encode, Results()
    looks: dict[str, Callable[[float], None]] = {
        "nobody asks": lambda until: time.sleep(until - time.monotonic()),
        "a scrape each 15 s": lambda until: asks_each(node.web_addr, METRICS, SCRAPE_S, until),
        "a page is open": lambda until: asks_each(node.web_addr, STATUS, PAGE_S, until),
    }
    for _, (name, look) in itertools.product(range(min(3, bench.rounds)), looks.items()):
        pid = web_pid(node.pid)
        before, begun = cpu_s_of(pid), time.monotonic()
        look(begun + seconds)
        share = (cpu_s_of(pid) - before) / (time.monotonic() - begun)
        results.figures.setdefault(name, []).append({"percent": 100 * share})
    bench.show("nothing in flight", results, {"percent": "web process of one node, % of a core"})
    return results


# ---- at full load


class Unwatched(Embridge):
    name = "embridge, unwatched"
    settings: ClassVar[dict[str, Any]] = {"log_level": "WARNING", "metrics_addr": "off"}


class Watched(Embridge):
    """Its log goes to a file."""

    name = "embridge, watched"
    settings: ClassVar[dict[str, Any]] = {"log_level": "INFO", "log_format": "json"}

    def __init__(self, job: Job) -> None:
        with log_in_a_file():
            super().__init__(job)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Scraped each second, with a page open, on both nodes, from a process of its own."""
        process = FORK.Process(target=watch, args=([node.web_addr for node in self.nodes],), daemon=True)
        process.start()
        try:
            yield
        finally:
            assert process.is_alive(), "nobody was watching"
            process.kill()
            process.join()


@contextlib.contextmanager
def log_in_a_file() -> Iterator[None]:
    """What is started meanwhile has a file for standard error."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def watch(nodes: list[str]) -> None:
    while True:
        for node, path in itertools.product(nodes, (METRICS, STATUS)):
            ask(node, path)
        time.sleep(1.0)


def at_full_load(bench: Benchmark, title: str, job: Job, total: int) -> None:
    with contextlib.ExitStack() as stack:
        alone, watched = Unwatched(job), Watched(job)
        stack.callback(alone.close)
        stack.callback(watched.close)

        def while_watched() -> Figures:
            with watched.watched():
                return Round(watched, total).run()

        results = bench.interleave({Unwatched.name: lambda: Round(alone, total).run(), Watched.name: while_watched})
    bench.show(title, results, {"per_s": "requests/s", "gb_per_s": "GB/s", "cpu_us": "CPU µs/request"})
    ratio = results.ratio("per_s", Watched.name, Unwatched.name)
    bench.at_least(f"{title}: requests/s, of those unwatched", ratio, 0.97)


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=7, quick_rounds=2)
    rooms, seconds = itertools.count(1), 5.0 if bench.quick else SCRAPE_S
    with tempfile.TemporaryDirectory(prefix="eb-") as root, contextlib.ExitStack() as stack:
        pair = Pair(stack, Path(root), rooms)
        pair.request()
        results = idle(bench, pair, seconds)
        both = (results.median(name, "percent") for name in ("a scrape each 15 s", "a page is open"))
        alone = results.median("nobody asks", "percent") or 0.0
        bench.at_most("at idle, scraped and with a page open", sum(it or 0.0 for it in both) - alone, 1, "% of a core")
        pair.wait_with(IN_FLIGHT, encoders_come=True)
        answers(bench, pair, bench.scaled(40))
    for title, (job, total) in JOBS.items():
        at_full_load(bench, title, job, bench.scaled(total))
    bench.finish()


if __name__ == "__main__":
    main()
