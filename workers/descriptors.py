"""How many descriptors this process has, and may have: what is short is named as ours, and blamed on no peer."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Final

MOST: Final = 1 << 16  # more are of no use to a process, and make whoever lists them slow
SPARE: Final = 8  # as many as one contact with a peer takes, and some
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE})


def limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def raise_limit() -> None:
    """Let this process open as many as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # it goes on with what it has
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def num_open() -> int:
    """All that it may have, where the list itself needs one that is not there."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return limit()


def why_short() -> str:
    """Why this process can open no more, and what to do; empty if it can."""
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
    """What an error says about this process, or this machine; empty when it is about something else."""
    if error.errno not in SHORTAGE:
        return ""
    if error.errno == errno.ENFILE:
        return "this machine has no descriptors left (ENFILE); raise fs.file-max"
    return f"this process has no descriptors left: it may have {limit()}; raise `ulimit -n`"
