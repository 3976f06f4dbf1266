"""P15, P9: each external call of a client, and of the processes that serve its request, fails once, at each n.

A request may fail, with a reason; a process may be started again. Nothing hangs, nothing is left, and the next request
is served. One pair of nodes serves all points; their processes are told while they run what is to fail.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import faults
from support.encoding import ended, give, open_sender
from support.faults import FaultDir, Point, share_of
from support.leaks import left_since, open_descriptors
from support.nodes import Station, config_of, start_node, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import attach, follow
from embridge.allocator.errors import EmbridgeError, LaunchError
from embridge.allocator.records import Process
from embridge.pipeline.client.client import library_of
from embridge.workers.process_spec import READY

pytestmark = pytest.mark.process

STORM = pytest.mark.storm
RAW = re.compile(r"^\w*(Error|Exception)\b|^\[Errno")  # what no user should have to read
TOKENS = 300
TIMEOUT_S = 30.0


class Pair(NamedTuple):
    """Two nodes with fail points, and the folders through which those are armed."""

    encode: Station
    language: Station
    encode_faults: FaultDir
    language_faults: FaultDir

    def sides(self) -> list[tuple[Station, FaultDir]]:
        return [(self.encode, self.encode_faults), (self.language, self.language_faults)]

    def wait_idle(self) -> None:
        self.encode.wait_idle()
        self.language.wait_idle()


@contextmanager
def faulty_station(role: str, run_dir: Path, **settings: Any) -> Iterator[tuple[Station, FaultDir]]:
    fault_dir = FaultDir(run_dir.with_suffix(".faults"))
    settings = {"num_blocks": 8, "deepstack_layers": 1, "ready_timeout_s": 90.0, **settings}
    with ExitStack() as stack:
        with fault_dir.environment():
            it = stack.enter_context(station(role, run_dir, **settings))
        yield it, fault_dir


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with (
        run_dirs() as path,
        faulty_station("encode", path / "e") as (encode, encode_faults),
        faulty_station("language", path / "l", default_allocate_tokens=512, host_buffer_bytes=1 << 20) as (
            language,
            language_faults,
        ),
    ):
        yield Pair(encode, language, encode_faults, language_faults)


def exchange(pair: Pair, room: int, num_ranks: int = 1) -> str:
    """One request from attaching to leaving, on both sides. How it failed; empty if every byte arrived.

    Raises:
        EmbridgeError: a client could not join, or could not open the request.
    """
    with attach(pair.encode.run_dir) as sending, attach(pair.language.run_dir, num_ranks=num_ranks) as receiving:
        for client in (sending, receiving):
            library_of(client).requests.untold.late_ns = 0  # the processes of both nodes are to have it
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
    [(1, 5), (2, 8), pytest.param(1, 1, marks=STORM), pytest.param(2, 1, marks=STORM)],
)
def test_each_call_of_a_client_may_fail(
    pair: Pair, rooms: Iterator[int], caplog: pytest.LogCaptureFixture, num_ranks: int, share: int
) -> None:
    """P15: attach, open, one request, leave, on both sides; with two ranks, what they share."""
    with faults.in_force() as plan:
        assert exchange(pair, next(rooms), num_ranks) == ""
    problems = []
    for point in share_of(plan.points(limit=12), share):
        pair.wait_idle()
        before = open_descriptors()
        with faults.in_force(point) as plan:
            try:
                exchange(pair, next(rooms), num_ranks)
            except EmbridgeError as error:
                if RAW.search(str(error)):
                    problems.append(f"{point}: it says {error}")
            except Exception as error:
                problems.append(f"{point}: raised {error!r}")
        caplog.clear()  # its records hold exceptions, and those what their frames hold
        pair.wait_idle()
        if left := left_since(before):
            problems.append(f"{point}: {left}")
        if (again := exchange(pair, next(rooms), num_ranks)) != "":
            problems.append(f"{point}: the next request failed: {again}")
    assert not problems, "\n".join(problems)


# ---- in the processes of the nodes


LIMIT = 4  # of calls that are made again and again: so many from when they are armed
RESTARTS_A_MINUTE = 25  # a node gives up a process that dies 30 times


class Pace:
    """Keeps the restarts of each process below what makes its node give up."""

    def __init__(self) -> None:
        self._at: dict[tuple[int, str], list[float]] = {}

    def wait(self, it: Station, process: str) -> None:
        at = self._at.setdefault((it.node.pid, process), [])

        def is_slow() -> bool:
            at[:] = [then for then in at if time.monotonic() - then < 60]
            return len(at) < RESTARTS_A_MINUTE

        wait_until(is_slow, 90.0)
        at += [time.monotonic()] * 2  # by the test, and by the failure


ATTEMPTS = 6  # to have a call come that comes or not with the time, as where an answer is asked for until it is there


class Strikes:
    """Calls of a node's processes that fail, one after the other. `problems`: what was wrong afterwards."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._pace = Pace()
        self.problems: list[str] = []

    def at(
        self, it: Station, fault_dir: FaultDir, process: str, point: Point, act: Callable[[], None], room: int
    ) -> None:
        """Have one call of one process fail while `act` is done; the next request is to be served."""
        self._pace.wait(it, process)
        self._pair.wait_idle()
        fault_dir.arm(process, point)
        where = f"{it.control.role.name.lower()} {process} {point.call} {point.n}"
        try:
            for attempt in range(ATTEMPTS):
                # what a process calls once, as for its first peer: have a new one do it
                if attempt and process != "launcher":
                    self._pace.wait(it, process)
                    again(it, process)
                with suppress(EmbridgeError):  # the door may have refused the client
                    act()
                if fault_dir.was_hit:
                    break
            wait_until(lambda: fault_dir.was_hit, 20.0)
        except AssertionError as error:
            self.problems.append(f"{where}: {error}")
            return
        finally:
            fault_dir.disarm()
        try:
            failure = exchange(self._pair, room)
            self._pair.wait_idle()
        except (EmbridgeError, AssertionError) as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:
            self.problems.append(f"{where}: the next request: {failure}")


