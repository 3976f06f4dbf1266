"""`attach()`: join a node from any process of the same user.

A client has two threads. The caller's only reads words, appends to queues and rings bells: it never waits, takes no lock and does no
I/O. The library thread stages, drains, grants and frees; it sleeps on its own doorbell, without the GIL. Rings are pushed by
both, which the GIL serialises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from embridge.allocator._core import Doorbell, Mapping
from embridge.allocator.buffers import PayloadBuffers
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError, FailureCode, NodeBusyError, NodeGoneError, NodeUnhealthyError
from embridge.allocator.geometry import MAX_TOKENS, Role
from embridge.allocator.pinning import is_cuda_in_use, register_with_cuda, unregister_from_cuda
from embridge.allocator.ranklog import MAX_RANKS
from embridge.allocator.records import ADDRESS_BYTES, LIBRARY_VIEW, USER_VIEW, NodeState
from embridge.allocator.rings import FULL_RING_WAIT_S, Kick
from embridge.allocator.routes import RouteRecord
from embridge.pipeline.arguments import is_time, whole
from embridge.pipeline.client.handle import MAX_ROOM, TransferHandle
from embridge.pipeline.client.rounds import Round
from embridge.pipeline.client.routing import RoutePicker
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.client.slot_queue import MAX_WAITING, Line
from embridge.pipeline.client.unsent_memory import UnsentMemory
from embridge.pipeline.config import default_run_dir
from embridge.pipeline.join import join
from embridge.pipeline.leaving import let_go, refuse
from embridge.workers import run_socket
from embridge.workers.addresses import split_address
from embridge.workers.health import why_refusing
from embridge.workers.log_limit import LogLimit
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.receiver import EmbeddingReceiver
    from embridge.pipeline.client.sender import EmbeddingSender
    from embridge.pipeline.ranks.leader import Ranks

log = logging.getLogger(__name__)

SLOW_LOOK_NS = NS // 10  # a full compare of the status words, and a share of a round: a mark is a hint, which may be lost
LIBRARY_WAIT_S = 0.1
STARVING_WAIT_S = 0.005
MAX_TIMEOUT_S = 1e9
END_WAIT_S = 5.0  # for the library thread to finish what it copies
CLOSED = "this client is closed"
FORKED = "this client was attached before a fork; attach() again in the child"
LED_TO_MEMORY = (
    *("control", "_slots", "buffers", "payload", "destinations", "staging", "windows", "sessions", "unsent", "_user_bell", "_library_bell"),
    *("_to_bootstrap", "_to_workers", "_lease", "_line", "_picker", "_sock", "_user_round", "_library_round"),
)

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def attach(
    run_dir: str | Path | None = None, *, role: str = "language", pin: bool | None = None, num_ranks: int = 1, group: str = ""
) -> Client:
    """Join the node that runs in `run_dir` (default: the default directory of that role).

    `num_ranks`: this process is rank 0 of so many on this node (at most 32); the others call `follow(run_dir, rank=...)`. What it
    receives then lies in shared memory, `host_buffer_bytes` of it, reserved here (a third of a second a GiB). `group` tells several
    rank 0s of one node apart.

    `pin`: register the payload with CUDA in this process; by default where this process uses CUDA already. What took effect
    stands in `Client.pinned`, and why not in `Client.pin_note`; without it everything works, only slower.
    An encoder must not register it by itself: the node must know of the device, and waits for it before a killed encoder's blocks are
    another's.

    Raises:
        AttachError: no node answers there, it belongs to another user, it takes no new clients, or its layout is another one;
            with ranks: this group has a rank 0 already.
        SegmentError: /dev/shm has no room for what the ranks are to share.
        ValueError: `num_ranks` is out of range.
    """
    num_ranks = whole("num_ranks", num_ranks, 1, MAX_RANKS, f"2 to {MAX_RANKS} (1: there is no other rank)")
    client = Client(Path(run_dir) if run_dir is not None else default_run_dir(role))
    if num_ranks != 1:
        from embridge.pipeline.ranks.leader import Ranks

        try:
            client.ranks = Ranks(client, num_ranks, group)
        except BaseException:
            client.close()
            raise
    if pin or (pin is None and is_cuda_in_use()):
        client.control.lanes.pin(client.lane)
        client.pinned, client.pin_note = register_with_cuda(client.payload)
    return client


class Client:
    """A seat in a node. Close it, or use it as a context manager; requests still in flight are then aborted."""

    _threads: tuple[threading.Thread, ...] = ()
    _owns_memory = True
    pinned: bool = False
    pin_note: str = "not asked for"
    ranks: Ranks | None = None

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        joined = join(run_dir)
        self._sock = joined.sock
        try:
            self._sit(joined.control, joined.payload, joined.welcome, joined.event_fds, time.monotonic_ns)
            thread = threading.Thread(target=self._library, name="embridge-library", daemon=True)
            witness = threading.Thread(target=self._stop.wait, name="embridge-witness", daemon=True)  # see `dying`
            self._threads = (thread, witness)
            self._library_ended = False
            witness.start()
            thread.start()
        except BaseException as error:
            self._stop.set()
            for fd in (*joined.event_fds.values(), joined.sock.detach()):
                os.close(fd)
            joined.payload.discard()
            joined.control.close()
            if isinstance(error, LookupError | ValueError):
                raise AttachError(f"node in {run_dir}: what it handed over does not fit together: {error}") from error
            if isinstance(error, RuntimeError):
                raise AttachError(f"node in {run_dir}: the library thread cannot be started: {error}; check `ulimit -u`") from error
            raise
        _clients.add(self)

    @classmethod
    def over(
        cls, control: Control, payload: Mapping, sock: socket.socket, welcome: run_socket.Welcome, clock: Callable[[], int]
    ) -> Self:
        """A client over segments that this process has mapped, with no library thread: whoever made it calls `_turn`.

        For whole nodes in one thread under one clock; `sock` stands for the run socket, and does not block.
        """
        client = cls.__new__(cls)
        client.run_dir = Path()
        client._sock = sock
        client._sit(control, payload, welcome, {}, clock)
        client._owns_memory = False
        return client

    def _sit(
        self,
        control: Control,
        payload: Mapping,
        welcome: run_socket.Welcome,
        event_fds: dict[str, int],
        clock: Callable[[], int],
    ) -> None:
        self._stop = threading.Event()
        self._limit = LogLimit()
        self._forked = False
        self.node_gone = False
        self._closed = False
        self._library_ended = True  # until it begins
        self._leaves_late = False
        self._end_lock = threading.Lock()
        self._known: weakref.WeakSet[TransferHandle] = weakref.WeakSet()  # all that were made, to be told of the end
        self._ends: list[Callable[[], None]] = []
        self.control = control
        self.clock = clock
        self._event_fds = event_fds
        lane = self.lane = welcome.lane
        self.geometry = self.control.geometry
        self._slots = self.control.slots
        self.buffers = PayloadBuffers(payload, self.geometry)
        self.payload = payload
        self.settings = welcome.settings
        self.request_timeout_s = welcome.request_timeout_s
        self.bootstrap_addr = welcome.bootstrap_addr
        if self.control.role == Role.ENCODE:
            self.destinations, self.staging = self.control.destinations, self.control.staging
            self.unsent = UnsentMemory(self.control, lane)
        else:
            self.windows, self.sessions = self.control.windows, self.control.sessions
        num_slots = self.control.limits.num_slots
        self._user_bell = self.control.bell(f"lane{lane}")
        self._library_bell = self.control.bell(f"library{lane}")
        self._to_bootstrap = self.control.sender(f"lane{lane}", "bootstrap")
        workers = range(self.control.limits.num_workers)
        self._to_workers = [self.control.sender(f"lane{lane}", f"worker{w}") for w in workers]
        self._lease = SlotLease(self.control, lane)
        self._departed: deque[TransferHandle] = deque(maxlen=num_slots + MAX_WAITING)  # left before the caller had seen their end
        self._handles: dict[int, TransferHandle] = {}
        self._rooms: dict[int, TransferHandle] = {}
        self._user_out = np.empty(num_slots, np.uint32)
        self._user_words = np.zeros(num_slots, np.uint64)
        self._user_seen = -1
        self._user_slow_ns = 0
        self._library_out = np.empty(num_slots, np.uint32)
        self._library_words = np.zeros(num_slots, np.uint64)
        self._library_slow_ns = 0
        self._user_round = Round(self._handles)
        self._library_round = Round(self._handles)
        self._starving: OrderedDict[TransferHandle, None] = OrderedDict()
        self._to_serve: deque[TransferHandle] = deque()
        self._line = Line(self)
        self._num_waiting = 0  # for a slot, as the lane's word has it
        self._num_lacking = 0  # of them, those that wait in a transfer queue
        self._is_slot_waiter = False
        self._turns: list[Callable[[], bool]] = []
        self._payload_let_go = False
        self._picker: RoutePicker | None = None

    # ---- requests

    def sender(
        self,
        room: int,
        total_tokens: int,
        *,
        aux_datas: Any = None,
        mrope_position_delta: int = 0,
        timeout_s: float | None = None,
    ) -> EmbeddingSender:
        """Open a room on an encode node: `total_tokens` rows will be written (see `EmbeddingSender`).

        While there is no slot for it, it waits for one: all of its methods may be called, and its deadline counts from now.

        Raises:
            ValueError: the room or the length is out of range, the room is in use here, or this is no encode node.
            NodeBusyError: every slot is in use, and as many calls as may wait for one do.
            NodeUnhealthyError: one of the node's processes cannot be kept alive.
        """
        from embridge.pipeline.client.sender import EmbeddingSender

        room = self._check_open(room, Role.ENCODE, "sender")
        total_tokens = whole("total_tokens", total_tokens, 1, MAX_TOKENS)
        aux = EmbeddingSender.aux_words(aux_datas, total_tokens, mrope_position_delta)

        sender = EmbeddingSender(self, room, total_tokens, aux)
        self._open(sender, timeout_s)
        return sender

    def receiver(
        self, bootstrap_addr: str, room: int, *, required_dst_info_num: int = 1, timeout_s: float | None = None
    ) -> EmbeddingReceiver:
        """Open a room on a language node, to be received from the encode node at `bootstrap_addr` (see `EmbeddingReceiver`).

        Raises as `sender` does.
        """
        return self.open_receiver(bootstrap_addr, room, required_dst_info_num, timeout_s)

    def open_receiver(
        self,
        bootstrap_addr: str,
        room: int,
        required_dst_info_num: int,
        timeout_s: float | None,
        *,
        begin: int = 0,
        total: int = 0,
        instead_of: EmbeddingReceiver | None = None,
        may_wait: bool = True,
    ) -> EmbeddingReceiver:
        """`receiver`, and what a retry adds to it: request blocks [0, `begin`) are here already, and the length is known (0: it is not).

        The room may be that of the request that it is `instead_of`, which has failed. If it may not wait for a slot, it is a NodeBusyError
        that there is none.
        """
        from embridge.pipeline.client.receiver import EmbeddingReceiver

        room = self._check_open(room, Role.LANGUAGE, "receiver", instead_of)
        required_dst_info_num = whole("required_dst_info_num", required_dst_info_num, 1, 64)
        self.check_address(bootstrap_addr)

        receiver = EmbeddingReceiver(self, room, bootstrap_addr, required_dst_info_num, total, begin)
        self._open(receiver, timeout_s, may_wait=may_wait)
        return receiver

    @staticmethod
    def check_address(bootstrap_addr: str) -> None:
        """Raises ValueError for what is no encode node's address."""
        if not isinstance(bootstrap_addr, str):
            raise ValueError(f"bootstrap_addr: {bootstrap_addr!r} is not of the form tcp://host:port; see Node.bootstrap_addr")
        try:
            split_address(bootstrap_addr)
        except ValueError as error:
            raise ValueError(f"bootstrap_addr: {error}; see Node.bootstrap_addr") from None
        if len(bootstrap_addr.encode()) > ADDRESS_BYTES:
            raise ValueError(f"bootstrap_addr: {len(bootstrap_addr.encode())} bytes > {ADDRESS_BYTES} bytes")

    # ---- where to send a request

    def encode_nodes(self) -> list[RouteRecord]:
        """The encode nodes that discovery has told of, with state, health and load; read from shared memory (D10).

        Raises:
            ValueError: this is no language node, or it has no discovery.
        """
        return self._route_picker("encode_nodes").nodes()

    def pick_encode_node(self, tokens: int = 0, *, other_than: str = "") -> str:
        """The `bootstrap_addr` of the healthy, READY encode node with the least to do; ties go round.

        It counts there as `tokens` (0: unknown) more, until a report can show it. Whoever picks also tells the encoder of that node the
        room. A request that is retried goes to one that is `other_than` the address on which it failed, of which discovery may not have
        heard yet. Microseconds, no network.

        Raises:
            NoRouteError: no encode node is READY and healthy.
            ValueError: as `encode_nodes`, or `tokens` is out of range.
        """
        tokens = whole("tokens", tokens, 0, MAX_TOKENS)
        return self._route_picker("pick_encode_node").pick(tokens, other_than).bootstrap_addr

    def _route_picker(self, what: str) -> RoutePicker:
        self.check_usable()
        if self.control.role != Role.LANGUAGE:
            raise ValueError(f"{what}: this client is attached to an encode node; attach to the language node")
        if self._picker is None:
            if not self.control.has_discovery:
                raise ValueError(f"{what}: the node in {self.run_dir} has no discovery; launch it with --discovery http://host:port")
            self._picker = RoutePicker(self.control.routes, self.clock)
        return self._picker

    def _enter(self, handle: TransferHandle) -> None:
        self._known.add(handle)
        self._handles[handle.slot] = handle
        self._rooms[handle.room] = handle
        self.kick_bootstrap(Kick.OPEN, handle.slot, handle.epoch)

    def _check_open(self, room: int, role: Role, what: str, instead_of: EmbeddingReceiver | None = None) -> int:
        """The room as an int, if a request of it may be opened here now."""
        self.check_usable()
        if self.control.role != role:
            ours, theirs = self.control.role.name.lower(), role.name.lower()
            raise ValueError(f"{what}: this client is attached to a {ours} node; attach to the {theirs} node")
        room = whole("room", room, 0, MAX_ROOM, "0 to 2**63 - 1")
        if self._rooms.get(room, instead_of) is not instead_of:
            raise ValueError(f"room: {room} is in use; a room is one request, use a new number")
        if self.control.state != NodeState.READY:
            raise NodeGoneError(f"the node is {self.control.state.name}; it takes no new requests")
        if why := why_refusing(self.control):
            raise NodeUnhealthyError(f"the node is unhealthy; it takes no new requests: {why}")
        return room

    def _open(self, handle: TransferHandle, timeout_s: float | None, *, may_wait: bool = True) -> None:
        """Give it a slot, or have it wait for one."""
        timeout_s = self.request_timeout_s if timeout_s is None else timeout_s
        if not is_time(timeout_s) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s: {timeout_s!r} s must be positive, and at most {MAX_TIMEOUT_S:g} s")
        handle.opened_ns = self.clock()
        handle.deadline_ns = handle.opened_ns + int(float(timeout_s) * NS)
        if not len(self._line) and self.enter(handle, is_early=self.control.role == Role.ENCODE):
            return
        if not may_wait:
            raise NodeBusyError(f"all {self.control.limits.num_slots} slots are in use", LIBRARY_WAIT_S)
        self._line.check_room()
        self._known.add(handle)
        self._rooms[handle.room] = handle
        self._line.join(handle)

    def enter(self, handle: TransferHandle, *, is_early: bool = False) -> bool:
        """Give a request its slot, if there is one; `is_early`: before anybody has asked for its room."""
        at = self._lease.open(handle.room, handle.opened_ns, handle.deadline_ns, handle.prepare, is_early=is_early)
        if at is None:
            return False
        handle.entered(*at)
        self._enter(handle)
        handle.catch_up()
        return True

    def has_slots_to_spare(self) -> bool:
        return self._lease.has_some_to_spare()

    def end_without_slot(self, handle: TransferHandle) -> None:
        """It was given up, and there is no slot for it (library thread only)."""
        handle.end_without_slot()
        self._departed.append(handle)
        if self._rooms.get(handle.room) is handle:
            del self._rooms[handle.room]
        self._user_bell.ring()

    def waiting_for(self, room: int) -> TransferHandle | None:
        """The request of a room, if it waits for a slot."""
        handle = self._rooms.get(room)
        return handle if handle is not None and handle.is_waiting else None

    def ask(self, room: int) -> None:
        """Have the room announced if somebody has asked for it."""
        self._to_bootstrap.send_now(Kick.ASK, self.lane, 0, room)

    def hurry(self, handle: TransferHandle) -> None:
        """A request that waits for a slot is given up."""
        self._line.hurry(handle)

    def lack_slots(self, count: int) -> None:
        """So many more requests wait for a slot (library thread, in its turn)."""
        self._num_lacking += count

    def leave(self, handle: TransferHandle) -> None:
        """The client needs nothing of this request any more (library thread only)."""
        self._departed.append(handle)
        if self._handles.get(handle.slot) is handle:
            del self._handles[handle.slot]
        if self._rooms.get(handle.room) is handle:
            del self._rooms[handle.room]
        self._starving.pop(handle, None)
        self._lease.leave(handle.slot, handle.epoch)
        self._to_bootstrap.send(Kick.LOOK, handle.slot, handle.epoch)

    # ---- the caller's thread

    def poll(self) -> Sequence[TransferHandle]:
        """Every request whose status rose since the last call. One load when nothing did; never blocks."""
        sequence = self._user_bell.sequence()
        now = self.clock()
        if sequence == self._user_seen and now < self._user_slow_ns:
            return ()
        if self.node_gone:  # every request that was in flight has failed
            rose = [handle for handle in [*list(self._handles.values()), *self._line.handles()] if handle.has_risen()]
            return rose + self._departed_that_rose()
        self.check_usable()
        self._user_seen = sequence
        status, pages, out = self.control.status, self._lease.pages, self._user_out
        looks: list[TransferHandle] = []
        if now >= self._user_slow_ns:
            self._user_slow_ns = now + SLOW_LOOK_NS
            status.changed(USER_VIEW, pages, len(pages), out)
            count = status.compare(pages, len(pages), self._user_words, out)
            looks = self._user_round.some()
        else:
            count = status.changed(USER_VIEW, pages, len(pages), out)
        rose = [handle for slot in out[:count].tolist() if (handle := self._handles.get(slot)) is not None and handle.has_risen()]
        rose += [handle for handle in looks if handle.has_risen()]
        return rose + self._departed_that_rose()

    def _departed_that_rose(self) -> list[TransferHandle]:
        departed = [self._departed.popleft() for _ in range(len(self._departed))]
        return [handle for handle in departed if handle.has_risen()]

    @property
    def connection(self) -> socket.socket:
        """To the node's run socket. It does not block; this seat lasts as long as it."""
        self.check_attached()
        return self._sock

    def fileno(self) -> int:
        """An eventfd for the scheduler's own select or epoll: after `arm()` it becomes readable when a status rises, or when a
        transfer queue has a request to hand over.

        Raises:
            RuntimeError: after `close()`, or in a forked child: the number may be another file's by now.
        """
        self.check_attached()
        return self._event_fds[f"lane{self.lane}"]

    def arm(self) -> bool:
        """Before sleeping on `fileno()`: True when nothing has risen since the last `poll()`; False: poll first. Raises as that."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fileno())
        return self._user_seen >= 0 and self._user_bell.arm(self._user_seen)

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy, in a forked child."""
        return self._forked

    def check_attached(self) -> None:
        """Raises RuntimeError after `close()`, and in a forked child."""
        if self._forked:
            raise RuntimeError(FORKED)
        if self._closed and threading.current_thread() not in self._threads:  # what that one has begun, it ends
            raise RuntimeError(CLOSED)

    def check_usable(self) -> None:
        """Raises NodeGoneError when the node is dead, RuntimeError after `close()` or in a forked child."""
        self.check_attached()
        if self.node_gone:
            raise NodeGoneError(f"the node in {self.run_dir} is gone; attach() again once it is back")

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def kick_bootstrap(self, kick: Kick, slot: int, epoch: int) -> None:
        self._to_bootstrap.send_now(kick, slot, epoch)
        if self._to_bootstrap.backlog:
            self._library_bell.ring()  # which flushes

    def kick_worker(self, room: int, slot: int, epoch: int) -> None:
        self._to_workers[self.control.worker_of(room)].send_now(Kick.LOOK, slot, epoch)

    def wake(self, handle: TransferHandle | None = None) -> None:
        """Have the library thread take a turn, and serve one request in it."""
        if handle is not None:
            self._to_serve.append(handle)
        self._library_bell.ring()

    def ring_user(self) -> None:
        """Something is there to be taken that is no rise of a status: wake a caller who sleeps on `fileno()`."""
        self._user_bell.ring()

    def add_turn(self, turn: Callable[[], bool], end: Callable[[], None]) -> None:
        """Have the library thread call `turn` once a turn; it says whether it waits for a block. `end`: when there is none any more."""
        self._turns.append(turn)
        self._ends.append(end)

    # ---- the library thread

    def _library(self) -> None:
        try:
            self._take_turns()
        finally:
            with self._end_lock:
                self._library_ended = True
            if self._leaves_late:
                self._leave_node()

    def _take_turns(self) -> None:
        bell: Doorbell = self._library_bell
        while not self._stop.is_set():
            seen = bell.sequence()
            try:
                starving = self._turn()
            except Exception:
                self._limit.log(log, logging.ERROR, "turn", self.clock(), "library thread: a turn failed", exc_info=True)
                starving = True
            if not self._stop.is_set():
                wait_s = STARVING_WAIT_S if starving else LIBRARY_WAIT_S
                bell.wait(seen, FULL_RING_WAIT_S if self._has_kicks_left else wait_s)

    def _turn(self) -> bool:
        """Serve what changed, what was asked for, and those who wait for a block, in that order. True if somebody waits."""
        now = self.clock()
        self.control.lanes.beat(self.lane, now)
        status, pages, out = self.control.status, self._lease.pages, self._library_out
        count = status.changed(LIBRARY_VIEW, pages, len(pages), out)
        changed = out[:count].tolist()
        todo: dict[TransferHandle, None] = {}  # not by slot: one that was woken may have left, and its slot be another's
        if is_slow := now >= self._library_slow_ns:
            self._library_slow_ns = now + SLOW_LOOK_NS
            self._look_at_node()
            count = status.compare(pages, len(pages), self._library_words, out)
            changed += out[:count].tolist()
            todo.update(dict.fromkeys(self._library_round.some()))
        for slot in changed:
            if (handle := self._handles.get(slot)) is not None:
                todo[handle] = None
        while self._to_serve:
            todo[self._to_serve.popleft()] = None
        for handle in list(self._starving):
            if not self.control.blocks.cells.num_free(1):
                break  # first come, first served: those behind wait, too
            if handle not in todo and self._is_open(handle):
                self._serve(handle)
        for handle in todo:
            if self._is_open(handle):
                self._serve(handle)
        self._lease.collect()
        self._num_lacking = 0
        lacks = self._line.turn(now, is_slow=is_slow)
        starving = bool(self._starving)
        for turn in self._turns:
            starving |= turn()
        self.control.blocks.set_waiting(self.lane, starving)
        waits = self._say_who_waits(lacks or self._num_lacking > 0)
        for sender in (self._to_bootstrap, *self._to_workers):
            sender.flush()
        if self.node_gone and not self._payload_let_go:
            self._let_go_of_payload()
        return starving or waits

    def _say_who_waits(self, lacks_slot: bool) -> bool:
        """Have other clients give pages back while there is no slot for this one. True while requests wait for a slot."""
        count = len(self._line) + self._num_lacking
        if count or self._num_waiting:
            self._num_waiting = count
            self.control.lanes.set_num_waiting(self.lane, count)
        if lacks_slot != self._is_slot_waiter:
            self._is_slot_waiter = lacks_slot
            self.control.slot_waiters.set(self.lane, lacks_slot)
            if lacks_slot:
                self.control.ring_libraries()
        self._lease.share(is_needy=lacks_slot)
        return count > 0

    def _let_go_of_payload(self) -> None:
        """The node is gone: all that was in flight has ended, and one that is to come may need the room."""
        self._payload_let_go = True
        for handle in list(self._handles.values()):
            handle.progress()
        if self._owns_memory and not self.pinned:
            let_go(self.payload, "payload", f"client of {self.run_dir}, whose node is gone")

    @property
    def _has_kicks_left(self) -> bool:
        """Whether a kick waits for room in its ring."""
        return any(sender.backlog for sender in (self._to_bootstrap, *self._to_workers))

    def _serve(self, handle: TransferHandle) -> None:
        try:
            handle.service()
        except Exception as error:
            text = "room %d: the library thread failed"
            self._limit.log(log, logging.ERROR, "serve", self.clock(), text, handle.room, exc_info=True)
            handle._fail(FailureCode.INTERNAL, f"{type(error).__name__}: {error}")
        if handle.wants_block and self._is_open(handle):
            self._starving.setdefault(handle)
        else:
            self._starving.pop(handle, None)

    def _is_open(self, handle: TransferHandle) -> bool:
        """Whether it is in flight still: it has not left its slot."""
        return self._handles.get(handle.slot) is handle

    def _look_at_node(self) -> None:
        """The run socket's end, or its STOPPED state, means that the node is gone: whoever polls finds Failed."""
        if self.node_gone:
            return
        gone = self.control.state == NodeState.STOPPED
        try:
            gone |= self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            pass
        except OSError:
            gone = True
        if gone:
            self.node_gone = True
            log.warning("the node in %s is gone", self.run_dir)
            for handle in list(self._handles.values()):
                handle.let_go()  # rows that were lent are the caller's again
            self._user_bell.ring()

    @property
    def is_starving(self) -> bool:
        """Whether a request of this client waits for a block."""
        return bool(self._starving)

    def spare_blocks(self) -> int:
        """How many blocks are free beyond a quarter of the pool: so many may be filled ahead of a grant."""
        blocks = self.control.blocks
        return blocks.cells.num_free(blocks.num_blocks) - (blocks.num_blocks // 4 + 1)

    def blocks_are_short(self) -> bool:
        """Whether less than a quarter of the pool is free: then nothing is staged ahead of a grant."""
        quarter = self.control.blocks.num_blocks // 4 + 1
        return bool(self._starving) or self.control.blocks.cells.num_free(quarter) < quarter

    def evict(self, needy: TransferHandle) -> bool:
        """Have this client's other senders drop what nobody can take now. True if a block came free."""
        from embridge.pipeline.client.sender import EmbeddingSender

        others = [h for h in list(self._handles.values()) if isinstance(h, EmbeddingSender) and h is not needy]
        return sum(other.evict() for other in others) > 0 or any(other.evict(copying=True) for other in others)

    def blocks_freed(self) -> None:
        """Wake those who wait for a block: other clients' library threads, and this one's, for one more turn."""
        self.control.ring_block_waiters()
        if self._starving:
            self._library_bell.ring()

    # ---- the end

    def close(self) -> None:
        """Leave the node: requests in flight end as Failed on both sides, and every block and slot is given back.

        What this process had mapped is free afterwards; tensors and arrays over it that are still alive are the only exception, and a
        warning says so. The seat is not given up while the library thread copies: if that takes longer than some seconds, a warning says
        so, and the thread leaves the node when it has ended. What has ended before can still be asked how (`poll`,
        `failure_exception`); all else is refused.
        """
        if self._closed or self._forked:
            self._closed = True
            return
        self._closed = True
        self._stop.set()
        self._library_bell.ring()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(END_WAIT_S)
        with self._end_lock:
            late = self._leaves_late = not self._library_ended
        if late:
            log.warning("client of %s: its library thread has not ended in %g s; it keeps its seat until then", self.run_dir, END_WAIT_S)
        else:
            self._leave_node()

    def _leave_node(self) -> None:
        """Nobody copies any more: give up the seat, and all that came with it."""
        for handle in list(self._known):  # those that ended without a slot, too
            handle.let_go()
        if self.pinned:
            unregister_from_cuda(self.payload)
        self._line.close()
        for end in self._ends:
            end()
        self.control.lanes.leave(self.lane)
        self._sock.close()
        if self.ranks is not None:
            self.ranks.close()
        _clients.discard(self)
        self._let_go(CLOSED)

    def _let_go(self, why: str) -> None:
        """Of the memory and the descriptors, and of whatever leads there."""
        control, payload = self.control, self.payload
        for handle in list(self._known):
            handle.refuse(why)
        for held in (self._turns, self._ends, self._handles, self._rooms, self._starving, self._to_serve, self._departed):
            held.clear()
        refuse(self, why, LED_TO_MEMORY)
        for fd in self._event_fds.values():
            os.close(fd)
        self._event_fds.clear()
        if not self._owns_memory:
            return
        control.close()
        if self._forked:
            payload.close()
        else:
            let_go(payload, "payload", f"client of {self.run_dir}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _after_fork(self) -> None:
        """The seat is the parent's: the child gives nothing up, and keeps nothing."""
        self._forked = True
        self._sock.close()
        if self.ranks is not None:
            self.ranks.close()
        self._let_go(FORKED)


def _mark_forked() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_mark_forked)


def node_status(run_dir: str | Path) -> dict[str, Any]:
    """What a node looks like from outside: identity, processes, blocks, lanes, peers, counters, requests in flight.

    Raises:
        AttachError: no node answers there.
    """
    from embridge.pipeline.inspection.observe import observe

    return observe(Path(run_dir))
