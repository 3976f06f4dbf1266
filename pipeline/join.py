"""Joins a node through its run socket: checks and maps what a client is handed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from embridge.allocator._core import Mapping
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError
from embridge.allocator.layout import HUGE_PAGE_BYTES
from embridge.allocator.segment import map_segment
from embridge.allocator.shelf import shelf_size
from embridge.pipeline.arguments import is_time, said
from embridge.pipeline.config import ROLES, default_run_dir
from embridge.pipeline.run_dir import RunDirError, open_run_dir
from embridge.workers import run_socket
from embridge.workers.files import above_standard
from embridge.workers.run_socket import SOCKET_NAME, Welcome

JOIN_TIMEOUT_S = 10.0
RETRY_S: Final = 0.02
TOO_EARLY: Final = (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, run_socket.NotYet)
"""What a process meets at a node that is not up: no socket, an old one, one of a node that ends; or no free place."""

T = TypeVar("T")
SEGMENTS = frozenset({"control", "payload", "shelf"})  # among the descriptors that a client is handed


class Joined(NamedTuple):
    """A lane in a node. It is ours for as long as `sock` is open."""

    sock: socket.socket
    welcome: Welcome
    control: Control
    payload: Mapping
    event_fds: dict[str, int]
    shelf: Mapping | None = None
    """Where items are published; None: the node has no shelf."""


def place_of(run_dir: str | Path | None, role: str) -> Path:
    """The run directory of the node that is meant. Raises ValueError: there is no such role."""
    if run_dir is not None:
        return Path(run_dir)
    if role not in ROLES:
        raise ValueError(f"role: {said(role)} is none of {', '.join(ROLES)}")
    return default_run_dir(role)


def knock(run_dir: Path, hello: run_socket.Frame, timeout_s: float) -> tuple[socket.socket, Welcome, dict[str, int]]:
    """Connect to a node's run socket and be let in. Returns the connection, the welcome, and descriptors by name.

    Raises:
        AttachError: nobody answers, the node belongs to another user, or it has no lane left; the text says which.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        if sock.fileno() <= 2:
            sock = socket.socket(fileno=above_standard(sock.detach()))
    except OSError as error:
        raise AttachError(f"node in {run_dir}: no socket is to be had: {error.strerror}; raise `ulimit -n`") from error
    sock.settimeout(timeout_s)
    wanted = {run_socket.Hello: {"control", "payload"}, run_socket.Follow: {"log", "rows", "bell"}}.get(
        type(hello), {"control"}
    )
    try:
        check_run_dir(run_dir)
        sock.connect(str(run_dir / SOCKET_NAME))
        _, uid = run_socket.peer_credentials(sock)
        if uid != os.geteuid():
            raise AttachError(f"it belongs to user {uid}, this process to user {os.geteuid()}")
        run_socket.send_frame(sock, hello)
        welcome, received = run_socket.receive_welcome(sock)
        fds = {name: above_standard(fd) for name, fd in received.items()}
        if not wanted <= fds.keys():
            for fd in fds.values():
                os.close(fd)
            raise AttachError(f"it handed over {sorted(fds)} and not {sorted(wanted)}; it is a node of another version")
    except OSError as error:
        sock.close()
        why = error.strerror or error
        raise AttachError(f"node in {run_dir}: {SOCKET_NAME}: {why}; is `embridge launch` running?") from error
    except AttachError as error:
        sock.close()
        raise AttachError(f"node in {run_dir}: refused this process: {error}") from error
    except RunDirError as error:
        sock.close()
        raise AttachError(str(error)) from error
    return sock, welcome, fds


def once_up(join: Callable[[], T], wait_s: float) -> T:
    """What `join` returns; it is called again for `wait_s` seconds while no node is up in its run directory, or the
    node has no place for this process yet.

    Raises:
        ValueError: `wait_s` is no number of seconds.
        AttachError: as `join`.
    """
    if not is_time(wait_s) or wait_s < 0:
        raise ValueError(f"wait_s: {said(wait_s)} s must not be negative")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return join()
        except AttachError as error:
            if not isinstance(error.__cause__, TOO_EARLY) or time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_S)


def check_run_dir(run_dir: Path) -> None:
    """Check that this folder may be the run directory of a node of this user.

    Raises:
        RunDirError: another user may have put the folder there.
        OSError: the folder is not there, or cannot be reached.
    """
    os.close(open_run_dir(run_dir.absolute()))


def join(run_dir: Path) -> Joined:
    """Take a lane, as a client.

    Raises:
        AttachError, SegmentError: as `knock`, or the segments are not those of this version.
    """
    sock, welcome, fds = knock(run_dir, run_socket.Hello(run_socket.PROTOCOL_VERSION), JOIN_TIMEOUT_S)
    event_fds = {name: fd for name, fd in fds.items() if name not in SEGMENTS}
    mapping = shelf = None
    try:
        mapping = map_segment(fds["control"], welcome.control_bytes)
        control = Control(mapping, event_fds)
        payload = map_segment(fds["payload"], welcome.payload_bytes, alignment=HUGE_PAGE_BYTES)
        if control.has_shelf:
            shelf = map_segment(fds["shelf"], shelf_size(control.limits))
    except BaseException:
        if mapping is not None:
            mapping.discard()  # the error may be kept, and all that led to it
        for fd in event_fds.values():
            os.close(fd)
        sock.close()
        raise
    finally:
        for name in SEGMENTS & fds.keys():
            os.close(fds[name])
    sock.setblocking(False)
    return Joined(sock, welcome, control, payload, event_fds, shelf)
