"""What of the benchmarks can be wrong without a machine: names, how `bench/compare.py` judges, what `bench/_plot.py`
draws.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SVG = "{http://www.w3.org/2000/svg}"
Rows = dict[str, dict[str, float]]  # row -> metric -> ratio to the floor

BEFORE: Rows = {
    "embridge": {"p50, µs": 1.2, "p99, µs": 2.0, "step p99, µs": 1.0, "GB/s": 0.8},
    "ZeroMQ, ipc": {"p50, µs": 4.0, "p99, µs": 9.0, "GB/s": 0.25},
}


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, plot = module_of("compare"), module_of("_plot")


def names_of(path: Path) -> list[tuple[str, str]]:
    """What a file imports of the product, as (module, name)."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").split(".")[0] in ("embridge", "support")]
    return [(node.module or "", alias.name) for node in ours for alias in node.names]


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_the_product_is_there(path: Path) -> None:
    """A name that has moved would be missed when somebody measures."""
    names = names_of(path)
    assert [it for it in names if not hasattr(importlib.import_module(it[0]), it[1]) and not is_module(*it)] == []


def is_module(module: str, name: str) -> bool:
    try:
        return importlib.util.find_spec(f"{module}.{name}") is not None
    except ModuleNotFoundError:
        return False


def spread(ratio: float) -> dict[str, float]:
    """Of rounds that differ by a tenth either way."""
    return {"median": ratio, "min": 0.9 * ratio, "max": 1.1 * ratio}


def report(**sections: Rows) -> dict[str, Any]:
    """As `Benchmark.finish` writes one, with absolute figures that differ from run to run."""
    return {
        "figures": {
            title: {
                row: {
                    metric: {"median": 1000 * ratio, "min": 0, "max": 0} for metric, ratio in ratios.items()
                } | {compare.OF_FLOOR: {metric: spread(ratio) for metric, ratio in ratios.items()}}
                for row, ratios in rows.items()
            }
            for title, rows in sections.items()
        }
    }


