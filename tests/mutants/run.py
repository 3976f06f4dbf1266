"""Making a mutant in a copy of the sources, and running the tests that are to notice it.

A copy is a tree of its own, with the tests in it, and a folder of links that makes `embridge.*` that tree. What a run
leaves behind, whatever sessions and groups its processes are in, is found by a word in their environment, and killed: a
mutant may hang. Where the system lets us, a run has a /dev/shm of its own: tests look there for what is left behind,
and other runs leave theirs meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from .mutant import Mutant

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("pipeline", "workers", "allocator")
COPIED: Final = (*PACKAGES, "embridge", "tests", "deploy", "pyproject.toml", "setup.py")
LIMIT_S: Final = 600.0
MARK: Final = "MUTANT_OF_EMBRIDGE"
_NEW_MOUNTS: Final = 0x20000  # CLONE_NEWNS
_PRIVATE: Final = 0x44000  # MS_REC | MS_PRIVATE

_FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)
_SPAWNER = multiprocessing.get_context("forkserver")
_SPAWNER.set_forkserver_preload(["torch", "numpy", "pytest", "zmq"])


_running: dict[int, Copy] = {}  # pytest's process -> its copy


def end_all() -> None:
    """Kill every run, and what it has started; their folders go with whoever made them."""
    for pid, copy in list(_running.items()):
        copy.end(pid)
        shutil.rmtree(copy.tree.parent, ignore_errors=True)


class MutantError(Exception):
    """It cannot be judged: its text is not there, it does not build, or its tests cannot be run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one mutant ended. `killer`: the first test that failed, or that the tests hung; empty for a survivor."""

    mutant: Mutant
    killer: str
    seconds: float

    @property
    def survived(self) -> bool:
        return not self.killer


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The mutant's file with its change applied.

    Raises:
        MutantError: the old text does not stand there exactly once, or the change changes nothing.
    """
    text = (root / mutant.file).read_text()
    count = text.count(mutant.old)
    if count != 1:
        raise MutantError(
            f"{mutant.name}: its old text stands {count} times in {mutant.file}, not once; bring the catalogue up to "
            f"date"
        )
    if mutant.old == mutant.new:
        raise MutantError(f"{mutant.name}: it changes nothing")
    return text.replace(mutant.old, mutant.new)


