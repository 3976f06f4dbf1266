"""What the demo shows says of every request what became of it, on a terminal and in a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from embridge.allocator.status import Phase
from embridge.pipeline.demo.display import Display, Line, summary_table
from embridge.pipeline.demo.photographs import Photograph

PATH = (Phase.Bootstrapping, Phase.WaitingForInput, Phase.Transferring, Phase.Success)


def line(**values: object) -> Line:
    made = Line(
        number=3,
        photograph=Photograph(path=Path("coffee.png"), height=400, width=600),
        tokens=2000,
        size_bytes=14_368_000,
    )
    for name, value in values.items():
        setattr(made, name, value)
    return made


def shown(*lines: Line) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary_table(lines))
    return capture.get()


def test_a_request_that_arrived_shows_its_way_and_its_numbers() -> None:
    text = shown(line(phase=Phase.Success, path=PATH, rounds=2, latency_ms=100.0, behind_ms=2.5, checked=True))
    row = next(row for row in text.splitlines() if "coffee" in row)
    for part in ("600×400", "2000", "14.4", "100", "2.5", "0.14", "WaitingForInput → Transferring → Success", "ok ✓"):
        assert part in row


@pytest.mark.parametrize("problem", ["bytes differ in fill_ids", "room 5: peer lost"])
def test_a_request_that_failed_shows_the_reason_instead(problem: str) -> None:
    failed = line(phase=Phase.Success, path=PATH, checked=True, problem=problem)
    assert not failed.ok
    text = shown(failed)
    assert problem in text
    assert "ok ✓" not in text


def test_a_request_that_never_ended_is_not_ok() -> None:
    waiting = line(phase=Phase.Transferring)
    assert not waiting.ok
    assert "not finished" in shown(waiting)


@pytest.mark.parametrize("plain", [True, False])
def test_progress_is_a_line_a_request_or_a_live_table(plain: bool) -> None:
    console = Console(width=160, force_terminal=not plain)
    done = line(phase=Phase.Success, path=PATH, rounds=2, checked=True, received_tokens=2000)
    with console.capture() as capture, Display(console, [done, line()], plain=plain) as display:
        display.finished(done)
    text = capture.get()
    assert "coffee" in text
    assert ("bytes ok" in text) == plain
    assert ("queued" in text) != plain
