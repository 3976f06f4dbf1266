"""Where commands print, and what several of them print."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

if TYPE_CHECKING:
    from rich.text import Text

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
_MARK_WIDTH: Final = 4
_GAP: Final = "  "


def show_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Print checks in lines, what to do behind an arrow, or as a list in JSON. Returns whether all hold (a warning
    does). No path is broken.
    """
    checks = list(checks)
    if as_json:
        click.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        screen = console()
        for line in _lines_of(checks, screen.width):
            screen.print(line, soft_wrap=True)
    return all(check.state != "fail" for check in checks)


def _lines_of(checks: Sequence[Check], width: int) -> list[Text]:
    from rich.text import Text

    from embridge.pipeline.cli.layout import LABEL, behind, wrapped

    names = max((len(check.name) for check in checks), default=0)
    indent = names + len(_GAP) + _MARK_WIDTH + len(_GAP)
    head = Text(f"{'check':<{indent}}", style=LABEL)
    lines = behind(head, wrapped("seen, -> what to do", width - indent, style=LABEL), indent, width)
    for check in checks:
        colour, mark = _MARKS[check.state]
        head = Text(f"{check.name:<{names}}{_GAP}").append(f"{mark:<{_MARK_WIDTH}}", style=colour).append(_GAP)
        told = wrapped(check.seen, width - indent, is_whole=True) if check.seen else []
        told += wrapped(f"-> {check.advice}", width - indent, is_whole=True) if check.advice else []
        lines += behind(head, told, indent, width)
    return lines
