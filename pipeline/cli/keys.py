"""`embridge keys`: the key of a node, and the list of those it talks with."""

from __future__ import annotations

import json
from pathlib import Path

import click

from embridge.pipeline.cli.errors import expected_errors

_ADDRESS_HELP = (
    "Where the others reach the node: host, host:port, [ipv6]:port (the bootstrap port), "
    "or - if they never connect to it first, as nobody does to a language node."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.group("keys", short_help="Make and look at the keys by which nodes know each other.")
def command() -> None:
    """Make and look at the keys by which nodes know each other.

    A node that others reach over a network has a secret key, and a list of the public keys that it talks with.
    Connections are encrypted (CURVE), both ends prove their key, and whoever is not listed reaches nothing.

    \b
    On each node, once:
      embridge keys new /etc/embridge/node.key --address 10.0.0.7 --name encode-7
    which prints the node's line. Collect the lines of all nodes in one file, and give it to each:
      embridge keys check /etc/embridge/nodes.allow
      embridge launch --role encode --host 10.0.0.7 \\
          --key-file /etc/embridge/node.key --allow-file /etc/embridge/nodes.allow

    The secret key never leaves its file. A running node reads its list again when the file changes.
    """


@command.command("new", short_help="Make a key: a secret file, and the line to give to the others.")
@click.argument("key_file", type=click.Path(path_type=Path))
@click.option("--address", required=True, help=_ADDRESS_HELP)
@click.option("--name", default="", help="One word for people, at the end of the line.")
@_json_option
def new(key_file: Path, address: str, name: str, as_json: bool) -> None:
    """Make a key: write the secret half to KEY_FILE (mode 600), and print the line for the allow-lists of the others.

    A file that exists is never overwritten.
    """
    with expected_errors():
        from embridge.workers.keys import allow_line, new_key_pair, write_key_file

        pair = new_key_pair()
        line = allow_line(address, pair.public, name)  # before the file: a wrong address leaves nothing behind
        write_key_file(key_file, pair)
        _say(address, pair.public, name, line, as_json=as_json)
        click.echo(
            f"{key_file}: the secret key, for this node alone; the line above goes into the allow-lists of the others",
            err=True,
        )


@command.command("show", short_help="Print the public line of a secret key file.")
@click.argument("key_file", type=click.Path(path_type=Path))
@click.option("--address", default="-", show_default=True, help=_ADDRESS_HELP)
@click.option("--name", default="", help="One word for people, at the end of the line.")
@_json_option
def show(key_file: Path, address: str, name: str, as_json: bool) -> None:
    """Print the line by which others list the node whose secret key is in KEY_FILE. The secret is not shown."""
    with expected_errors():
        from embridge.workers.keys import allow_line, read_key_file

        public = read_key_file(key_file).public
        _say(address, public, name, allow_line(address, public, name), as_json=as_json)


def _say(address: str, public: str, name: str, line: str, *, as_json: bool) -> None:
    """Print the line of an allow-list, or its parts."""
    click.echo(json.dumps({"address": address, "public_key": public, "name": name}) if as_json else line)


@command.command("check", short_help="Read an allow-list as a node does, and say what is wrong with it.")
@click.argument("allow_file", type=click.Path(path_type=Path))
@_json_option
def check(allow_file: Path, as_json: bool) -> None:
    """Read ALLOW_FILE as a node does, and list it. What is wrong is named with its line, and the exit status is 2.

    One line a node: `<address> <public key> [name]`. Every listed key may connect. When a node connects, it wants the
    key beside host:port, else the one beside the host; `-` stands for a node that nobody connects to first. `#` begins
    a comment.
    """
    with expected_errors():
        from embridge.workers.keys import read_allow_list

        allowed = read_allow_list(allow_file)
        if as_json:
            told = [
                {"line": it.line, "address": it.address, "public_key": it.key, "name": it.name}
                for it in allowed.entries
            ]
            click.echo(json.dumps(told, indent=2))
            return
        for entry in allowed.entries:
            click.echo(f"line {entry.line}: {entry.address} {entry.key} {entry.name}".rstrip())
        click.echo(f"{len(allowed.entries)} lines, {len(allowed.keys)} keys; nothing is wrong with them")
