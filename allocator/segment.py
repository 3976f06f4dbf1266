"""Segments: created with a name that is gone at once, sized and reserved after that, then handed on as descriptors.

A segment is a file of /dev/shm of mode 0600, created by `posix_ipc` (`O_CREX`), and unlinked before it has a size. So
it lives as long as somebody holds a descriptor or a mapping. Whoever is killed between these two calls leaves a name
and no memory; the name says whose it was, and the next node that starts on this host, and `embridge doctor`, remove it.

Its space is reserved with `posix_fallocate` before anything maps it: a full /dev/shm is a clear error here, and not a
SIGBUS at the first touch. Where /dev/shm gives huge pages to who asks for them, the payload is first touched through a
mapping that asks: what `posix_fallocate` reserves is in small pages, and stays so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Final, NamedTuple

import posix_ipc

from embridge.allocator._core import Mapping
from embridge.allocator.errors import SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES

SHARED_MEMORY: Final = "/dev/shm"
_NAME: Final = re.compile(r"embridge-(\d+)-(\d+)-(\d+)-[a-z]+-[0-9a-f]{16}")  # user, process, its start; what, which


class Descriptor:
    """A file descriptor that survives being an argument of a spawned process.

    A bare integer would name another open file in the child; this one is duplicated into it.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (reduction.DupFd(self.fd),)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _rebuild(handle: Any) -> Descriptor:
    return Descriptor(handle.detach())


def create_segment(label: str, size: int, *, remedy: str = "lower num_blocks", huge: bool = False) -> Descriptor:
    """A new, zeroed, reserved segment of `size` bytes that has no name, of huge pages (`huge`) where there are any.

    `label`, a word, says in errors and in /proc/PID/maps what it is for, `remedy` what makes it smaller.

    Raises:
        SegmentError: /dev/shm has not enough room, or shared memory is not to be had.
    """
    fd = _new_file(label)
    try:
        if huge and shared_memory_space().free > size:
            _fill_with_huge_pages(fd, size)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        free = shared_memory_space().free
        more = "raise `ulimit -f`" if error.errno == errno.EFBIG else f"enlarge {SHARED_MEMORY}"
        raise SegmentError(
            f"shared memory for {label}: {size} bytes asked for, {free} bytes free in {SHARED_MEMORY} "
            f"({error.strerror}); {remedy} or {more}"
        ) from error
    return Descriptor(fd)


def _new_file(label: str) -> int:
    """An empty file of shared memory, of which only the descriptor is left."""
    name = f"/embridge-{os.geteuid()}-{os.getpid()}-{_started(os.getpid())}-{label}-{os.urandom(8).hex()}"
    try:
        fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0).fd
        try:
            posix_ipc.unlink_shared_memory(name)
        except posix_ipc.ExistentialError:
            pass  # somebody who does not see this process took it for a dead one's, and has removed it
        except (OSError, posix_ipc.Error):
            os.close(fd)
            raise
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(
            f"shared memory for {label}: {error}; check that {SHARED_MEMORY} is a writable tmpfs, and `ulimit -n`"
        ) from error
    return fd


def remove_left_names() -> list[str]:
    """Remove the names that creators of this user left in /dev/shm when they were killed. Returns those removed.

    Nothing else is touched: what has a size, belongs to somebody else, or to a process that lives. Removing the name of
    one that lives (in another container, say) would do it no harm, for it is about to do so itself.
    """
    removed = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(SHARED_MEMORY)):
            found = _NAME.fullmatch(name)
            if found is None or int(found[1]) != os.geteuid():
                continue
            if int(found[3]) and _started(int(found[2])) == int(found[3]):
                continue  # whoever made it lives
            with contextlib.suppress(OSError):
                path = Path(SHARED_MEMORY, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_size:
                    path.unlink()
                    removed.append(name)
    return removed


def _started(pid: int) -> int:
    """When a process started, in ticks since the machine did: with its number, who it is. 0 for one that has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if words[0] in "ZX" else int(words[19])
    except (OSError, IndexError, ValueError):
        return 0


def _fill_with_huge_pages(fd: int, size: int) -> None:
    """As far as they are to be had; what is left is filled with small ones."""
    os.ftruncate(fd, size)
    with contextlib.suppress(OSError):
        mapping = Mapping(fd, size, alignment=HUGE_PAGE_BYTES)
        if mapping.advise_huge() == 0:
            mapping.populate(0, size)


class Space(NamedTuple):
    """Bytes of /dev/shm: those that may still be taken, and all."""

    free: int
    size: int


def shared_memory_space() -> Space:
    """What /dev/shm has; one without a limit counts as endless. Raises OSError."""
    status = os.statvfs(SHARED_MEMORY)
    if not status.f_blocks:
        return Space(sys.maxsize, sys.maxsize)
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def map_segment(fd: int, size: int, *, writable: bool = True, alignment: int = 4096, address: int = 0) -> Mapping:
    """Map a segment that somebody handed over; with an `address`, there and nowhere else.

    Not `writable`: to look at it; then even a bug changes nothing in it.

    Raises:
        SegmentError: it is smaller than `size` (touching its end would be SIGBUS), or cannot be mapped.
    """
    try:
        actual = os.fstat(fd).st_size
        if actual < size:
            raise SegmentError(
                f"segment: {actual} bytes < {size} bytes expected; the node that made it has another layout"
            )
        return Mapping(fd, size, writable=writable, alignment=alignment, address=address)
    except (OSError, ValueError, OverflowError) as error:
        raise SegmentError(f"segment of {size} bytes cannot be mapped: {error}") from error
