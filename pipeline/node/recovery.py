"""The launcher's part in a death: it changes one word, and kicks the poller.

`docs/design/recovery.md` has the other parts, case by case. Roles that look at the same words take those parts, and no
process orders another to: the poller sees a lane that is DEAD, a transfer worker sees a request that is Failed.

A process that recovers may itself die at any instruction. All that recovery goes by stands in the control segment: a
lane stays DEAD until everything of the lane is reaped, a request Failed until it is released, a block exposed or
quarantined until its cell says otherwise. So the successor of a dead process looks at all of these at once (R25) and
does again what was not finished. Each step is a compare-and-swap, or a store of a value that only rises, so a repeated
step changes nothing. The launcher is the exception: when the launcher dies, the node dies with it, and nothing is left
to recover but the other nodes' view of that node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from embridge.allocator.claims import WriterId
from embridge.allocator.control import Control
from embridge.allocator.ends import Counter
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

        The lane stays DEAD until it is reaped; a second call changes nothing. What the client was publishing is retired
        first, before the lane can be another's (R45).
        """
        if self._control.has_shelf and (num_items := self._control.shelf.core.bury_publisher(lane)):
            log.info("the client of lane %d has left %d items that it was publishing", lane, num_items)
        if self._control.lanes.bury(lane):
            log.info("the client of lane %d is gone", lane)
        self._to_poller.send(Kick.LANE_DEAD, lane, 0)
        self.flush()

    def writer_died(self, writer: WriterId) -> None:
        """Remove the entry of a process that can write into our payload no more, so quarantine may end (R12, R33)."""
        if self._control.role == Role.LANGUAGE:
            self._control.claims.end_writer(writer)
            self._control.posts.take_off_offers_of(writer)
        self._control.writers.remove(writer.entry)
        self._to_poller.send(Kick.WRITER_GONE, 0, 0)
        self.flush()

    def fail_requests_of(self, name: str, why: str, *, poller_is_dead: bool) -> int:
        """Fail the requests that need a process which cannot be kept alive, for that reason. Returns their number.

        The poller writes status words. While there is no poller, and none is being started, the launcher raises them to
        Failed itself: nobody else would, not even at the requests' deadlines (P8). The next poller finds the requests
        Failed and does the rest of their end.
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
            elif control.status.advance(slot, epoch, Phase.Failed, word.sent, self._clock(), True):
                # also where it is whole: what its encode node tells is heard by nobody here (R36)
                control.ends.failed(Counter.LAUNCHER, control.slots.get(slot, Slot.FAILURE))
                control.ring_lane(control.slots.get(slot, Slot.LANE))
        self.flush()
        return failed

    def flush(self) -> None:
        """Send the kicks that did not fit into the ring to the poller before."""
        self._to_poller.flush()


def _needs(control: Control, name: str) -> Callable[[int], bool] | None:
    """Whether a slot's request needs that process of its own node; None where no request does.

    All requests need the bootstrap, which grants and releases, and the poller, which ends them. On the encode side a
    request needs the transfer worker of its shard. On the language side it does so only where its rows come over a
    network or are checked on receipt: rows that come through shared memory need no worker there.
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
