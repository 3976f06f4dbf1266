"""`embridge launch`: one node in the foreground, for a service manager or a terminal."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Self

import click

from embridge.pipeline.cli.errors import FAILED, CommandError, expected_errors
from embridge.pipeline.cli.options import NodeCommand, node_config

# How long one wait may take: the interpreter runs signal handlers only between two waits.
WAKE_S = 0.2


@click.command("launch", cls=NodeCommand, short_help="Run one node in the foreground.")
@click.option("--config", "toml", type=click.Path(path_type=Path), help="TOML file; flags and environment go over it.")
def command(toml: Path | None, **given: Any) -> None:
    """Run one node in the foreground, until SIGTERM, Ctrl-C, or the end of its terminal.

    Prints one line on standard output when all its processes are ready. The first signal drains: accepted requests end,
    new ones are refused. The second stops at once. Every setting may also stand in the environment as EMBRIDGE_<NAME>,
    or in the TOML file; a flag wins.
    """
    from embridge.pipeline.node.launch import launch
    from embridge.workers.stderr import never_block_on_output

    never_block_on_output()  # signals are passed on also while nobody reads the output
    with expected_errors():
        config = node_config(toml, given)
        with _Signals() as signals, launch(config) as node:
            click.echo(
                f"READY role={config.role} bootstrap={node.bootstrap_addr} poller={node.poller_addr} "
                f"http={node.web_addr or 'off'} "
                f"run_dir={node.run_dir} pid={node.pid}"
            )
            forwarded, code = 0, None
            while code is None:
                if signals.hangups:
                    signals.hangups = 0
                    click.echo("SIGHUP: there is nothing to read again; SIGTERM drains and ends the node", err=True)
                while forwarded < min(signals.count, 2):
                    node.terminate()  # once: drain; twice: stop now
                    forwarded += 1
                    click.echo("draining; once more stops at once" if forwarded == 1 else "stopping", err=True)
                code = node.wait(WAKE_S)
    if code and not signals.count:
        raise CommandError(f"node ended by itself: exit status {code} != 0; its messages are above")
    raise SystemExit(FAILED if code else 0)


class _Signals:
    """Counts SIGINT and SIGTERM, for the loop to pass on: the node is a process group of its own. A context manager.

    A SIGHUP counts, too, when the terminal is gone. Otherwise it asks to read settings again, and there are none to
    read. SIGCHLD gets its default effect back where the command was started with SIGCHLD ignored: else the kernel would
    tell nobody how the node ended.
    """

    def __init__(self) -> None:
        self.count = self.hangups = 0

    def __enter__(self) -> Self:
        self._has_terminal = _has_terminal()
        handlers: dict[int, Any] = {signal.SIGINT: self._arrived, signal.SIGTERM: self._arrived}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup`
            handlers[signal.SIGHUP] = self._hung_up
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            handlers[signal.SIGCHLD] = signal.SIG_DFL
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def _hung_up(self, _number: int, _frame: FrameType | None) -> None:
        if self._has_terminal and not _has_terminal():
            self.count += 1
        else:
            self.hangups += 1


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
