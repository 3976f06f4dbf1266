"""Text in lines of a given width: words are wrapped, columns that do not fit are left out, and nothing is cut.

A word that is longer than a line, such as a path, is broken where a screen has no more room (`top`). Where lines are
printed, it stays whole, for who copies it, in a line of its own: print such lines with `soft_wrap`.

All of it is ASCII but for what nodes and requests say themselves; and it can be read without colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

TROUBLE: Final = "bold red"
LABEL: Final = "bold"
CHOSEN: Final = "reverse"
LABEL_WIDTH: Final = 10
GAP: Final = "  "


class Field(NamedTuple):
    """Some words that stay together where the width allows it."""

    text: str
    style: str = ""


def clean(text: object) -> str:
    """It in one line, and without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in str(text))


@cache
def _wrapper() -> Console:
    return Console(width=80, no_color=True)


def wrapped(text: str, width: int, *, style: str = "", indent: int = 0, is_whole: bool = False) -> list[Text]:
    """A text in lines. Words that are longer than a line are broken; or they stay whole, and are not indented."""
    room, text = max(1, width - indent), clean(text)
    if is_whole:
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    else:
        lines = [line.plain.rstrip() for line in Text(text).wrap(_wrapper(), room)]
    return [Text(" " * indent * (cell_len(line) <= room) + line, style=style, no_wrap=True) for line in lines]


def behind(head: Text, told: Iterable[Text], indent: int, width: int) -> list[Text]:
    """Lines behind a head, each indented so far; what is longer than that allows has a line of its own."""
    lines, line = list[Text](), head
    for i, part in enumerate(told):
        is_long = indent + cell_len(part.plain) > width
        if i or is_long:
            line.rstrip()
            lines.append(line)
            line = Text("" if is_long else " " * indent, no_wrap=True)
        line.append_text(part)
    return [*(line for line in lines if line.plain.strip()), line]


def labelled(label: str, fields: Iterable[Field | str], width: int, *, is_whole: bool = False) -> list[Text]:
    """A label and what belongs to it, in as many lines as that needs; those that follow are indented. `is_whole` as of
    `wrapped`.
    """
    indent = min(LABEL_WIDTH, max(0, width // 4))
    lines, line = list[Text](), Text(no_wrap=True).append(label.ljust(indent)[:indent], style=LABEL)
    is_empty = True
    for it in fields:
        field = it if isinstance(it, Field) else Field(it)
        text = clean(field.text)
        if not is_empty and cell_len(line.plain) + len(GAP) + cell_len(text) > width:
            lines.append(line)
            line, is_empty = Text(" " * indent, no_wrap=True), True
        if is_empty and indent + cell_len(text) > width:
            parts = wrapped(text, width - indent, style=field.style, is_whole=is_whole)
            *more, line = behind(line, parts, indent, width)
            lines += more
        else:
            line.append("" if is_empty else GAP).append(text, style=field.style)
        is_empty = False
    return [*lines, line]


class Column(NamedTuple):
    """One column of a table. The lower its `rank`, the longer it stays as the width shrinks.

    `least`: 0, or so many characters are enough: a longer text ends with two dots then, and stands in full elsewhere.
    """

    title: str
    of: Callable[[Mapping[str, Any]], str]
    rank: int
    is_right: bool = True
    least: int = 0


class Table(NamedTuple):
    """A heading and its rows, of one width."""

    heading: Text
    rows: list[Text]


def table(columns: Sequence[Column], entries: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Those columns that fit, in their order. A column with `least` takes the rest of the width, if that is as much."""
    texts = {column.title: [clean(column.of(entry)) for entry in entries] for column in columns}
    widths = {title: max(map(cell_len, (title, *column))) for title, column in texts.items()}
    left, kept = width + 1, set[str]()
    for column in sorted(columns, key=lambda it: it.rank):
        least = max(column.least, left - 1) if column.least else widths[column.title]
        need = min(widths[column.title], least) + 1
        if need <= left or not kept:
            kept.add(column.title)
            widths[column.title] = min(need - 1, width)
            left -= need
    shown = [column for column in columns if column.title in kept]

    def line(cells: Iterable[str], style: str = "") -> Text:
        parts = [
            _shortened(cell, widths[column.title], is_right=column.is_right)
            for column, cell in zip(shown, cells, strict=True)
        ]
        return Text(" ".join(parts).rstrip(), style=style, no_wrap=True)

    rows = [line(texts[column.title][i] for column in shown) for i in range(len(entries))]
    return Table(line((column.title for column in shown), LABEL), rows)


def _shortened(text: str, width: int, *, is_right: bool) -> str:
    if cell_len(text) > width:
        text = f"{text[: max(0, width - 2)]}.."
    space = " " * (width - cell_len(text))
    return space + text if is_right else text + space
