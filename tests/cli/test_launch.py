"""`embridge launch` in the foreground: a READY line, a drain at the first signal, a stop at the second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.remains import children_of
from support.waiting import wait_until

from embridge import EmbeddingRequest, PreallocQueue, TransferQueue, attach
from embridge.pipeline.cli import main

pytestmark = pytest.mark.process


LAUNCH = (sys.executable, "-m", "embridge", "launch")


@contextmanager
def launched(run_dir: Path, role: str, before: str = "true") -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command, running, and what its READY line said. `before`: what its shell does before it becomes the
    command.
    """
    options = ("--role", role, "--run-dir", str(run_dir), "--hidden-size", "64", "--num-blocks", "4")
    process = subprocess.Popen(
        ["bash", "-c", f'{before}; exec "$0" "$@"', *LAUNCH, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:1] == ["READY"], process.communicate()
        yield process, dict(word.split("=", 1) for word in words[1:])
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_an_idle_node_and_the_command_succeeds(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path / "node", "encode") as (process, ready):
        assert ready["role"] == "encode"
        assert ready["bootstrap"].startswith("tcp://127.0.0.1:")
        assert ready["run_dir"] == str(tmp_path / "node")
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "draining" in errors
        assert not Path("/proc", ready["pid"]).exists()


def test_a_second_signal_ends_a_drain_that_has_something_to_wait_for(tmp_path: Path) -> None:
    with launched(tmp_path / "node", "language") as (process, ready), attach(ready["run_dir"]) as client:
        queue = PreallocQueue(client, TransferQueue(client))
        queue.add(EmbeddingRequest(room=7, bootstrap_addr="tcp://127.0.0.1:1", required_dst_info_num=1))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert any("draining" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode is not None


def test_sighup_ends_a_node_when_it_says_that_the_terminal_is_gone(tmp_path: Path) -> None:
    """P18: drained, as by SIGTERM. With its terminal, or without one from the start, it has settings read again."""
    terminal, theirs = os.openpty()
    words = [
        *LAUNCH,
        "--role",
        "encode",
        "--run-dir",
        str(tmp_path / "node"),
        "--hidden-size",
        "64",
        "--num-blocks",
        "4",
    ]
    log = tmp_path / "log"
    with open(log, "wb") as file:
        # `env`: under `nohup` these tests, and what they start, would ignore SIGHUP
        program = subprocess.Popen(
            ["setsid", "--ctty", "--wait", "env", "--default-signal=HUP", *words],
            stdin=theirs,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    os.close(theirs)
    try:
        wait_until(lambda: b"READY" in log.read_bytes() or program.poll() is not None, 60)
        command = wait_until(lambda: children_of(program.pid))[0]
        os.kill(command, signal.SIGHUP)
        wait_until(lambda: b"reloaded: now in force: nothing new" in log.read_bytes())
        os.close(terminal)  # the kernel sends SIGHUP
        assert program.wait(30) == 0, log.read_text()
        assert "draining" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        program.kill()
        program.wait()


def test_a_node_that_ends_by_itself_fails_the_command_though_sigchld_was_ignored(tmp_path: Path) -> None:
    """D4: a service manager goes by the exit status."""
    with launched(tmp_path / "node", "encode", "trap '' CHLD") as (process, ready):
        os.kill(int(ready["pid"]), signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "node ended by itself: exit status -9" in errors


def test_status_of_a_running_node_is_a_table_and_json(tmp_path: Path) -> None:
    with launched(tmp_path / "node", "encode") as (_, ready):
        shown = CliRunner().invoke(main, ["status", "--run-dir", ready["run_dir"], "--json"])
        assert shown.exit_code == 0, shown.output
        assert isinstance(json.loads(shown.stdout), dict)
        table = CliRunner().invoke(main, ["status", "--run-dir", ready["run_dir"]])
        assert table.exit_code == 0, table.output
        assert table.stdout.strip()


def test_a_run_dir_in_use_is_one_line_and_status_1(tmp_path: Path) -> None:
    with launched(tmp_path / "node", "encode") as (_, ready):
        again = CliRunner().invoke(main, ["launch", "--role", "encode", "--run-dir", ready["run_dir"]])
        assert again.exit_code == 1
        assert ready["run_dir"] in again.stderr
        assert len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--no-fill-ids", "--fill-ids", "--max-peer-slots"])
def test_a_setting_that_has_no_option_is_told_its_variable(option: str) -> None:
    refused = CliRunner().invoke(main, ["launch", "--role", "encode", option])
    assert refused.exit_code == 2
    assert f"EMBRIDGE_{option[2:].removeprefix('no-').replace('-', '_').upper()}" in refused.output
