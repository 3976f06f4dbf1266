"""`launch()`: start a node from any Python process, wait until it is READY, and end it.

The node is a process group of its own: a launcher, which is a fresh interpreter (`launcher_start` says how it begins),
and the processes that it forks (`birth`). Nothing of the caller's is in them. If the caller dies, or becomes another
program, the node notices and stops: a pidfd says that it is dead, whatever it has forked, and the end of a socket that
it holds says that it has called `exec`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from embridge.allocator.errors import LaunchError
from embridge.pipeline.config import ConfigError, PipelineConfig
from embridge.pipeline.node.launch_messages import MAX_CONFIG_BYTES, Ready, encode_config
from embridge.pipeline.node.launcher_start import command
from embridge.pipeline.node.reloading import Reloaded
from embridge.workers.files import above_standard

STOP_AT_ONCE: Final = (signal.SIGTERM, signal.SIGINT)
"""Both have the same effect on a launcher, and the second one stops it at once: two of one kind may arrive as one."""
RELOAD_TIMEOUT_S: Final = 5.0
EXIT_LOOK_S = 0.5  # how often `launch` looks whether a launcher that says nothing has ended


class Node:
    """A running node; a context manager that stops it."""

    def __init__(self, process: subprocess.Popen[bytes], config: PipelineConfig, ready: Ready, alive: int) -> None:
        self._process = process
        self._alive = alive
        self._ready = ready
        self._is_told = False
        self.config = config

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def run_dir(self) -> Path:
        return self.config.directory

    @property
    def bootstrap_addr(self) -> str:
        """Where language nodes reach this encode node: what is given to `EmbeddingRequest.bootstrap_addr`."""
        return self._ready.bootstrap_addr

    @property
    def poller_addr(self) -> str:
        return self._ready.poller_addr

    @property
    def web_addr(self) -> str:
        """The node's HTTP port, as `http://address:port`; empty where `metrics_addr` is off."""
        return self._ready.web_addr

    @property
    def incarnation(self) -> int:
        return self._ready.incarnation

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status of the launcher, or None if the launcher still runs after that time.

        Where this process ignores SIGCHLD, or waits for all its children elsewhere, the status is always 0: the kernel
        tells a status once, and this function is not told then.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask the node to drain: accepted requests end, new ones are refused, then it stops. Once more: stop now."""
        if self._process.poll() is None:
            self._process.send_signal(STOP_AT_ONCE[self._is_told])
            self._is_told = True

    def reload(self, config: PipelineConfig, timeout_s: float = RELOAD_TIMEOUT_S) -> Reloaded:
        """Have the running node take over what it can from this configuration: `log_level`, and its allow-list.

        Returns what is in force now, what needs a restart, and what cannot be used. Nothing that a node cannot take
        over does any harm. One thread at a time.

        Raises:
            LaunchError: the launcher does not answer; it has ended, or does not run.
        """
        try:
            answers = select.poll()
            answers.register(self._alive, select.POLLIN)
            while answers.poll(0) and os.read(self._alive, MAX_CONFIG_BYTES):
                pass  # the answer to one that was given up
            os.write(self._alive, encode_config(config))
            answer = os.read(self._alive, MAX_CONFIG_BYTES) if answers.poll(timeout_s * 1000) else b""
        except OSError as error:
            raise LaunchError(f"reload: the launcher cannot be told: {error.strerror}; it has ended") from error
        if not answer:
            raise LaunchError(f"reload: no answer within {timeout_s:g} s; look at `embridge status` and the node's log")
        return msgspec.json.decode(answer, type=Reloaded)

    def stop(self) -> int:
        """Stop without draining and wait for it; kills what does not end. Returns the exit status."""
        if self._process.poll() is None:
            for number in STOP_AT_ONCE:
                self._process.send_signal(number)
        code = self.wait(self.config.timing.stop_timeout_s + 2)
        if code is None:
            self._process.kill()
            code = self._process.wait()
        self._close()
        return code

    def _close(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def launch(config: PipelineConfig, *, within: Sequence[str] = (), keeps_run_dir: bool = True) -> Node:
    """Start a node and wait until all its processes are READY.

    `within`: words of a command that runs the node's, with another view of the machine: `("ip", "netns", "exec", "b")`.
    Without `keeps_run_dir` the node takes its run directory away when it ends, also when this process was killed; it
    has no identity then that outlives it, and what is in that folder besides stays.

    Raises:
        ConfigError: the node's key file or its allow-list cannot be used.
        LaunchError: the node did not come up; the text names the process that failed, or what was missing. Nothing of
            the node is left.
    """
    check_keys(config)
    opened: list[int] = []
    try:
        opened += (end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        opened += os.pipe()
        opened.append(os.pidfd_open(os.getpid()))
        for index, fd in enumerate(opened):  # the launcher's standard output is its end of the socket, where that is 1
            opened[index] = -1
            opened[index] = above_standard(fd)
        alive, theirs, ready_read, ready_write, parent = opened
        process = subprocess.Popen(
            [*within, *command(ready_write, theirs, parent, keeps_run_dir=keeps_run_dir)],
            stdin=subprocess.PIPE,
            pass_fds=(ready_write, theirs, parent),
            start_new_session=True,
        )
    except OSError as error:
        for fd in opened:
            if fd >= 0:
                os.close(fd)
        raise LaunchError(
            f"launcher: it cannot be started: {error.strerror}; check `ulimit -n` and `ulimit -u`"
        ) from error
    for fd in (theirs, ready_write, parent):
        os.close(fd)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(encode_config(config))
        process.stdin.close()
    try:
        ready = _await_ready(process, ready_read, config.timing.ready_timeout_s + 5)
    except BaseException as error:
        process.kill()
        process.wait()
        os.close(alive)
        if isinstance(error, OSError):
            raise LaunchError(
                f"launcher: its answer cannot be read: {error.strerror}; launch the node again"
            ) from error
        raise
    finally:
        os.close(ready_read)
    if ready.error:
        process.wait()
        os.close(alive)
        raise LaunchError(ready.error)
    return Node(process, config, ready, alive)


def check_keys(config: PipelineConfig) -> None:
    """Read the files that `config` names, as the node will.

    Raises:
        ConfigError: one of them cannot be used; the text names it, and the line.
    """
    if config.key_file is None or config.allow_file is None:
        return
    from embridge.workers.keys import KeyFileError, read_allow_list, read_key_file

    try:
        read_key_file(config.key_file)
        read_allow_list(config.allow_file)
    except KeyFileError as error:
        raise ConfigError(str(error)) from error


def _await_ready(process: subprocess.Popen[bytes], ready_fd: int, timeout_s: float) -> Ready:
    deadline, data = time.monotonic() + timeout_s, b""
    while (left := deadline - time.monotonic()) > 0:
        has_ended = process.poll() is not None
        readable, _, _ = select.select([ready_fd], [], [], 0 if has_ended else min(left, EXIT_LOOK_S))
        chunk = os.read(ready_fd, 65536) if readable else b""
        data += chunk
        if data and (not chunk or data.endswith(b"\n")):
            return msgspec.json.decode(data, type=Ready)
        if not chunk and (readable or has_ended):  # where another process holds the pipe's other end there is no end
            code = process.wait()
            raise LaunchError(f"launcher: exited with {code} before READY; its messages are on standard error")
    raise LaunchError(f"launcher: not READY within {timeout_s:g} s; its messages are on standard error")
