"""D4, P11: any process of a node may be killed in the middle of a transfer; it is started again, and no request
notices.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from support.carrying import joined
from support.encoding import ended, give, open_sender
from support.nodes import Station, station
from support.remains import run_dirs
from support.waiting import wait_until

from embridge.allocator.records import Process
from embridge.workers.process_spec import READY

pytestmark = pytest.mark.process

TOTAL = 20_000


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    """Two nodes whose processes are killed; one token in twenty fits into the destination's pool at a time."""
    with (
        run_dirs() as path,
        station("encode", path / "e", num_blocks=4, deepstack_layers=1) as encode,
        station("language", path / "l", num_blocks=4, deepstack_layers=1) as language,
    ):
        yield encode, language


def kill(it: Station, process: str) -> int:
    """SIGKILL, and wait until another one is READY in its place. Returns the pid that is dead."""
    pid, restarts = it.pid_of(process), it.restarts()[process]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.restarts()[process] == restarts + 1, 10, lambda: f"{process} restarted: {it.log()[-2000:]}")
    processes = it.control.processes
    wait_until(lambda: it.pid_of(process) != pid and processes.get(process, Process.STATE) == READY, 20)
    return pid


@pytest.mark.parametrize(
    ("side", "process"),
    [
        ("encode", "bootstrap"),
        ("encode", "poller"),
        ("encode", "worker"),
        ("language", "bootstrap"),
        ("language", "poller"),
        ("language", "worker"),
    ],
)
def test_a_process_that_is_killed_in_the_middle_of_a_transfer_is_restarted_and_the_request_succeeds(
    pair: tuple[Station, Station], rooms: Iterator[int], side: str, process: str
) -> None:
    """D4, P11, R25: a "dead bootstrap", a "dead poller", a "dead transfer worker (encode)", one of the language side.
    20 000 tokens through four blocks; it is killed under way, twice, and the log says which process it was.
    """
    encode, language = pair
    it = encode if side == "encode" else language
    room = next(rooms)
    name = "worker0" if process == "worker" else process
    with joined(encode, language) as (sending, queues):
        request = queues.add(encode.addr, room)
        sender = open_sender(sending, room, TOTAL)
        dead = []
        for part in (1, 2):
            give(sender, sender._ready, part * TOTAL // 3)
            wait_until(lambda: request.transferred_tokens > (part - 1) * TOTAL // 3 + 500)  # noqa: B023
            dead.append(kill(it, name))
        assert not sender.poll().is_terminal
        give(sender, sender._ready)
        received = queues.take(room, 30)
        assert (received.error, received.difference, received.total) == ("", "", TOTAL)
        assert ended(sender).error == ""
    for pid in dead:
        assert it.says(f"process {name} (pid {pid}) killed by SIGKILL; restarting it")


def test_a_process_that_is_restarted_takes_requests_that_were_opened_while_it_was_away(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """D4: both bootstrap processes are dead when the request is opened; nobody has to try again."""
    encode, language = pair
    room = next(rooms)
    with joined(encode, language) as (sending, queues):
        for it in (encode, language):
            os.kill(it.pid_of("bootstrap"), signal.SIGKILL)
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, 1000)
        give(sender)
        assert queues.take(room, 30).difference == ""
        assert ended(sender).error == ""


def test_a_worker_that_is_stopped_for_a_while_delays_its_requests_and_fails_none(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """P14 in small: SIGSTOP and SIGCONT of the process that moves the rows, and of the one that reports them."""
    encode, language = pair
    room = next(rooms)
    with joined(encode, language) as (sending, queues):
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, TOTAL)
        pids = [encode.pid_of("worker0"), language.pid_of("poller")]
        give(sender)
        wait_until(lambda: queues.requests[room].transferred_tokens > 500)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        seen = queues.requests[room].transferred_tokens
        beats = encode.control.metrics.row(2)["messages_out"]
        wait_until(lambda: encode.control.metrics.row(2)["messages_out"] >= beats + 3)
        assert not sender.poll().is_terminal, seen
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert queues.take(room, 30).difference == ""
