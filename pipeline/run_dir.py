"""The run directory: which folders may be on its path, and the node's identity in it.

A user who can put another folder, or a link, in place of the run directory decides where a node writes and whom a
client asks for the node's memory. So the path is walked from the root, one folder at a time, and each folder is held
open while the next one is looked up in it:

- each folder belongs to this user, to root, or to the owner of the root directory (root, as a user namespace shows it);
- no folder may be written by everybody, except sticky ones (/tmp), where users may remove only what is their own. Below
  such a folder each one belongs to this user or to root, and no symbolic link is followed, for anybody may have put one
  there;
- elsewhere a link of this user or of root is followed (/var/run is one), but never as the last part of the path;
- the last folder belongs to this user. Only a launcher makes folders that are missing, with mode 0700.

A path that has been walked stays as it is: nobody but this user and root can change it. Files in the run directory are
opened by its descriptor, and only as regular files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

from embridge.allocator.errors import EmbridgeError
from embridge.workers.files import open_regular

IDENTITY_NAME: Final = "identity"
MAX_IDENTITY: Final = (1 << 63) - 1  # an id is a word of the control segment, and of messages
MAX_INCARNATION: Final = 1 << 62  # half of the range is left for later incarnations
MAX_LINKS: Final = 40  # the kernel's own limit
_FOLDER: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_IDENTITY: Final = re.compile(rb"\s*(\d{1,20})\s+(\d{1,20})\s*")
_ELSEWHERE: Final = "choose another with --run-dir (run_dir)"


class RunDirError(EmbridgeError):
    """A run directory that cannot be trusted; the text names the folder, its owner, and what to do."""


def open_run_dir(path: Path, *, create: bool = False) -> int:
    """A descriptor (O_PATH) of the run directory at this absolute path; with `create`, missing folders are made.

    Raises:
        RunDirError: the run directory, or a folder above it, cannot be trusted.
        OSError: the run directory is not there, is no folder, or cannot be reached.
    """
    return _Walk(path).walk(create)


class _Walk:
    """One way from the root to a run directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = [part for part in reversed(path.parts) if part != "/"]
        self._at = Path("/")
        self._fd = -1
        self._root_owner = 0
        self._is_below_sticky = False
        self._num_links = 0

    def walk(self, create: bool) -> int:
        try:
            self._begin()
            self._root_owner = os.fstat(self._fd).st_uid
            while self._waiting:
                self._step(self._waiting.pop(), create)
            status = os.fstat(self._fd)
            if status.st_uid != os.geteuid():
                raise self._error(f"it belongs to user {status.st_uid}, not {os.geteuid()}; {_ELSEWHERE}")
        except BaseException:
            self._close()
            raise
        return self._fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        self._close()
        self._fd = os.open("/", _FOLDER | os.O_DIRECTORY)
        self._at = Path("/")

    def _step(self, name: str, create: bool) -> None:
        is_last = not self._waiting
        where = self._at / name
        fd = self._open(name, create)
        try:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                self._follow(fd, where, status.st_uid, is_last)
                return
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self._check(where, status, is_last)
            if status.st_mode & stat.S_IWOTH:
                self._is_below_sticky = True
            fd, self._fd = self._fd, fd
            self._at = where
        finally:
            os.close(fd)

    def _open(self, name: str, create: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=self._fd)
        except FileNotFoundError:
            if not create:
                raise
        with contextlib.suppress(FileExistsError):  # made meanwhile, by any user: it is checked like the others
            os.mkdir(name, 0o700, dir_fd=self._fd)
        return os.open(name, _FOLDER, dir_fd=self._fd)

    def _follow(self, fd: int, where: Path, owner: int, is_last: bool) -> None:
        if is_last or self._is_below_sticky:
            raise self._error(f"{where} is a symbolic link of user {owner}; give the folder itself, or {_ELSEWHERE}")
        if not self._is_trusted(owner):
            raise self._error(f"{where} is a symbolic link of user {owner}, not of {self._whose()}; {_ELSEWHERE}")
        self._num_links += 1
        if self._num_links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink("", dir_fd=fd)
        if target.startswith("/"):
            self._begin()
        self._waiting += [part for part in reversed(target.split("/")) if part not in ("", ".")]

    def _check(self, where: Path, status: os.stat_result, is_last: bool) -> None:
        if not self._is_trusted(status.st_uid):
            remedy = f"have it removed, or {_ELSEWHERE}" if self._is_below_sticky else _ELSEWHERE
            raise self._error(f"{where} belongs to user {status.st_uid}, not to {self._whose()}; {remedy}")
        if status.st_mode & stat.S_IWOTH and (is_last or not status.st_mode & stat.S_ISVTX):
            mode, right = stat.S_IMODE(status.st_mode), "700" if is_last else "o-w"
            raise self._error(f"{where} has mode {mode:o}: anybody may write to it; chmod {right} it, or {_ELSEWHERE}")

    def _is_trusted(self, owner: int) -> bool:
        return owner in (0, os.geteuid()) or (owner == self._root_owner and not self._is_below_sticky)

    def _whose(self) -> str:
        return f"user {os.geteuid()}" + (" or root" if os.geteuid() else "")

    def _error(self, text: str) -> RunDirError:
        return RunDirError(f"run directory {self._path}: {text}")


def read_identity(directory: int) -> tuple[int, int]:
    """(node id, last incarnation) of the node whose run directory this is; (0, 0) where none has been.

    Raises:
        ValueError: the file holds no identity.
        OSError: the file cannot be read.
    """
    try:
        fd = open_regular(IDENTITY_NAME, os.O_RDONLY | os.O_NOFOLLOW, directory=directory)
    except FileNotFoundError:
        return 0, 0
    try:
        data = os.read(fd, 256)
    finally:
        os.close(fd)
    if not data:  # the machine went down while it was written
        return 0, 0
    found = _IDENTITY.fullmatch(data)
    if found is None:
        raise ValueError("it does not hold two numbers, of 20 digits at most")
    node_id, incarnation = int(found[1]), int(found[2])
    if not 1 <= node_id <= MAX_IDENTITY:
        raise ValueError(f"node id {node_id} is outside 1 to {MAX_IDENTITY}")
    if not 1 <= incarnation <= MAX_INCARNATION:
        raise ValueError(f"incarnation {incarnation} is outside 1 to {MAX_INCARNATION}")
    return node_id, incarnation


def write_identity(directory: int, node_id: int, incarnation: int) -> None:
    """Replace the identity as one step. Raises OSError."""
    fresh = f"{IDENTITY_NAME}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=directory)
    fd = open_regular(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory=directory)
    try:
        os.write(fd, f"{node_id} {incarnation}\n".encode())
    finally:
        os.close(fd)
    os.rename(fresh, IDENTITY_NAME, src_dir_fd=directory, dst_dir_fd=directory)
