"""Opens a node to look at it, without a lane and without a trace: its segments are mapped read-only.

The run socket hands out the segments. When the launcher does not answer (it may be stopped), they are found among its
open files, and the launcher by the lock that it holds on its run directory. When there is no launcher any more, the
segments are gone with it; the run directory is all that is left to look at.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from embridge.allocator._core import Mapping
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError, SegmentError
from embridge.allocator.ranklog import RankLog
from embridge.allocator.records import SegmentHeader
from embridge.allocator.segment import SHARED_MEMORY, map_segment
from embridge.pipeline.join import check_run_dir, knock
from embridge.pipeline.run_dir import RunDirError, open_run_dir, read_identity
from embridge.workers import run_socket
from embridge.workers.inspection.conditions import condition_of
from embridge.workers.transfer import engines

ANSWER_TIMEOUT_S: Final = 2.0


class Look(NamedTuple):
    """A node as it can be looked at. `logs` are those of its groups of ranks, by name.

    `public_key` and `allow_file` are None where the launcher did not answer; `note` says so then. `sees_pids` says that
    this process is in the node's pid namespace, so that the node's pids mean the same here.
    """

    control: Control
    logs: dict[str, RankLog]
    public_key: str | None
    allow_file: str | None
    note: str
    sees_pids: bool

    def close(self) -> None:
        """Unmap the segments and the logs, which must not be used any more then."""
        self.control.close()
        for log in self.logs.values():
            log.close()


def look(run_dir: Path) -> Look:
    """Open the node that runs in `run_dir`.

    Raises AttachError or SegmentError where no node runs there, or the node cannot be reached.
    """
    try:
        sock, welcome, fds = knock(run_dir, run_socket.Observe(run_socket.PROTOCOL_VERSION), ANSWER_TIMEOUT_S)
    except AttachError as error:
        found = _among_open_files(run_dir, str(error))
        if found is None:
            raise
        return found
    try:
        pid, _ = run_socket.peer_credentials(sock)
        control = _map_control(fds["control"])
        logs = {}
        for name, fd in fds.items():
            if name.startswith(run_socket.LOG_PREFIX):
                with contextlib.suppress(SegmentError):  # a group that ends meanwhile
                    logs[name.removeprefix(run_socket.LOG_PREFIX)] = RankLog(_map(fd))
        sees_pids = pid == control.header.load(SegmentHeader.LAUNCHER_PID)
        return Look(control, logs, welcome.public_key, welcome.allow_file, "", sees_pids)
    finally:
        sock.close()
        for fd in fds.values():
            os.close(fd)


def _map(fd: int) -> Mapping:
    return map_segment(fd, os.fstat(fd).st_size, writable=False)


def _map_control(fd: int) -> Control:
    return Control(_map(fd))


def _among_open_files(run_dir: Path, why: str) -> Look | None:
    """The control segment of a launcher that lives and does not answer."""
    pid = launcher_of(run_dir)
    if not pid:
        return None
    for link in _open_files(pid):
        with contextlib.suppress(OSError, SegmentError):
            if os.readlink(link).startswith(f"{SHARED_MEMORY}/"):
                fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    control = _map_control(fd)
                finally:
                    os.close(fd)
                if control.header.load(SegmentHeader.LAUNCHER_PID) == pid:
                    return Look(control, {}, None, None, f"the launcher does not answer: {why}", True)
    return None


def _open_files(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path(f"/proc/{pid}/fd").iterdir()


def launcher_of(run_dir: Path) -> int:
    """The pid of the process that holds the lock of a run directory; 0 if no process holds it that can be seen here."""
    try:
        check_run_dir(run_dir)
        inode = (run_dir / "lock").lstat().st_ino
        locks = Path("/proc/locks").read_text()
    except (OSError, RunDirError):
        return 0
    for line in locks.splitlines():
        words = line.split()  # 1: FLOCK  ADVISORY  WRITE <pid> <major>:<minor>:<inode> 0 EOF
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            pid = int(words[4])
            if any(_is_same(link, run_dir / "lock") for link in _open_files(pid)):
                return pid
    return 0


def _is_same(link: Path, file: Path) -> bool:
    try:
        return link.samefile(file)
    except OSError:
        return False


def remains(run_dir: Path) -> dict[str, Any]:
    """What a run directory tells of a node that cannot be looked at; {} where there never was one."""
    try:
        directory = open_run_dir(run_dir.absolute())
    except (OSError, RunDirError):
        return {}
    try:
        return _remains(run_dir, directory)
    finally:
        os.close(directory)


def _remains(run_dir: Path, directory: int) -> dict[str, Any]:
    if not (run_dir / "lock").exists():
        return {}
    pid = launcher_of(run_dir)
    told: dict[str, Any] = {"run_dir": str(run_dir)}
    if pid:
        told["state"] = "NOT ANSWERING"
        told["launcher"] = pid
        told["why"] = condition_of(pid) or "it is starting, or stopping, or hangs: look at its log"
    else:
        told["state"] = "GONE"
        told["why"] = (
            "its launcher died without stopping the node (killed, perhaps for memory: see the kernel's log); "
            "requests of it are Failed on the other side; start it again with the same run directory"
            if (run_dir / run_socket.SOCKET_NAME).exists()
            else "it was stopped, or did not come up"
        )
    with contextlib.suppress(OSError, ValueError, OverflowError):  # no time of day stands for such an incarnation
        node_id, incarnation = read_identity(directory)
        told["node_id"] = f"{node_id:x}"
        told["last_incarnation"] = incarnation
        told["last_launched"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(incarnation / 1000))
    told["engine_logs"] = sorted(str(path) for path in run_dir.glob(engines.LOG_PATTERN))
    return told
