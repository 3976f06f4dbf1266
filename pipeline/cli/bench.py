"""`embridge bench`: how fast rows go from one process to another on this machine, and what bounds it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from embridge.pipeline.cli.errors import expected_errors
from embridge.pipeline.cli.figures import count

if TYPE_CHECKING:
    from embridge.pipeline.cli.bench_runs import Figures

ROUNDS: Final = 3
BUSY: Final = 0.2  # the share of the machine that others may take before figures say more of them than of us
COPY_BOUND: Final = 0.6  # of a request's time that one copy of its rows takes
Measured = dict[str, dict[str, "Figures"]]
"""Title of a size -> carrier -> its medians."""


class Machine(NamedTuple):
    """What is measured on. `busy`: the share of it that others took beforehand."""

    cpus: int
    busy: float


@click.command("bench", short_help="Measure how fast rows go on this machine, and what bounds them.")
@click.option("--seconds", type=click.FloatRange(min=1), default=100.0, show_default=True, help="How long to measure.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; all else to stderr.")
def command(seconds: float, as_json: bool) -> None:
    """Measure how fast rows go on this machine, and what bounds them: from an encoder's process to a scheduler's.

    Starts nodes of its own, beside ZeroMQ and one bare copy; with Mooncake installed a second pair of nodes sends
    through it. Carriers take turns in three rounds; a figure is the median. Needs some 300 MB of /dev/shm, twice that
    with Mooncake, and a quiet machine: two processes work at the same time.
    """
    with expected_errors(), _ended_by_sigterm():
        from embridge.pipeline.cli.output import console

        machine = Machine(len(os.sched_getaffinity(0)), _busy_share(0.5))
        measured = _measure(seconds)
        verdict = verdict_of(measured, machine)
        if as_json:
            click.echo(json.dumps(_told(measured, machine, verdict), indent=2))
            return
        screen = console()
        screen.print(table_of(measured))
        screen.print(_how_measured(), highlight=False)
        screen.print(verdict, highlight=False)


def _measure(seconds: float) -> Measured:
    from embridge.pipeline.cli import bench_runs as runs
    from embridge.pipeline.cli.output import console
    from embridge.workers.transfer.engines import ENGINES

    far = [engine for engine in ENGINES if engine.name == "mooncake" and not engine.why_unavailable()]
    rounds: dict[str, dict[str, list[Figures]]] = {size.title: {} for size in runs.SIZES}
    status_line = console(to_stderr=True).status(f"starting nodes; {seconds:g} s at most")
    with status_line as status, runs.Bench(with_network=bool(far)) as bench:
        each_s = seconds / (ROUNDS * len(runs.SIZES) * (len(bench.carriers) + 1))
        for number in range(1, ROUNDS + 1):
            for size in runs.SIZES:
                status.update(f"round {number} of {ROUNDS}: {size.title}")
                seen = rounds[size.title]
                seen.setdefault(runs.COPY, []).append(runs.copy_figures(size, each_s))
                for carrier in bench.carriers:
                    seen.setdefault(carrier, []).append(bench.measure(carrier, size, each_s))
    return {
        title: {carrier: median_of(figures) for carrier, figures in carriers.items()}
        for title, carriers in rounds.items()
    }


def median_of(rounds: list[Figures]) -> Figures:
    """Each figure's median of the rounds."""
    return type(rounds[0])(*(statistics.median(values) for values in zip(*rounds, strict=True)))


def table_of(measured: Measured) -> Any:
    """A row for each size and carrier."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading, justify in (("request", "left"), ("by", "left"), *((it, "right") for it in _HEADINGS)):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for title, carriers in measured.items():
        for i, (carrier, of) in enumerate(carriers.items()):
            table.add_row("" if i else title, carrier, f"{of.one_ms:.3g}", f"{of.gb_per_s:.3g}", count(of.per_s))
    return table


_HEADINGS: Final = ("alone, ms", "GB/s", "requests/s")


def _how_measured() -> str:
    from embridge.pipeline.cli.bench_runs import SIZES

    *most, last = (str(size.at_once) for size in SIZES)
    return (
        "alone: from complete rows to a tensor with them, one request at a time; "
        f"rates: with {', '.join(most)} and {last} requests at once."
    )


def verdict_of(measured: Mapping[str, Mapping[str, Figures]], machine: Machine) -> str:
    """What bounds embridge here: one copy of the rows, waking processes, too few cores, or other work."""
    from embridge.pipeline.cli.bench_runs import COPY, OURS, ZEROMQ

    titles = list(measured)
    small, large = measured[titles[0]], measured[titles[-1]]
    share = min(1.0, large[COPY].one_ms / large[OURS].one_ms)
    beside = large[ZEROMQ].one_ms / large[OURS].one_ms
    rest_us = max(0.0, small[OURS].one_ms - small[COPY].one_ms) * 1000
    if machine.busy > BUSY:
        bound = f"other work: it took {machine.busy:.0%} of this machine beforehand, so measure again when it is quiet"
    elif machine.cpus < 2:
        bound = "processor cores: encoder and scheduler share one"
    elif share >= COPY_BOUND:
        bound = "memory bandwidth for large requests, waking processes for small ones"
    else:
        bound = "more than a copy, of large requests, too: `embridge doctor` says what is slow here"
    return (
        f"Bound by {bound}. For {titles[-1]} one copy by one thread takes {share:.0%} of embridge's time, and ZeroMQ "
        f"{beside:.1f} times as long as embridge; for {titles[0]} embridge takes {rest_us:.0f} us beside its copy."
    )


def _told(measured: Measured, machine: Machine, verdict: str) -> dict[str, Any]:
    def rounded(of: Figures) -> dict[str, float]:
        return {name: round(value, 4) for name, value in of._asdict().items()}

    figures = {title: {carrier: rounded(of) for carrier, of in them.items()} for title, them in measured.items()}
    return {"cpus": machine.cpus, "busy_before": round(machine.busy, 3), "figures": figures, "verdict": verdict}


def _busy_share(seconds: float) -> float:
    """The share of all processors' time that was used in the next so many seconds; 0 where nobody tells."""
    before = _processor_times()
    time.sleep(seconds)
    used, whole = (now - then for now, then in zip(_processor_times(), before, strict=True))
    return used / whole if whole > 0 else 0.0


def _processor_times() -> tuple[int, int]:
    """(used, all) ticks since this machine was started."""
    try:
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(times) - sum(times[3:5]), sum(times)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the block as an exception does, so that what was started is stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
