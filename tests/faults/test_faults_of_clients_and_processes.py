"""P15, P9: each external call of a client, and of the processes that serve its request, fails once, at each n.

A request may fail, with a reason; a process may be started again. Nothing hangs, nothing is left, and the next request is served. One pair of
nodes serves all points; their processes are told while they run what is to fail.
"""

from __future__ import annotations

import gc
import os
import re
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import faults
from support.encoding import ended, give, open_sender
from support.faults import FaultDir, Point, share_of
from support.leaks import open_descriptors
from support.nodes import Station, run_dirs, station
from support.scheduling import Queues
from support.waiting import wait_until

from embridge.allocator.errors import EmbridgeError
from embridge.pipeline import attach, follow

pytestmark = pytest.mark.process

STORM = pytest.mark.storm
RAW = re.compile(r"^\w*(Error|Exception)\b|^\[Errno")  # what no user should have to read
TOKENS = 300
TIMEOUT_S = 10.0


class Pair(NamedTuple):
    """Two nodes with fail points, and the folder through which those are armed."""

    encode: Station
    language: Station
    faults: FaultDir

    def wait_idle(self) -> None:
        self.encode.wait_idle()
        self.language.wait_idle()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    settings = {"num_blocks": 8, "deepstack_layers": 1}
    with run_dirs() as path:
        fault_dir = FaultDir(path / "faults")
        with (
            fault_dir.environment(),
            station("encode", path / "e", **settings) as encode,
            station("language", path / "l", default_allocate_tokens=512, host_buffer_bytes=1 << 20, **settings) as language,
        ):
            yield Pair(encode, language, fault_dir)


def exchange(pair: Pair, room: int, num_ranks: int = 1) -> str:
    """One request from attaching to leaving, on both sides. How it failed; empty if every byte arrived.

    Raises:
        EmbridgeError: a client could not join, or could not open the request.
    """
    with attach(pair.encode.run_dir) as sending, attach(pair.language.run_dir, num_ranks=num_ranks) as receiving:
        queues = Queues(receiving)
        followers = [follow(pair.language.run_dir, rank=rank, timeout_s=5.0) for rank in range(1, num_ranks)]
        try:
            queues.add(pair.encode.addr, room, timeout_s=TIMEOUT_S)
            sender = open_sender(sending, room, TOKENS, timeout_s=TIMEOUT_S)
            give(sender)
            if sender.poll().is_terminal or not sending.arm():
                sending.poll()
            select.select([sending], [], [], 0)
            received = queues.take(room, TIMEOUT_S + 5)
            sent = ended(sender, TIMEOUT_S + 5)
            for follower in followers:
                wait_until(lambda: follower.poll(), 5.0)  # noqa: B023
                for request in [request for batch in follower.pop_transferred() for request in batch]:
                    request.release()
            sender.clear()
            assert not received.difference
            return received.reason or sent.reason
        finally:
            for follower in followers:
                follower.close()


@pytest.mark.parametrize(
    ("num_ranks", "share"),
    [(1, 3), (2, 6), pytest.param(1, 1, marks=STORM), pytest.param(2, 1, marks=STORM)],
)
def test_each_call_of_a_client_may_fail(
    pair: Pair, rooms: Iterator[int], caplog: pytest.LogCaptureFixture, num_ranks: int, share: int
) -> None:
    """P15: attach, open, one request, leave, on both sides; with two ranks, what they share."""
    pair.faults.disarm()
    with faults.in_force() as plan:
        assert exchange(pair, next(rooms), num_ranks) == ""
    problems = []
    for point in share_of(plan.points(limit=12), share):
        pair.wait_idle()
        before = open_descriptors()
        said = ""
        with faults.in_force(point) as plan:
            try:
                said = exchange(pair, next(rooms), num_ranks)
            except EmbridgeError as error:
                said = f"{type(error).__name__}: {error}"
                if RAW.search(str(error)):
                    problems.append(f"{point}: it says {error}")
            except Exception as error:
                problems.append(f"{point}: raised {error!r}")
        print(point, plan.hit, said)
        caplog.clear()  # its records hold exceptions, and those what their frames hold
        gc.collect()
        pair.wait_idle()
        left = open_descriptors() - before
        if left:
            problems.append(f"{point}: left behind: {dict(left)}")
        if (again := exchange(pair, next(rooms), num_ranks)) != "":
            problems.append(f"{point}: the next request failed: {again}")
    assert not problems, "\n".join(problems)
