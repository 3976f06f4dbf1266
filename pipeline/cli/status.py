"""`embridge status`: what a running node is doing, read from its shared memory without disturbing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.pipeline.cli.errors import expected_errors
from embridge.pipeline.cli.options import run_dir_of

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("status", short_help="Show a running node: its processes, blocks and requests.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The node's run directory; default: that of the role.")
@click.option("--role", type=click.Choice(["encode", "language"]), help="Which of the two default run directories.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(run_dir: Path | None, role: str | None, as_json: bool) -> None:
    """Show a running node: its processes, blocks and requests."""
    with expected_errors():
        from embridge.pipeline.client import node_status

        status = node_status(run_dir_of(run_dir, role))
    if as_json:
        click.echo(json.dumps(status, indent=2, default=str))
        return
    from embridge.pipeline.cli.output import console

    screen = console()
    for part in render(status):
        screen.print(part, "")


def render(status: Mapping[str, Any]) -> list[RenderableType]:
    """One table of the plain values, then one for every group: a row an entry, the columns that its entries have."""
    plain = {key: value for key, value in status.items() if not _is_group(value)}
    parts: list[RenderableType] = [_pairs("node", plain)] if plain else []
    for key, value in status.items():
        if not _is_group(value):
            continue
        entries = value if isinstance(value, Mapping) else dict(_labelled(entry, i) for i, entry in enumerate(value))
        rows = {name: entry for name, entry in entries.items() if isinstance(entry, Mapping)}
        parts.append(_rows(key, rows) if rows and len(rows) == len(entries) else _pairs(key, entries))
    return parts


def _labelled(entry: Mapping[str, Any], index: int) -> tuple[str, Mapping[str, Any]]:
    """A row's label, its name or its place, and the rest of it."""
    label = entry.get("name", str(index))
    return str(label), {key: value for key, value in entry.items() if key != "name"}


def _is_group(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, Sequence) and any(isinstance(entry, Mapping) for entry in value)


def _pairs(title: str, values: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for key, value in values.items():
        table.add_row(key.replace("_", " "), _text(value))
    return table


def _rows(title: str, rows: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        number = all(isinstance(row.get(column, 0), int | float) for row in rows.values())
        table.add_column(column.replace("_", " "), justify="right" if number else "left")
    for name, row in rows.items():
        table.add_row(name, *(_text(row.get(column, "")) for column in columns))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(entry) for entry in value) or "none"
    return str(value)
