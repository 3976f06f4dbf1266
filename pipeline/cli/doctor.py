"""`embridge doctor`: what of this machine works, what would be slow, and what to do about it."""

from __future__ import annotations

import click

from embridge.pipeline.cli.errors import FAILED, expected_errors


@click.command("doctor", short_help="Check this machine: what works, what would be slow, and what to do.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.option("--layout", "layout", is_flag=True, help="Draw the segments of a node of each role, with sizes, instead.")
def command(as_json: bool, layout: bool) -> None:
    """Check this machine: what works, what would be slow, and what to do.

    The exit status is 1 if a check fails, that is, if a node would not run; a warning costs speed, or a way to a peer.
    """
    if layout:
        _draw()
        return
    from embridge.pipeline.cli.checks import run_checks
    from embridge.pipeline.cli.output import show_checks

    raise SystemExit(0 if show_checks(run_checks(), as_json=as_json) else FAILED)


def _draw() -> None:
    """With the settings of the environment; a pool whose size is left to the node has the default one."""
    from dataclasses import replace

    from embridge.allocator.drawing import drawing, sizes
    from embridge.pipeline.config import ROLES, PipelineConfig
    from embridge.pipeline.node.sizing import DEFAULT_BLOCKS

    with expected_errors():
        click.echo(drawing())
        for name, role in ROLES.items():
            config = PipelineConfig.from_env(role=name)
            geometry = replace(config.geometry, num_blocks=config.geometry.num_blocks or DEFAULT_BLOCKS)
            click.echo(f"\n{sizes(role, geometry, config.limits)}")
