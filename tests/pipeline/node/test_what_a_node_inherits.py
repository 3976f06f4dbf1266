"""P13, P9, P10: whoever launches a node may be unusual; the node has its import path, and nothing else that it could
stumble on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.agents import running
from support.launching import Launched, before_pythonpath, launched_by
from support.nodes import station
from support.remains import alive
from support.waiting import wait_until

import embridge.allocator
import embridge.pipeline
import embridge.workers
from embridge import attach
from embridge.allocator.records import NodeState, Process
from embridge.pipeline.node import launcher_start as start
from embridge.workers.health import exit_reason

pytestmark = pytest.mark.process

TRAPS = (
    "secrets",
    "argparse",
    "socket",
    "selectors",
    "tempfile",
    "logging",
    "zmq",
    "numpy",
    "msgspec",
    "torch",
    "mooncake",
)


def set_traps(folder: Path, names: tuple[str, ...] = TRAPS) -> Path:
    """Modules of a user, who had no thought of ours; whoever imports one leaves a mark."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'marks')!r}, 'a').write({name + ' '!r})\nraise SystemExit(9)\n"
        )
    return folder


def marks(folder: Path) -> str:
    return (folder / "marks").read_text() if (folder / "marks").exists() else ""


# ---- what is imported


def test_nothing_of_the_working_directory_is_imported(own_dir: Path) -> None:
    """Neither by the launcher nor by those that it forks; the one who launches has kept it off his own path."""
    folder = set_traps(own_dir / "there")
    with launched_by("", own_dir / "n", cwd=folder) as it:
        assert alive(list(it.pids().values())) == list(it.pids().values())
        os.kill(it.pids()["worker0"], signal.SIGKILL)
        wait_until(lambda: it.control.processes.get("worker0", Process.NUM_RESTARTS) == 1)
    assert marks(folder) == ""


def test_modules_of_a_folder_on_pythonpath_do_not_stand_for_those_of_the_standard_library(own_dir: Path) -> None:
    """Whoever launches imports no `secrets`, and has one of his own."""
    folder = set_traps(own_dir / "there", ("secrets", "argparse"))
    with launched_by("", own_dir / "n", environ={**os.environ, "PYTHONPATH": before_pythonpath(folder)}) as it:
        assert alive(list(it.pids().values())) == list(it.pids().values())
    assert marks(folder) == ""


def test_a_process_that_has_found_the_package_by_a_path_of_its_own_launches_it(own_dir: Path) -> None:
    """An interpreter without the package, or anything that it needs; the folders are given to it as it runs."""
    site = own_dir / "site"
    (site / "embridge").mkdir(parents=True)
    for package in (embridge.allocator, embridge.pipeline, embridge.workers):
        (site / "embridge" / package.__name__.split(".")[1]).symlink_to(package.__path__[0])
    folders = [str(site), *(entry for entry in sys.path if entry.endswith("-packages"))]
    python = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENBLAS", "OMP"))}
    asked = subprocess.run([python, "-I", "-c", "import embridge.pipeline"], capture_output=True, env=bare, check=False)
    assert b"ModuleNotFoundError" in asked.stderr
    with launched_by(f"sys.path[:0] = {folders!r}", own_dir / "n", executable=python, environ=bare) as it:
        assert "restarting" not in it.log()
        assert alive(list(it.pids().values())) == list(it.pids().values())


