"""What the benchmarks share: interleaved rounds, medians, goals, a table, and one JSON file each.

Only ratios within one run mean anything, for absolute figures move by a factor of two between machines, and on one
machine from minute to minute. So the contenders take turns, round by round, and a ratio is the median of the ratios of
each round. Peers are optional: one that is not installed gets a row that says so.

Two processes that spin need both cores. What other work took of the machine meanwhile is printed and kept. On a machine
that is not quiet, root may give the cases (each lasts a fraction of a second) precedence with `--nice -20`; they then
pause as long as they ran. With `--patience`, a case that lost more than 3 % of the machine to others is repeated until
that time is used up.

Processes are forked and not spawned: a benchmark has no threads when it forks, and a round lasts less than an import.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import random
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from embridge.allocator._core import Mapping

HERE = Path(__file__).parent
FORK = multiprocessing.get_context("fork")
WATCHDOG_S = 20.0
MAX_FAILURES = 2  # rounds of one contender; then it is left out
OF_FLOOR = "of the floor's"  # in the JSON: heading -> ratio; `compare.py` reads it
QUIET = 0.03  # the share of the machine that others may take without spoiling a measurement

Figures = dict[str, float]  # of one round: metric -> value
Case = Callable[[], Figures]
Start = Callable[[], None]  # returns when all processes of a case are ready


class Missing(Exception):
    """This contender cannot run here; the text says why."""


class Failed(Exception):
    """A process of this contender failed, or did not end in time."""


def need(module: str) -> None:
    """Raises: Missing, where a peer's module is not installed. It is imported in the forked processes only."""
    if importlib.util.find_spec(module) is None:
        raise Missing(f"{module} is not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure and its limit; `seen` is None where the contender was missing."""

    text: str
    seen: float | None
    limit: float
    at_least: bool
    unit: str

    @property
    def verdict(self) -> str:
        if self.seen is None:
            return "not measured"
        return "met" if (self.seen >= self.limit if self.at_least else self.seen <= self.limit) else "MISSED"


class Results:
    """The figures of each contender, round by round; a round that failed has none."""

    def __init__(self) -> None:
        self.figures: dict[str, list[Figures]] = {}
        self.missing: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}

    def rounds(self, case: str, metric: str) -> list[float]:
        return [figures[metric] for figures in self.figures.get(case, []) if metric in figures]

    def median(self, case: str, metric: str) -> float | None:
        values = self.rounds(case, metric)
        return statistics.median(values) if values else None

    def ratios(self, metric: str, over: str, under: str, under_metric: str = "") -> list[float]:
        """Round by round, `over`'s figure divided by `under`'s of the same round."""
        of = under_metric or metric
        rounds = zip(self.figures.get(over, []), self.figures.get(under, []), strict=False)
        return [a[metric] / b[of] for a, b in rounds if metric in a and b.get(of)]

    def ratio(self, metric: str, over: str, under: str, under_metric: str = "") -> float | None:
        """The median of `ratios`."""
        ratios = self.ratios(metric, over, under, under_metric)
        return statistics.median(ratios) if ratios else None


