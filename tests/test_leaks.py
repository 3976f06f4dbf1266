"""The check for what a test leaves behind (P9): it sees what is ours, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.leaks import LeakCheck, is_shared_memory
from support.unharmed import opened_by

from embridge.allocator._core import Mapping
from embridge.allocator.segment import create_segment, map_segment

SIZE = 4096


@pytest.fixture
def check() -> LeakCheck:
    made = LeakCheck()
    made.restore()
    return made


def test_a_library_under_a_folder_that_is_called_embridge_is_nothing_left(check: LeakCheck, tmp_path: Path) -> None:
    """P9: the natural name of a checkout, with a space in its path, too."""
    folder = tmp_path / "my embridge" / "embridge"
    folder.mkdir(parents=True)
    library = folder / "library-1.so"
    library.write_bytes(bytes(SIZE))
    fd = os.open(library, os.O_RDONLY)
    mapping = Mapping(fd, SIZE, writable=False)
    os.close(fd)
    assert f"{library}\n" in Path("/proc/self/maps").read_text()
    assert check.problems() == []
    del mapping


@pytest.mark.parametrize("made", ["segment", "memfd"])
def test_shared_memory_that_is_still_mapped_is_found(
    check: LeakCheck, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9."""
    monkeypatch.setattr("support.leaks.SETTLE_S", 0.0)
    if made == "segment":
        descriptor = create_segment("test", SIZE)
        mapping = map_segment(descriptor.fd, SIZE)
        descriptor.close()
    else:
        fd = os.memfd_create("embridge-test")
        os.ftruncate(fd, SIZE)
        mapping = Mapping(fd, SIZE)
        os.close(fd)
    (problem,) = check.problems()
    assert problem.startswith("mapping of ")
    assert problem.endswith("(1 more)")
    del mapping
    assert check.problems() == []


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("/dev/shm/#123 (deleted)", True),
        ("/dev/shm/embridge-7-control (deleted)", True),
        ("/memfd:embridge-bench (deleted)", True),
        ("/memfd:page (deleted)", False),
        ("/dev/shm/sem.mp-abc (deleted)", False),
        ("/home/somebody/my embridge/.venv/lib/numpy/core.so", False),
        ("/embridge", False),
        ("/#1", False),
        ("/home/embridge#1/dev/shm/#2.so", False),
        ("[heap]", False),
        ("", False),
    ],
)
def test_what_maps_names_is_told_apart_by_where_it_lies(name: str, is_ours: bool) -> None:
    assert is_shared_memory(name) == is_ours


def test_a_doorbell_that_is_rung_for_the_first_time_is_no_descriptor_more_and_a_third_copy_is_one() -> None:
    pid, opened = os.getpid(), [os.eventfd(0)]
    try:
        before = opened_by(pid)
        opened.append(os.dup(opened[0]))
        assert not opened_by(pid) - before
        opened.append(os.dup(opened[0]))
        assert opened_by(pid) - before == {"eventfd": 1}
        opened.append(os.eventfd(0))
        assert opened_by(pid) - before == {"eventfd": 3}, "one that is new may get its second copy later"
    finally:
        for fd in opened:
            os.close(fd)
    assert not opened_by(pid) - before