def judged(after: Rows, tmp_path: Path, *options: str) -> tuple[int, str]:
    """The exit status and what is printed, for a run in which the given ratios are others than before."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report(nine=BEFORE)))
    new.write_text(json.dumps(report(nine={row: BEFORE.get(row, {}) | after.get(row, {}) for row in BEFORE | after})))
    command = [sys.executable, str(BENCH / "compare.py"), str(old), str(new), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"p50, µs": 1.5}, "p50, µs: 1.2 -> 1.5 of the floor's, 1.25 x worse"),
        ({"GB/s": 0.6}, "GB/s: 0.8 -> 0.6 of the floor's, 1.33 x worse"),
        ({"p99, µs": 3.2}, "p99, µs: 2 -> 3.2 of the floor's, 1.60 x worse"),
        ({"GB/s": 0.0}, "GB/s"),
    ],
)
def test_a_row_that_is_worse_by_more_than_the_tolerance_has_regressed(
    after: dict[str, float], says: str, tmp_path: Path
) -> None:
    status, text = judged({"embridge": after}, tmp_path)
    assert status == 1
    assert says in text.partition("regressed:")[2]


@pytest.mark.parametrize(
    "after",
    [{}, {"p50, µs": 1.3, "GB/s": 0.72}, {"p99, µs": 2.9, "step p99, µs": 1.4}, {"p50, µs": 0.5, "GB/s": 2.0}],
    ids=["equal", "within the tolerance", "a tail, which moves more", "better"],
)
def test_what_is_equal_or_within_the_tolerance_or_better_has_not_regressed(
    after: dict[str, float], tmp_path: Path
) -> None:
    status, text = judged({"embridge": after}, tmp_path)
    assert status == 0
    assert ", 0 regressed" in text


def test_the_tolerances_can_be_chosen(tmp_path: Path) -> None:
    assert judged({"embridge": {"p50, µs": 1.5}}, tmp_path, "--tolerance", "0.3")[0] == 0
    assert judged({"embridge": {"p50, µs": 1.3}}, tmp_path, "--tolerance", "0.05")[0] == 1
    assert judged({"embridge": {"p99, µs": 2.9}}, tmp_path, "--tail", "0.4")[0] == 1


def test_a_peer_that_is_slower_is_said_and_is_no_regression(tmp_path: Path) -> None:
    status, text = judged({"ZeroMQ, ipc": {"p50, µs": 8.0}}, tmp_path)
    assert status == 0
    assert "ZeroMQ, ipc, p50, µs: 4 -> 8" in text.partition("peers that moved:")[2]


def test_a_row_that_is_not_measured_any_more_has_regressed() -> None:
    old = report(nine=BEFORE, small=BEFORE)
    new = report(nine={"ZeroMQ, ipc": BEFORE["ZeroMQ, ipc"]})
    lost = [change for change in compare.changes(old, new, 0.15, 0.5) if change.has_regressed]
    assert {change.row for change in lost} == {"embridge"}
    assert {change.title for change in lost} == {"nine"}, "a case that the new run left out is none"
    assert "not measured any more" in str(lost[0])


@pytest.mark.parametrize(("ratio", "overlaps"), [(1.4, True), (1.5, False)])
def test_a_regression_within_the_spread_of_the_rounds_is_said_to_be_so(ratio: float, overlaps: bool) -> None:
    new = report(nine={"embridge": BEFORE["embridge"] | {"p50, µs": ratio}})
    (regressed,) = (
        it for it in compare.changes(report(nine=BEFORE), new, 0.15, 0.5) if it.has_regressed and it.is_ours
    )
    assert ("rounds of both overlap" in str(regressed)) is overlaps


def test_a_floor_is_held_against_nothing() -> None:
    old, new = (report(nine={"floor: one copy": {"p50, µs": ratio}}) for ratio in (0.5, 0.9))
    assert not list(compare.changes(old, new, 0.15, 0.5))


def test_runs_without_a_row_in_common_are_not_called_equal(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report(nine=BEFORE)))
    new.write_text(json.dumps(report(small=BEFORE)))
    command = [sys.executable, str(BENCH / "compare.py"), str(old), str(new)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "nothing to compare" in result.stderr


SERIES = {
    "embridge": [(0.45, 10.0), (9.0, 14.0), (42.0, 25.0)],
    "floor: one copy": [(0.45, 12.0), (42.0, 26.0)],
    "a <peer> & \"more\"": [(1.0, 0.5)],
}


def drawn(*panels: Any) -> ElementTree.Element:
    styles = {"embridge": "ours", "floor: one copy": "floor"}
    return ElementTree.fromstring(plot.draw("size & speed", "MB", panels, styles))


def test_a_plot_is_well_formed_and_names_every_line() -> None:
    image = drawn(plot.Panel("GB/s", SERIES), plot.Panel("µs", {"embridge": [(1.0, 7.0), (2.0, 7.0)]}))
    texts = [element.text for element in image.iter(f"{SVG}text")]
    assert {"size & speed", "GB/s", "µs", *SERIES} <= set(texts)
    assert len(list(image.iter(f"{SVG}polyline"))) == 4


def test_every_point_lies_in_its_panel_and_more_is_higher() -> None:
    image = drawn(plot.Panel("GB/s", SERIES))
    points = [
        tuple(float(number) for number in point.split(","))
        for line in image.iter(f"{SVG}polyline")
        for point in line.attrib["points"].split()
    ]
    assert len(points) == sum(map(len, SERIES.values()))
    assert all(plot.LEFT <= x <= plot.LEFT + plot.PANEL_WIDTH for x, _ in points)
    assert all(plot.TOP <= y <= plot.TOP + plot.PANEL_HEIGHT for _, y in points)
    ours = points[:3]
    assert ours == sorted(ours, key=lambda point: point[0])
    assert ours[0][1] > ours[1][1] > ours[2][1]


def test_a_panel_without_lines_is_drawn_empty() -> None:
    assert not list(drawn(plot.Panel("GB/s", {})).iter(f"{SVG}polyline"))