class Benchmark:
    """One benchmark: its options, what it measured, and its report."""

    def __init__(
        self,
        file: str,
        question: str | None,
        *,
        rounds: int = 8,
        quick_rounds: int = 3,
        options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    ) -> None:
        """`options` adds a benchmark's own, to be found in `self.options`."""
        self.name = Path(file).stem
        self.question = (question or "").strip()
        parser = argparse.ArgumentParser(
            description=self.question, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {rounds})")
        parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; results/ is left as it is")
        parser.add_argument(
            "--json", type=Path, help=f"where to write the figures (default: bench/results/{self.name}.json)"
        )
        parser.add_argument(
            "--patience", type=float, default=0.0, metavar="S", help="spend up to so long on waiting for quiet moments"
        )
        parser.add_argument(
            "--nice", type=int, default=0, metavar="N", help="the cases' priority, from -20 (root only) to 19"
        )
        options(parser)
        given = self.options = parser.parse_args()
        self._nice: int = given.nice
        self._patience_s: float = given.patience
        self.quick: bool = given.quick
        self.rounds: int = given.rounds or (quick_rounds if given.quick else rounds)
        self.json: Path | None = given.json or (None if given.quick else HERE / "results" / f"{self.name}.json")
        self._console = Console(width=160 if not os.isatty(1) else None)
        self._sections: dict[str, Any] = {}
        self._goals: list[Goal] = []
        self._load = [os.getloadavg()[0]]
        self._disturbed: list[float] = []
        self._begun = time.monotonic()
        self._console.print(self.question.partition("\n")[0], style="bold")

    def scaled(self, count: int) -> int:
        """How often to repeat inside a round: a quarter where it has to be quick."""
        return max(1, count // 4) if self.quick else count

    def interleave(self, cases: dict[str, Case], rounds: int | None = None) -> Results:
        """Every case in every round, in another order each time: what one leaves behind (freed pages, caches) would
        else always be the burden of the same one after it.
        """
        results, names = Results(), list(cases)
        for number in range(rounds or self.rounds):
            for name in random.Random(number).sample(names, len(names)):
                if name in results.missing:
                    continue
                try:
                    results.figures.setdefault(name, []).append(self._measure(cases[name]))
                except Missing as reason:
                    results.missing[name] = str(reason)
                except Failed as reason:
                    results.figures[name].append({})
                    results.failures.setdefault(name, []).append(str(reason))
                    if len(results.failures[name]) == MAX_FAILURES:
                        results.missing[name] = str(reason)
        results.figures = {name: results.figures[name] for name in names if any(results.figures.get(name, []))}
        return results

    def _measure(self, case: Case) -> Figures:
        while True:
            if self._patience_s > 0:
                self._wait_until_quiet()
            begun, others = time.monotonic(), others_cpu_s()
            set_nice(self._nice)
            try:
                figures = case()
            finally:
                set_nice(0)
            took, others_s = time.monotonic() - begun, others_cpu_s() - others
            if self._nice < 0:
                time.sleep(took)
            share = min(1.0, max(0.0, others_s) / took / (os.cpu_count() or 1))
            if share <= QUIET or self._patience_s <= took:
                self._disturbed.append(share)
                return figures
            self._patience_s -= took

    def _wait_until_quiet(self) -> None:
        while self._patience_s > 0:
            others = others_cpu_s()
            time.sleep(0.1)
            self._patience_s -= 0.1
            if others_cpu_s() - others <= QUIET * 0.1 * (os.cpu_count() or 1):
                return

    def show(self, title: str, results: Results, metrics: dict[str, str], *, floor: str = "", by: str = "") -> None:
        """A row a case: the median of each metric (`metric -> heading with its unit`), least and greatest behind it
        where there is room.

        With a `floor`, one of the cases, the last column has the ratio of the metric `by` to the floor's, and the JSON
        those of all metrics, which `compare.py` holds against another run's. A p99 is held against the floor's p50: the
        floor's own tail is chance.
        """
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for heading in metrics.values():
            table.add_column(heading, justify="right")
        if floor:
            table.add_column(f"{metrics[by]}, of the floor's", justify="right")
        section: dict[str, Any] = {}
        has_room = len(metrics) <= 4
        for case in results.figures:
            cells: list[str] = []
            row: dict[str, Any] = {}
            for metric, heading in metrics.items():
                values = results.rounds(case, metric)
                cells.append(_cell(values, has_room))
                if values:
                    row[heading] = _spread(values)
            if floor:
                ratios = {
                    metric: results.ratios(metric, case, floor, "p50" if metric == "p99" else "") for metric in metrics
                }
                cells.append(_cell(ratios[by], has_room))
                row[OF_FLOOR] = {metrics[metric]: _spread(values) for metric, values in ratios.items() if values}
            failures = results.failures.get(case, [])
            if failures:
                row["failed_rounds"] = failures
            table.add_row(f"{case} [dim](failed rounds: {len(failures)})[/]" if failures else case, *cells)
            section[case] = row
        for case, reason in results.missing.items():
            if case in section:
                continue
            table.add_row(case, f"[dim]{reason}[/]", *[""] * (len(metrics) - (0 if floor else 1)))
            section[case] = {"missing": reason}
        self._console.print(table)
        self._sections[title] = section

    def at_least(self, text: str, seen: float | None, limit: float, unit: str = "x") -> None:
        self._goals.append(Goal(text=text, seen=seen, limit=limit, at_least=True, unit=unit))

    def at_most(self, text: str, seen: float | None, limit: float, unit: str = "x") -> None:
        self._goals.append(Goal(text=text, seen=seen, limit=limit, at_least=False, unit=unit))

    def finish(self) -> None:
        """Print which goals are met and keep the figures."""
        self._load.append(os.getloadavg()[0])
        table = Table(title="goals", title_justify="left", title_style="bold")
        for heading in ("", "seen", "goal", ""):
            table.add_column(heading, justify="left" if not heading else "right")
        for goal in self._goals:
            seen = "-" if goal.seen is None else f"{_figure(goal.seen)} {goal.unit}"
            style = {"met": "green", "MISSED": "bold red"}.get(goal.verdict, "dim")
            table.add_row(
                goal.text,
                seen,
                f"{'≥' if goal.at_least else '≤'} {goal.limit:g} {goal.unit}",
                f"[{style}]{goal.verdict}[/]",
            )
        if self._goals:
            self._console.print(table)
        load = " → ".join(f"{value:.1f}" for value in self._load)
        summary = f"{self.rounds} rounds, {time.monotonic() - self._begun:.0f} s, load average {load}"
        others: Figures = {}
        if self._disturbed:
            others = {"median": round(statistics.median(self._disturbed), 3), "max": round(max(self._disturbed), 3)}
            median, most = others["median"], others["max"]
            summary += f"; other work took {median:.0%} of the machine (median of the cases; at most {most:.0%})"
        self._console.print(f"{summary}\n", style="dim")
        if self.json is None:
            return
        goals = [
            asdict(goal) | {"seen": goal.seen and _short(goal.seen), "verdict": goal.verdict} for goal in self._goals
        ]
        report = {
            "benchmark": self.name,
            "question": self.question.partition("\n")[0],
            "machine": machine(),
            "load_average": [round(value, 1) for value in self._load],
            "others_share_of_machine": others,
            "rounds": self.rounds,
            "nice": self._nice,
            "goals": goals,
            "figures": self._sections,
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _spread(values: Sequence[float]) -> Figures:
    return {
        "median": _short(statistics.median(values)),
        "min": _short(min(values)),
        "max": _short(max(values)),
    }


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _cell(values: Sequence[float], has_spread: bool) -> str:
    if not values:
        return ""
    text = _figure(statistics.median(values))
    if len(values) == 1 or not has_spread:
        return text
    return f"{text} [dim]({_figure(min(values))} to {_figure(max(values))})[/]"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def set_nice(nice: int) -> None:
    """Give this process and those it forks that priority, also (where sessions share the cores equally) their
    session.
    """
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def others_cpu_s() -> float:
    """CPU time, of all cores, that went to others than this process and its ended children; stolen time, too."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for a disk
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK") - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def quantiles_between(stamps_ns: Sequence[int]) -> Figures:
    """p50 and p99, in µs, of what passed between one stamp and the next."""
    return quantiles([after - before for before, after in pairwise(stamps_ns)])


def quantiles(samples_ns: Sequence[int]) -> Figures:
    """p50 and p99, in µs."""
    return {"p50": percentile(samples_ns, 50) / 1e3, "p99": percentile(samples_ns, 99) / 1e3}


# ---- memory and processes


def shared(size: int) -> Mapping:
    """Zeroed shared memory, its pages there already, that forked processes have, too."""
    fd = os.memfd_create("embridge-bench")
    try:
        os.ftruncate(fd, size)
        mapping = Mapping(fd, size)
    finally:
        os.close(fd)
    mapping.populate(0, size)
    return mapping


def together(*calls: Callable[[Start], Any], pinned: bool = False, within_s: float = WATCHDOG_S) -> list[Any]:
    """Run each call in a forked process of its own, and return what they returned.

    Each gets a function that returns when all have called it. `pinned`: each keeps to a core of its own, for two who
    spin on one core are each other's noise. Raises: Failed.
    """
    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    barrier = FORK.Barrier(len(calls))
    pipes = [FORK.Pipe(duplex=False) for _ in calls]
    processes = [
        FORK.Process(
            target=_report, args=(call, barrier, pipe[1], cores[number % len(cores)] if cores else None), daemon=True
        )
        for number, (call, pipe) in enumerate(zip(calls, pipes, strict=True))
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + within_s
    outcomes: dict[int, Any] = {}
    try:
        while len(outcomes) < len(calls):
            missing = [number for number in range(len(calls)) if number not in outcomes]
            handles = [handle for number in missing for handle in (pipes[number][0], processes[number].sentinel)]
            if not multiprocessing.connection.wait(handles, max(0.0, end - time.monotonic())):
                raise Failed(f"did not end within {within_s:.0f} s")
            for number in missing:
                has_ended = not processes[number].is_alive()
                if pipes[number][0].poll():
                    outcomes[number], error = pipes[number][0].recv()
                elif has_ended:
                    error = f"exit code {processes[number].exitcode}"
                else:
                    continue
                if error:
                    raise Failed(f"failed:\n{error}")
        return [outcomes[number] for number in range(len(calls))]
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.join(1.0)
            process.kill()
            process.join()
            for end_of_pipe in pipe:
                end_of_pipe.close()


def _report(call: Callable[[Start], Any], barrier: Any, pipe: Any, core: int | None) -> None:
    gc.disable()
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        pipe.send((call(lambda: barrier.wait(WATCHDOG_S) and None), None))
    except BaseException:
        barrier.abort()
        pipe.send((None, traceback.format_exc()))
