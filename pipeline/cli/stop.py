"""`embridge stop`: end a running node at once."""

from __future__ import annotations

from pathlib import Path

import click

from embridge.pipeline.cli.ending import end_node, ending_options
from embridge.pipeline.cli.errors import expected_errors

TIMEOUT_S = 15.0


@click.command("stop", short_help="End a running node at once.")
@ending_options(TIMEOUT_S)
def command(run_dir: Path | None, role: str | None, timeout_s: float, as_json: bool) -> None:
    """End a running node at once, and wait for that. Requests in flight fail on the other side, with the reason.

    What a second SIGTERM does, from elsewhere. Processes that do not end within stop_timeout_s are killed.

    \b
    The exit status is 0 when the node has ended, 1 if it still runs when the time is over, 3 if none runs there.
    """
    with expected_errors():
        end_node(run_dir, role, timeout_s, is_drain=False, as_json=as_json)
