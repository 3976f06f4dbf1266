"""The launcher's part in a death: it changes one word, and kicks the poller.

`docs/design/recovery.md` has the other parts, case by case. They are taken by roles that look at the same words, so
nobody sends anybody an order: the poller sees a lane that is DEAD, a transfer worker a request that is Failed.

Recovery may itself die at any instruction. What it goes by stands in the control segment: a lane stays DEAD until
everything of it is reaped, a request Failed until it is released, a block exposed or quarantined until its cell says
otherwise. So the successor of the dead looks at all of it at once (R25) and does again what was not finished; each step
is a compare-and-swap, or a store of a value that only rises, and a second time it changes nothing. The launcher is the
exception: when it dies, so does the node, and nothing is left to recover but the other nodes' view of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from embridge.allocator.control import Control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.layout import first_worker
from embridge.allocator.records import Peer, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.workers.health import NOT_ESSENTIAL
from embridge.workers.transfer import engines

log = logging.getLogger(__name__)


class Recovery:
    """The launcher's part in the deaths that one node sees."""

    def __init__(self, control: Control, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._control = control
        self._clock = clock
        self._to_poller = control.sender("launcher", "poller")

    def client_died(self, lane: int) -> None:
        """Mark the client's lane DEAD, so that it opens no more requests, and tell the poller to end those in flight.

        The lane stays DEAD until it is reaped; a second call changes nothing.
        """
        if self._control.lanes.bury(lane):
            log.info("the client of lane %d is gone", lane)
        self._to_poller.send(Kick.LANE_DEAD, lane, 0)
        self.flush()

    def writer_died(self, entry: int) -> None:
        """Remove a process that can write into our payload no more: quarantine that waits for it may end (R12)."""
        self._control.writers.remove(entry)
        self._to_poller.send(Kick.WRITER_GONE, 0, 0)
        self.flush()

    def fail_requests_of(self, name: str, why: str, *, poller_is_dead: bool) -> int:
        """Fail the requests that need a process which cannot be kept alive, for that reason. Returns their number.

        Status words are the poller's to write. While there is no poller, and none is being started, the launcher raises
        them to Failed itself, or nobody would, not even at their deadline (P8). Whatever else their end asks for is
        done by the next poller, which finds them so.
        """
        control, failed = self._control, 0
        needs = _needs(control, name)
        if needs is None:
            return 0
        for slot, epoch in control.current_slots():
            word = split(control.status.load(slot))
            if word.phase >= TERMINAL or not needs(slot):
                continue
            failed += 1
            control.slots.claim_failure(slot, FailureCode.INTERNAL, why)
            if not poller_is_dead:
                self._to_poller.send(Kick.FAIL, slot, epoch)
            elif control.status.advance(slot, epoch, Phase.Failed, word.sent, self._clock()):
                control.ring_lane(control.slots.get(slot, Slot.LANE))
        self.flush()
        return failed

    def flush(self) -> None:
        """Send now what did not fit into the ring to the poller."""
        self._to_poller.flush()


def _needs(control: Control, name: str) -> Callable[[int], bool] | None:
    """Whether a slot's request needs that process of its own node; None where no request does.

    All need the bootstrap, which grants and releases, and the poller, which ends. On the encode side the requests of
    its shard need a transfer worker; on the language side only those of its shard that come over a network or are
    checked on receipt, for rows that come through shared memory come without it.
    """
    if name in NOT_ESSENTIAL:
        return None
    if not name.startswith("worker"):
        return lambda slot: True
    worker = control.processes.names.index(name) - first_worker()

    def needs_worker(slot: int) -> bool:
        if control.worker_of(control.slots.get(slot, Slot.ROOM)) != worker:
            return False
        peer = control.slots.get(slot, Slot.PEER) - 1
        crosses_network = peer >= 0 and engines.has_sessions(control.peers.get(peer, Peer.ENGINE))
        return control.role == Role.ENCODE or control.verify or crosses_network

    return needs_worker
