"""The page of the commands' options, from the commands themselves; `api_page` writes it beside those of the API."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

import click

from embridge.pipeline.cli import main

WIDTH: Final = 120
_HEAD: Final = """# Options

Every option of every command; [commands](../commands.md) says what each is for, and with which status it ends. This
page is generated: `make api` writes it from the commands, and a test compares the two.
"""


def page() -> str:
    """The text of the page."""
    return _HEAD + "".join(f"\n{section}\n" for section in _sections(main, "embridge"))


def _sections(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None, inner
            yield from _sections(found, f"{name} {inner}")
        return
    yield f"## {name}\n\n" + "\n".join(_lines(command, context, name))


def _lines(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    yield _fill(command.get_short_help_str(1000))
    yield f"\n```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    for param in command.get_params(context):
        if isinstance(param, click.Option) and "--help" not in param.opts and not param.hidden:
            metavar = "" if param.is_flag or param.count else f" {param.make_metavar(context)}"
            names = ", ".join(f"`{option}{metavar}`" for option in (*param.opts, *param.secondary_opts))
            yield _fill(f"- {names}: {' '.join((param.help or '').split())}", "  ")


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
