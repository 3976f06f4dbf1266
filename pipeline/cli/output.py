"""Where commands print, and what several of them print."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

if TYPE_CHECKING:
    from embridge.workers.checks import Check

PIPE_WIDTH = 150  # a file or a pipe has no width of its own, and rich would assume 80


def console(*, to_stderr: bool = False) -> Console:
    """Standard output, or standard error, in a terminal's width or wide enough for every table.

    A character that the terminal's encoding lacks is shown as `?`.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # it was a file, and its descriptor has been made another file's
            stream.reconfigure(errors="replace")
    made = Console(stderr=to_stderr)
    return made if made.is_terminal else Console(stderr=to_stderr, width=max(made.width, PIPE_WIDTH))


_MARKS: Final = {"ok": ("green", "ok"), "note": ("cyan", "note"), "warn": ("yellow", "warn"), "fail": ("red", "FAIL")}


def show_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Print checks as a table, or as a list in JSON. Returns whether all hold (a warning does)."""
    checks = list(checks)
    if as_json:
        click.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for heading in ("check", "", "seen", "what to do"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            colour, mark = _MARKS[check.state]
            table.add_row(check.name, Text(mark, style=colour), Text(check.seen), Text(check.advice))
        console().print(table)
    return all(check.state != "fail" for check in checks)
