"""Counts the descriptors that this process has and may have, so that no peer is blamed for a shortage of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Final

MOST: Final = 1 << 16  # more are of no use, and make listing them slow
SPARE: Final = 8  # more than one contact with a peer takes
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE})


def limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def raise_limit() -> None:
    """Raise this process's limit of descriptors as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def num_open() -> int:
    """How many descriptors are open; the limit if none is free with which to list them."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return limit()


def why_short() -> str:
    """Why this process can open no more descriptors, and what to do; empty if it can."""
    opened: list[int] = []
    try:
        for _ in range(SPARE):
            opened.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return shortage(error)
    finally:
        for fd in opened:
            os.close(fd)
    return ""


def shortage(error: OSError) -> str:
    """The shortage of this process or machine that an error tells of; empty when it is about something else."""
    if error.errno not in SHORTAGE:
        return ""
    if error.errno == errno.ENFILE:
        return "this machine has no descriptors left (ENFILE); raise fs.file-max"
    return f"this process has no descriptors left: it may have {limit()}; raise `ulimit -n`"
