"""P15, P9: each external call of the launcher fails once, at each n.

There is one clear error, or the node serves; nothing is left.

The launcher is the real one, in this process; its children only sleep, so that a node costs some milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support import faults
from support.faults import Point, share_of
from support.leaks import left_since, open_descriptors
from support.nodes import config_of

from embridge import Limits, PipelineConfig, attach, launch
from embridge.allocator.errors import AttachError, LaunchError
from embridge.allocator.records import Process
from embridge.pipeline.node.launch_messages import Ready, encode_config
from embridge.pipeline.node.launcher import SIGNALS, Launcher, main
from embridge.workers.process_spec import READY

FEW = Limits(num_slots=64, max_clients=4, num_workers=1, window_blocks=64, max_peers=4, ring_records=64)
STORM = pytest.mark.storm
# to have a call come that comes the more often the longer a node lives, as who is connected is looked at by the clock
ATTEMPTS = 6
BY_THE_CLOCK = ("builtins.open", "os.listdir")  # the more, the longer it lives: threads of clients are looked at
RAW = re.compile(r"^\w*(Error|Exception)\b|^\[Errno")  # what no user should have to read


class Sleeper(BaseProcess):
    """A process of a node that says READY at once, and then sleeps."""

    control: Any = None

    class _Popen:
        def __init__(self, process: Any) -> None:
            name = process._args[0].name
            self._process = subprocess.Popen(["sleep", "600"])
            self.pid = self.sentinel = self._process.pid
            Sleeper.control.processes.set(name, Process.STATE, READY)
            self.terminate, self.kill, self.poll = self._process.kill, self._process.kill, self._process.poll

        def wait(self, timeout: float | None = None) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            return self._process.returncode


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers of this process start sleepers; its signals are this process's own again afterwards."""
    real = Launcher.start

    def start(node: Launcher) -> None:
        Sleeper.control = node.control
        real(node)

    context = SimpleNamespace(Process=Sleeper)
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: context)
    monkeypatch.setattr(Launcher, "start", start)


@dataclass
class Run:
    """What became of one run of the launcher."""

    ready: Ready
    code: int
    plan: faults.Plan
    served: list[str]


def run_launcher(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, point: Point | None = None) -> Run:
    """A node's whole life: up, two clients one after the other, and stopped by the end of the process that
    launched it.
    """
    alive_read, alive_write = os.pipe()
    ready_read, ready_write = os.pipe()
    stdin = SimpleNamespace(buffer=SimpleNamespace(readline=lambda: encode_config(config)))
    heard: list[Ready] = []
    served: list[str] = []

    def use() -> None:
        try:
            with open(ready_read, "rb") as file:
                heard.append(msgspec.json.decode(file.read() or b"{}", type=Ready))
            if not heard[0].error:
                while len(served) < 3 or (served[-1] and len(served) < 5):
                    try:
                        attach(config.directory).close()
                        served.append("")
                    except AttachError as error:
                        served.append(str(error))
        finally:
            os.close(alive_write)

    thread = threading.Thread(target=use)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        thread.start()
        try:
            with faults.in_force(point, threading.get_ident()) as plan:
                code = main(["--ready-fd", str(ready_write), "--alive-fd", str(alive_read)])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            thread.join()
            os.close(alive_read)
            Sleeper.control = None  # its doorbells hold descriptors
    return Run(heard[0], code, plan, served)


CONFIGS: dict[str, dict[str, Any]] = {
    "encode": {"role": "encode"},
    "language": {"role": "language", "discovery": "http://127.0.0.1:1", "lock": True},
}


def config_for(what: str, run_dir: Path) -> PipelineConfig:
    settings = dict(CONFIGS[what])
    lock = settings.pop("lock", False)
    made = config_of(run_dir=run_dir, num_blocks=2, limits=FEW, beat_s=0.02, **settings)
    return dataclasses.replace(made, lock_memory=lock)


def wrong_with(run: Run) -> str:
    """What is wrong with how a launcher took the failure of one call; nothing, if that is clean."""
    if run.ready.error:
        return f"it says {run.ready.error!r}" if RAW.search(run.ready.error) or run.code != 1 else ""
    if not run.ready.pid:  # it could not announce itself, so it has gone
        return "" if run.code == 1 else f"it exits with {run.code}"
    return f"exit status {run.code}, served: {run.served}" if run.code or run.served[-1] else ""


@pytest.mark.parametrize(
    ("what", "share"),
    [("encode", 8), ("language", 8), pytest.param("encode", 1, marks=STORM), pytest.param("language", 1, marks=STORM)],
)
def test_each_call_of_the_launcher_and_its_door_may_fail(
    own_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sleepers: None,
    what: str,
    share: int,
) -> None:
    """P15: with a share of k, every k-th point. A node that lives longer makes more calls, so the last of them may not
    come again.
    """
    first = run_launcher(config_for(what, own_dir / "n"), monkeypatch)
    assert (first.ready.error, first.code, first.served) == ("", 0, ["", "", ""])
    points = [it for it in first.plan.points(limit=100) if it.call not in BY_THE_CLOCK or it.n <= 2]
    points = share_of(points, share)
    problems, missed = [], []
    for i, point in enumerate(points):
        before = open_descriptors()
        for attempt in range(ATTEMPTS):
            run = run_launcher(config_for(what, own_dir / f"n{i}-{attempt}"), monkeypatch, point)
            if run.plan.hit:
                break
        else:
            missed.append(point)
        caplog.clear()  # its records hold exceptions, and those what their frames hold
        if problem := wrong_with(run) or left_since(before):
            problems.append(f"{point}: {problem}")
    assert not problems, "\n".join(problems)
    assert len(missed) <= len(points) // 10, missed


