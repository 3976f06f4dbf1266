"""A node whose standard error nobody reads goes on: it serves, restarts its processes, and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.carrying import carried, joined
from support.nodes import Settings, Station, station
from support.pipes import FullPipe, full_pipe
from support.ports import addresses_of_nobody
from support.remains import alive, run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import attach

pytestmark = pytest.mark.process

FEW, MANY = 10, 300


@pytest.fixture
def pipe() -> Iterator[FullPipe]:
    with full_pipe() as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    """Two nodes that speak into a pipe of their own, from their first line on: `log_level` is INFO."""
    with run_dirs() as path, full_pipe() as pipe:
        settings: Settings = {"stderr": pipe.write, "engine": "shm", "connect_timeout_s": 3.0}
        with (
            station("encode", path / "e", **settings) as encode,
            station("language", path / "l", **settings) as language,
        ):
            yield encode, language


def serve(pair: tuple[Station, Station], rooms: Iterator[int], count: int) -> None:
    encode, language = pair
    with joined(encode, language) as (sending, queues):
        for room in [next(rooms) for _ in range(count)]:
            received = carried(queues, encode.addr, sending, room, 200, 60.0)
            assert (received.total, received.difference) == (200, ""), received


def test_failures_whose_lines_nobody_reads_stop_no_other_request(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """P21, P8: each of many failures of requests to nodes that are not there has its line; those to one that is there
    are served.
    """
    serve(pair, rooms, FEW)
    with attach(pair[1].run_dir) as client, addresses_of_nobody(MANY) as addresses:
        queues = Queues(client)
        failing = {next(rooms): addr for addr in addresses}
        for room, addr in failing.items():
            queues.add(addr, room)
        for room in failing:
            assert queues.take(room, 60.0).error == "PeerLost"
    serve(pair, rooms, FEW)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.storm) for name in ("bootstrap", "poller")), "worker0"]
)
def test_a_process_that_dies_is_started_again_though_nobody_reads_of_it(
    pair: tuple[Station, Station], rooms: Iterator[int], name: str
) -> None:
    """P21, P11: the launcher's line about it, and those of its birth, are not waited for."""
    before = pair[0].pid_of(name)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pair[0].pid_of(name) not in (0, before))
    serve(pair, rooms, FEW)


def test_a_command_whose_output_nobody_reads_passes_signals_on(own_dir: Path, pipe: FullPipe) -> None:
    """P21, P18: `embridge launch` starts a node and stops it, whoever reads what it prints."""
    command = [sys.executable, "-m", "embridge", "launch", "--role", "encode", "--run-dir", str(own_dir / "n")]
    process = subprocess.Popen(
        [*command, "--hidden-size", "64", "--num-blocks", "4", "--log-level", "INFO"],
        stdout=pipe.write, stderr=pipe.write, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: (own_dir / "n" / "embridge.sock").exists() or process.poll() is not None, 60.0)
        wait_until(lambda: is_ready(own_dir / "n"), 60.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def is_ready(run_dir: Path) -> bool:
    try:
        with attach(run_dir):
            return True
    except Exception:
        return False


def test_a_node_that_nobody_hears_leaves_nothing(own_dir: Path, pipe: FullPipe) -> None:
    """P9, P10: it ends, and all its processes with it, though its last lines cannot be written."""
    with station("encode", own_dir / "e", stderr=pipe.write) as encode:
        pids = list(encode.pids().values())
    assert not alive(pids)
