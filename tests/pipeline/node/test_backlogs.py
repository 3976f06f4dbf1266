"""Who waits at a port whose process lets nobody in is turned away by the launcher, after a while."""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from support.nodes import Station, station
from support.stopping import is_stopped, stopped
from support.waiting import wait_until

from embridge.pipeline.node.backlogs import LOOK_NS, PATIENCE_NS, Backlogs
from embridge.workers.wire.dealers import HANDSHAKE_MS

SILENT = 100


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=SILENT) as sock:
        yield sock


def is_over(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_who_has_waited_for_a_while_is_turned_away_and_it_is_said_once(
    listening: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """P21, P12: also who comes later, as long as nobody is let in."""
    backlogs = Backlogs({"poller": listening.fileno()})
    assert backlogs.tick(0) is None
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        clients = [stack.enter_context(socket.create_connection(listening.getsockname())) for _ in range(3)]
        begun = now_ns = LOOK_NS
        while now_ns - begun < PATIENCE_NS:
            assert backlogs.tick(now_ns) == now_ns + LOOK_NS
            assert not any(map(is_over, clients))
            now_ns += LOOK_NS
        assert backlogs.tick(now_ns) == now_ns + LOOK_NS
        wait_until(lambda: all(map(is_over, clients)))
        clients = [stack.enter_context(socket.create_connection(listening.getsockname()))]
        assert backlogs.tick(now_ns + LOOK_NS) == now_ns + 2 * LOOK_NS
        wait_until(lambda: all(map(is_over, clients)))
        assert backlogs.tick(now_ns + 2 * LOOK_NS) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the poller lets nobody in: 3 connections that had waited at its port were turned away"
    ]
    assert listening.fileno() >= 0


def test_who_is_let_in_in_time_is_left_alone(listening: socket.socket) -> None:
    backlogs = Backlogs({"poller": listening.fileno()})
    now_ns = 0
    for _ in range(8):
        with socket.create_connection(listening.getsockname()) as client:
            assert backlogs.tick(now_ns) is not None
            with listening.accept()[0]:
                assert backlogs.tick(now_ns + LOOK_NS) is None
                assert not is_over(client)
        now_ns += 2 * LOOK_NS


@pytest.mark.process
def test_a_launcher_turns_away_who_waits_at_the_port_of_a_process_that_lets_nobody_in(encode: Station) -> None:
    """P21, P12: one that is stopped turns nobody away itself."""
    pid = encode.pid_of("poller")
    port = _port_of(psutil.Process(pid))
    with stopped(pid), socket.create_connection(port) as client:
        wait_until(lambda: is_over(client), HANDSHAKE_MS / 1000, "the connection is over")
        assert is_stopped(pid)


@pytest.mark.process
def test_strangers_who_take_all_descriptors_of_a_poller_have_it_spin_for_seconds_at_most(own_dir: Path) -> None:
    """P21, P12: they say nothing, and more of them come at once than it has descriptors for."""
    with station("encode", own_dir / "n") as node:
        _crowd_out(node.pid_of("poller"))


def _crowd_out(pid: int) -> None:
    poller = psutil.Process(pid)
    most = max(int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir())
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    port = _port_of(poller)
    with ExitStack() as stack:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + 21, before[1]))
        for _ in range(SILENT):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(port)
        begun = time.monotonic()
        wait_until(lambda: _is_calm(poller), 20, "its thread sleeps")
        assert time.monotonic() - begun < HANDSHAKE_MS / 1000 - 0.5  # sooner than the first of them is given up
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _port_of(process: psutil.Process) -> tuple[str, int]:
    [(host, port)] = [it.laddr for it in process.net_connections("tcp") if it.status == psutil.CONN_LISTEN]
    return host, port


def _is_calm(process: psutil.Process) -> bool:
    begun, took = time.monotonic(), sum(process.cpu_times()[:2])
    time.sleep(0.3)  # it is measured
    return bool(sum(process.cpu_times()[:2]) - took < 0.2 * (time.monotonic() - begun))
