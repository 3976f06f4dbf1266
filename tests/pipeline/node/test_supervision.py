"""The supervisor kills processes that fall silent, and a process that keeps dying makes the node unhealthy; neither
ends the node.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.simulation import segment

from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import FailureCode, SegmentError
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.ranklog import MAX_RANKS, RankLogLayout, format_log
from embridge.allocator.records import NodeState, Peer, Process, SegmentHeader, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.segment import map_segment
from embridge.allocator.status import Phase, split
from embridge.pipeline.node.birth import Birth
from embridge.pipeline.node.rank_groups import RankGroups, descriptors_of
from embridge.pipeline.node.recovery import Recovery
from embridge.pipeline.node.supervisor import STALLED_NS, Silences, Supervisor
from embridge.workers.discovery.registrar import Reporter
from embridge.workers.health import silent_processes, why_refusing, why_unhealthy
from embridge.workers.process_spec import READY, RENEWED
from embridge.workers.role import Addresses, RoleContext
from embridge.workers.timing import NS, Timing
from embridge.workers.transfer.engines.mooncake import MOONCAKE
from embridge.workers.transfer.engines.shm import SHARED_MEMORY

LIMITS = Limits(
    num_slots=128, max_clients=2, num_workers=2, ring_records=64, max_peers=2, max_peer_slots=64, max_routes=2
)
GEOMETRY = Geometry(hidden_size=8, num_blocks=4)
TIMING = Timing()
STEP_NS = NS // 4
MAX_RESTARTS = 4


class FakeProcess:
    """A process that only a test ends. Its pidfd is an eventfd."""

    def __init__(self, context: FakeContext, name: str) -> None:
        self._context = context
        self.name = name.removeprefix("embridge-")
        self.exitcode: int | None = None
        self.pidfd = -1

    def start(self) -> None:
        self.pid = len(self._context.born) + 1000
        self._context.born.append(self)

    def join(self, timeout: float | None = None) -> None:
        assert self.exitcode is not None

    def end(self, code: int) -> None:
        self.exitcode = code
        os.eventfd_write(self.pidfd, 1)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    def terminate(self) -> None:
        self._context.terminated(self.name)
        self.end(0)


class FakeContext:
    def __init__(self) -> None:
        self.born: list[FakeProcess] = []
        self.terminated: Callable[[str], None] = lambda name: None

    def Process(self, *, name: str, **_: Any) -> FakeProcess:
        return FakeProcess(self, name)

    def pidfd(self, pid: int) -> int:
        process = self.born[pid - 1000]
        process.pidfd = os.eventfd(0, os.EFD_CLOEXEC)
        return process.pidfd


class Node:
    """The launcher's view of a node whose processes are fakes, under a clock of its own."""

    def __init__(self, role: Role = Role.ENCODE, *, verify: bool = False) -> None:
        mapping = segment(ControlLayout.of(role, GEOMETRY, LIMITS).size)
        format_control(mapping, role, GEOMETRY, LIMITS, node_id=0xAB, incarnation=7, now_ns=1, verify=verify)
        self.control = Control(mapping)
        self.control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
        self.now_ns = 100 * NS
        self.context = FakeContext()
        self.selector = selectors.DefaultSelector()
        self.supervisor = Supervisor(
            Birth(self.context, []),
            self.control,
            self.selector,
            Recovery(self.control, lambda: self.now_ns),
            TIMING,
            MAX_RESTARTS,
            clock=lambda: self.now_ns,
            open_pidfd=self.context.pidfd,
        )
        self.quiet: set[str] = set()
        self.unborn: set[str] = set()  # they do not come to READY
        for name in self.control.processes.names[1:]:
            self.supervisor.start(SimpleNamespace(name=name))  # type: ignore[arg-type]
        self.beat()

    def of(self, name: str) -> FakeProcess:
        return next(process for process in reversed(self.context.born) if process.name == name)

    def births(self, name: str) -> int:
        return sum(1 for process in self.context.born if process.name == name)

    def beat(self) -> None:
        names = self.control.processes.names
        for process in self.context.born:
            if process.exitcode is None and process.name not in self.quiet | self.unborn:
                self.control.processes.set(process.name, Process.STATE, READY)
                self.control.processes.beat(names.index(process.name), self.now_ns)

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()

    def advance(self, seconds: float) -> None:
        """Time passes, in the steps in which a launcher looks."""
        end = self.now_ns + int(seconds * NS)
        while self.now_ns < end:
            self.now_ns += min(STEP_NS, end - self.now_ns)
            self.control.processes.beat(0, self.now_ns)
            self.beat()
            self.supervisor.tick(self.now_ns)
            self.turn()

    def keep_dying(self, name: str, code: int = 1) -> None:
        """Until its restarts have come to their limit."""
        for _ in range(MAX_RESTARTS + 2):
            if self.control.failing():
                return
            births = self.births(name)
            self.of(name).end(code)
            self.turn()
            while self.births(name) == births and not self.control.failing():
                self.advance(0.25)

    def open(self, room: int, *, engine: int = 0) -> int:
        """A request of the client of lane 0. Returns its slot."""
        control = self.control
        if not control.lanes.pages_of(0):
            control.lanes.take(1, self.now_ns)
            control.lanes.lease_page(0)
        slot = control.lanes.pages_of(0)[0] * 64 + room
        control.slots.set(slot, Slot.ROOM, room)
        control.slots.set(slot, Slot.EPOCH, 1)
        if engine:
            control.slots.set(slot, Slot.PEER, 1)
            control.peers.put(0, Peer.ENGINE, engine)
        assert control.status.open(slot, self.now_ns) == 1
        return slot

    def failed(self, slots: list[int]) -> list[int]:
        """Which of them have ended as Failed, or are in the poller's ring to be ended."""
        kicked = {record.slot for _, record in self.control.inbox("poller").take() if record.kick == Kick.FAIL}
        return [s for s in slots if s in kicked or split(self.control.status.load(s)).phase == Phase.Failed]

    def close(self) -> None:
        self.supervisor.stop(0)
        self.selector.close()


