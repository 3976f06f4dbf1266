"""Segments: created under a name that is removed at once, sized and reserved after that, then handed on as descriptors.

A segment is a file of /dev/shm of mode 0600. `posix_ipc` creates it (`O_CREX`), and it is unlinked before it has a
size. So it lives as long as somebody holds a descriptor or a mapping. A process that is killed between these two calls
leaves a name and no memory. The name says whose it was; the next node that starts on this host, and `embridge doctor`,
remove it.

The space of a segment is reserved with `posix_fallocate` before anything maps it, so a full /dev/shm is a clear error
here and not a SIGBUS at the first touch. Where /dev/shm gives huge pages to whoever asks for them, and only there, the
payload is first touched through a mapping that asks, because what `posix_fallocate` reserves is in small pages and
stays so. Where it gives huge pages to everybody, `posix_fallocate` has them, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import threading
from pathlib import Path
from typing import Final, NamedTuple

import posix_ipc

from embridge.allocator._core import Mapping
from embridge.allocator.errors import SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES

SHARED_MEMORY: Final = "/dev/shm"
MAX_FILLERS: Final = 8  # threads that fill a payload with huge pages
_NAME: Final = re.compile(r"embridge-(\d+)-(\d+)-(\d+)-[a-z]+-[0-9a-f]{16}")  # user, process, its start; what, which


class Descriptor:
    """A file descriptor, which is closed once."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create_segment(label: str, size: int, *, remedy: str = "lower num_blocks", huge: bool = False) -> Descriptor:
    """A new, zeroed, reserved segment of `size` bytes that has no name; with `huge`, of huge pages where there are any.

    `label`, a word, says in errors and in /proc/PID/maps what it is for; `remedy` says what makes it smaller.

    Raises:
        SegmentError: /dev/shm has not enough room, or shared memory cannot be had.
    """
    fd = _new_file(label)
    try:
        if huge and huge_pages() == "advise" and shared_memory_space().free > size:
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
            pass  # a process that does not see this one took it for a dead one's, and has removed it
        except (OSError, posix_ipc.Error):
            os.close(fd)
            raise
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(
            f"shared memory for {label}: {error}; check that {SHARED_MEMORY} is a writable tmpfs, and `ulimit -n`"
        ) from error
    return fd


def remove_left_names() -> list[str]:
    """Remove the names that creators of this user left in /dev/shm when they were killed. Returns the removed names.

    Nothing else is touched: nothing that has a size, belongs to another user, or to a process that lives. Removing the
    name of a process that lives (in another container, say) would do it no harm, because it is about to remove it
    itself.
    """
    removed = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(SHARED_MEMORY)):
            found = _NAME.fullmatch(name)
            if found is None or int(found[1]) != os.geteuid():
                continue
            if int(found[3]) and _started(int(found[2])) == int(found[3]):
                continue  # its creator lives
            with contextlib.suppress(OSError):
                path = Path(SHARED_MEMORY, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_size:
                    path.unlink()
                    removed.append(name)
    return removed


def _started(pid: int) -> int:
    """When a process started, in ticks since the machine did; 0 if it has ended. With its number it says who it is."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if words[0] in "ZX" else int(words[19])
    except (OSError, IndexError, ValueError):
        return 0


def _fill_with_huge_pages(fd: int, size: int) -> None:
    """Fill with huge pages as far as there are any; what is left is filled with small ones.

    They are zeroed with that, so each core fills its share: the kernel lets pages of one file be made side by side.
    """
    os.ftruncate(fd, size)
    with contextlib.suppress(OSError):
        mapping = Mapping(fd, size, alignment=HUGE_PAGE_BYTES)
        if mapping.advise_huge() != 0:
            return
        num_shares = min(len(os.sched_getaffinity(0)), MAX_FILLERS)
        share = -(-size // (num_shares * HUGE_PAGE_BYTES)) * HUGE_PAGE_BYTES

        def fill(first: int) -> None:
            with contextlib.suppress(OSError):
                mapping.populate(first, min(share, size - first))

        fillers = []
        for first in range(share, size, share):
            filler = threading.Thread(target=fill, args=(first,))
            try:
                filler.start()
            except RuntimeError:  # no room for a thread
                fill(first)
            else:
                fillers.append(filler)
        fill(0)
        for filler in fillers:
            filler.join()


def huge_pages(mounts: str | None = None) -> str:
    """To whom /dev/shm gives huge pages, as its mount says: "never", "advise", "within_size", "always".

    The kernel's `shmem_enabled` is about other shared memory. `mounts` is what /proc/mounts holds; where that cannot be
    read, nobody is said to get them.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:
            return "never"
    options = [line.split()[3] for line in mounts.splitlines() if line.split()[1:3] == [SHARED_MEMORY, "tmpfs"]]
    chosen = re.search(r"\bhuge=(\w+)", options[-1]) if options else None
    return chosen[1] if chosen else "never"


class Space(NamedTuple):
    """Bytes of /dev/shm: those that may still be taken, and all."""

    free: int
    size: int


def shared_memory_space() -> Space:
    """The space of /dev/shm; without a limit it counts as endless. Raises OSError."""
    status = os.statvfs(SHARED_MEMORY)
    if not status.f_blocks:
        return Space(sys.maxsize, sys.maxsize)
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def map_segment(
    fd: int, size: int, *, offset: int = 0, writable: bool = True, alignment: int = 4096, address: int = 0
) -> Mapping:
    """Map a segment that somebody handed over, or `size` bytes of it from `offset` on; with an `address`, there and
    nowhere else.

    Without `writable` the mapping is read-only, so that even a bug changes nothing in it.

    Raises:
        SegmentError: it is smaller (touching its end would be SIGBUS), or cannot be mapped.
    """
    try:
        actual = os.fstat(fd).st_size
        if actual < offset + size:
            raise SegmentError(
                f"segment: {actual} bytes < {offset + size} bytes expected; the node that made it has another layout"
            )
        return Mapping(fd, size, offset=offset, writable=writable, alignment=alignment, address=address)
    except (OSError, ValueError, OverflowError) as error:
        raise SegmentError(f"segment of {size} bytes cannot be mapped: {error}") from error
