"""`spawn`: a caller's own processes begin together, and whatever happens to one of them, or to the caller, none is
left.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import spawned
from support.agents import FORKED
from support.remains import alive
from support.waiting import wait_until
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from embridge import spawn
from embridge.pipeline.spawn import _Child, _Group

pytestmark = pytest.mark.process


def pids_in(folder: Path) -> list[int]:
    """Of the processes that have come to wait."""
    return [int((folder / name).read_text()) for name in ("0", "1") if (folder / name).exists()]


def test_each_process_runs_the_function_with_its_index_and_shares_tensors_with_the_caller(tmp_path: Path) -> None:
    """Through torch.multiprocessing: what they write into a shared tensor is there."""
    rows = torch.zeros(2, 3)
    rows.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    spawn(spawned.mark, 2, (tmp_path, rows))
    assert rows.tolist() == [[1, 1, 1], [2, 2, 2]]
    pids = pids_in(tmp_path)
    assert len({*pids, os.getpid()}) == 3
    assert alive(pids) == []


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("raises", ProcessRaisedException, r"process 2 of 3 \(pid \d+\) raised:\n\nTraceback [^$]*ValueError: no such"),
        pytest.param(
            "exits",
            ProcessExitedException,
            r"process 2 of 3 \(pid \d+\) exited with 7 before its function",
            marks=pytest.mark.storm,
        ),
        ("is killed", ProcessExitedException, r"process 2 of 3 \(pid \d+\) killed by SIGKILL before its function"),
    ],
)
def test_when_one_fails_the_others_are_ended_and_the_caller_is_told(
    tmp_path: Path, how: str, error: type[Exception], match: str
) -> None:
    """P9: who does not heed SIGTERM is killed; a process is dead though one that it has forked lives."""
    try:
        with pytest.raises(error, match=match) as raised:
            spawn(spawned.fail_or_wait, 3, (tmp_path, how), grace_s=0.5)
        assert raised.value.error_index == 2  # type: ignore[attr-defined]
        assert alive(pids_in(tmp_path)) == []
        assert len(pids_in(tmp_path)) == 2
        assert (tmp_path / "0.ended").exists()
        assert not (tmp_path / "1.ended").exists()
    finally:
        if how == "is killed":
            os.kill(int((tmp_path / "forked").read_text()), signal.SIGKILL)


@contextmanager
def spawning(folder: Path, grace_s: float) -> Iterator[tuple[ForkServerProcess, list[int]]]:
    """A process that has spawned two others, which wait."""
    program = FORKED.Process(target=spawned.program, args=(folder, grace_s))
    program.start()
    try:
        wait_until(lambda: len(pids_in(folder)) == 2 or program.exitcode is not None, 60)
        yield program, pids_in(folder)
    finally:
        program.kill()
        program.join()
        program.close()


def test_when_the_caller_is_killed_its_processes_end(tmp_path: Path) -> None:
    """P10: also those that heed no signal that they could ignore."""
    with spawning(tmp_path, 60) as (program, pids):
        assert alive(pids) == pids
        program.kill()
        wait_until(lambda: not alive(pids), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.storm)])
def test_a_signal_to_the_caller_ends_its_processes_first(tmp_path: Path, number: signal.Signals) -> None:
    """And then has the effect that it would have had."""
    with spawning(tmp_path, 0.5) as (program, pids):
        assert program.pid is not None
        os.kill(program.pid, number)
        program.join(20)
        assert program.exitcode == -number
        assert alive(pids) == []
        assert (tmp_path / "0.ended").exists() is (number == signal.SIGTERM)


def test_how_a_process_ended_is_known_though_the_caller_ignores_sigchld(tmp_path: Path) -> None:
    """D4: which is as before afterwards."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ProcessExitedException, match=r"process 0 of 1 .* exited with 3 before"):
            spawn(spawned.leave, 1, (3,))
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(("said", "has_succeeded"), [(b"\0", True), (b"", False), (b"Traceback", False)])
def test_where_an_exit_status_is_lost_what_the_process_has_said_counts(said: bytes, has_succeeded: bool) -> None:
    """A handler of SIGCHLD that waits for every child gets what is meant for us."""
    child = _Child(0, SimpleNamespace(exitcode=None, pid=7), None, -1, said)
    assert child.has_succeeded is has_succeeded
    with pytest.raises(
        (ProcessRaisedException, ProcessExitedException), match=r"process 0 of 1 \(pid 7\) (raised|ended \(somebody)"
    ):
        _Group(spawned.leave, (), 1, 0.0).raise_failure(child)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="nprocs: 0 < 1; start at least one process"):
        spawn(sys.exit, 0)
    with pytest.raises(ValueError, match=r"grace_s: -1 s < 0; give the time"):
        spawn(sys.exit, 1, grace_s=-1)
