"""Whole nodes of which processes, or clients, are stopped or keep dying: the node goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import encoding, scheduling
from support.agents import running
from support.carrying import joined
from support.encoding import ended, give, open_sender
from support.nodes import Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import attach
from embridge.allocator.errors import NodeUnhealthyError
from embridge.allocator.records import Process
from embridge.pipeline.inspection.node_status import node_status
from embridge.workers.process_spec import READY
from embridge.workers.timing import NS

QUICK: dict[str, Any] = {"silent_after_s": 2.0, "beat_s": 0.1}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    with (
        run_dirs() as path,
        station("encode", path / "e", client_silent_after_s=2.0, **QUICK) as encode,
        station("language", path / "l", client_silent_after_s=0, **QUICK) as language,
    ):
        yield encode, language


def _is_said_by_one(pair: tuple[Station, Station], text: str) -> bool:
    return any(text in it.log() for it in pair)


@pytest.mark.process
def test_stopped_processes_are_killed_after_their_time_and_their_requests_succeed(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """P11, P8, D4: the poller, the bootstrap and the worker of both nodes are stopped in the middle of a transfer, for
    ever.
    """
    encode, language = pair
    room = next(rooms)
    with joined(encode, language) as (sending, queues):
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, 6000)
        give(sender, 0, 3000)
        wait_until(lambda: queues.requests[room].transferred_tokens > 500)
        names = ["bootstrap", "poller", "worker0"]
        stopped = {it.pid_of(name): f"{name} (pid {it.pid_of(name)})" for it in pair for name in names}
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        give(sender, 3000)
        received = queues.take(room, 60)
        assert (received.error, received.difference) == ("", "")
        assert ended(sender).error == ""
    for text in stopped.values():
        text = f"process {text} is killed: it was silent for"
        wait_until(partial(_is_said_by_one, pair, text), what=text)
    for it in pair:
        it.wait_idle()
        assert [it.control.processes.get(name, Process.NUM_SILENT) for name in names] == [1, 1, 1]
        assert it.control.failing() == []


@pytest.mark.process
def test_a_node_that_is_stopped_as_a_whole_for_longer_than_that_kills_nobody_when_it_goes_on(
    pair: tuple[Station, Station],
) -> None:
    """P14: as a suspended machine, or a frozen container."""
    encode, _ = pair
    before, pids = encode.restarts(), encode.pids()
    os.killpg(encode.node.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 2 * QUICK["silent_after_s"]
        wait_until(lambda: time.monotonic() > until)
    finally:
        os.killpg(encode.node.pid, signal.SIGCONT)
    looked = time.monotonic_ns()
    beats = encode.control.processes
    wait_until(lambda: all(beats.get(name, Process.BEAT_NS) > looked + NS for name in beats.names))
    assert (encode.restarts(), encode.pids()) == (before, pids)


def _attach(state: SimpleNamespace, run_dir: Path) -> int:
    return scheduling.queues_of(state, run_dir).client.lane


@pytest.mark.process
def test_a_client_that_is_stopped_is_killed_after_its_time_if_the_node_says_so_and_its_blocks_come_back(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """P3, P4, D6: nothing less makes it certain that it copies into no block any more. 0: the node waits for it."""
    encode, language = pair
    room = next(rooms)
    with (
        running("stopped encoder") as encoder,
        running("stopped scheduler") as scheduler,
        attach(language.run_dir) as client,
    ):
        queues = Queues(client)
        queues.add(encode.addr, room)
        encoder.call(encoding.open_room, encode.run_dir, room, 3000)
        encoder.call(encoding.write, room, 0, 1000)
        scheduler.call(_attach, language.run_dir)
        wait_until(lambda: queues.requests[room].transferred_tokens == 1000)
        for agent in (encoder, scheduler):
            os.kill(agent.pid, signal.SIGSTOP)
        assert queues.take(room, 30).reason == "the encoder process died"
        encode.wait_idle()
        assert encode.says(f"client {encoder.pid} (lane 0) is killed: it was silent for")

        def waits() -> list[float]:
            return [it["silent_s"] for it in node_status(language.run_dir)["clients"] if it["pid"] == scheduler.pid]

        wait_until(lambda: waits() and waits()[0] > 2.5)
        os.kill(scheduler.pid, signal.SIGCONT)
        wait_until(lambda: waits()[0] < 1)


@pytest.mark.process
def test_a_node_whose_poller_cannot_be_kept_alive_says_so_fails_and_refuses_requests_and_is_healthy_again_when_it_holds(
    own_dir: Path, language: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """P8, P18, D4: end to end, with a limit of one restart."""
    room, refused, later = next(rooms), next(rooms), next(rooms)
    settings: dict[str, Any] = {"max_restarts": 1, "retry_s": 1.5, "deepstack_layers": 3}
    with station("encode", own_dir / "e", **settings) as it, attach(it.run_dir) as client:
        receiving.add(it.addr, room)
        sender = open_sender(client, room, 3000)
        give(sender, 0, 1000)
        wait_until(lambda: sender.sent_tokens == 1000)
        for _ in range(2):
            pid = wait_until(lambda: it.control.processes.get("poller", Process.STATE) == READY and it.pid_of("poller"))
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: it.pid_of("poller") != pid or it.control.failing())  # noqa: B023
        wait_until(it.control.failing)
        outcome = ended(sender)
        assert (outcome.error, outcome.reason) == (
            "TransferError",
            "process poller cannot be kept alive (killed by SIGKILL)",
        )
        with pytest.raises(
            NodeUnhealthyError,
            match=r"takes no new requests: process poller cannot be kept alive \(killed by SIGKILL\)",
        ):
            client.sender(refused, 10)
        assert "UNHEALTHY: process poller cannot be kept alive" in node_status(it.run_dir)["health"]
        assert receiving.take(room, 30).reason == outcome.reason
        wait_until(lambda: not it.control.failing(), 30)
        assert node_status(it.run_dir)["health"] == "ok"
        receiving.add(it.addr, later)
        give(open_sender(client, later, 1000))
        assert receiving.take(later, 30).difference == ""
        it.wait_idle()
    assert it.says("the node is UNHEALTHY")
    assert it.says("the node is healthy again")
