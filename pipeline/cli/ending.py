"""What `embridge stop` and `embridge drain` have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from embridge.pipeline.cli.errors import CommandError, no_node_is_status_3
from embridge.pipeline.cli.options import node_options, run_dir_of


def ending_options(default_s: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of such a command."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("--json", "as_json", is_flag=True, help="Print how it ended as JSON.")(function)
        function = click.option(
            "--timeout", "timeout_s", type=click.FloatRange(min=0), default=default_s, show_default=True,
            metavar="SECONDS", help="How long to wait for its end.",
        )(function)  # fmt: skip
        return node_options(function)

    return add


def end_node(run_dir: Path | None, role: str | None, timeout_s: float, *, is_drain: bool, as_json: bool) -> None:
    """End the node that is meant, and say how that went.

    Raises:
        CommandError: the node still runs when the time is over, or none runs there.
    """
    from embridge.pipeline.node.ending import RunningNode

    began, last = time.monotonic(), 0

    def progress(in_flight: int) -> None:
        nonlocal last
        last = in_flight
        click.echo(f"{'draining' if is_drain else 'stopping'}: {in_flight} requests in flight", err=True)

    path = run_dir_of(run_dir, role)
    with no_node_is_status_3(), RunningNode(path) as node:
        (node.drain if is_drain else node.stop)()
        has_ended = node.wait(timeout_s, progress)
        said = {
            "run_dir": str(path), "pid": node.pid, "ended": has_ended, "in_flight": last,
            "seconds": round(time.monotonic() - began, 3),
        }  # fmt: skip
    if as_json:
        click.echo(json.dumps(said))
    elif has_ended:
        click.echo(f"the node in {path} (pid {node.pid}) has ended")
    if not has_ended:
        more = "`embridge stop` ends it at once" if is_drain else f"`kill -9 {node.pid}` ends all its processes"
        raise CommandError(f"node in {path}: it still runs after {timeout_s:g} s, with {last} requests; {more}")
