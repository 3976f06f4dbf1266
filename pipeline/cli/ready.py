"""The one line that a command in the foreground prints when it serves."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click


def say_ready(told: Mapping[str, object], *, as_json: bool) -> None:
    """Print `READY name=value ...`, or the same as one line of JSON with `"state": "READY"`."""
    if as_json:
        click.echo(json.dumps({"state": "READY", **told}))
    else:
        click.echo(" ".join(["READY", *(f"{name}={value}" for name, value in told.items())]))
