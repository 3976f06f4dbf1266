"""`embridge bench`: what it says of figures, and, in `make storm`, the figures themselves."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from embridge.pipeline.cli import main
from embridge.pipeline.cli.bench import Machine, median_of, table_of, verdict_of
from embridge.pipeline.cli.bench_runs import COPY, OURS, SIZES, ZEROMQ, Figures, copy_figures

QUIET = Machine(cpus=4, busy=0.02)


def measured(copy_ms: float = 2.5) -> dict[str, dict[str, Figures]]:
    small = {COPY: Figures(0.02, 30, 50000), OURS: Figures(0.1, 4, 9000), ZEROMQ: Figures(0.2, 4, 9000)}
    large = {COPY: Figures(copy_ms, 16, 400), OURS: Figures(3.0, 14, 330), ZEROMQ: Figures(7.5, 5, 120)}
    return {"0.46 MB": small, "42 MB": large}


@pytest.mark.parametrize(
    ("copy_ms", "machine", "bound"),
    [
        (2.5, QUIET, "memory bandwidth for large requests, waking processes for small ones"),
        (1.0, QUIET, "more than a copy, of large requests, too"),
        (2.5, Machine(cpus=4, busy=0.5), "other work: it took 50% of this machine"),
        (2.5, Machine(cpus=1, busy=0.0), "processor cores"),
    ],
)
def test_the_verdict_names_one_thing_that_bounds_rows_here(copy_ms: float, machine: Machine, bound: str) -> None:
    said = verdict_of(measured(copy_ms), machine)
    assert said.startswith(f"Bound by {bound}")
    assert "ZeroMQ 2.5 times as long" in said
    assert "embridge takes 80 us beside its copy" in said
    assert f"{copy_ms / 3:.0%} of embridge's time" in said


def test_a_figure_is_the_median_of_its_rounds_and_all_are_in_the_table() -> None:
    assert median_of([Figures(1, 5, 9), Figures(3, 4, 7), Figures(2, 6, 8)]) == Figures(2, 5, 8)
    console = Console(width=80, record=True)
    console.print(table_of(measured()))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["42", "MB", "one", "copy", "2.5", "16", "400"] in rows
    assert ["embridge", "3", "14", "330"] in rows


def test_the_floor_is_a_copy_of_all_rows() -> None:
    seen = copy_figures(SIZES[0], 0.0)
    assert seen.gb_per_s == pytest.approx(SIZES[0].tokens * 7168 / 1e6 / seen.one_ms)


@pytest.mark.process
@pytest.mark.storm
def test_every_carrier_is_measured_and_what_was_started_is_gone() -> None:
    result = CliRunner().invoke(main, ["bench", "--seconds", "6", "--json"], prog_name="embridge")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["verdict"].startswith("Bound by ")
    for size in SIZES:
        figures = told["figures"][size.title]
        assert {COPY, OURS, ZEROMQ} <= figures.keys()
        assert all(of["one_ms"] > 0 < of["gb_per_s"] for of in figures.values())
