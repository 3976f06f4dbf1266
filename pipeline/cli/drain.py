"""`embridge drain`: have a running node finish its requests and end."""

from __future__ import annotations

from pathlib import Path

import click

from embridge.pipeline.cli.ending import end_node, ending_options
from embridge.pipeline.cli.errors import expected_errors

TIMEOUT_S = 60.0


@click.command("drain", short_help="Have a running node finish its requests and end.")
@ending_options(TIMEOUT_S)
def command(run_dir: Path | None, role: str | None, timeout_s: float, as_json: bool) -> None:
    """Have a running node finish its requests and end: new ones are refused. It waits for that end.

    What SIGTERM does, from elsewhere. The node waits for drain_timeout_s at most (--drain-timeout-s of embridge launch)
    and then ends all the same. How many requests are in flight goes to standard error whenever it changes. Where the
    time of this command is over first, the node drains on.

    \b
    The exit status is 0 when the node has ended, 1 if it still runs when the time is over, 3 if none runs there.
    """
    with expected_errors():
        end_node(run_dir, role, timeout_s, is_drain=True, as_json=as_json)
