"""The name that a segment has for an instant: a kill leaves it at most, and the next start removes it (P9, P2)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from click.testing import CliRunner
from support.mounting import CAN_MOUNT
from support.nodes import config_of

from embridge import launch
from embridge.allocator import segment
from embridge.allocator.errors import SegmentError
from embridge.allocator.segment import SHARED_MEMORY, create_segment, remove_left_names
from embridge.pipeline.cli import main
from embridge.pipeline.cli.checks import left_names

TESTS = Path(__file__).parents[1]


def stepped(what: str) -> list[dict[str, Any]]:
    """What `support.stepping` saw; where mounting is allowed, in a /dev/shm of its own, whose memory can be counted."""
    words = [sys.executable, "-m", "support.stepping", what]
    if CAN_MOUNT:
        mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *words]
    done = subprocess.run(words, cwd=TESTS, capture_output=True, text=True, timeout=100, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("ptrace is not permitted here")
    assert done.returncode == 0, done.stderr
    states: list[dict[str, Any]] = json.loads(done.stdout)
    return states


def test_a_kill_at_any_system_call_of_a_creation_leaves_an_empty_name_at_most() -> None:
    """P9, P1: no state has memory, one between the two calls has the name, and the next start removes it."""
    states = stepped("create")
    assert len(states) > 10
    assert {tuple(state["left"].values()) for state in states} == {(), (0,)}
    assert [state["then_left"] for state in states if state["then_left"]] == []
    if CAN_MOUNT:
        assert {state["used_bytes"] for state in states} == {0}


def test_a_kill_at_any_system_call_of_whoever_removes_a_name_leaves_it_to_the_next() -> None:
    """P2."""
    states = stepped("remove")
    assert len(states) > 10
    assert {tuple(state["left"].values()) for state in states} == {(), (0,)}
    assert [state["then_left"] for state in states if state["then_left"]] == []


# ---- whose name it is


GONE = 4_194_305  # beyond the greatest number that Linux gives to a process


def name_of(*, user: int | None = None, pid: int = GONE, started: int = 7) -> str:
    return f"embridge-{os.geteuid() if user is None else user}-{pid}-{started}-payload-{os.urandom(8).hex()}"


@pytest.fixture
def place() -> Iterator[Any]:
    """Puts a file into /dev/shm; those that are still there afterwards are removed."""
    made: list[Path] = []

    def put(name: str, data: bytes = b"") -> Path:
        path = Path(SHARED_MEMORY, name)
        path.write_bytes(data)
        made.append(path)
        return path

    yield put
    for path in made:
        path.unlink(missing_ok=True)


def own_start() -> int:
    return segment._started(os.getpid())


def test_a_name_says_whose_it_is_and_is_gone_before_the_segment_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: the user, the process and its start, by which another with that number is told apart."""
    seen: list[tuple[str, int, int]] = []
    unlink = posix_ipc.unlink_shared_memory

    def watched(name: str) -> None:
        status = os.stat(f"{SHARED_MEMORY}{name}")
        seen.append((name, status.st_size, status.st_mode & 0o777))
        unlink(name)

    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", watched)
    create_segment("payload", 4096).close()
    ((name, size, mode),) = seen
    assert re.fullmatch(rf"/embridge-{os.geteuid()}-{os.getpid()}-{own_start()}-payload-[0-9a-f]{{16}}", name)
    assert (size, mode) == (0, 0o600)


def test_what_a_dead_process_left_is_removed_and_nothing_else(place: Any) -> None:
    """P9: not what has a size, is another user's, a living process's, or no segment's."""
    left = place(name_of())
    reused = place(name_of(pid=os.getpid(), started=own_start() + 1))  # another process had this number before
    kept = [
        place(name_of(pid=os.getpid(), started=own_start())),
        place(name_of(), b"rows"),
        place(name_of(user=os.geteuid() + 1)),
        place(f"{name_of()}x"),
        place("embridge"),
    ]
    assert set(remove_left_names()) >= {left.name, reused.name}
    assert not left.exists()
    assert not reused.exists()
    assert all(path.exists() for path in kept)


def test_who_creates_a_segment_does_not_mind_that_its_name_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: in another container, where this process is not seen, it was taken for a dead one's."""
    unlink = posix_ipc.unlink_shared_memory

    def too_late(name: str) -> None:
        os.unlink(f"{SHARED_MEMORY}{name}")
        unlink(name)

    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", too_late)
    descriptor = create_segment("payload", 4096)
    assert os.fstat(descriptor.fd).st_size == 4096
    descriptor.close()


def test_a_name_that_cannot_be_removed_is_an_error_while_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9, P13."""
    made: list[str] = []

    def denied(name: str) -> None:
        made.append(name)
        raise posix_ipc.PermissionsError("No permission to remove this")

    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", denied)
    with pytest.raises(
        SegmentError, match=r"shared memory for payload: No permission .*; check that /dev/shm is a writ"
    ):
        create_segment("payload", 4096)
    path = Path(f"{SHARED_MEMORY}{made[0]}")
    assert path.stat().st_size == 0
    path.unlink()


@pytest.mark.process
def test_the_next_start_removes_it(place: Any, own_dir: Path) -> None:
    """P9."""
    left = place(name_of())
    with launch(config_of("encode", own_dir / "n")):
        assert not left.exists()


def test_doctor_removes_it_and_says_so(place: Any) -> None:
    """P9."""
    assert "left names" in {
        check["name"] for check in json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    }
    for _ in range(100):  # a node that starts beside this test may be quicker
        left = place(name_of())
        seen = left_names().seen
        assert not left.exists()
        if left.name in seen:
            return
    raise AssertionError(seen)
