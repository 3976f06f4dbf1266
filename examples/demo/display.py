"""What the demo shows: requests while they move, and at the end what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from embridge.allocator.status import Phase
from embridge.demo.photographs import Photograph

COLOURS = {Phase.Success: "green", Phase.Failed: "red", Phase.Transferring: "cyan", Phase.WaitingForInput: "yellow"}

WIDE = 134  # columns that the whole summary takes with a path through all phases


@dataclass(slots=True, kw_only=True)
class Line:
    """One request as it is shown; filled in as it moves."""

    number: int
    photograph: Photograph
    tokens: int
    size_bytes: int
    streamed: bool
    phase: Phase | None = None  # None: not opened yet
    received_tokens: int = 0
    rounds: int = 0
    path: Sequence[Phase] = ()
    latency_ms: float | None = None
    moving_ms: float | None = None  # from the encoder's first row to Success
    behind_ms: float | None = None  # from its last row to Success
    problem: str | None = None
    checked: bool = False

    @property
    def ok(self) -> bool:
        return self.phase is Phase.Success and self.checked and self.problem is None

    @property
    def megabytes(self) -> float:
        return self.size_bytes / 1e6

    @property
    def rate(self) -> float | None:
        """GB/s from the first row to Success; of a streamed request, that is how fast it was encoded."""
        return self.size_bytes / self.moving_ms / 1e6 if self.moving_ms else None

    @property
    def size(self) -> str:
        return f"{self.photograph.width}×{self.photograph.height}"

    @property
    def way(self) -> str:
        return "streamed" if self.streamed else "at once"

    def path_text(self) -> str:
        return " → ".join(phase.name for phase in self.path if phase is not Phase.Bootstrapping)


class Display:
    """A live table on a terminal; one line a finished request elsewhere. A context manager."""

    def __init__(self, console: Console, lines: Sequence[Line], *, plain: bool) -> None:
        self._console = console
        self._lines = lines
        self._live = None if plain else Live(console=console, get_renderable=self._moving, refresh_per_second=10)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.transient = kind is None  # the final table takes its place; after an error it stays as evidence
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def finished(self, line: Line) -> None:
        if self._live is None:
            rounds = f"{line.rounds} round{'s' * (line.rounds != 1)}"
            outcome = "bytes ok" if line.ok else f"FAILED: {line.problem}"
            self._console.print(
                f"#{line.number} {line.photograph.name} {line.size}: {line.tokens} tokens {line.way}, {rounds}, "
                f"{line.megabytes:.1f} MB, {line.path_text()}: {outcome}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _moving(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("", justify="right")
        for heading in ("photograph", "size"):
            table.add_column(heading, no_wrap=True)
        table.add_column("tokens", justify="right")
        table.add_column("status", min_width=len("WaitingForInput"))
        table.add_column("received", width=30)
        table.add_column("rounds", justify="right")
        for line in self._lines:
            table.add_row(
                str(line.number),
                line.photograph.name,
                line.size,
                str(line.tokens),
                status_text(line),
                ProgressBar(total=line.tokens, completed=line.received_tokens, width=30),
                str(line.rounds or ""),
            )
        return table


def status_text(line: Line) -> Text:
    if line.phase is None:
        return Text("queued", style="dim")
    return Text(line.phase.name, style=COLOURS.get(line.phase, ""))


def summary_table(lines: Sequence[Line], *, width: int) -> Table:
    """Every request and what became of it; a console that is not WIDE is spared what the reader can do without."""
    wide = width >= WIDE
    table = Table(
        title="\nEvery request, as the scheduler saw it", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("photograph", no_wrap=True)
    if wide:
        table.add_column("size", no_wrap=True)
        table.add_column("sent", no_wrap=True)
    for heading in (
        "tokens",
        "rounds",
        "MB",
        "latency\nms",
        *(["last row to\nSuccess, ms", "GB/s from\nfirst row"] if wide else []),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status path")
    table.add_column("bytes", no_wrap=True)
    for line in lines:
        table.add_row(
            str(line.number),
            line.photograph.name,
            *([line.size, line.way] if wide else []),
            str(line.tokens),
            str(line.rounds),
            f"{line.megabytes:.1f}",
            _number(line.latency_ms, 0),
            *([_number(line.behind_ms, 1), _number(line.rate, 2)] if wide else []),
            line.path_text(),
            Text("ok ✓", style="green") if line.ok else Text("✗", style="red"),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
