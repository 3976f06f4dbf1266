"""`embridge demo`: the whole pipeline on this machine, with real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embridge.pipeline.cli.errors import CommandError, expected_errors


@click.command("demo", short_help="Carry real photographs between two nodes and check every byte.")
@click.option("--requests", type=int, default=12, show_default=True, help="Photographs to send.")
@click.option("--in-flight", type=int, default=6, show_default=True, help="Requests open at one time.")
@click.option(
    "--default-tokens", type=int, default=1024, show_default=True, help="Granted before a request's length is known."
)
@click.option("--pool-blocks", type=int, default=24, show_default=True, help="Blocks of the language node.")
@click.option("--encode-pool-blocks", type=int, default=16, show_default=True, help="Blocks of the encode node.")
@click.option("--block-size", type=int, default=128, show_default=True, help="Tokens a block.")
@click.option("--hidden", "hidden_size", type=int, default=3584, show_default=True, help="Elements of a token's row.")
@click.option("--deepstack", "deepstack_layers", type=int, default=0, show_default=True, help="Deepstack rows a token.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of images; default: photographs that scikit-image ships."
)
@click.option("--engine", default="shm", show_default=True, help="How rows travel; see embridge launch.")
@click.option(
    "--two-hosts",
    is_flag=True,
    help="The nodes in two network namespaces, joined by a cable; implies --engine mooncake. Needs root.",
)
@click.option("--verify", is_flag=True, help="Have the nodes check rows on receipt, too.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Folder for the nodes' sockets; default: a temporary one."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides sizes, order and weights.")
@click.option("--plain", is_flag=True, help="Lines instead of a live table; automatic where output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each request as JSON; all else to stderr.")
def command(as_json: bool, **options: Any) -> None:
    """Carry real photographs between two nodes and check every byte.

    Starts an encode node, a language node and an encoder process; cuts the photographs as Qwen2.5-VL does, streams
    their embeddings while they are computed, and compares everything that arrives with what was produced. The exit
    status is 0 only if every byte of every request is right.
    """
    with expected_errors():
        from embridge.demo.settings import DemoSettings

        if options["two_hosts"]:
            options["engine"] = "mooncake"
        settings = DemoSettings(**options)
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise CommandError("pillow is not installed; run pip install 'embridge[demo]'") from error
        from embridge.demo.run import run
        from embridge.pipeline.cli.output import console

        raise SystemExit(run(settings, console(to_stderr=as_json), as_json=as_json))
