"""Descriptors: files that somebody else may have replaced, and those that must not be 0, 1 or 2."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path


def open_regular(path: str | Path, flags: int = os.O_RDONLY, *, directory: int | None = None) -> int:
    """A descriptor of a regular file, made with mode 0600 where `flags` say so. Nothing is waited for, as at a FIFO.

    Raises:
        OSError: as `os.open`; EINVAL for what is no regular file; ELOOP, in words of ours, for a link.
    """
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd


def above_standard(fd: int) -> int:
    """The descriptor, or one above 2 in its place.

    Where a process has closed standard error, whoever prints writes into descriptor 2, whatever that is.

    Raises:
        OSError: there is none; this one is closed then.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
