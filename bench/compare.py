"""Has anything become worse? `python bench/compare.py OLD NEW` holds two runs' JSON files against each other.

Absolute figures of two runs say nothing about each other: another hour is another machine. So what is compared is the
ratio of each row to the floor of its own run. A row has regressed where its ratio is worse by more than the tolerance,
and where what was measured is no more. Rows of embridge count; peers' are said where they moved, for then the runs are
less alike than they look. The exit status is 1 where something has regressed, and 2 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OF_FLOOR = "of the floor's"  # `Benchmark.show` writes it
OURS = "embridge"
Report = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row's ratio to the floor, before and after; `new` is None where it was not measured any more."""

    title: str
    row: str
    metric: str
    old: float
    new: float | None
    tolerance: float
    overlaps: bool = False  # a round of one run lies between two of the other: more rounds may say otherwise

    @property
    def worse_by(self) -> float:
        """How many times worse than before: 1.5 is half as much again of what took time, or two thirds of a rate."""
        if self.new is None:
            return float("inf")
        is_rate = self.metric.endswith("/s")
        over, under = (self.old, self.new) if is_rate else (self.new, self.old)
        return over / under if under else float("inf")

    @property
    def has_regressed(self) -> bool:
        return self.worse_by > 1 + self.tolerance

    @property
    def is_better(self) -> bool:
        return self.worse_by < 1 / (1 + self.tolerance)

    @property
    def is_ours(self) -> bool:
        return self.row.startswith(OURS)

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.title}: {self.row}, {self.metric}: not measured any more (was {self.old:.3g} of the floor's)"
        way = "worse" if self.worse_by > 1 else "better"
        times = max(self.worse_by, 1 / self.worse_by if self.worse_by else float("inf"))
        return (
            f"{self.title}: {self.row}, {self.metric}: "
            f"{self.old:.3g} -> {self.new:.3g} of the floor's, {times:.2f} x {way}"
            f"{' (rounds of both overlap)' if self.overlaps else ''}"
        )


def ratios(report: Report) -> dict[tuple[str, str, str], dict[str, float]]:
    """(title, row, metric) -> the ratio to the floor: median, min and max of the rounds.

    Maxima of times are chance, and left out.
    """
    return {
        (title, row, metric): spread
        for title, rows in report["figures"].items()
        for row, figures in rows.items()
        for metric, spread in figures.get(OF_FLOOR, {}).items()
        if "max" not in metric
    }


def changes(old: Report, new: Report, tolerance: float, tail: float) -> Iterator[Change]:
    """What both runs measured, and what only the old one did of a case that both have; `tail` is the tolerance of a
    p99.
    """
    after = ratios(new)
    for (title, row, metric), before in ratios(old).items():
        now = after.get((title, row, metric))
        if title in new["figures"] and before["median"] and not row.startswith("floor"):
            yield Change(
                title=title,
                row=row,
                metric=metric,
                old=before["median"],
                new=None if now is None else now["median"],
                tolerance=tail if "p99" in metric else tolerance,
                overlaps=now is not None and before["min"] <= now["max"] and now["min"] <= before["max"],
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.15, help="0.15: up to 1.15 times worse is no regression")
    parser.add_argument("--tail", type=float, default=0.5, help="the same for p99, which moves more (default: 0.5)")
    options = parser.parse_args()
    seen = list(
        changes(
            json.loads(options.old.read_text()), json.loads(options.new.read_text()), options.tolerance, options.tail
        )
    )
    ours = [change for change in seen if change.is_ours]
    if not ours:
        print("nothing to compare: the runs have no row of embridge in common that has a floor", file=sys.stderr)
        return 2
    regressed = sorted((it for it in ours if it.has_regressed), key=lambda it: -it.worse_by)
    better = [it for it in ours if it.is_better]
    moved = [it for it in seen if not it.is_ours and it.new and (it.has_regressed or it.is_better)]
    for heading, found in (("regressed", regressed), ("better", better), ("peers that moved", moved)):
        if found:
            print(f"{heading}:", *(f"  {change}" for change in found), sep="\n")
    counts = f"{len(regressed)} regressed, {len(better)} better; {len(moved)} of peers moved"
    print(f"{len(ours)} figures of embridge, {counts}")
    return 1 if regressed else 0


if __name__ == "__main__":
    sys.exit(main())
