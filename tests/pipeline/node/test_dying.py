"""When a killed process can write no more, which is told before the kernel has taken its memory apart (P3, P6)."""

from __future__ import annotations

import errno
import mmap
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.alone import Alone, EncodeAlone, LanguageAlone
from support.nodes import Station
from support.waiting import changes, wait_until
from support.watched import can_watch_threads

from embridge import attach
from embridge.allocator._core import Mapping
from embridge.allocator.records import Lane, LaneState
from embridge.pipeline.node.death_watch import ARRIVAL_NS, WATCHED_THREADS, DeathWatch, has_memory
from embridge.pipeline.node.recovery import Recovery
from embridge.pipeline.node.run_socket_server import Guest, RunSocketServer
from embridge.workers.timing import NS, Timing

pytestmark = pytest.mark.process

WRITERS = """
import ctypes, mmap, os, platform, sys, threading
shared = mmap.mmap(int(sys.argv[1]), 4096)
private = bytearray(int(sys.argv[2]) << 20)
def write(at):
    while True:
        shared[at] = (shared[at] + 1) % 251
def rest():
    os.read(0, 1)
for at in range(int(sys.argv[3])):
    threading.Thread(target=write, args=(at,), daemon=True).start()
for _ in range(int(sys.argv[4])):
    threading.Thread(target=rest, daemon=True).start()
print("begun", flush=True)
if sys.argv[5:]:
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit, of this thread alone
threading.Event().wait()
"""


watching = pytest.mark.skipif(not can_watch_threads(), reason="this kernel has no pidfd of a thread (Linux 6.9)")


@contextmanager
def process(
    *, private_mb: int = 1, writers: int = 0, resters: int = 2, headless: bool = False
) -> Iterator[tuple[subprocess.Popen[str], mmap.mmap]]:
    """One of several threads: some write into the shared page all the while, the others wait for a byte each.

    `headless`: its first thread ends.
    """
    fd = os.memfd_create("page")
    try:
        os.ftruncate(fd, 4096)
        words = [sys.executable, "-c", WRITERS, *map(str, (fd, private_mb, writers, resters)), *["headless"] * headless]
        with mmap.mmap(fd, 4096) as page:
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd])
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == "begun\n"
                yield child, page
            finally:
                child.kill()
                child.communicate()
    finally:
        os.close(fd)


