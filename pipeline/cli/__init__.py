"""The `embridge` command: one sub-command a file, each loaded when it is used.

No command's file imports torch, zmq or the native core at its top: `embridge --help` answers at once, and on a machine
where one of those is broken `embridge doctor` still runs.
"""

from __future__ import annotations

from importlib import import_module

import click

ELSEWHERE = {"demo": "embridge.demo.command"}
COMMANDS = {
    "bench": "Measure how fast rows go on this machine, and what bounds them.",
    "completion": "Have the shell complete commands, options and their values.",
    "demo": "Carry real photographs between two nodes and check every byte.",
    "discovery": "Run the discovery server: which nodes there are, how they fare.",
    "doctor": "Check this machine: what works, what would be slow, and what to do.",
    "drain": "Have a running node finish its requests and end.",
    "keys": "Make and look at the keys by which nodes know each other.",
    "launch": "Run one node in the foreground.",
    "stop": "End a running node at once.",
    "status": "Show a running node: its processes, blocks and requests.",
    "top": "Watch a running node in a terminal: rates, memory, and what waits.",
    "trace": "Show when a request entered its phases, and what it waits for.",
}


class _LazyGroup(click.Group):
    """Lists commands from a table, and imports the file of the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(ELSEWHERE.get(cmd_name, f"{__name__}.{cmd_name}")).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="embridge", prog_name="embridge")
def main() -> None:
    """Carry multimodal embeddings from encoder processes to language-model schedulers."""
