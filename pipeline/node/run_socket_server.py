"""The launcher's end of the run socket: gives clients their lanes, hands descriptors out, and notices who is gone.

A guest is alive until its connection ends or its pidfd says that it is dead. (A forked child may hold the connection
open after the death; it cannot do that with the pidfd.) A guest that is killed counts as dead earlier, as soon as none
of its threads can write (`death_watch`). An encoder for which a device may write into our memory (CUDA) is the
exception: the device's driver hears of the death when the connection ends, and not before.

A client whose library thread has not taken a turn for `client_silent_after_s` is killed. Such a client may be stopped,
and it holds memory: blocks that it granted, rows that it caches. Nobody else may use that memory while the client
lives, for it may wake between any two instructions and copy into a block, or out of it, in the belief that the block is
still its own. Its requests end at their deadlines either way; its blocks come back with its death only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embridge.allocator.claims import NOBODY, WriterId
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError
from embridge.allocator.geometry import Role
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.layout import PayloadLayout
from embridge.allocator.records import Lane, NodeState
from embridge.pipeline.node.death_watch import DeathWatch
from embridge.pipeline.node.rank_groups import RankGroups
from embridge.pipeline.node.recovery import Recovery
from embridge.pipeline.node.supervisor import Silences
from embridge.workers import run_socket
from embridge.workers.run_socket import (
    LOG_PREFIX,
    Follow,
    Hello,
    Here,
    Lead,
    Observe,
    PeerHello,
    ReaderHello,
    Sorry,
    Welcome,
    WhoIsThere,
)
from embridge.workers.timing import NS, Timing

log = logging.getLogger(__name__)

PAUSE_NS = NS // 10  # after `accept` has failed


@dataclass(slots=True)
class Guest:
    """One connection: nobody yet, a client with a lane, a foreign writer with an entry, or a reader with a ledger."""

    sock: socket.socket
    pid: int
    pidfd: int
    dying: DeathWatch
    lane: int = -1
    writer: WriterId | None = None
    reader: int = -1
    is_killed: bool = False


class RunSocketServer:
    """Accepts, answers and watches. Groups of ranks may take `descriptors_left` more descriptors of this process."""

    def __init__(
        self,
        control: Control,
        recovery: Recovery,
        path: Path,
        selector: selectors.BaseSelector,
        fds: dict[str, int],
        event_fds: dict[str, int],
        bootstrap_addr: str,
        timing: Timing,
        descriptors_left: int,
        settings: dict[str, int],
        public_key: str = "",
        allow_file: str = "",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._control = control
        self._path = path
        self._selector = selector
        self._fds = fds
        self._event_fds = event_fds
        self._bootstrap_addr = bootstrap_addr
        self._timing = timing
        self._settings = settings
        self._public_key = public_key
        self._allow_file = allow_file
        self._recovery = recovery
        self._clock = clock
        self._silences = Silences()
        self._guests: list[Guest] = []
        self._groups = RankGroups(control, descriptors_left)
        self._open_again_ns = 0
        if _is_answered(path):  # by a node whose lock somebody has removed
            raise OSError(errno.EADDRINUSE, "a node is running there")
        path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._sock.bind(str(path))
            self._made = _inode(path)
            os.chmod(path, 0o600)
            self._sock.listen(64)
            selector.register(self._sock, selectors.EVENT_READ, self._accept)
        except OSError:
            self._sock.close()
            raise

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError as error:  # mostly out of descriptors: who knocks is in the backlog, and would wake us at once
            log.warning("run socket: %s; nobody is let in for %d ms", error.strerror, PAUSE_NS // 1_000_000)
            self._selector.unregister(self._sock)
            self._open_again_ns = self._clock() + PAUSE_NS
            return
        sock.setblocking(False)
        try:
            self._let_in(sock)
        except OSError as error:
            log.warning("run socket: who knocked is not let in: %s", error.strerror)
            sock.close()

    def _let_in(self, sock: socket.socket) -> None:
        """Watch over a new connection until its first frame says what it wants.

        Raises OSError where the connection cannot be watched; the socket is the caller's again then.
        """
        pid, uid = run_socket.peer_credentials(sock)
        if uid != os.geteuid():
            log.warning("run socket: process %d of user %d refused", pid, uid)
            sock.close()
            return
        watch = DeathWatch(self._selector, pid, lambda: self._dying(guest), self._clock)
        # fails, too, if it died between connecting and now
        guest = Guest(sock, pid, run_socket.peer_pidfd(sock, pid), watch)
        try:
            self._selector.register(guest.pidfd, selectors.EVENT_READ, lambda: self._gone(guest))
            try:
                self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(guest))
            except OSError:
                self._selector.unregister(guest.pidfd)
                raise
        except OSError:
            os.close(guest.pidfd)
            raise
        self._guests.append(guest)

    def _read(self, guest: Guest) -> None:
        if guest not in self._guests:
            return  # found dead in the same turn
        try:
            answer = run_socket.receive_frame(guest.sock)
        except (OSError, AttachError) as error:
            # a kept record would keep the error's frames
            log.warning("run socket: process %d: %s", guest.pid, str(error))
            answer = None
        if answer is None:
            self._gone(guest)
            return
        frame, fds = answer
        try:
            if guest.lane >= 0 and isinstance(frame, Lead):
                self._groups.lead(guest.sock, guest.pid, guest.lane, frame, fds)
            elif guest.lane >= 0 or guest.writer or guest.reader >= 0 or self._groups.has(guest.sock):
                self._gone(guest)  # it has its lane and nothing more to say
            else:
                self._answer(guest, frame)
        except OSError as error:
            # a kept record would keep the error's frames
            log.warning("run socket: process %d: %s", guest.pid, str(error))
            self._gone(guest)
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, guest: Guest, frame: run_socket.Frame) -> None:
        if (
            isinstance(frame, Hello | PeerHello | ReaderHello | Observe | Follow | WhoIsThere)
            and frame.version != run_socket.PROTOCOL_VERSION
        ):
            self._refuse(guest, f"run socket version {frame.version}, this node speaks {run_socket.PROTOCOL_VERSION}")
            return
        match frame:
            case Hello():
                self._let_client_in(guest)
            case PeerHello():
                self._admit_writer(guest, frame)
            case ReaderHello():
                self._admit_reader(guest, frame)
            case Observe():
                self._show(guest)
            case WhoIsThere():
                run_socket.send_frame(guest.sock, Here(self._control.node_id, self._control.incarnation))
            case Follow():
                self._groups.follow(guest.sock, guest.pid, frame)
            case _:
                self._refuse(guest, "unexpected message")

    def _let_client_in(self, guest: Guest) -> None:
        if self._control.state != NodeState.READY:
            self._refuse(guest, f"the node is {self._control.state.name}; it takes no new clients")
            return
        lane = self._control.lanes.take(guest.pid, self._clock())
        if lane is None:
            limit = self._control.limits.max_clients
            self._refuse(guest, f"all {limit} client seats are taken; raise max_clients")
            return
        guest.lane = lane
        log.info("client %d has lane %d", guest.pid, lane)
        shelf = ["shelf"] if self._control.has_shelf else []
        self._welcome(guest, ["control", "payload", *shelf, f"lane{lane}", "bootstrap", "poller"], lane)

    def _is_known(self, guest: Guest, hello: PeerHello | ReaderHello) -> bool:
        """Whether a process of another node means this one, and its node is registered here; else it is refused."""
        if hello.for_incarnation != self._control.incarnation:
            self._refuse(guest, f"this is incarnation {self._control.incarnation}, not {hello.for_incarnation}")
            return False
        if self._control.peers.find(hello.node_id, hello.incarnation) is None:
            self._refuse(guest, "this incarnation is not registered here, or was declared dead", later=True)
            return False
        return True

    def _admit_reader(self, guest: Guest, hello: ReaderHello) -> None:
        if not self._is_known(guest, hello):
            return
        node = (hello.node_id, hello.incarnation)
        reader = self._control.shelf.add_reader(node, guest.pid) if self._control.has_shelf else None
        if reader is None:
            has_shelf = self._control.has_shelf
            self._refuse(guest, "too many readers" if has_shelf else "this node has no shelf: set shelf_bytes")
            return
        guest.reader = reader
        log.info("process %d of node %x reads the shelf", guest.pid, hello.node_id)
        self._welcome(guest, ["control", "shelf to read"], -1, reader=reader)

    def _admit_writer(self, guest: Guest, hello: PeerHello) -> None:
        if not self._is_known(guest, hello):
            return
        if hello.wants_claims and not self._settings.get("direct"):
            self._refuse(guest, "this node takes no direct writes")
            return
        foreign = ForeignWriter(hello.node_id, hello.incarnation, guest.pid, hello.wants_claims)
        writer = self._control.writers.add(foreign)
        if writer is None:
            self._refuse(guest, "too many foreign writers")
            return
        guest.writer = writer
        log.info("process %d of node %x maps our payload", guest.pid, hello.node_id)
        self._welcome(guest, ["payload", *(["control"] if hello.wants_claims else [])], -1, writer=writer)

    def _show(self, guest: Guest) -> None:
        """Answer an observer, which gets no lane and no descriptor by which a process could be woken."""
        logs = {f"{LOG_PREFIX}{name}": fd for name, fd in self._groups.logs().items()}
        shown = list(logs)[: run_socket.MAX_DESCRIPTORS - 1]
        self._welcome(guest, ["control", *shown], -1, logs)

    def _welcome(
        self,
        guest: Guest,
        names: list[str],
        lane: int,
        more: dict[str, int] | None = None,
        writer: WriterId = NOBODY,
        reader: int = -1,
    ) -> None:
        every = self._fds | self._event_fds | (more or {})
        welcome = Welcome(
            control_bytes=self._control.layout.size,
            payload_bytes=PayloadLayout.of(self._control.geometry).size,
            lane=lane,
            descriptors=names,
            bootstrap_addr=self._bootstrap_addr,
            request_timeout_s=self._timing.request_timeout_s,
            settings=self._settings,
            public_key=self._public_key,
            allow_file=self._allow_file,
            writer=writer,
            reader=reader,
        )
        run_socket.send_frame(guest.sock, welcome, [every[name] for name in names])

    def _refuse(self, guest: Guest, reason: str, *, later: bool = False) -> None:
        log.warning("run socket: process %d refused: %s", guest.pid, reason)
        run_socket.send_frame(guest.sock, Sorry(reason, later))

    def _dying(self, guest: Guest) -> None:
        """Treat a guest as gone when none of its threads has memory; not an encoder whose device may still write."""
        is_pinned = guest.lane >= 0 and self._control.lanes.get(guest.lane, Lane.PINNED)
        if not is_pinned or self._control.role == Role.LANGUAGE:
            self._gone(guest)

    def _gone(self, guest: Guest) -> None:
        """Let go of a guest whose connection ended or whose process died: its lane is reaped, its entry cleared."""
        if guest not in self._guests:
            return
        self._guests.remove(guest)
        self._selector.unregister(guest.sock)
        self._selector.unregister(guest.pidfd)
        guest.dying.close()
        self._groups.gone(guest.sock)
        guest.sock.close()
        os.close(guest.pidfd)
        if guest.lane >= 0:
            self._silences.forget(guest.lane)
            self._recovery.client_died(guest.lane)
        if guest.writer is not None:
            self._recovery.writer_died(guest.writer)
        if guest.reader >= 0:
            self._control.shelf.remove_reader(guest.reader)

    def tick(self, now_ns: int) -> int | None:
        """Look after guests; called several times a second, and when the next look is due.

        Returns when the next look is due (monotonic ns), None for any time.
        """
        if self._open_again_ns and now_ns >= self._open_again_ns:
            with contextlib.suppress(OSError):  # the next tick tries again
                self._selector.register(self._sock, selectors.EVENT_READ, self._accept)
                self._open_again_ns = 0
        self._kill_silent(now_ns)
        due = [guest.dying.tick(now_ns) for guest in list(self._guests)]
        return min((at_ns for at_ns in due if at_ns is not None), default=None)

    def _kill_silent(self, now_ns: int) -> None:
        """Kill the clients whose library thread was silent for too long; their pidfds tell of their deaths then."""
        limit_ns = self._timing.client_silent_after_s * NS
        if not limit_ns:
            return
        self._silences.begin(now_ns)
        for guest in self._guests:
            beat = self._control.lanes.get(guest.lane, Lane.BEAT_NS) if guest.lane >= 0 else 0
            if not beat or guest.is_killed:
                continue  # no client, or one that has just come and holds nothing yet
            silent_ns = self._silences.silent_ns(guest.lane, beat, now_ns)
            if silent_ns > limit_ns:
                guest.is_killed = True
                log.error(
                    "client %d (lane %d) is killed: it was silent for %.1f s", guest.pid, guest.lane, silent_ns / NS
                )
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(guest.pidfd, signal.SIGKILL)

    def close(self) -> None:
        if not self._open_again_ns:
            self._selector.unregister(self._sock)
        with contextlib.suppress(OSError):  # the next node here removes it
            # another node's where somebody has removed the run directory meanwhile
            if _inode(self._path) == self._made:
                self._path.unlink(missing_ok=True)
        self._sock.close()  # after it: an inode that is free may be that of the next socket
        self._groups.close()
        for guest in list(self._guests):
            self._selector.unregister(guest.sock)
            self._selector.unregister(guest.pidfd)
            guest.dying.close()
            guest.sock.close()
            os.close(guest.pidfd)
        self._guests.clear()


def _is_answered(path: Path) -> bool:
    """Whether somebody listens at a run socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(str(path))
        except BlockingIOError:  # with a full backlog
            return True
        except OSError:
            return False
    return True


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
