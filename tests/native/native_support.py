"""Compiling and running the C programs of this folder: the core's lock-free structures as threads of one process."""

from __future__ import annotations

import ast
import functools
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parents[1] / "allocator" / "native"
COMPILER = shlex.split(os.environ.get("CC", "")) or ["cc"]
WARNINGS = ["-Wall", "-Wextra"]


def _shipped() -> list[str]:
    """How `setup.py` has the core compiled, so that what is stepped through are the instructions that are shipped."""
    setup = ast.parse((HERE.parents[1] / "setup.py").read_text())
    own = [
        ast.literal_eval(node.value)
        for node in ast.walk(setup)
        if isinstance(node, ast.keyword) and node.arg == "extra_compile_args"
    ]
    inherited = [shlex.split(sysconfig.get_config_var(name) or "") for name in ("CFLAGS", "CCSHARED")]
    # The linker's: symbols are looked up before the start, not in the middle of the first call.
    return [*itertools.chain(*inherited, *own), "-Wl,-z,now"]


FLAGS = {
    "shipped": _shipped(),
    "plain": ["-O2"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}
# No leak check: it needs ptrace, which a container may refuse. 66: what no program returns by itself.
SANITIZER_OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66 halt_on_error=1 second_deadlock_stack=1",
    "ASAN_OPTIONS": "exitcode=66 detect_leaks=0",
    "UBSAN_OPTIONS": "exitcode=66 print_stacktrace=1",
}
REPORT = 66
PROBE = """
#include <pthread.h>
static int shared;
static void *run(void *argument) { shared++; return argument; }
int main(void)
{
    pthread_t thread;
    if (pthread_create(&thread, 0, run, 0) || pthread_join(thread, 0))
        return 1;
    return shared - 1;
}
"""


def _compile(source: Path, program: Path, kind: str, defines: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*COMPILER, "-std=c11", *WARNINGS, *FLAGS[kind], *(f"-D{name}" for name in defines), "-pthread"]
    command += [f"-I{HERE}", f"-I{HEADERS}", str(source), "-o", str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s, env={**os.environ, **SANITIZER_OPTIONS}
    )


@functools.cache
def launcher(kind: str) -> list[str] | str:
    """What to put before a program of this kind, or in words why none can be built or run here."""
    if shutil.which(COMPILER[0]) is None:
        return f"no C compiler: {COMPILER[0]}"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.c"), Path(folder, "probe")
        source.write_text(PROBE)
        built = _compile(source, program, kind)
        if built.returncode:
            return f"{COMPILER[0]} cannot build with {FLAGS[kind][-1]}: {built.stderr.strip().splitlines()[-1:]}"
        # Where addresses are randomised over more bits than the runtime expects, its shadow memory finds no place.
        fixed_addresses = [["setarch", platform.machine(), "-R"]] if shutil.which("setarch") else []
        said = ""
        for prefix in ([], *fixed_addresses):
            runs = [_run([*prefix, str(program)], 60) for _ in range(3)]
            if all(run.returncode == 0 for run in runs):
                return prefix
            said += "".join(run.stderr for run in runs)
        return f"the {kind} sanitizer's runtime does not run here: {said.strip().splitlines()[:1]}"


def build(folder: Path, name: str, kind: str, *defines: str) -> list[str]:
    """The command that runs `name`.c, compiled into `folder`; skips the test where that kind cannot be had."""
    prefix = launcher(kind)
    if isinstance(prefix, str):
        pytest.skip(prefix)
    program = folder / "-".join((name, kind, *defines))
    built = _compile(HERE / f"{name}.c", program, kind, defines)
    assert built.returncode == 0, built.stderr
    return [*prefix, str(program)]


def run(command: list[str], *arguments: object, limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run it, and show what it says with the test's own output."""
    done = _run([*command, *map(str, arguments)], limit_s)
    print(done.stdout, done.stderr, sep="")
    return done


def succeed(command: list[str], *arguments: object, limit_s: float) -> str:
    """Run it; it must end well, and no sanitizer may have anything to report. Returns what it printed."""
    done = run(command, *arguments, limit_s=limit_s)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{shlex.join([*command, *map(str, arguments)])} returned {done.returncode}:\n{said}"
    assert "Sanitizer" not in said, said
    assert "runtime error" not in said, said
    return done.stdout
