"""A client's attachment to its node: a lane, its segments, bells and rings, and whether they may still be used.

Reading its words takes no lock. The caller's thread and the library thread both push to rings; the GIL serialises the
pushes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from embridge.allocator._core import Doorbell, Mapping
from embridge.allocator.buffers import PayloadBuffers
from embridge.allocator.control import Control
from embridge.allocator.errors import NodeGoneError
from embridge.allocator.geometry import Role
from embridge.allocator.pinning import register_with_cuda, unregister_from_cuda
from embridge.allocator.records import NodeState
from embridge.allocator.rings import Kick
from embridge.pipeline.leaving import let_go, refuse
from embridge.workers.run_socket import Welcome

log = logging.getLogger(__name__)

CLOSED = "this client is closed"
FORKED = "this client was attached before a fork; attach() again in the child"
LED_TO_MEMORY = (
    *("control", "buffers", "payload", "shelf", "user_bell", "library_bell"),
    *("_to_bootstrap", "_to_poller", "_to_workers", "_untold_rooms", "_sock"),
)


class Attachment:
    """One lane of a node, as this process has it.

    The lane belongs to this process for as long as the run socket stays open.
    """

    node_gone = False
    """Whether the node is gone; it never comes back to this attachment."""
    is_closed = False
    """Whether `Client.close` was called."""
    is_forked = False
    """Whether this is a copy, in a forked child."""
    has_payload = True
    """Whether `let_go_of_payload` has yet to be called."""
    pinned = False
    """Whether the payload is registered with CUDA in this process."""
    pin_note = "not asked for"
    """Why it is not registered, or what is registered."""

    def __init__(
        self,
        run_dir: Path,
        control: Control,
        payload: Mapping,
        sock: socket.socket,
        welcome: Welcome,
        clock: Callable[[], int],
        *,
        event_fds: dict[str, int],
        owns_memory: bool = True,
        shelf: Mapping | None = None,
    ) -> None:
        """`sock` is the non-blocking connection to the node's run socket. `clock` gives monotonic nanoseconds.

        `shelf` is where items are published, None on a node that has none. Without `owns_memory` the segments are
        somebody else's, who also unmaps them.

        Raises:
            LookupError, ValueError: what the node handed over does not fit together.
        """
        self.run_dir = run_dir
        self.control = control
        self.clock = clock
        self.lane = lane = welcome.lane
        self.geometry = control.geometry
        self.payload = payload
        self.shelf = shelf
        self.buffers = PayloadBuffers(payload, control.geometry)
        self.settings = welcome.settings
        self.request_timeout_s = welcome.request_timeout_s
        self.bootstrap_addr = welcome.bootstrap_addr
        self.threads: tuple[threading.Thread, ...] = ()  # the library's: what they have begun, they end
        self.user_bell: Doorbell = control.bell(f"lane{lane}")
        self.library_bell: Doorbell = control.bell(f"library{lane}")
        self.library_bell.spare(False)  # as whoever had the lane before may have
        self._to_bootstrap = control.sender(f"lane{lane}", "bootstrap")
        self._to_poller = control.sender(f"lane{lane}", "poller")
        self._to_workers = [control.sender(f"lane{lane}", f"worker{w}") for w in range(control.limits.num_workers)]
        self._untold_rooms = control.untold if control.role == Role.ENCODE else None
        self._sock = sock
        self.rows_out: dict[object, None] = {}  # rows of the payload that the caller may write to
        self._event_fds = event_fds
        self._owns_memory = owns_memory

    # ---- whether it may be used

    def check_attached(self) -> None:
        """Raises RuntimeError after `Client.close`, and in a forked child."""
        if self.is_forked:
            raise RuntimeError(FORKED)
        if self.is_closed and threading.current_thread() not in self.threads:
            raise RuntimeError(CLOSED)

    def check_not_forked(self) -> None:
        """Raises RuntimeError in a forked child."""
        if self.is_forked:
            raise RuntimeError(FORKED)

    def check_usable(self) -> None:
        """Raises NodeGoneError when the node is gone, RuntimeError after `Client.close` or in a forked child."""
        self.check_attached()
        if self.node_gone:
            raise NodeGoneError(f"the node in {self.run_dir} is gone; attach() again once it is back")

    def has_lost_node(self) -> bool:
        """Look at the run socket and at the node's state.

        True once, when either says for the first time that the node is gone.
        """
        if self.node_gone:
            return False
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
        return gone

    @property
    def connection(self) -> socket.socket:
        """The connection to the node's run socket. Raises RuntimeError as `check_attached`."""
        self.check_attached()
        return self._sock

    def fileno(self) -> int:
        """The eventfd of the caller's bell.

        Raises RuntimeError as `check_attached`: the number may be another file's by now.
        """
        self.check_attached()
        return self._event_fds[f"lane{self.lane}"]

    # ---- kicks to the node's processes

    def tell(self, room: int, slot: int, epoch: int) -> bool:
        """Give the node's processes a request that this client alone has had, if it is one (either thread, R78).

        True if it was.
        """
        if not self.control.slots.tell(slot, epoch):
            return False
        if self._untold_rooms is not None:
            self._untold_rooms.add(room, -1)
        self.kick_bootstrap(Kick.OPEN, slot, epoch)
        return True

    def kick_bootstrap(self, kick: Kick, slot: int, epoch: int) -> None:
        """Tell the bootstrap about a slot at once, but for a look at one that it has not (either thread)."""
        if kick == Kick.LOOK and self.control.slots.is_untold(slot, epoch):
            return
        self._to_bootstrap.send_now(kick, slot, epoch)
        if self._to_bootstrap.backlog:
            self.library_bell.ring()  # the library thread flushes it

    def kick_poller(self, slot: int, epoch: int) -> None:
        """Have the poller look at a slot at once, if it has it (either thread)."""
        if self.control.slots.is_untold(slot, epoch):
            return  # what was changed before this look is seen by whoever it is told to after it
        self._to_poller.send_now(Kick.LOOK, slot, epoch)

    def kick_worker(self, room: int, slot: int, epoch: int) -> None:
        """Have the transfer worker of a room look at a slot at once, if it has it (either thread)."""
        if self.control.slots.is_untold(slot, epoch):
            return
        self._to_workers[self.control.worker_of(room)].send_now(Kick.LOOK, slot, epoch)

    def ask(self, room: int) -> None:
        """Have the bootstrap announce the room if somebody has asked for it (either thread)."""
        self._to_bootstrap.send_now(Kick.ASK, self.lane, 0, room)

    def meet(self, address: str) -> bool:
        """Have the bootstrap register with the encode node at a numeric address (whoever has the turn, language side).

        False: it has yet to hear of another one. It is kicked all the same, because that kick may be lost.
        """
        is_said = self.control.wanted_nodes.put(self.lane, address)
        self._to_bootstrap.send_now(Kick.MEET, self.lane, 0)
        return is_said

    def kick_follows(self) -> None:
        """Have the poller look which nodes are followed (whoever has the turn, language side)."""
        self._to_poller.send_now(Kick.LOOK, 0, 0)

    def tell_left(self, slot: int, epoch: int) -> None:
        """Tell the poller, with the next `flush`, that the client is done with an epoch (library thread)."""
        self._to_poller.send(Kick.LOOK, slot, epoch)

    def flush(self) -> None:
        """Send the kicks that did not fit before (library thread)."""
        for sender in (self._to_bootstrap, self._to_poller, *self._to_workers):
            sender.flush()

    @property
    def has_kicks_left(self) -> bool:
        """Whether a kick waits for room in its ring."""
        return any(sender.backlog for sender in (self._to_bootstrap, self._to_poller, *self._to_workers))

    # ---- the payload and CUDA

    def pin(self) -> None:
        """Register the payload with CUDA in this process; `pinned` and `pin_note` say what took effect."""
        self.control.lanes.pin(self.lane)  # first: the node must know of the device before a block is read through it
        self.pinned, self.pin_note = register_with_cuda(self.payload)

    def unpin(self) -> None:
        """Take the registration with CUDA back, if there is one."""
        if self.pinned:
            unregister_from_cuda(self.payload)

    # ---- the end

    def let_go_of_payload(self) -> None:
        """Unmap the payload of a node that is gone, because the node that takes its place may need the room."""
        self.has_payload = False
        if self.shelf is not None:
            self.shelf.discard()
        if self._owns_memory and not self.pinned:
            let_go(self.payload, "payload", f"client of {self.run_dir}, whose node is gone")

    def leave(self) -> None:
        """Give the lane up. No thread of this process may write into the node's memory after that: through rows that
        were handed out and not committed, or not shown, it writes into memory of its own from now on.
        """
        self._keep_rows_out_to_itself()
        self.control.lanes.leave(self.lane)
        self._sock.close()

    def hang_up(self) -> None:
        """Close a forked child's copy of the connection; the lane is the parent's."""
        self.is_forked = True
        self._keep_rows_out_to_itself()
        self._sock.close()

    def _keep_rows_out_to_itself(self) -> None:
        if self.shelf is not None:
            self.shelf.discard()
        if self.rows_out and self._owns_memory:
            self.payload.discard()

    def let_go(self) -> None:
        """Free the memory and the descriptors; any use of them raises RuntimeError from now on."""
        control, payload = self.control, self.payload
        refuse(self, FORKED if self.is_forked else CLOSED, LED_TO_MEMORY)
        for fd in self._event_fds.values():
            os.close(fd)
        self._event_fds.clear()
        if not self._owns_memory:
            return
        control.close()
        if self.is_forked:
            payload.close()
        else:
            let_go(payload, "payload", f"client of {self.run_dir}")
