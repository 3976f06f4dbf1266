"""Segments and /dev/shm: huge pages where it has them, a clear refusal where it is full (P13), and no name (P9)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from support.mounting import mounting

from embridge.allocator.segment import create_segment

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
    huge = [line for line in open("/proc/self/smaps") if line.startswith("ShmemPmdMapped")]
    print("huge:", sum(int(line.split()[1]) for line in huge), "kB")
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


def test_a_segment_has_no_name_any_more_and_can_get_none() -> None:
    """P9: so whoever is killed leaves no memory in /dev/shm; and nobody opens it by a name."""
    descriptor = create_segment("payload", 4096)
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        status = os.fstat(descriptor.fd)
        assert (status.st_nlink, status.st_size, stat.S_IMODE(status.st_mode)) == (0, 4096, 0o600)
        assert not os.get_inheritable(descriptor.fd)
        with pytest.raises(FileNotFoundError):
            os.link(str(descriptor.fd), f"/dev/shm/embridge-test-{os.getpid()}", src_dir_fd=folder)
    finally:
        os.close(folder)
        descriptor.close()
