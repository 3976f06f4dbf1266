"""`embridge launch`: one node in the foreground, for a service manager or a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embridge.pipeline.cli.errors import FAILED, expected_errors
from embridge.pipeline.cli.options import NodeCommand, node_config, node_layers


@click.command("launch", cls=NodeCommand, short_help="Run one node in the foreground.")
@click.option("--config", "toml", type=click.Path(path_type=Path), help="TOML file; flags and environment go over it.")
@click.option("--print-config", is_flag=True, help="Print each value and its origin, as TOML; launch nothing.")
@click.option("--check", is_flag=True, help="Say whether such a node could start here, now; launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the line that says READY, or what --check finds, as JSON.")
def command(toml: Path | None, print_config: bool, check: bool, as_json: bool, **given: Any) -> None:
    """Run one node in the foreground, until SIGTERM, Ctrl-C, or the end of its terminal.

    Prints one line on standard output when all its processes are ready. The first signal drains: accepted requests end,
    new ones are refused. The second stops at once. SIGHUP reads the settings and the allow-list again. Every setting
    may also stand in the environment as EMBRIDGE_<NAME>, or in the TOML file; a flag wins.

    \b
      embridge launch --role encode --check && embridge launch --role encode
    """
    from embridge.workers.stderr import never_block_on_output

    never_block_on_output()  # signals are passed on also while nobody reads the output
    with expected_errors():
        if print_config:
            _print(toml, given)
        elif check:
            _check(toml, given, as_json=as_json)
        else:
            from embridge.pipeline.cli.foreground import run_in_foreground

            config = node_config(toml, given)
            raise SystemExit(run_in_foreground(config, lambda: node_config(toml, given), as_json=as_json))


def _print(toml: Path | None, given: dict[str, Any]) -> None:
    from embridge.pipeline.config import PipelineConfig, origins_of
    from embridge.pipeline.settings_toml import effective

    layers = node_layers(toml, given)
    click.echo(effective(PipelineConfig.of_layers(*layers), origins_of(*layers)), nl=False)


def _check(toml: Path | None, given: dict[str, Any], *, as_json: bool) -> None:
    from embridge.pipeline.cli.output import show_checks
    from embridge.pipeline.node.start_checks import start_checks

    if not show_checks(start_checks(node_config(toml, given)), as_json=as_json):
        raise SystemExit(FAILED)
