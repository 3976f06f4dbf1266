"""D16, P9, P10: a process of a node has of the launcher's what its spec names, and nothing else, at every birth."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.nodes import config_of, station
from support.waiting import wait_until

from embridge import attach
from embridge.allocator.control import Control
from embridge.allocator.records import Process
from embridge.allocator.segment import Descriptor, create_segment, map_segment
from embridge.pipeline.node import birth
from embridge.pipeline.node.birth import Birth, close_but, open_files
from embridge.pipeline.node.launcher import Launcher
from embridge.pipeline.node.supervisor import Supervisor
from embridge.workers.keys import new_key_pair, write_key_file
from embridge.workers.process_spec import READY, ProcessSpec
from embridge.workers.role import Addresses
from embridge.workers.timing import Timing

ALIKE = ("/dev/shm/", "anon_inode:")  # segments; doorbells, and what cannot be told from a process's own
WRITE_ENDS = (os.O_WRONLY, os.O_RDWR)


def held(pid: int) -> dict[int, str]:
    """The open descriptors of a process, with what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def is_write_end(pid: int, fd: int) -> bool:
    (flags,) = re.findall(r"flags:\t0(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
    return int(flags, 8) & os.O_ACCMODE in WRITE_ENDS


def segments_of(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/embridge-\d+-\d+-\d+-([a-z]+)-", maps))


def of_the_launcher(control: Control, name: str) -> list[str]:
    """What a process of the node has open that is the launcher's alone."""
    processes = control.processes
    pid, launcher = processes.get(name, Process.PID), processes.get("launcher", Process.PID)
    its, all_theirs = held(pid), held(launcher)
    theirs = set(all_theirs.values()) - {all_theirs[fd] for fd in (0, 1, 2)}
    shared = {what for what in its.values() if what in theirs and not what.startswith(ALIKE)}
    listening = sorted(what for what in shared if what.startswith("socket:"))
    written = {what for fd, what in its.items() if what.startswith("pipe:") and is_write_end(pid, fd)} & shared
    own = sorted(written)[:1]  # by whose end `multiprocessing` sees that this process has ended
    read = {what for what in shared if what.startswith("pipe:")} - written
    assert len(read) == 2, "by the death pipe, and by the one of `multiprocessing`, the launcher's death is noticed"
    left = shared - {*own, *read, *listening[: name in ("bootstrap", "poller", "web")]}
    return sorted(left)


@pytest.mark.process
@pytest.mark.parametrize("role", ["encode", "language"])
def test_a_process_has_nothing_of_the_launchers_but_its_share_also_when_it_is_born_again(
    own_dir: Path, role: str
) -> None:
    """The write end of the pipe by which a launcher's death is noticed, its lock, clients' connections, mappings."""
    with station(role, own_dir / "n") as it, attach(it.run_dir), attach(it.run_dir):
        processes = it.control.processes
        for again in (False, True):
            for name in processes.names[1:]:
                pid = processes.get(name, Process.PID)
                if again:
                    os.kill(pid, signal.SIGKILL)
                    wait_until(lambda: processes.get(name, Process.PID) != pid)  # noqa: B023
                    wait_until(lambda: processes.get(name, Process.STATE) == READY)  # noqa: B023
                assert of_the_launcher(it.control, name) == [], name
                payload = {"payload"} if name.startswith("worker") and role == "encode" else set()
                assert segments_of(processes.get(name, Process.PID)) <= {"control", *payload}, name


@pytest.mark.parametrize("role", ["encode", "language"])
def test_who_speaks_to_other_nodes_has_the_key_with_which_they_know_this_one(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """D15, R83: also the workers of an encode node, whose word of a success no node with keys would hear else."""
    pair, specs = new_key_pair(), list[ProcessSpec]()
    write_key_file(own_dir / "key", pair)
    (own_dir / "allow").write_text("")
    monkeypatch.setattr(Supervisor, "start", lambda _, spec: specs.append(spec))
    files = {"key_file": own_dir / "key", "allow_file": own_dir / "allow"}
    launcher = Launcher(config_of(role, own_dir / "n", metrics_addr="127.0.0.1:0", **files))
    try:
        launcher.start()
    finally:
        launcher.close()
    has_key = {spec.name for spec in specs if spec.keys == pair}
    assert {spec.name for spec in specs} == {"bootstrap", "poller", "worker0", "web"}
    assert has_key == {"bootstrap", "poller", *["worker0"] * (role == "encode")}


def test_a_number_that_is_another_file_by_now_is_left_alone() -> None:
    """`multiprocessing` opens pipes between the look and the fork."""
    ours, others = socket.socketpair()
    kept, lent = os.pipe()
    files = open_files()
    assert {ours.fileno(), others.fileno(), kept, lent} <= files.keys()
    files = {fd: files[fd] for fd in (ours.fileno(), others.fileno(), kept, lent)}
    number = others.detach()
    os.close(number)
    read, write = os.pipe()
    try:
        assert number in (read, write)
        close_but(files, {kept})
        still = open_files()
        assert {kept, read, write} <= still.keys()
        assert not {ours.fileno(), lent} & still.keys()
    finally:
        ours.detach()
        for fd in (kept, read, write):
            os.close(fd)


@pytest.fixture
def spec() -> Iterator[ProcessSpec]:
    control = create_segment("control", 4096)
    nothing = Descriptor(-1)
    yield ProcessSpec(
        name="poller",
        control=control,
        control_bytes=4096,
        payload=nothing,
        payload_bytes=0,
        event_fds={},
        death=nothing,
        listen=None,
        bind_addr="",
        addresses=Addresses("", "", ""),
        timing=Timing(),
        launcher_pid=os.getpid(),
    )
    control.close()


@pytest.mark.parametrize(("call", "nth"), [("fork", 1), ("pipe", 1), ("pipe", 2)])
def test_a_process_that_cannot_be_forked_leaves_nothing_open(
    spec: ProcessSpec, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """P15: it is tried again every few seconds while the machine has no room for it, and the launcher has as many
    descriptors as before.
    """
    real, calls = getattr(os, call), iter(range(1, 9))

    def refused() -> object:
        if next(calls) == nth:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real()

    birth = Birth(multiprocessing.get_context("fork"), [])
    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        with pytest.raises(BlockingIOError):
            birth.begin(spec, lambda *_: None)
    assert open_files() == before


def test_a_launcher_that_forks_waits_for_nobody_who_reads_what_it_says(
    spec: ProcessSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P21: `multiprocessing` flushes both streams, and behind them a pipe may be full."""
    flushed = []
    theirs = SimpleNamespace(flush=lambda: flushed.append(1), write=len)
    monkeypatch.setattr(birth, "run", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", theirs)
        patch.setattr(sys, "stderr", theirs)
        process = Birth(multiprocessing.get_context("fork"), []).begin(spec, lambda *_: None)
        assert sys.stdout is sys.stderr is theirs
    process.join(20)
    assert process.exitcode == 0
    assert not flushed


def test_a_signal_that_comes_before_the_child_has_its_handlers_is_not_lost(
    spec: ProcessSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: the node is stopped while a process begins; what the launcher does at the signal is not done there."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    heard: list[int] = []

    def live(_: ProcessSpec, __: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        time.sleep(0.3)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        time.sleep(10)

    monkeypatch.setattr(birth, "run", live)
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    wakeup = signal.set_wakeup_fd(write)
    try:
        mapping = map_segment(spec.control.fd, 4096)
        process = Birth(multiprocessing.get_context("fork"), [mapping]).begin(spec, lambda *_: None)
        process.terminate()
        process.join(20)
        assert process.exitcode == 7
        assert heard == []
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        assert bytes(memoryview(mapping)[:1]) == b"\0", "it is mapped here still"
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(read)
        os.close(write)