STUB = """printf '{"pid":1}' >&$6; eval "exec $6>&-"; cat <&$8 >/dev/null"""
"""A launcher that is READY at once and goes when whoever launched it is gone; $6 and $8 are two of its descriptors."""


def test_each_call_of_the_process_that_launches_may_fail(own_dir: Path) -> None:
    """P15, P9: `launch` says what failed, and the process that it had started is gone."""
    config = config_of("encode", own_dir / "n")
    within = ("bash", "-c", STUB)
    with faults.in_force() as plan, launch(config, within=within):
        pass
    problems = []
    for point in plan.points(limit=10):
        before = open_descriptors()
        with faults.in_force(point) as plan:
            try:
                launch(config, within=within).stop()
                problems.append(f"{point}: nothing failed")
            except LaunchError as error:
                if RAW.search(str(error)):
                    problems.append(f"{point}: it says {error}")
            except Exception as error:
                problems.append(f"{point}: raised {error!r}")
        problems += [
            f"{point}: {problem}"
            for problem in (left_since(before), "" if plan.hit else "the point was not reached")
            if problem
        ]
    assert not problems, "\n".join(problems)


def test_a_port_that_comes_free_while_a_node_begins_is_taken(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, sleepers: None
) -> None:
    """P10: a process of the node before, killed while it began, holds it until it notices that its launcher is gone."""
    run = run_launcher(config_for("encode", own_dir / "n"), monkeypatch, Point("socket.socket.bind", 1))
    assert run.plan.hit
    assert (run.ready.error, run.code, run.served) == ("", 0, ["", "", ""])


def test_a_launcher_that_has_ended_is_not_waited_for_though_its_pipe_is_held(own_dir: Path) -> None:
    """P8: by a process that was forked meanwhile; here `cat`, which ends with the launch."""
    config = config_of("encode", own_dir / "n")
    with pytest.raises(LaunchError, match="launcher: exited with 3 before READY"):
        launch(config, within=("bash", "-c", "cat <&$8 >/dev/null & exit 3"))
    said = """cat <&$8 >/dev/null & printf '{"pid":1}\\n' >&$6; cat <&$8 >/dev/null; wait"""
    with launch(config, within=("bash", "-c", said)) as node:
        assert node.wait(0) is None


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_launcher_that_is_not_told_what_to_launch_says_so(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    """P9: whoever started it was killed before it had written all."""
    config = encode_config(config_of("encode", own_dir / "n"))
    line = config[: int(len(config) * share)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(readline=lambda: line)))
    assert main(["--ready-fd", "0", "--alive-fd", "0"]) == 1
    assert "the process that launched this node is gone before it said what to launch" in capsys.readouterr().err
    assert not (own_dir / "n").exists()


def test_memory_that_is_not_to_be_had_when_it_is_reserved_is_named(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, sleepers: None
) -> None:
    """P13: the limit of a container may be below what /dev/shm promises."""
    real = os.posix_fallocate
    reserved: list[int] = []

    def reserve(fd: int, offset: int, size: int) -> None:
        reserved.append(size)
        if len(reserved) > 1:  # the payload
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    run = run_launcher(config_for("encode", own_dir / "n"), monkeypatch)
    assert re.fullmatch(
        r"shared memory for payload: \d+ bytes asked for, \d+ bytes free in /dev/shm \(Cannot allocate memory\); "
        r"lower num_blocks or enlarge /dev/shm",
        run.ready.error,
    ), run.ready.error
    assert run.code == 1


class Full:
    """A payload that may be locked, and whose pages are not to be had then."""

    def __init__(self, real: Any) -> None:
        self.size = real.size
        self.asked = threading.Event()

    def lock(self, offset: int, size: int) -> int:
        return 0

    def populate(self, offset: int, size: int) -> None:
        self.asked.set()
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_memory_that_is_not_to_be_had_when_it_is_touched_ends_no_node(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sleepers: None
) -> None:
    """P13: it is reserved, so the node serves; the log says how far the payload is touched, and why no further."""
    caplog.set_level("INFO")
    real, ended = Launcher._make, Launcher.close
    full: list[Full] = []

    def make(node: Launcher) -> None:
        real(node)
        full.append(Full(node._payload))
        monkeypatch.setattr(node, "_payload", full[0])

    def close(node: Launcher) -> None:
        assert full[0].asked.wait(20)
        ended(node)

    monkeypatch.setattr(Launcher, "_make", make)
    monkeypatch.setattr(Launcher, "close", close)
    run = run_launcher(config_for("language", own_dir / "n"), monkeypatch)
    assert (run.ready.error, run.code, run.served) == ("", 0, ["", "", ""])
    assert re.search(r"payload touched up to 0 of \d+ bytes: Cannot allocate memory", caplog.text)
    assert "payload not locked: Cannot allocate memory; raise `ulimit -l`" in caplog.text