@pytest.fixture
def node() -> Iterator[Node]:
    it = Node()
    it.supervisor.launched()
    yield it
    it.close()


# ---- silence


def test_a_process_that_does_not_beat_for_its_time_is_killed_named_and_born_again(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """D4, P8: it alone; the others go on. The log says when it is up again."""
    caplog.set_level(logging.INFO)
    node.quiet.add("worker1")
    node.advance(TIMING.silent_after_s)
    assert node.births("worker1") == 1
    node.quiet.clear()
    node.quiet.add("poller")
    node.advance(TIMING.silent_after_s + 1)
    assert (node.births("poller"), node.births("worker1"), node.births("bootstrap")) == (2, 1, 1)
    node.quiet.clear()
    node.advance(1.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "process poller (pid 1001) is killed: it was silent for 10.2 s",
        "process poller (pid 1001) killed by SIGKILL because it was silent for 10.2 s; restarting it at once",
        "process poller is up again (pid 1005)",
    ]
    get = node.control.processes.get
    assert (get("poller", Process.NUM_SILENT), get("poller", Process.NUM_RESTARTS)) == (1, 1)


def test_before_ready_a_process_need_not_beat_and_the_launcher_beats_for_it_but_its_start_has_a_deadline(
    node: Node,
) -> None:
    """D4: discovery is not told of a process that is being started again; one that hangs in its start is killed in its
    turn.
    """
    node.unborn.add("bootstrap")
    node.of("bootstrap").end(1)
    node.turn()
    node.advance(TIMING.ready_timeout_s - 1)
    assert node.births("bootstrap") == 2
    assert silent_processes(node.control, node.now_ns, TIMING.health_s) == []
    node.advance(2)
    assert node.births("bootstrap") == 3
    node.unborn.clear()
    node.advance(TIMING.silent_after_s + 1)
    assert node.births("bootstrap") == 3


@pytest.mark.parametrize("gap_s", [1.5, 30.0, 4000.0])
def test_a_launcher_that_was_stopped_itself_kills_nobody_for_it(node: Node, gap_s: float) -> None:
    """P14: a suspended machine, a stopped container.

    Everybody's time begins anew; who stays silent from then on is killed.
    """
    node.quiet.add("worker0")
    node.advance(TIMING.silent_after_s - 1)
    node.now_ns += int(gap_s * NS)
    node.supervisor.tick(node.now_ns)
    node.turn()
    node.advance(TIMING.silent_after_s - 1)
    assert len(node.context.born) == len(node.control.processes.names) - 1
    node.advance(2)
    assert node.births("worker0") == 2
    assert len(node.context.born) == len(node.control.processes.names)


def test_silence_is_counted_in_looks_and_not_by_what_the_beat_says() -> None:
    """P14: a beat of another clock, or one that goes back, is a sign of life as any other."""
    silences, now = Silences(), 50 * NS
    marks = iter([7, 7, 3, 3, 3, 9])
    seen = []
    for mark in marks:
        now += STALLED_NS // 2
        silences.begin(now)
        seen.append(silences.silent_ns("it", mark, now) * 2 // STALLED_NS)
    assert seen == [0, 1, 0, 1, 2, 0]


# ---- processes that keep dying


def test_a_process_that_keeps_dying_makes_the_node_unhealthy_loudly_and_is_tried_at_a_slow_pace_until_it_holds(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """P8, P11, D4: the node goes on, says so, and is healthy again when the process has held for a while."""
    node.keep_dying("worker1", -signal.SIGABRT)
    assert node.control.failing() == ["worker1"]
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(loud) == 1
    assert "process worker1 (pid " in loud[0]
    assert (
        f"killed by SIGABRT; it was started {MAX_RESTARTS + 1} times within a minute: the node is UNHEALTHY" in loud[0]
    )
    assert why_unhealthy(node.control) == "process worker1 cannot be kept alive (killed by SIGABRT)"
    births = node.births("worker1")
    node.advance(TIMING.retry_s - 1)
    assert node.births("worker1") == births
    node.advance(1.5)
    assert node.births("worker1") == births + 1
    node.advance(TIMING.retry_s - 1)
    assert node.control.failing() == ["worker1"]  # it beats, and has yet to hold
    node.advance(2)
    assert node.control.failing() == []
    assert "the node is healthy again" in caplog.records[-1].getMessage()
    assert why_unhealthy(node.control) == why_refusing(node.control) == ""


def test_a_process_that_dies_again_while_it_is_tried_waits_for_the_next_try(node: Node) -> None:
    """However often: one birth each `retry_s`, and requests that came meanwhile fail, too."""
    node.keep_dying("bootstrap")
    for room in range(3):
        slot = node.open(room)
        births = node.births("bootstrap")
        node.advance(TIMING.retry_s + 1)
        assert node.births("bootstrap") == births + 1
        node.of("bootstrap").end(1)
        node.turn()
        assert node.failed([slot]) == [slot]
        assert node.control.slots.reason(slot) == "process bootstrap cannot be kept alive (exited with 1)"
        assert node.control.slots.get(slot, Slot.FAILURE) == FailureCode.INTERNAL


def test_of_a_worker_that_cannot_be_kept_alive_only_the_requests_of_its_shard_fail(node: Node) -> None:
    """D18: the poller lives and ends them, with the reason that is in their record."""
    slots = [node.open(room) for room in range(4)]
    node.keep_dying("worker1")
    assert node.failed(slots) == [slots[1], slots[3]]
    assert {split(node.control.status.load(slot)).phase for slot in slots} == {Phase.Bootstrapping}


def test_while_no_poller_can_be_kept_alive_the_launcher_ends_the_requests_itself(node: Node) -> None:
    """P8, P5: nobody else raises a word, not even at its deadline; one that has ended stays as it is."""
    slots = [node.open(room) for room in range(3)]
    assert node.control.status.advance(slots[0], 1, Phase.Success, 5, node.now_ns)
    sequence = node.control.bell("lane0").sequence()
    node.keep_dying("poller")
    assert [split(node.control.status.load(slot)) for slot in slots] == [
        (1, Phase.Success, 5),
        (1, Phase.Failed, 0),
        (1, Phase.Failed, 0),
    ]
    assert [node.control.status.stamps(slot)[Phase.Failed] for slot in slots[1:]] == [node.now_ns] * 2
    assert node.control.slots.reason(slots[1]) == "process poller cannot be kept alive (exited with 1)"
    assert node.control.bell("lane0").sequence() > sequence


def test_a_language_worker_that_cannot_be_kept_alive_fails_what_comes_over_a_network_or_is_to_be_checked() -> None:
    """Through shared memory rows come without it, where nodes do not verify."""
    for engine, verify, lost in ((SHARED_MEMORY, False, False), (MOONCAKE, False, True), (SHARED_MEMORY, True, True)):
        it = Node(Role.LANGUAGE, verify=verify)
        it.supervisor.launched()
        slot = it.open(2, engine=engine.number)
        it.keep_dying("worker0")
        assert it.failed([slot]) == [slot] * lost
        it.close()


def test_a_registrar_that_keeps_dying_concerns_discovery_alone(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """D10: the state says so; requests go on, and new ones are taken."""
    slot = node.open(1)
    node.keep_dying("registrar")
    assert node.control.failing() == ["registrar"]
    assert node.failed([slot]) == []
    assert why_refusing(node.control) == ""
    assert "requests go on without it, discovery does not" in why_unhealthy(node.control)
    assert "discovery is without it, requests go on" in caplog.text
    report = reporter(node).report(node.now_ns)
    assert report is not None
    assert report.unhealthy == []


def test_what_cannot_be_kept_alive_is_told_to_discovery_though_it_beats(node: Node) -> None:
    """D4: with how it ended; also while it is being tried again."""
    node.keep_dying("poller", -signal.SIGSEGV)
    node.advance(TIMING.retry_s + 1)
    report = reporter(node).report(node.now_ns)
    assert report is not None
    assert [(it.process, it.silent_s, it.reason) for it in report.unhealthy] == [("poller", 0.0, "killed by SIGSEGV")]
    assert str(report.unhealthy[0]) == "poller fails: killed by SIGSEGV"


def reporter(node: Node) -> Reporter:
    return Reporter(
        RoleContext(node.control, "registrar", TIMING, Addresses("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "")),
        "http://127.0.0.1:1",
    )


def test_a_process_that_begins_again_by_itself_is_not_counted(node: Node) -> None:
    """R8, R10: a fence is no failure."""
    for _ in range(3 * MAX_RESTARTS):
        node.of("worker0").end(RENEWED)
        node.turn()
    assert node.births("worker0") == 3 * MAX_RESTARTS + 1
    assert node.control.failing() == []
    assert node.control.processes.get("worker0", Process.NUM_RESTARTS) == 0


def test_a_process_that_dies_before_all_were_ready_ends_the_launch_and_is_named() -> None:
    """P13: it is not tried again behind the back of whoever launches."""
    it = Node()
    it.of("worker0").end(1)
    it.turn()
    it.advance(5)
    assert (
        it.supervisor.first_failure() == "worker0 exited with 1 before it was ready; its messages are on standard error"
    )
    assert it.births("worker0") == 1
    it.close()


# ---- descriptors


def test_a_process_that_is_told_to_stop_is_woken_to_hear_of_it(node: Node) -> None:
    """Now, and not at its next beat: a process that waits on sockets sleeps on after a signal."""
    bells = {name: node.control.bell(name) for name in node.control.processes.names[1:]}
    told: dict[str, int] = {}
    node.context.terminated = lambda name: told.update({name: bells[name].sequence()})
    node.supervisor.stop(1.0)
    assert told.keys() == bells.keys()
    assert [name for name, before in told.items() if bells[name].sequence() == before] == []


def test_a_group_of_ranks_for_which_the_node_has_no_descriptors_is_refused() -> None:
    """P13: the launcher keeps what it needs to start its processes again."""
    language = Node(Role.LANGUAGE)
    groups = RankGroups(language.control, descriptors_left=descriptors_of(2) - 1)
    log_fd = os.memfd_create("log")
    try:
        layout = RankLogLayout(num_ranks=2, num_entries=8, ring_records=64)
        os.ftruncate(log_fd, layout.size)
        format_log(map_segment(log_fd, layout.size), layout, GEOMETRY, rows_bytes=4096, pid=1)
        with pytest.raises(
            SegmentError, match=r"a group of 2 ranks needs 5 descriptors of the node, 4 are left; raise its `ulimit -n`"
        ):
            groups._open(1, 0, SimpleNamespace(group="", log_bytes=layout.size), [log_fd] * 3)  # type: ignore[arg-type]
    finally:
        os.close(log_fd)
        language.close()
    assert descriptors_of(MAX_RANKS) == 95
