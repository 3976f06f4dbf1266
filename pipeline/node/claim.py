"""A node's claim to its run directory: the folder is its own, locked while it runs, and holds its identity."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import secrets
import time
from pathlib import Path
from typing import Final

from embridge.allocator.errors import LaunchError
from embridge.pipeline.node.naming import naming
from embridge.pipeline.run_dir import IDENTITY_NAME, RunDirError, open_run_dir, read_identity, write_identity
from embridge.workers.files import open_regular
from embridge.workers.run_socket import SOCKET_NAME
from embridge.workers.transfer import engines

LOCK_NAME: Final = "lock"
MAX_SOCKET_PATH: Final = 107  # bytes that fit into sockaddr_un


def open_own(path: Path) -> int:
    """A descriptor of the run directory, which is made where there is none.

    Raises:
        LaunchError: the directory cannot be made or opened, its mode is not 0700, or it belongs to another user.
    """
    try:
        directory = open_run_dir(path, create=True)
    except RunDirError as error:
        raise LaunchError(str(error)) from error
    except OSError as error:
        raise LaunchError(f"run directory {path}: {error.strerror}; choose another with --run-dir") from error
    try:
        check_own(path, directory)
    except BaseException:
        os.close(directory)
        raise
    return directory


def check_own(path: Path, directory: int) -> None:
    """Check that a run directory that is open is for this user alone, and its path short enough for a socket.

    Raises:
        LaunchError: it is not.
    """
    status = os.fstat(directory)
    if status.st_mode & 0o077:
        raise LaunchError(
            f"run directory {path}: mode {status.st_mode & 0o777:o} of user {status.st_uid}; "
            f"it must be 700 and belong to user {os.geteuid()}"
        )
    if len(os.fsencode(path / SOCKET_NAME)) > MAX_SOCKET_PATH:
        raise LaunchError(
            f"run directory {path}: its socket's path exceeds {MAX_SOCKET_PATH} bytes; choose a shorter one"
        )


def take_lock(path: Path, directory: int) -> int:
    """Take the lock of the run directory, which says that the directory is in use. Returns the lock's descriptor.

    The lock ends with this process.

    Raises:
        LaunchError: another node holds the lock, or the lock's file cannot be opened.
    """
    try:
        fd = open_regular(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, directory=directory)
    except OSError as error:
        raise LaunchError(f"run directory {path}: lock: {error.strerror}; choose another with --run-dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            why = "a node is running there; stop it or choose another --run-dir"
        else:
            why = f"it cannot be locked: {error.strerror}; choose another with --run-dir"
        raise LaunchError(f"run directory {path}: {why}") from error
    return fd


def remove_own(path: Path, directory: int) -> None:
    """Take the run directory away, whose lock this process has: what a node puts there, and the folder if that is all.

    A node that begins there meanwhile keeps it: it finds a lock that is held, or puts one of its own there.
    """
    with contextlib.suppress(OSError):
        logs = fnmatch.filter(os.listdir(f"/proc/self/fd/{directory}"), engines.LOG_PATTERN)
        for name in (*logs, SOCKET_NAME, IDENTITY_NAME, LOCK_NAME):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
        path.rmdir()


def next_identity(path: Path, directory: int) -> tuple[int, int]:
    """(node id, incarnation): the id stays with the run directory, incarnations are ordered (R14).

    Raises:
        LaunchError: the identity that stands there cannot be read or replaced.
    """
    what = f"run directory {path}: {IDENTITY_NAME}"
    try:
        with naming(what, "choose another with --run-dir"):
            node_id, last = read_identity(directory)
    except ValueError as error:
        raise LaunchError(f"{what}: {error}; remove that file, and the node has a new identity") from error
    node_id = node_id or secrets.randbits(62) | 1
    incarnation = max(last + 1, time.time_ns() // 1_000_000)
    with naming(what, "make room there, or choose another with --run-dir"):
        write_identity(directory, node_id, incarnation)
    return node_id, incarnation
