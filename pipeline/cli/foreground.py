"""A node in the foreground: signals go on to it, the service manager is told, and settings are read again on SIGHUP."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from embridge.pipeline.cli.errors import FAILED, CommandError
from embridge.pipeline.cli.ready import say_ready

if TYPE_CHECKING:
    from embridge.pipeline.config import PipelineConfig
    from embridge.pipeline.inspection.open_readonly import Look
    from embridge.pipeline.node.launch import Node
    from embridge.pipeline.node.service_manager import ServiceManager

# How long one wait may take: the interpreter runs signal handlers only between two waits.
WAKE_S = 0.2


def run_in_foreground(config: PipelineConfig, read_again: Callable[[], PipelineConfig], *, as_json: bool) -> int:
    """Launch the node and wait for its end. Returns the exit status of the command.

    `read_again` reads all settings anew, from where they came.

    Raises:
        LaunchError: the node did not come up.
        CommandError: the node ended, and nobody had asked it to.
    """
    from embridge.pipeline.node.launch import launch
    from embridge.pipeline.node.service_manager import ServiceManager

    manager = ServiceManager()
    with Signals() as signals, launch(config) as node, Pulse(node, manager) as pulse:
        say_ready(
            {
                "role": config.role,
                "bootstrap": node.bootstrap_addr,
                "poller": node.poller_addr,
                "http": node.web_addr or "off",
                "run_dir": str(node.run_dir),
                "pid": node.pid,
            },
            as_json=as_json,
        )
        manager.ready(f"{config.role} node at {node.bootstrap_addr}")
        forwarded, code = 0, None
        while code is None:
            if signals.take_hangup():
                _reload(node, manager, read_again)
            while forwarded < min(signals.count, 2):
                node.terminate()  # once: drain; twice: stop now
                forwarded += 1
                click.echo("draining; once more stops at once" if forwarded == 1 else "stopping", err=True)
                if forwarded == 1:
                    manager.stopping("draining", _longest_end_s(config))
            manager.alive(pulse.is_beating)
            code = node.wait(WAKE_S)
    if code and not signals.count:
        raise CommandError(f"node ended by itself: exit status {code} != 0; its messages are above")
    return FAILED if code else 0


def _longest_end_s(config: PipelineConfig) -> float:
    """How long draining, and the end of the processes, may take."""
    return config.timing.drain_timeout_s + config.timing.stop_timeout_s + 2


def _reload(node: Node, manager: ServiceManager, read_again: Callable[[], PipelineConfig]) -> None:
    """Read the settings again and hand them to the node, which says in its log what it has taken over."""
    from embridge.allocator.errors import LaunchError

    manager.reloading()
    try:
        said = str(node.reload(read_again()))
    except (ValueError, LaunchError) as error:  # ConfigError is a ValueError
        said = f"not reloaded: {error}; the node goes on as it was"
        click.echo(f"embridge: SIGHUP: {said}", err=True)
    manager.ready(said)


class Signals:
    """Counts SIGINT and SIGTERM, for the loop to pass on: the node is a process group of its own. A context manager.

    A SIGHUP counts, too, when the terminal is gone. Otherwise it asks to read the settings again. SIGCHLD gets its
    default effect back where the command was started with SIGCHLD ignored: else the kernel would tell nobody how the
    node ended.
    """

    def __init__(self) -> None:
        self.count = 0
        self._is_hung_up = False

    def take_hangup(self) -> bool:
        """Whether somebody has asked, since the last call, to read the settings again."""
        was, self._is_hung_up = self._is_hung_up, False
        return was

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
            self._is_hung_up = True


class Pulse:
    """Whether the launcher of a node beats, seen in shared memory; looked at only where a watchdog wants to know.

    This process lives on while the launcher hangs, so its own life says nothing.
    """

    def __init__(self, node: Node, manager: ServiceManager) -> None:
        self._node = node
        self._is_wanted = manager.has_watchdog
        self._seen: Look | None = None

    def __enter__(self) -> Self:
        if self._is_wanted:
            from embridge.pipeline.inspection.open_readonly import look

            self._seen = look(self._node.run_dir)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seen is not None:
            self._seen.close()
            self._seen = None

    def is_beating(self) -> bool:
        """Whether the launcher has beaten within the time after which a process of a node counts as silent."""
        from embridge.workers.health import silent_processes

        if self._seen is None:
            return False
        silent = silent_processes(self._seen.control, time.monotonic_ns(), self._node.config.timing.silent_after_s)
        return "launcher" not in dict(silent)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
