"""`embridge discovery`: the discovery server in the foreground, for a service manager or a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import click

from embridge.pipeline.cli.errors import CommandError, expected_errors
from embridge.pipeline.cli.ready import say_ready

DEFAULT_PORT = 8998  # that of SGLang's bootstrap server


@click.command("discovery", short_help="Run the discovery server: which nodes there are, how they fare.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The one address to bind; beyond loopback only with a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: any free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File, mode 0600, of the token that every request must bear (Bearer).",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Log level.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the line that says READY as JSON.")
def command(host: str, port: int, token_file: Path | None, log_level: str, as_json: bool) -> None:
    """Run the discovery server: which nodes there are, how they fare.

    One for a cluster. Start it, then give its URL to every node: embridge launch --discovery http://HOST:PORT. Nodes
    register and renew every second; what does not renew runs out after five. The state is in memory: after a restart of
    the server it is whole again within a second or two, and nodes work on without it meanwhile.

    \b
      GET /nodes      nodes with role, state, health, load and free blocks: what a router chooses by
      GET /health     200 if every process of every node gives signs of life, else 503 and which does not
      GET /metrics    the same for Prometheus
      GET /route      the nodes, as their registrars see them; PUT and DELETE are the registrars' own

    Prints one line on standard output when it listens, and runs until SIGTERM or Ctrl-C.

    \b
      embridge discovery
      curl -s http://127.0.0.1:8998/nodes
    """
    with expected_errors():
        try:
            from embridge.workers.discovery.server import Server, check_binding
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "aiohttp":
                raise
            raise CommandError(f"{error.name} is not installed; run pip install 'embridge[discovery]'") from error
        from embridge.workers.discovery.auth_token import read_token
        from embridge.workers.stderr import log_to_stderr

        log_to_stderr(log_level.upper(), "discovery")
        check_binding(host, has_token=token_file is not None)
        server = Server(token=read_token(token_file) if token_file else "")
        try:
            server.run(host, port, lambda url: say_ready({"discovery": url, "pid": os.getpid()}, as_json=as_json))
        except OSError as error:
            raise CommandError(f"{host}:{port}: {error.strerror or error}; choose another with --port") from error
