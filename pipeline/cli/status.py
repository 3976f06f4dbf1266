"""`embridge status`: what a running node is doing, and why a request does not move.

It reads shared memory and disturbs nobody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.allocator.texts import one_line
from embridge.pipeline.cli.errors import FAILED, NO_NODE, QuestionError, expected_errors, no_node_is_status_3
from embridge.pipeline.cli.options import node_options, run_dir_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

REFRESH_S = 1.0
IN_DETAIL = {
    *("slot", "epoch", "deadline_in_s", "moved_s_ago", "reason", "client", "process", "pid", "line", "stamps_s"),
    *("required", "destinations", "encode_node", "blocks", "claim_holder", "paths"),
}
"""What is shown of a request in detail, and in JSON, but not in the table of all."""
ENDLESS = ("requests",)
"""Groups that may have thousands of entries: a line each, however wide."""
MOST_WIDTH = 1000


@click.command("status", short_help="Show a running node: its processes, blocks and requests.")
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, all fields; with --watch one line each time.")
@click.option("--request", "room", type=int, metavar="ROOM", help="One request, in detail.")
@click.option("--watch", is_flag=True, help=f"Again each {REFRESH_S:g} s, until Ctrl-C.")
def command(run_dir: Path | None, role: str | None, as_json: bool, room: int | None, watch: bool) -> None:
    """Show a running node: its processes, blocks and requests.

    For each request it says who owes its next step, and for how long.
    """
    with expected_errors():
        path = run_dir_of(run_dir, role)
        if watch:
            _watch(path, room, as_json=as_json)
            return
        with no_node_is_status_3():
            status = _status(path, room)
        _show(status, as_json=as_json)
        if status.get("state") == "GONE":
            raise SystemExit(NO_NODE)
        if "role" not in status and room is None:
            raise SystemExit(FAILED)


def _status(path: Path, room: int | None) -> dict[str, Any]:
    """The node, or of it one request, or what is left of it.

    Raises:
        AttachError: no node ever ran there.
        QuestionError: no such request is in flight.
    """
    from embridge.allocator.errors import AttachError
    from embridge.pipeline.inspection.node_status import node_status
    from embridge.pipeline.inspection.open_readonly import remains

    try:
        status = node_status(path)
    except AttachError:
        left = remains(path)
        if not left or room is not None:
            raise
        return left
    if room is None:
        return status
    found = [request for request in status["requests"] if request["room"] == room]
    if not found:
        raise QuestionError(
            f"room {room}: no such request is in flight at this {status['role']} node; "
            "it has ended, or is not open here"
        )
    return {"requests": found}


def _show(status: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(status, indent=2, default=str))
        return
    from embridge.pipeline.cli.output import console

    screen = console()
    for part in render(status):
        screen.print(part, "", crop=False)


def _watch(path: Path, room: int | None, *, as_json: bool) -> None:
    """Until Ctrl-C, which is how it is meant to end; also through restarts of the node."""
    from rich.console import Group
    from rich.live import Live

    from embridge.allocator.errors import EmbridgeError
    from embridge.pipeline.cli.output import console

    screen = console()

    def now() -> dict[str, Any]:
        try:
            return _status(path, room)
        except (EmbridgeError, QuestionError) as error:
            return {"note": " ".join(str(error).split())}

    try:
        if as_json or not screen.is_terminal:
            while True:
                status = now()
                if as_json:
                    click.echo(json.dumps(status, default=str))
                else:
                    _show(status, as_json=False)
                time.sleep(REFRESH_S)
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Group(*render(now())), refresh=True)
                time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return


def render(status: Mapping[str, Any]) -> list[RenderableType]:
    """One table of the plain values, then one for every group: a row an entry, the columns that its entries have; or
    the entries one below another, where they do not fit.

    Of requests the columns that fit; where the status is one request and no more, everything.
    """
    requests = status.get("requests", ())
    if set(status) == {"requests"}:
        return [_pairs(f"room {request['room']}", _spread(request)) for request in requests]
    shown = [{key: value for key, value in request.items() if key not in IN_DETAIL} for request in requests]
    status = {key: shown if key == "requests" else value for key, value in status.items()}
    if "metrics" in status:
        status["metrics"] = _transposed(status["metrics"])
    plain = {key: value for key, value in status.items() if not _is_group(value)}
    parts: list[RenderableType] = [_pairs("node", plain)] if plain else []
    for key, value in status.items():
        if not _is_group(value):
            continue
        entries = value if isinstance(value, Mapping) else dict(_labelled(entry, i) for i, entry in enumerate(value))
        rows = {name: entry for name, entry in entries.items() if isinstance(entry, Mapping)}
        parts.append(_rows(key, rows) if rows and len(rows) == len(entries) else _pairs(key, entries))
    return parts


def _transposed(metrics: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """A row a counter that has counted something, a column a process: there are more counters than fit side by side."""
    names = dict.fromkeys(name for row in metrics.values() for name, count in row.items() if count)
    return {name.replace("_", " "): {process: row.get(name, 0) for process, row in metrics.items()} for name in names}


def _spread(request: Mapping[str, Any]) -> dict[str, Any]:
    """Groups within a request as lines of their own."""
    spread: dict[str, Any] = {}
    for key, value in request.items():
        if key != "stamps_s" and isinstance(value, Sequence) and not isinstance(value, str):
            spread |= {f"{key} {i}": entry for i, entry in enumerate(value)}
        else:
            spread[key] = value
    return spread


def _labelled(entry: Mapping[str, Any], index: int) -> tuple[str, Mapping[str, Any]]:
    """A row's label, its name or its place, and the rest of it."""
    label = entry.get("name", str(index))
    return str(label), {key: value for key, value in entry.items() if key != "name"}


def _is_group(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, Sequence) and any(isinstance(entry, Mapping) for entry in value)


def _pairs(title: str, values: Mapping[str, Any]) -> RenderableType:
    return _Pairs(title, {key.replace("_", " "): _text(value) for key, value in values.items()})


class _Pairs:
    """A line or more a value; no path is cut, nor broken but where a screen has no more room."""

    def __init__(self, title: str, texts: Mapping[str, str]) -> None:
        self._title = title
        self._texts = texts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        from embridge.pipeline.cli.layout import behind, wrapped

        width, is_whole = options.max_width, not console.is_alt_screen
        indent = min(max(map(len, self._texts), default=0) + 1, max(width - 1, 0))
        yield Text(self._title, style="italic")
        for key, text in self._texts.items():
            told = wrapped(text, width - indent, is_whole=is_whole)
            for line in behind(Text(f"{key:<{indent}}"), told, indent, width):
                line.no_wrap, line.overflow = True, "ignore"
                yield line


def _rows(title: str, rows: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        number = all(isinstance(row.get(column) or 0, int | float) for row in rows.values())
        table.add_column(column.replace("_", " "), justify="right" if number else "left")
    for name, row in rows.items():
        table.add_row(name, *(escape(_text(row.get(column, ""))) for column in columns))
    if title in ENDLESS:
        return table
    return _Fitting(table, [_pairs(f"{title} {name}", row) for name, row in rows.items()])


class _Fitting:
    """A table; where it is wider than the screen its entries one below another, so that no address is cut."""

    def __init__(self, table: RenderableType, entries: list[RenderableType]) -> None:
        self._table = table
        self._entries = entries

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement

        fits = Measurement.get(console, options.update(max_width=MOST_WIDTH), self._table).maximum <= options.max_width
        yield from [self._table] if fits else self._entries


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(entry) for entry in value) or "none"
    return one_line(str(value))