def check_syntax(mutant: Mutant, text: str, root: Path = ROOT) -> None:
    """Whether it compiles, without building it.

    Raises:
        MutantError: it does not.
    """
    if not mutant.is_native:
        try:
            compile(text, mutant.file, "exec")
        except SyntaxError as error:
            raise MutantError(f"{mutant.name}: {error}") from error
        return
    if shutil.which(_compiler()[0]) is None:
        return
    command = [*_compiler(), "-fsyntax-only", f"-I{(root / mutant.file).parent}", "-x", "c", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise MutantError(f"{mutant.name}: {done.stderr}")


def _compiler() -> list[str]:
    return [
        *(shlex.split(os.environ.get("CC", "")) or ["cc"]),
        "-std=c11",
        "-D_GNU_SOURCE",
        f"-I{sysconfig.get_path('include')}",
    ]


class Copy:
    """A tree of its own to mutate and to test."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.site, self._said = folder / "tree", folder / "site", folder / "said"
        self._mark = uuid.uuid4().hex
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                # what is compiled, too: it is valid as long as its source is as old
                shutil.copytree(source, self.tree / name)
            else:
                shutil.copy2(source, self.tree / name)
        (self.site / "embridge").mkdir(parents=True)
        own = [part for part in (self.tree / "embridge").iterdir() if part.name != "__pycache__"]
        for part in (*(self.tree / package for package in PACKAGES), *own):
            (self.site / "embridge" / part.name).symlink_to(part)

    def apply(self, mutant: Mutant) -> None:
        text = mutated(mutant, self.tree)
        (self.tree / mutant.file).write_text(text)
        # which compile the headers themselves
        if mutant.is_native and not all(test.startswith("tests/native/") for test in mutant.tests):
            self.build()

    def build(self) -> None:
        """The core anew, from this tree's sources; not optimised, for that takes longer than the tests.

        Raises:
            MutantError: it does not compile.
        """
        core = self.tree / "allocator"
        sources = sorted(str(path) for path in core.glob("_core*.c"))
        command = [
            *_compiler(),
            "-shared",
            "-fPIC",
            "-O0",
            "-DPy_LIMITED_API=0x030B0000",
            "-fvisibility=hidden",
            *sources,
        ]
        done = subprocess.run(
            [*command, "-o", str(core / "new")], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise MutantError(f"the core does not build: {done.stderr[-2000:]}")
        (core / "new").rename(core / "_core.abi3.so")  # not written over: another process may have the old one mapped

    def test(self, tests: Iterable[str], limit_s: float = LIMIT_S) -> tuple[int | None, str]:
        """Run these tests until the first is red. Returns pytest's status, None after the limit, and what it said."""
        self._said.unlink(missing_ok=True)
        arguments = ["-q", "-x", "-rfE", "--tb=short", "-p", "no:cacheprovider", *tests]
        process = _SPAWNER.Process(target=_be_pytest, args=(self.tree, self.site, self._said, self._mark, arguments))
        process.start()
        pid = process.pid
        assert pid is not None
        _running[pid] = self
        try:
            process.join(limit_s)
            status = process.exitcode
        finally:
            self.end(pid)
            process.join()
            del _running[pid]
        return status, self._said.read_text(errors="replace") if self._said.exists() else ""

    def end(self, pid: int) -> None:
        """Kill whoever is left of a run, found by its environment: a launcher and its children are in a session of
        their own.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        word = f"{MARK}={self._mark}".encode()
        for _ in range(10):
            left = list(_processes_with(word))
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _processes_with(word: bytes) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
                if word in file.read().split(b"\0"):
                    yield int(entry.name)


def _be_pytest(tree: Path, site: Path, said: Path, mark: str, arguments: list[str]) -> None:
    """In a process of its own, which has what takes long to import already: be the pytest of that tree."""
    os.setsid()
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for fd in (1, 2):
        os.dup2(output, fd)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) == 0 and libc.mount(b"none", b"/", None, _PRIVATE, None) == 0:
        libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, None)
    os.chdir(tree)
    sys.modules["__main__"] = types.ModuleType("__main__")  # which the tests' own processes would look for
    # Safe: else a `python -c` of a test finds the tree's folder `embridge` first, and all below it by the finder of the
    # editable install, which is that of the sources as they are.
    os.environ.update(PYTHONPATH=str(site), PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1", **{MARK: mark})
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(site))
    for package in (*PACKAGES, "integrations"):
        spec = importlib.util.find_spec(f"embridge.{package}")
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).resolve().is_relative_to(tree.resolve()), (
            f"embridge.{package} is {spec.origin}, not of the copy"
        )
    status = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(status)  # threads that a broken product has left do not keep it alive


@contextlib.contextmanager
def copied() -> Iterator[Copy]:
    with tempfile.TemporaryDirectory(prefix="embridge-mutant-") as folder:
        yield Copy(Path(folder))


def run_mutant(mutant: Mutant, limit_s: float = LIMIT_S) -> Verdict:
    """Make one mutant and run its tests. Red is a test that fails, or a run that does not end.

    Raises:
        MutantError: pytest could not run them, or no test has failed but what is around one, which proves nothing.
    """
    began = time.monotonic()
    with copied() as copy:
        copy.apply(mutant)
        status, said = copy.test(mutant.tests, limit_s)
    seconds = time.monotonic() - began
    if status is None:
        return Verdict(mutant, f"hangs: ended after {limit_s:g} s", seconds)
    if status < 0:
        return Verdict(mutant, f"dies of {signal.Signals(-status).name}", seconds)
    failed = _FAILED.findall(said)
    if status == 1 and failed:
        return Verdict(mutant, failed[0], seconds)
    if status == 0:
        return Verdict(mutant, "", seconds)
    raise MutantError(f"{mutant.name}: pytest returned {status}: {said[-3000:]}")


def check_baseline(mutants: Iterable[Mutant], limit_s: float = 1800.0) -> int:
    """Run all selected tests on a copy without any change. Returns how many selections there were.

    Raises:
        MutantError: they are red before anything is broken, or are none.
    """
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with copied() as copy:
        status, said = copy.test(tests, limit_s)
    if status != 0:
        raise MutantError(f"the tests are red without any mutant (pytest returned {status}): {said[-4000:]}")
    return len(tests)
