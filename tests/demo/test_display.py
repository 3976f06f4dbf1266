"""What the demo shows says of every request what became of it, on a terminal and in a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from embridge.allocator.status import Phase
from embridge.demo.display import Display, Line, summary_table
from embridge.demo.photographs import Photograph

PATH = (Phase.Bootstrapping, Phase.WaitingForInput, Phase.Transferring, Phase.Success)


def line(**values: object) -> Line:
    made = Line(
        number=3,
        photograph=Photograph(path=Path("coffee.png"), height=400, width=600),
        tokens=2000,
        size_bytes=14_368_000,
        streamed=True,
    )
    for name, value in values.items():
        setattr(made, name, value)
    return made


def shown(*lines: Line, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(summary_table(lines, width=width))
    return capture.get()


def test_a_request_that_arrived_shows_its_way_and_its_numbers() -> None:
    text = shown(
        line(
            phase=Phase.Success, path=PATH, rounds=2, latency_ms=100.0, moving_ms=50.0, behind_ms=2.5, checked=True
        )
    )
    row = next(row for row in text.splitlines() if "coffee" in row)
    phases = "WaitingForInput → Transferring → Success"
    for part in ("600×400", "2000", "14.4", "100", "2.5", "0.29", phases, "ok ✓"):
        assert part in row


def test_a_request_with_a_problem_is_not_ok() -> None:
    failed = line(phase=Phase.Success, path=PATH, checked=True, problem="bytes differ in fill_ids")
    assert not failed.ok
    text = shown(failed)
    assert "✗" in text
    assert "ok ✓" not in text


def test_a_request_that_never_ended_is_not_ok() -> None:
    waiting = line(phase=Phase.Transferring)
    assert not waiting.ok
    assert "✗" in shown(waiting)


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


@pytest.mark.parametrize("width", [80, 134])
def test_no_number_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    text = shown(
        line(phase=Phase.Success, path=PATH, rounds=123, latency_ms=12345.0, behind_ms=12.5, checked=True), width=width
    )
    assert "…" not in text
    assert all(part in text for part in ("2000", "123", "12345", "14.4", "WaitingForInput", "ok ✓"))
