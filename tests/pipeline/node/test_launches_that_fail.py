"""P13: launches that fail, or go on with less: places where no node can be, and limits of the process that launches."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.agents import Agent
from support.nodes import LIMITS, config_of, start_node

from embridge import PipelineConfig, launch
from embridge.allocator.errors import EmbridgeError, LaunchError
from embridge.allocator.geometry import Geometry
from embridge.allocator.pinning import lock_note
from embridge.pipeline.inspection.node_status import node_status

pytestmark = pytest.mark.process


def pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("..."))


# ---- places where no node can be


def used_port(path: Path) -> PipelineConfig:
    taken = socket.create_server(("127.0.0.1", 0))
    used_port.held = taken  # type: ignore[attr-defined]
    return config_of("encode", path, bootstrap_port=taken.getsockname()[1])


def too_large(path: Path) -> PipelineConfig:
    """More than all of /dev/shm, so that nothing of it is filled for the attempt."""
    space = os.statvfs("/dev/shm")
    blocks = space.f_blocks * space.f_frsize // Geometry(hidden_size=4096, block_size=4096).embedding_bytes // 4096 + 10
    return config_of("encode", path, hidden_size=4096, block_size=4096, num_blocks=blocks)


def open_to_others(path: Path) -> PipelineConfig:
    path.mkdir(mode=0o700)
    path.chmod(0o750)
    return config_of("encode", path)


def a_file(path: Path) -> PipelineConfig:
    path.write_text("")
    return config_of("encode", path)


PLACES: dict[str, tuple[str, Callable[[Path], PipelineConfig]]] = {
    "too little shared memory": (
        "shared memory: ... MiB control segment + ... MiB payload (... blocks of 4096 tokens of ... bytes) > "
        "... MiB free of ... MiB in /dev/shm; lower num_blocks to ... or enlarge /dev/shm (containers: --shm-size)",
        too_large,
    ),
    "a port in use": ("bootstrap port: 127.0.0.1:...: Address already in use; choose another", used_port),
    "a run directory open to others": (
        "run directory ...: mode 750 of user ...; it must be 700 and belong to user",
        open_to_others,
    ),
    "a run directory that is a file": ("run directory ...: Not a directory; choose another with --run-dir", a_file),
    "a run directory under a file": (
        "run directory ...: Not a directory; choose another with --run-dir",
        lambda path: config_of("encode", a_file(path).directory / "n"),
    ),
    "a path too long for a socket": (
        "its socket's path exceeds 107 bytes; choose a shorter one",
        lambda path: config_of("encode", path / ("x" * 100)),
    ),
}


@pytest.mark.parametrize("what", PLACES)
def test_a_node_that_cannot_come_up_says_what_was_missing_and_leaves_nothing(own_dir: Path, what: str) -> None:
    """P13, P9."""
    text, make = PLACES[what]
    config = make(own_dir / "n")
    try:
        with pytest.raises(LaunchError, match=pattern(text)):
            launch(config)
    finally:
        if hasattr(used_port, "held"):
            used_port.held.close()
            del used_port.held
    assert not any(stat.S_ISSOCK(path.lstat().st_mode) for path in own_dir.rglob("*"))


# ---- limits of the process that launches


def _limited(state: SimpleNamespace, run_dir: Path, number: int, soft: int, dropped: int | None) -> str:
    """Launch under a resource limit, and without a capability; what the node shows of its memory, or the error."""
    if dropped is not None:
        ctypes.CDLL(None).prctl(24, dropped, 0, 0, 0)  # PR_CAPBSET_DROP: what is started from here does not have it
    before = len(os.listdir("/proc/self/fd"))
    if soft < 0:  # so many descriptors more than are open now
        used = {int(fd) for fd in os.listdir("/proc/self/fd")}
        soft = [fd for fd in range(max(used) + 2 - soft) if fd not in used][-soft]
    _, hard = resource.getrlimit(number)
    resource.setrlimit(number, (soft, hard if dropped is None else soft))
    try:
        config = PipelineConfig(
            role="encode", run_dir=run_dir, geometry=Geometry(hidden_size=8, num_blocks=2), limits=LIMITS
        )
        with start_node(config, run_dir.with_suffix(".log")) as node:
            return str(node_status(node.run_dir)["memory"])
    except EmbridgeError as error:
        left = len(os.listdir("/proc/self/fd")) - before
        return f"{type(error).__name__}: {error} ({left} left)"
    finally:
        resource.setrlimit(number, (hard if dropped is None else soft, hard if dropped is None else soft))


@pytest.mark.parametrize(
    ("soft", "says"),
    [
        (
            70,
            "LaunchError: descriptors: a process may have 70, a node with max_clients = 6 and num_workers = 1 needs "
            "82; raise `ulimit -n`",
        ),
        (-3, "LaunchError: launcher: it cannot be started: Too many open files; check `ulimit -n`"),
    ],
)
def test_a_node_that_would_run_out_of_descriptors_is_not_started(
    own_dir: Path, encoder: Agent, soft: int, says: str
) -> None:
    """P13, P15."""
    said = encoder.call(_limited, own_dir / "n", resource.RLIMIT_NOFILE, soft, None)
    assert said.startswith(says)
    assert said.endswith("(0 left)")


def test_a_limit_of_the_size_of_files_is_named(own_dir: Path, encoder: Agent) -> None:
    """P13: segments are files; that there is room enough in /dev/shm does not help."""
    said = encoder.call(_limited, own_dir / "n", resource.RLIMIT_FSIZE, 1 << 16, None)
    assert re.fullmatch(
        r"LaunchError: shared memory for control: .* \(File too large\); lower num_slots or raise `ulimit -f` \(0 "
        r"left\)",
        said,
    ), said


def test_memory_that_may_not_be_locked_is_no_failure_and_is_shown(own_dir: Path) -> None:
    """P13: a node of a process that may lock nothing runs; `embridge status` says why its memory is not locked, as soon
    as the node is READY.
    """
    agent = Agent("launching process")
    try:
        said = agent.call(_limited, own_dir / "n", resource.RLIMIT_MEMLOCK, 0, 14)  # CAP_IPC_LOCK
    finally:
        agent.close()
    assert said == "not locked: Operation not permitted; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, "locked"),
        (1, "not locked: Operation not permitted; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"),
        (12, "not locked: Cannot allocate memory; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"),
        (22, "not locked: Invalid argument"),
    ],
)
def test_what_became_of_locking_is_said_in_words(code: int, says: str) -> None:
    assert lock_note(code) == says