def is_buried(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


@contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- what is asked


def test_who_lives_has_memory_stopped_or_not_and_a_zombie_has_none() -> None:
    with process() as (child, _):
        assert has_memory(child.pid)
        child.send_signal(signal.SIGSTOP)
        assert has_memory(child.pid)
        child.kill()
        with pidfd_of(child.pid) as pidfd:
            wait_until(lambda: is_buried(pidfd))
        assert not has_memory(child.pid)
    with pytest.raises(FileNotFoundError):
        has_memory(child.pid)


def test_a_process_whose_first_thread_has_ended_has_memory_while_another_thread_lives() -> None:
    """P6: that thread goes on writing."""
    with process(writers=1, headless=True) as (child, page):
        wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        first = page[:]
        wait_until(lambda: page[:] != first)
        assert has_memory(child.pid)


def test_who_has_no_memory_any_more_writes_nothing_more() -> None:
    """P6: threads write as fast as they can; from the moment at which none has memory, nothing in the page changes."""
    early = 0
    for _ in range(12):
        with process(private_mb=64, writers=3) as (child, page), pidfd_of(child.pid) as pidfd:
            wait_until(changes(partial(page.__getitem__, slice(None))))
            killer = threading.Timer(0.005, child.kill)  # who is asked lives at first
            killer.start()
            while has_memory(child.pid):
                pass
            last, was_buried = page[:], is_buried(pidfd)
            time.sleep(0.01)
            assert page[:] == last
            killer.join()
            early += not was_buried
    assert early, "nothing was told before the process was buried"


# ---- who watches


@pytest.fixture
def selector() -> Iterator[selectors.DefaultSelector]:
    with selectors.DefaultSelector() as made:
        yield made


def turn(selector: selectors.BaseSelector, watch: DeathWatch, *, wait_s: float = 0.01) -> None:
    """One turn of the loop that the launcher has."""
    for key, _ in selector.select(wait_s):
        key.data()
    watch.tick(time.monotonic_ns())


def _note_whether_buried(told: list[bool], pidfd: int) -> None:
    told.append(is_buried(pidfd))


@watching
def test_a_killed_process_is_told_of_once_and_mostly_before_it_is_buried(selector: selectors.DefaultSelector) -> None:
    """P3: with 256 MB of its own, the kernel takes it apart for longer than it takes to look."""
    early = 0
    for _ in range(5):
        told: list[bool] = []
        with process(private_mb=256) as (child, _), pidfd_of(child.pid) as pidfd:
            watch = DeathWatch(selector, child.pid, partial(_note_whether_buried, told, pidfd), time.monotonic_ns)
            watch.tick(time.monotonic_ns())
            assert len(selector.get_map()) == WATCHED_THREADS
            child.kill()
            while not told and not is_buried(pidfd):
                turn(selector, watch)
            for _ in range(3):
                turn(selector, watch)
            assert len(told) <= 1
            early += told == [False]
            watch.close()
        assert not selector.get_map()
    assert early, "it was never told before the process was buried"


@watching
def test_a_thread_that_ends_is_no_death_and_another_one_is_watched_instead(selector: selectors.DefaultSelector) -> None:
    told: list[str] = []
    with process(resters=3) as (child, _):
        now = time.monotonic_ns()
        watch = DeathWatch(selector, child.pid, lambda: told.append("gone"), lambda: now)
        now += ARRIVAL_NS
        watch.tick(now)
        assert len(selector.get_map()) == WATCHED_THREADS
        assert child.stdin is not None
        child.stdin.write("xx")  # two of the three end
        child.stdin.flush()
        wait_until(lambda: len(os.listdir(f"/proc/{child.pid}/task")) == 2)
        for key, _ in selector.select(5):
            key.data()
        assert len(selector.get_map()) < WATCHED_THREADS
        due = watch.tick(now)
        assert due is not None
        assert due > now  # it looks again soon
        now += NS
        assert watch.tick(now) is None  # it lives on: no more looks
        assert watch.tick(now) is None
        assert len(selector.get_map()) == 1  # the only one there is beside the first
        assert told == []
        watch.close()


@watching
def test_who_has_just_come_is_looked_at_until_it_has_its_threads(selector: selectors.DefaultSelector) -> None:
    """P3: a client may be killed as soon as it holds blocks. A process of one thread is not looked at for ever."""
    now = time.monotonic_ns()
    with process(resters=0) as (child, _):
        watch = DeathWatch(selector, child.pid, lambda: pytest.fail("nobody died"), lambda: now)
        due = watch.tick(now)
        assert due is not None
        assert now < due < now + NS // 10
        assert watch.tick(now + ARRIVAL_NS) is None
        watch.close()
    with process(resters=2) as (child, _):
        watch = DeathWatch(selector, child.pid, lambda: pytest.fail("nobody died"), lambda: now)
        assert watch.tick(now) is None
        assert len(selector.get_map()) == WATCHED_THREADS
        watch.close()


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EMFILE, errno.ENOSYS])
def test_where_threads_cannot_be_watched_nothing_is_and_nothing_fails(
    selector: selectors.DefaultSelector, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with process() as (child, _):
        watch = DeathWatch(selector, child.pid, lambda: pytest.fail("nobody died"), time.monotonic_ns)
        for _ in range(3):
            assert watch.tick(time.monotonic_ns()) is None
        assert not selector.get_map()
        watch.close()


@watching
def test_where_nothing_can_be_seen_of_a_process_its_death_is_left_to_its_pidfd(
    selector: selectors.DefaultSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P15: out of descriptors, say, from when one of its threads has ended."""

    def refuse(path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with process() as (child, _):
        now = time.monotonic_ns()
        watch = DeathWatch(selector, child.pid, lambda: pytest.fail("nobody can know"), lambda: now)
        watch.tick(now)
        monkeypatch.setattr(os, "listdir", refuse)
        child.kill()
        child.wait()
        for key, _ in selector.select(5):
            key.data()
        now += NS
        assert watch.tick(now) is None
        assert watch.tick(now) is None
        watch.close()
        monkeypatch.undo()
    assert not selector.get_map()


def test_of_a_process_of_another_pid_namespace_nothing_is_watched(selector: selectors.DefaultSelector) -> None:
    """Its number is 0 here."""
    watch = DeathWatch(selector, 0, lambda: pytest.fail("nobody died"), time.monotonic_ns)
    assert watch.tick(time.monotonic_ns()) is None
    assert not selector.get_map()


# ---- what the door makes of it


@pytest.fixture
def at_the_door(
    own_dir: Path, selector: selectors.DefaultSelector
) -> Iterator[Callable[[Alone], tuple[RunSocketServer, Guest]]]:
    """A door of such a node, and this very process as its only guest, seated in lane 1."""
    doors: list[RunSocketServer] = []
    ends: list[socket.socket] = []

    def make(node: Alone) -> tuple[RunSocketServer, Guest]:
        control = node.control
        door = RunSocketServer(control, Recovery(control), own_dir / "door", selector, {}, {}, "", Timing(), 0, {})
        doors.append(door)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.append(ours)
        ours.connect(str(own_dir / "door"))
        door._accept()
        guest = door._guests[0]
        lane = control.lanes.take(guest.pid, 0)
        assert lane is not None
        guest.lane = lane
        return door, guest

    yield make
    for door in doors:
        door.close()
    for end in ends:
        end.close()


@pytest.mark.parametrize("node", [EncodeAlone, LanguageAlone])
def test_a_client_that_can_write_no_more_is_dead(
    node: type[EncodeAlone | LanguageAlone], at_the_door: Callable[[Alone], tuple[RunSocketServer, Guest]]
) -> None:
    """P3: its lane is buried at once."""
    made = node()
    door, guest = at_the_door(made)
    door._dying(guest)
    assert made.control.lanes.get(guest.lane, Lane.STATE) == LaneState.DEAD


@pytest.mark.parametrize(
    ("node", "before"),
    [(EncodeAlone, LaneState.ATTACHED), (LanguageAlone, LaneState.DEAD)],
    ids=["an encoder", "a scheduler"],
)
def test_who_has_a_device_that_writes_is_dead_when_its_driver_is_told_and_of_one_that_reads_at_once(
    node: type[EncodeAlone | LanguageAlone],
    before: LaneState,
    at_the_door: Callable[[Alone], tuple[RunSocketServer, Guest]],
) -> None:
    """P6: a copy from an encoder's device that is under way would land in rows of somebody else. P3: what a scheduler's
    device reads when the rows are another's already, nobody uses.
    """
    made = node()
    door, guest = at_the_door(made)
    made.control.lanes.pin(guest.lane)
    door._dying(guest)
    assert made.control.lanes.get(guest.lane, Lane.STATE) == before
    door._gone(guest)
    assert made.control.lanes.get(guest.lane, Lane.STATE) == LaneState.DEAD


def test_attach_tells_of_a_device_before_it_can_copy(encode: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: there is no moment in which a device may write and the node does not know."""
    lanes = encode.control.lanes
    seen: list[list[int]] = []

    def register(payload: Mapping) -> tuple[bool, str]:
        seen.append([lane for lane in range(lanes.num_lanes) if lanes.get(lane, Lane.PINNED)])
        return False, "no device here"

    monkeypatch.setattr("embridge.pipeline.client.attachment.register_with_cuda", register)
    with attach(encode.run_dir, pin=True) as client:
        assert seen == [[client.lane]]
    with attach(encode.run_dir, pin=False) as client:
        assert not lanes.get(client.lane, Lane.PINNED)


def test_a_seat_is_not_pinned_for_who_has_it_next() -> None:
    node = EncodeAlone()
    lanes = node.control.lanes
    lane = lanes.take(1, 0)
    assert lane is not None
    lanes.pin(lane)
    lanes.bury(lane)
    lanes.free(lane)
    assert lanes.take(2, 0) == lane
    assert lanes.get(lane, Lane.PINNED) == 0
