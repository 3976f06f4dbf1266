"""Segments and /dev/shm: huge pages where it has them, a clear refusal where it is full (P13), and names that nobody needs (P9)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import posix_ipc
import pytest
from support.waiting import wait_until

from embridge.allocator.segment import create_segment

mounting = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

SIZE = 8 << 20
CREATE = f"""
from embridge.allocator.errors import SegmentError
from embridge.allocator.segment import create_segment, map_segment
try:
    descriptor = create_segment("payload", {SIZE}, huge=True)
except SegmentError as error:
    print("refused:", error)
else:
    mapping = map_segment(descriptor.fd, {SIZE}, alignment=2 << 20)
    mapping.populate(0, {SIZE})
    print("huge:", sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("ShmemPmdMapped")), "kB")
"""


def create_under(options: str) -> str:
    """What becomes of a segment where /dev/shm is a tmpfs of its own, seen by one process only."""
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$0" -c "$1"'
    words = ["unshare", "--mount", "sh", "-c", mount, sys.executable, CREATE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode and "mount:" in done.stderr:
        pytest.skip(f"this machine mounts no tmpfs with {options}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@mounting
def test_the_payload_has_huge_pages_where_dev_shm_gives_them_to_who_asks() -> None:
    assert create_under("size=64m,huge=advise") == f"huge: {SIZE >> 10} kB"


@mounting
def test_the_payload_has_small_pages_where_dev_shm_has_no_others() -> None:
    assert create_under("size=64m,huge=never") == "huge: 0 kB"


@mounting
@pytest.mark.parametrize("huge", ["advise", "never"])
def test_a_dev_shm_that_is_too_small_is_an_error_that_says_so(huge: str) -> None:
    seen = create_under(f"size=4m,huge={huge}")
    assert seen.startswith(f"refused: shared memory for payload: {SIZE} bytes asked for"), seen
    assert "lower num_blocks or enlarge /dev/shm" in seen


KILLED_AT_ONCE = """
import os, signal, posix_ipc
from embridge.allocator.segment import create_segment
posix_ipc.unlink_shared_memory = lambda name: os.kill(os.getpid(), signal.SIGKILL)
create_segment("payload", 4096)
"""


def names() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("embridge-payload-*")}


def test_the_name_of_who_was_killed_before_it_could_unlink_it_goes_with_the_next_segment() -> None:
    """P9: in between there is an empty file. What has a size is not ours to remove, whatever its name."""
    foreign = f"embridge-payload-{os.getpid():016x}"
    with open(f"/dev/shm/{foreign}", "xb") as file:
        file.write(b"rows")
    try:
        done = subprocess.run([sys.executable, "-c", KILLED_AT_ONCE], timeout=60, check=False)
        assert done.returncode < 0
        create_segment("control", 4096).close()
        wait_until(lambda: names() == {foreign})  # other tests make segments, too
    finally:
        os.unlink(f"/dev/shm/{foreign}")


def test_a_name_that_another_has_removed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: who is about to unlink its name has its descriptor already."""
    unlink = posix_ipc.unlink_shared_memory

    def late(name: str) -> None:
        unlink(name)
        unlink(name)

    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", late)
    descriptor = create_segment("payload", 4096)
    assert os.fstat(descriptor.fd).st_size == 4096
    descriptor.close()
