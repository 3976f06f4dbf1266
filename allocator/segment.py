"""Segments: created, reserved and unlinked at once, then handed on as descriptors.

A segment has a name for some microseconds only: it is created with `O_CREAT | O_EXCL` and mode 0600 under a random name, its
space is reserved with `posix_fallocate` before anything maps it (a full /dev/shm is a clear error here, and not a SIGBUS at
the first touch), and it is unlinked. From then on it lives as long as somebody holds a descriptor or a mapping, so whatever
is killed, whenever, no memory stays in /dev/shm. The name of who was killed in those microseconds stays, of an empty file;
whoever makes a segment next removes it.

Where /dev/shm gives huge pages to who asks for them, the payload is first touched through a mapping that asks: what `posix_fallocate`
reserves is in small pages, and stays so.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from multiprocessing import reduction
from typing import Any, Final

import posix_ipc

from embridge.allocator._core import Mapping
from embridge.allocator.errors import SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES

CONTROL_LABEL: Final = "control"
_OUR_NAME: Final = re.compile(r"embridge-[a-z]+-[0-9a-f]{16}")


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


def name_prefix(label: str) -> str:
    """How the name of a segment begins while it has one; the kernel still tells it of an open file."""
    return f"/embridge-{label}-"


def create_segment(label: str, size: int, *, remedy: str = "lower num_blocks", huge: bool = False) -> Descriptor:
    """A new, zeroed, reserved and already nameless segment of `size` bytes, of huge pages (`huge`) where there are any.

    `remedy`: what makes it smaller, for the error's text.

    Raises:
        SegmentError: /dev/shm has not enough room, or shared memory is not to be had.
    """
    _remove_forgotten_names()
    name = f"{name_prefix(label)}{secrets.token_hex(8)}"
    try:
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0)
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory for {label}: {error}; check that /dev/shm is a writable tmpfs") from error
    try:
        with contextlib.suppress(posix_ipc.ExistentialError):  # somebody took it for forgotten
            posix_ipc.unlink_shared_memory(name)
        if huge and _shm_free() > size:
            _fill_with_huge_pages(memory.fd, size)
        os.posix_fallocate(memory.fd, 0, size)
        os.set_inheritable(memory.fd, False)
    except (OSError, posix_ipc.Error) as error:
        os.close(memory.fd)
        with contextlib.suppress(OSError, posix_ipc.Error):
            posix_ipc.unlink_shared_memory(name)
        why = error.strerror if isinstance(error, OSError) else error
        raise SegmentError(
            f"shared memory for {label}: {size} bytes asked for, {_shm_free()} bytes free in /dev/shm ({why}); "
            f"{remedy} or enlarge /dev/shm"
        ) from error
    return Descriptor(memory.fd)


def _remove_forgotten_names() -> None:
    """Those of processes that were killed before they could unlink them: empty, for what has a size has no name any more.

    One that somebody is about to unlink may be among them, which costs it nothing: it has the descriptor.
    """
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as entries:
        for entry in entries:
            if not _OUR_NAME.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.geteuid() and status.st_size == 0:
                    os.unlink(entry.path)


def _fill_with_huge_pages(fd: int, size: int) -> None:
    """As far as they are to be had; what is left is filled with small ones."""
    os.ftruncate(fd, size)
    with contextlib.suppress(OSError):
        mapping = Mapping(fd, size, alignment=HUGE_PAGE_BYTES)
        if mapping.advise_huge() == 0:
            mapping.populate(0, size)


def _shm_free() -> int:
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


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
