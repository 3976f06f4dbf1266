"""The run socket of a node: how a process of the same user and host joins it and is handed its descriptors.

The socket is AF_UNIX SEQPACKET, in the run directory, whose mode is 0700. Each frame is one msgpack message, with
descriptors beside it. The connection stays open while the process that joined lives: by its end the launcher learns
that a client, or a foreign writer, is gone.

Two nodes are on the same host if the one answers the other at its run socket, and is the node that was meant. A boot id
would not do, because containers share it that share nothing else; nor would the path alone, because another node may
listen at the same path in another /tmp.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from typing import Annotated

import msgspec

from embridge.allocator.errors import AttachError

SOCKET_NAME = "embridge.sock"
MAX_FRAME_BYTES = 1 << 16
MAX_DESCRIPTORS = 64
PROTOCOL_VERSION = 3
LOG_PREFIX = "log of "  # before a group's name, in the names of an observer's descriptors
SO_PEERPIDFD = 77  # Linux 6.5; not in Python's socket module

Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class Hello(msgspec.Struct, frozen=True, tag="client", tag_field="kind"):
    """A client of this node: gets a lane."""

    version: int


class PeerHello(msgspec.Struct, frozen=True, tag="peer", tag_field="kind"):
    """A process of another node that gets the payload, to write into the blocks that it is granted.

    It is a transfer worker; or, with `wants_claims`, a client that writes its rows itself and gets the control segment
    beside the payload, for the claims in it.
    """

    version: int
    node_id: Id
    incarnation: Id
    for_incarnation: Id = msgspec.field(name="target")  # the incarnation of the node that is meant
    wants_claims: bool = False


class ReaderHello(msgspec.Struct, frozen=True, tag="reader", tag_field="kind"):
    """A client of another node that reads published items where they lie.

    It gets the control segment, for its ledger, and the shelf, by a descriptor that is open for reading alone.
    """

    version: int
    node_id: Id
    incarnation: Id
    for_incarnation: Id = msgspec.field(name="target")


class Observe(msgspec.Struct, frozen=True, tag="observe", tag_field="kind"):
    """An observer (`embridge status`).

    It gets the control segment, and the logs of the node's groups of ranks, by name.
    """

    version: int


class WhoIsThere(msgspec.Struct, frozen=True, tag="who", tag_field="kind"):
    """A process that asks which node listens here, and gets no lane."""

    version: int


class Here(msgspec.Struct, frozen=True, tag="here", tag_field="kind"):
    """The answer to `WhoIsThere`."""

    node_id: Id
    incarnation: Id


class Lead(msgspec.Struct, frozen=True, tag="lead", tag_field="kind"):
    """A client that has its lane becomes rank 0 of a group.

    The descriptors of the log, of the rows and of an eventfd for each other rank come beside the message.
    """

    group: str
    log_bytes: int


class Follow(msgspec.Struct, frozen=True, tag="follow", tag_field="kind"):
    """One more rank of a group: it gets the log, the rows and its eventfd, which rank 0 has left with the launcher."""

    version: int
    group: str
    rank: int


class Accepted(msgspec.Struct, frozen=True, tag="accepted", tag_field="kind"):
    """The answer to `Lead`."""


class Welcome(msgspec.Struct, frozen=True, tag="welcome", tag_field="kind"):
    """The answer that lets a process in; `descriptors` names the descriptors that come beside it, in their order.

    Observers are told `public_key` and `allow_file`.
    """

    control_bytes: int
    payload_bytes: int
    lane: int
    descriptors: list[str]
    bootstrap_addr: str
    request_timeout_s: float
    settings: dict[str, int]
    public_key: str = ""  # "": the node has no keys
    allow_file: str = ""
    writer: tuple[int, int] = (0, 0)  # entry and generation of a foreign writer, by which its claims name it
    reader: int = -1  # the ledger of a reader


class Sorry(msgspec.Struct, frozen=True, tag="sorry", tag_field="kind"):
    """The answer that refuses a process. `later`: asking again may help."""

    reason: str
    later: bool = False


class NotYet(AttachError):
    """No lane is free now; asking again may help."""


Frame = Hello | PeerHello | ReaderHello | Observe | WhoIsThere | Here | Lead | Follow | Accepted | Welcome | Sorry

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def send_frame(sock: socket.socket, frame: Frame, descriptors: list[int] | None = None) -> None:
    data = _encoder.encode(frame)
    if descriptors:
        socket.send_fds(sock, [data], descriptors)
    else:
        sock.send(data)


def receive_frame(sock: socket.socket) -> tuple[Frame, list[int]] | None:
    """One frame and its descriptors; None at the end of the connection. Raises AttachError for what is no frame."""
    data, fds, _, _ = socket.recv_fds(sock, MAX_FRAME_BYTES, MAX_DESCRIPTORS)
    if not data:
        for fd in fds:
            os.close(fd)
        return None
    try:
        return _decoder.decode(data), list(fds)
    except ValueError as error:  # msgspec's own, and UnicodeDecodeError, are ValueErrors
        for fd in fds:
            os.close(fd)
        raise AttachError(f"run socket: {error}; the other side runs another version of embridge") from error


def receive_welcome(sock: socket.socket) -> tuple[Welcome, dict[str, int]]:
    """The answer to a hello, and its descriptors by name.

    Raises:
        BlockingIOError: the socket does not block, and no answer is there yet.
        AttachError: the node ended the connection or refused; the text says why.
    """
    answer = receive_frame(sock)
    if answer is None:
        raise AttachError("it hung up")
    frame, fds = answer
    if isinstance(frame, Welcome) and len(fds) == len(frame.descriptors):
        return frame, dict(zip(frame.descriptors, fds, strict=True))
    for fd in fds:
        os.close(fd)
    if isinstance(frame, Welcome) and len(fds) < len(frame.descriptors):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise AttachError(
            f"{len(fds)} of {len(frame.descriptors)} descriptors came over; "
            f"this process may have {limit}: raise `ulimit -n`"
        )
    raise refusal(frame)


def refusal(frame: Frame) -> AttachError:
    """The error that stands for an answer other than the expected one."""
    if isinstance(frame, Sorry):
        return NotYet(frame.reason) if frame.later else AttachError(frame.reason)
    return AttachError("it does not answer as a node of this version does")


class Question:
    """The question at a run socket whether a node of this id and incarnation listens there.

    No method waits: the caller asks for the answer again and again.
    """

    _OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # no fault of the other node's

    def __init__(self, path: str, node_id: int, incarnation: int) -> None:
        self._path = path
        self._meant = (node_id, incarnation)
        self._sock: socket.socket | None = None
        self._answer: str | None = None

    def answer(self) -> str | None:
        """Empty if that node listens there, on this host and as this user; else why not. None: no answer yet."""
        if self._answer is None:
            self._answer = self._look()
        return self._answer

    def _look(self) -> str | None:
        if not self._path.startswith("/") or "\0" in self._path:  # neither our folder, nor an address that is no path
            return "its run socket has no path"
        try:
            if self._sock is None:
                return self._ask()
            answer = receive_frame(self._sock)
        except BlockingIOError:
            return None
        except OSError as error:
            self.close()
            return None if error.errno in self._OWN_TROUBLE else "its run socket does not answer here"
        except AttachError:
            return "no node of this version answers at its run socket"
        frame, fds = answer or (None, [])
        for fd in fds:
            os.close(fd)
        if not isinstance(frame, Here):
            return "no node of this version answers at its run socket"
        if (frame.node_id, frame.incarnation) == self._meant:
            return ""
        return "another node answers at its run socket here"

    def _ask(self) -> str | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            sock.connect(self._path)  # BlockingIOError: its backlog is full; the next look connects
            if peer_credentials(sock)[1] != os.geteuid():
                return "another user's node answers at its run socket here"
            send_frame(sock, WhoIsThere(PROTOCOL_VERSION))
            stack.pop_all()
        self._sock = sock
        return None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def peer_pidfd(sock: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected: from the connection, where the kernel has it; else by `pid`."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(pid)