def _calls_of_two_requests(pair: Pair, fault_dir: FaultDir, rooms: Iterator[int]) -> list[tuple[str, Point]]:
    """Of each process of a node, one for each of two workers."""
    fault_dir.record()
    for _ in range(2):
        assert exchange(pair, next(rooms)) == ""
    pair.wait_idle()
    all_of_them = {"launcher", "bootstrap", "poller"}  # such requests need none of these, which beat at least
    wait_until(lambda: all_of_them <= {process for process, _ in fault_dir.points(LIMIT)})
    fault_dir.disarm()
    return fault_dir.points(LIMIT)


@pytest.mark.parametrize("share", [9, pytest.param(1, marks=STORM)])
def test_each_call_for_a_request_may_fail_in_the_processes_of_both_nodes(
    pair: Pair, rooms: Iterator[int], share: int
) -> None:
    """P15: that costs this request at most; if a process dies of it, it is started again, and the next request is
    served.
    """
    assert exchange(pair, next(rooms)) == ""
    strikes = Strikes(pair)
    for it, fault_dir in pair.sides():
        calls = [_calls_of_two_requests(pair, fault_dir, rooms) for _ in range(2)]
        points = [call for call in calls[0] if call in calls[1]]  # a line that is logged, say, comes once
        for process, point in share_of(points, share):
            room, after = next(rooms), next(rooms)

            def two(room: int = room, after: int = after) -> None:
                exchange(pair, room)
                exchange(pair, after)  # the other worker's

            strikes.at(it, fault_dir, process, point, two, next(rooms))
    assert not strikes.problems, "\n".join(strikes.problems)


@pytest.mark.parametrize(
    ("sides", "processes", "share"),
    [(1, ["bootstrap"], 6), pytest.param(2, ["bootstrap", "poller", "worker0"], 1, marks=STORM)],
)
def test_each_call_of_a_process_that_is_started_again_may_fail(
    pair: Pair, rooms: Iterator[int], sides: int, processes: list[str], share: int
) -> None:
    """P15: it is started once more."""
    strikes = Strikes(pair)
    for it, fault_dir in pair.sides()[:sides]:
        for process in processes:
            fault_dir.record()
            again(it, process)
            fault_dir.disarm()
            points = [point for name, point in fault_dir.points(LIMIT) if name == process]
            assert points
            for point in share_of(points, share):
                strikes.at(it, fault_dir, process, point, lambda: again(it, process), next(rooms))  # noqa: B023
    assert not strikes.problems, "\n".join(strikes.problems)


def again(it: Station, process: str) -> None:
    """Kill a process, and wait until one in its place is ready; either may die by itself."""
    pid = it.pid_of(process)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.pid_of(process) != pid and it.control.processes.get(process, Process.STATE) == READY, 60.0)


@pytest.mark.parametrize(
    ("process", "call"),
    [("bootstrap", "zmq.sugar.context.Context.socket"), pytest.param("worker0", "segment.Mapping", marks=STORM)],
)
def test_a_node_one_of_whose_processes_cannot_start_says_which(own_dir: Path, process: str, call: str) -> None:
    """P15, P9: the node is not up, and nothing of it is left; its messages say why."""
    fault_dir = FaultDir(own_dir / "faults")
    fault_dir.arm(process, Point(call, 1))
    with (
        fault_dir.environment(),
        pytest.raises(LaunchError, match=f"{process} exited with 1 before it was ready; its messages"),
    ):
        start_node(config_of("encode", own_dir / "n", ready_timeout_s=90.0), own_dir / "n.log")
    assert fault_dir.was_hit
    assert (
        "Too many open files" in (own_dir / "n.log").read_text()
        or "Cannot allocate memory" in (own_dir / "n.log").read_text()
    )
