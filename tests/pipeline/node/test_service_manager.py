"""sd_notify(3), towards a socket of the test's own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embridge.pipeline.node.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def path_of(manager: socket.socket) -> str:
    return str(manager.getsockname())


class Clock:
    now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def test_without_a_manager_nothing_is_told_and_nobody_is_asked() -> None:
    environ: dict[str, str] = {"WATCHDOG_USEC": "1000000"}
    it = ServiceManager(environ)
    assert not it.has_watchdog
    it.ready("well")
    it.stopping("ending", 1)
    it.alive(lambda: pytest.fail("nobody wants to know"))


def test_the_variables_are_taken_out_of_the_environment(manager: socket.socket) -> None:
    environ = {
        "NOTIFY_SOCKET": path_of(manager),
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert ServiceManager(environ).has_watchdog
    assert environ == {"PATH": "/bin"}


def test_what_is_told_is_one_value_a_line(manager: socket.socket) -> None:
    clock = Clock()
    it = ServiceManager({"NOTIFY_SOCKET": path_of(manager)}, clock)
    it.ready("two\nlines")
    assert manager.recv(4096) == b"READY=1\nSTATUS=two lines"
    it.reloading()
    assert manager.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=5000000"
    it.stopping("draining", 37)
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=37000000"


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses one
        manager.settimeout(10)
        name = manager.getsockname()[1:].decode()
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready("well")
        assert manager.recv(4096) == b"READY=1\nSTATUS=well"


def test_a_sign_of_life_comes_twice_within_the_watchdogs_time_and_only_of_who_lives(manager: socket.socket) -> None:
    clock, is_alive = Clock(), True
    it = ServiceManager({"NOTIFY_SOCKET": path_of(manager), "WATCHDOG_USEC": "1000000"}, clock)
    manager.setblocking(False)
    heard = []
    for step in range(16):
        is_alive = step < 12
        it.alive(lambda: is_alive)  # noqa: B023
        with contextlib.suppress(BlockingIOError):
            heard.append((step, manager.recv(4096)))
        clock.now_ns += 125_000_000
    assert heard == [(step, b"WATCHDOG=1") for step in (0, 4, 8)]


def test_a_watchdog_of_another_process_is_not_ours(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": path_of(manager), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert not ServiceManager(environ).has_watchdog


def test_a_manager_that_is_gone_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    it = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        it.ready("well")
        it.ready("well")
    assert caplog.messages == [f"the service manager at {tmp_path}/gone cannot be told: No such file or directory"]
