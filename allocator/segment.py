"""Segments: created without a name, reserved at once, then handed on as descriptors.

A segment is a file of /dev/shm that never has a name there (`O_TMPFILE`), of mode 0600. Its space is reserved with `posix_fallocate` before
anything maps it (a full /dev/shm is a clear error here, and not a SIGBUS at the first touch). It lives as long as somebody holds a
descriptor or a mapping, so whatever is killed, whenever, nothing stays in /dev/shm.

Where /dev/shm gives huge pages to who asks for them, the payload is first touched through a mapping that asks: what `posix_fallocate`
reserves is in small pages, and stays so.
"""

from __future__ import annotations

import contextlib
import os
import sys
from multiprocessing import reduction
from typing import Any, Final, NamedTuple

from embridge.allocator._core import Mapping
from embridge.allocator.errors import SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES

SHARED_MEMORY: Final = "/dev/shm"


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
    """A new, zeroed, reserved and nameless segment of `size` bytes, of huge pages (`huge`) where there are any.

    `label` says in errors what it is for, `remedy` what makes it smaller.

    Raises:
        SegmentError: /dev/shm has not enough room, or shared memory is not to be had.
    """
    try:
        fd = os.open(SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)  # EXCL: it will not get a name, either
    except OSError as error:
        raise SegmentError(f"shared memory for {label}: {error}; check that {SHARED_MEMORY} is a writable tmpfs") from error
    try:
        if huge and shared_memory_space().free > size:
            _fill_with_huge_pages(fd, size)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        free = shared_memory_space().free
        raise SegmentError(
            f"shared memory for {label}: {size} bytes asked for, {free} bytes free in {SHARED_MEMORY} "
            f"({error.strerror}); {remedy} or enlarge {SHARED_MEMORY}"
        ) from error
    return Descriptor(fd)


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
            raise SegmentError(f"segment: {actual} bytes < {size} bytes expected; the node that made it has another layout")
        return Mapping(fd, size, writable=writable, alignment=alignment, address=address)
    except (OSError, ValueError, OverflowError) as error:
        raise SegmentError(f"segment of {size} bytes cannot be mapped: {error}") from error