@pytest.mark.parametrize(("said", "counts"), [(None, "1"), ("2", "2")])
def test_numpy_begins_no_threads_in_a_node_unless_the_user_says_so(said: str | None, counts: str) -> None:
    """Its library reads the environment when an engine's library imports it, in a process forked from the launcher."""
    name, _ = start.ONE_THREAD
    environ = {it: value for it, value in os.environ.items() if it != name} | ({name: said} if said else {})
    code = (
        "import os; from embridge.pipeline.node.launcher_start import prepare; prepare(); "
        f"os.fork() or os.execlp('printenv', 'printenv', {name!r}); os.wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environ, check=True, timeout=60)
    assert done.stdout.decode().strip() == counts


def test_the_import_path_is_that_of_the_process_the_standard_library_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither "" nor the working directory; a relative folder as it is now; what is no folder at all as it stands."""
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    standard = [entry for entry in sys.path if entry.endswith(("lib-dynload", f"python3.{sys.version_info.minor}"))]
    assert len(standard) == 2
    given = ["", str(tmp_path), "lib", "hook-of-a-finder", "/first", *reversed(standard), "/second"]
    monkeypatch.setattr(sys, "path", given)
    found = start.import_path()
    assert found[:2] == list(reversed(standard))
    assert [entry for entry in found[2:] if entry not in start._roots()] == [
        str(tmp_path / "lib"), "hook-of-a-finder", "/first", "/second"
    ]  # fmt: skip
    monkeypatch.setattr(start, "_roots", lambda: [str(tmp_path)])
    assert start.import_path()[2] == str(tmp_path)
    monkeypatch.setattr(start, "_roots", lambda: ["/elsewhere"])
    assert start.import_path()[2] == "/elsewhere"


# ---- descriptors, signals, folder and mask


@pytest.mark.parametrize(
    "closed", [*(pytest.param(some, marks=pytest.mark.storm) for some in ((0,), (1, 2))), (0, 1, 2)], ids=str
)
def test_descriptors_that_whoever_launches_has_closed_are_not_used_for_anything_else(
    own_dir: Path, closed: tuple[int, ...]
) -> None:
    """Else what somebody prints is written into a segment; and the launcher's own input takes the place of what it
    watches.
    """
    with launched_by("\n".join(f"os.close({fd})" for fd in closed), own_dir / "n") as it:
        for name, pid in it.pids().items():
            held = {fd: os.readlink(f"/proc/{pid}/fd/{fd}").partition("[")[0] for fd in closed}
            own = {0: "pipe:"} if 0 in closed else {}  # on which the launcher was told what to launch
            assert held == dict.fromkeys(closed, "/dev/null") | own, name


def test_a_client_whose_process_has_closed_standard_output_holds_nothing_there(own_dir: Path) -> None:
    """What a library prints would be written into a segment, or to the launcher, which would take the client for one of
    another version.
    """
    with station("encode", own_dir / "n") as it, running("client") as agent:
        assert agent.call(attached, it.run_dir) == ([], False)


def attached(state: SimpleNamespace, run_dir: Path) -> tuple[list[str], bool]:
    """What a client holds as standard input and output after it has closed them, and whether its node is gone for
    it.
    """
    for fd in (0, 1, 2):
        os.close(fd)
    with attach(run_dir) as client:
        held = [f"/proc/self/fd/{fd}" for fd in (0, 1, 2)]
        return [os.readlink(path) for path in held if os.path.exists(path)], client.node_gone


def test_signals_that_whoever_launches_ignores_or_blocks_have_their_effect(own_dir: Path) -> None:
    """D4: how a process ended is known where SIGCHLD was ignored; the node hears SIGTERM where it was blocked."""
    prelude = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""
    with launched_by(prelude, own_dir / "n") as it:
        interpreters = {signal.SIGPIPE, signal.SIGXFSZ}
        for name, pid in it.pids().items():
            own = set() if name == "launcher" else {signal.SIGINT}
            assert signals_of(pid, "SigIgn") == interpreters | own, name
            assert signals_of(pid, "SigBlk") == set(), name
        os.kill(it.pids()["poller"], signal.SIGKILL)
        processes = it.control.processes
        wait_until(lambda: processes.get("poller", Process.NUM_RESTARTS) == 1)
        assert exit_reason(processes.get("poller", Process.LAST_EXIT) - (1 << 32)) == "killed by SIGKILL"
        os.kill(it.pid, signal.SIGTERM)
        wait_until(lambda: not alive([it.pid]))


def signals_of(pid: int, field: str) -> set[int]:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    bits = int(line.split()[1], 16)
    # the others are the C library's own
    return {number for number in signal.valid_signals() if bits >> (number - 1) & 1}


def test_a_working_directory_that_is_gone_and_an_unusual_umask_do_not_matter(own_dir: Path) -> None:
    (own_dir / "there").mkdir()
    prelude = f"os.chdir({str(own_dir / 'there')!r}); os.rmdir(os.getcwd()); os.umask(0o777)"
    with launched_by(prelude, own_dir / "n") as it:
        assert {os.readlink(f"/proc/{pid}/cwd") for pid in it.pids().values()} == {"/"}
        assert {path.name: path.lstat().st_mode & 0o777 for path in it.run_dir.iterdir()} == dict.fromkeys(
            ("lock", "identity", "embridge.sock"), 0o600
        )
        assert it.run_dir.stat().st_mode & 0o777 == 0o700


def test_a_node_ends_with_the_process_that_launched_it_whatever_that_has_forked(own_dir: Path) -> None:
    """P9: a forked child holds all that its parent had open, here in the middle of `launch`; it is not who launched."""
    prelude = """
import subprocess
real = subprocess.Popen.__init__
def start(self, *arguments, **named):
    real(self, *arguments, **named)
    if os.fork() == 0:
        os.close(report)
        os.read(hold, 1)
        os._exit(0)
subprocess.Popen.__init__ = start
"""
    with launched_by(prelude, own_dir / "n") as it:
        pids = list(it.pids().values())
        it.parent.kill()
        it.parent.wait()
        forked = forked_by(it)
        assert len(forked) == 1
        wait_until(lambda: not alive(pids), 20, lambda: f"node gone: {alive(pids)}")
        assert alive(forked) == forked
        wait_until(lambda: "the process that launched this node is gone; stopping" in it.log(), what=it.log)
        os.kill(forked[0], signal.SIGKILL)


def forked_by(it: Launched) -> list[int]:
    """Processes that run the same command as the parent of the node, which is gone."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != it.parent.pid:
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if str(it.run_dir).encode() in words and b"-c\0\nimport os, sys\nconfig" in words:
                found.append(int(name))
    return alive(found)


def test_a_node_ends_when_the_process_that_launched_it_becomes_another_program(own_dir: Path) -> None:
    """P9: which knows of no node."""
    prelude = """
real = os.read
def read(fd, size):
    data = real(fd, size)
    if fd == hold:
        os.set_inheritable(hold, True)
        os.execvp("bash", ["bash", "-c", f"read -r -n 1 -u {hold}"])
    return data
os.read = read
"""
    with launched_by(prelude, own_dir / "n") as it:
        pids = list(it.pids().values())
        os.write(it.hold, b"1")
        wait_until(lambda: not alive(pids), 20, lambda: f"node gone: {alive(pids)}")
        assert it.parent.poll() is None


# ---- SIGHUP


def test_sighup_ends_nothing_and_is_answered_in_the_log(own_dir: Path) -> None:
    """P18: neither the launcher nor its processes; it has the files of keys read again, and only SIGTERM drains."""
    with launched_by("", own_dir / "n") as it:
        pids = it.pids()
        for pid in pids.values():
            os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "reloaded: now in force: nothing new" in it.log())
        beats = {name: it.control.processes.get(name, Process.BEAT_NS) for name in pids}
        wait_until(lambda: all(it.control.processes.get(name, Process.BEAT_NS) > beats[name] for name in pids))
        assert it.pids() == pids
        assert it.control.state == NodeState.READY
