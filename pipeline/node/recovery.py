"""X died -> do Y: one row for each who may die, and the launcher's own part in it.

A row says what the dead may have left behind, who notices, and which functions deal with it, in their order, each in the process that owns
the words it changes. The launcher and its door act through this table (`Recovery.died`, `Recovery.fail_requests_of`); the other steps are
taken by roles that look at the same words, so nobody sends anybody an order: the launcher changes one word and kicks, the poller sees a
lane that is DEAD, the worker a request that is Failed.

Recovery may itself die at any instruction. What it goes by stands in the control segment: a lane stays DEAD until everything of it is
reaped, a request Failed until it is released, a block exposed or quarantined until its cell says otherwise. So whoever is started in the
place of the dead looks at all of it at once (R25) and does again what was not finished; each step is a compare-and-swap, or a store of a
value that only rises, and a second time it changes nothing. `again` says where that happens. The launcher is the exception: when it dies,
so does the node, and there is nothing left to recover but the other nodes' view of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from embridge.allocator.control import Control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.layout import first_worker
from embridge.allocator.records import Peer, Slot
from embridge.allocator.rings import Kick, KickSender
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.workers.health import NOT_ESSENTIAL
from embridge.workers.transfer import engines

log = logging.getLogger(__name__)


class Dead(Enum):
    """Who died. The values are how tests and documents name the rows."""

    ENCODER = "dead encoder client"
    SCHEDULER = "dead scheduler client"
    FOLLOWER = "dead follower rank"
    WORKER = "dead transfer worker (encode)"
    TARGET = "dead transfer worker (language)"
    POLLER = "dead poller"
    BOOTSTRAP = "dead bootstrap"
    REGISTRAR = "dead registrar"
    LAUNCHER = "dead launcher"
    PEER = "dead peer"
    WRITER = "dead foreign writer"


# ---- the launcher's part


def bury_client(control: Control, to_poller: KickSender, lane: int) -> None:
    """Its lane is DEAD: no new request of it, and the poller ends those in flight. A lane that is buried stays so until it is reaped."""
    if control.lanes.bury(lane):
        log.info("the client of lane %d is gone", lane)
    to_poller.send(Kick.LANE_DEAD, lane, 0)


def strike_writer(control: Control, to_poller: KickSender, entry: int) -> None:
    """That process cannot write into our payload any more: what waits for it in quarantine may come free (R12)."""
    control.writers.remove(entry)
    to_poller.send(Kick.WRITER_GONE, 0, 0)


# ---- which requests cannot go on without a process of their own node


def needs_any(control: Control, slot: int, index: int) -> bool:
    """All of them: the bootstrap grants and releases, the poller ends."""
    return True


def needs_worker(control: Control, slot: int, index: int) -> bool:
    """Encode side: those of its shard."""
    return first_worker() + control.worker_of(control.slots.get(slot, Slot.ROOM)) == index


def needs_target(control: Control, slot: int, index: int) -> bool:
    """Language side: those of its shard that come over a network, or are to be checked. Through shared memory others come without it."""
    peer = control.slots.get(slot, Slot.PEER) - 1
    is_needed = control.verify or (peer >= 0 and engines.has_sessions(control.peers.get(peer, Peer.ENGINE)))
    return needs_worker(control, slot, index) and is_needed


# ---- the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`noticed` and `acts` name functions as `module:name`, below `embridge`, in the order in which they act.

    `launcher`: its part in the death of somebody outside; the number is that of the lane, or of the entry. `needed_by`: of a process of the
    node, which requests fail when it cannot be kept alive.
    """

    leaves: str
    noticed: str
    acts: tuple[str, ...]
    again: str
    launcher: Callable[[Control, KickSender, int], None] | None = None
    needed_by: Callable[[Control, int, int], bool] | None = None


_RESTART: Final = "pipeline.node.supervisor:Supervisor.tick"

ROWS: Final[dict[Dead, Row]] = {
    Dead.ENCODER: Row(
        leaves="open requests, source blocks that cache their rows, a leased lane and pages, a waiter's bit; attempts that read its blocks",
        noticed="pipeline.node.run_socket_server:RunSocketServer._gone",
        launcher=bury_client,
        acts=(
            "pipeline.node.recovery:bury_client",
            "workers.poller.encode:Publisher._failed",  # the request is Failed, all its destinations are told
            "workers.transfer.encode:TransferWorker._quiesce",  # nothing reads its blocks any more (R8)
            "workers.poller.encode:Publisher._end",  # its blocks are free
            "workers.bootstrap.encode:Admission._release",  # its slots are
            "workers.poller.reaper:Reaper.free_lanes",  # its pages and its lane are
        ),
        again="a new poller reads DEAD lanes and every open slot at its birth, a new worker or bootstrap every open slot",
    ),
    Dead.SCHEDULER: Row(
        leaves="open requests, blocks owned and exposed, a leased lane and pages, a waiter's bit; as rank 0 a group of ranks",
        noticed="pipeline.node.run_socket_server:RunSocketServer._gone",
        launcher=bury_client,
        acts=(
            "pipeline.node.recovery:bury_client",
            "pipeline.node.rank_groups:RankGroups.gone",  # as rank 0: the others find the end in the log
            "workers.poller.language:StatusReceiver._failed",
            "workers.poller.language:StatusReceiver._end",  # owned blocks are free, exposed ones quarantined
            "workers.bootstrap.language:GrantSender._send_abort",
            "workers.poller.language:StatusReceiver._is_acked",  # nobody writes there any more (R7, R9, R12): quarantine ends
            "workers.poller.reaper:Reaper.free_lanes",
        ),
        again="as for an encoder; the abort is sent again until it is acknowledged, or its peer is dead",
    ),
    Dead.FOLLOWER: Row(
        leaves="holds on rows that were handed to it, a ring of batches that nobody takes",
        noticed="pipeline.node.run_socket_server:RunSocketServer._gone",
        acts=("pipeline.node.rank_groups:RankGroups.gone", "allocator.ranklog:RankLog.leave", "pipeline.ranks.leader:SharedMemory.collect"),
        again="a rank that has LEFT stays so; rank 0 looks at that word, and at every ticket, in each turn",
    ),
    Dead.WORKER: Row(
        leaves="attempts under way (`issued` > `sent`), staging entries in READING, ring records not finished; over a network late writes",
        noticed="pipeline.node.supervisor:Supervisor._died",
        needed_by=needs_worker,
        acts=(
            _RESTART,
            "workers.transfer.encode:TransferWorker._end_reading",
            "workers.transfer.encode:TransferWorker._taint_unfinished",  # over a network, before anything is redone (R6)
            "workers.transfer.encode:TransferWorker._scan",  # rows from `sent` on are moved again, to the same places
        ),
        again="all of it goes by the words of the slots; the next new worker begins anew",
    ),
    Dead.TARGET: Row(
        leaves="a session that has ended: grants under it, blocks exposed or in quarantine under it, attempts of peers that now fail",
        noticed="pipeline.node.supervisor:Supervisor._died",
        needed_by=needs_target,
        acts=(
            _RESTART,
            "workers.start:_begin_session",  # another number, port and address (R10)
            "workers.poller.language:StatusReceiver._free_fenced",
            "workers.bootstrap.language:GrantSender._grant_anew",
        ),
        again="the poller compares the sessions of quarantined blocks with the living ones, the bootstrap's grants name the living one",
    ),
    Dead.POLLER: Row(
        leaves="words behind their watermarks, deadlines that pass, clients and peers that are told nothing, ring records not finished",
        noticed="pipeline.node.supervisor:Supervisor._died",
        needed_by=needs_any,
        acts=(_RESTART, "workers.poller.reaper:Reaper.look", "workers.poller.base:Poller.step"),
        again="its first step looks at every open slot, every peer and every DEAD lane, as each slow scan does",
    ),
    Dead.BOOTSTRAP: Row(
        leaves="grants and aborts not sent or not answered, rooms not joined, epochs not released, ring records not finished",
        noticed="pipeline.node.supervisor:Supervisor._died",
        needed_by=needs_any,
        acts=(_RESTART, "workers.bootstrap.encode:Admission._rebuild", "workers.bootstrap.language:GrantSender.step"),
        again="its first step looks at every open slot; grants are absolute, and peers send again what was not answered (R1, R24)",
    ),
    Dead.REGISTRAR: Row(
        leaves="a route table as it was, a registration that runs out",
        noticed="pipeline.node.supervisor:Supervisor._died",
        acts=(_RESTART, "workers.discovery.registrar:Reporter.report"),
        again="it reads the table at its birth, and its reports are numbered by the clock",
    ),
    Dead.LAUNCHER: Row(
        leaves="its children, its clients' connections, two listening ports; one empty name in /dev/shm",
        noticed="workers.process_spec:is_launcher_gone",
        acts=(
            "workers.start:run",  # the kernel's parent-death signal ends each child, else the death pipe
            "pipeline.client.client:Client._look_at_node",  # each client sees its connection end: its requests are Failed
            "workers.poller.peer_watch:PeerWatch.step",  # the ports are closed, which is death at once for other nodes
            "pipeline.node.claim:next_identity",  # who is launched there next is a later incarnation
        ),
        again="there is nothing to do again: the kernel takes back the memory with the last process that maps it",
    ),
    Dead.PEER: Row(
        leaves="requests with it on this side, blocks exposed to it, grants that wait for their encoder, connections, mapped memory",
        noticed="workers.poller.peer_watch:PeerWatch.bury",
        acts=(
            "workers.poller.peer_watch:PeerWatch.bury",
            "workers.poller.encode:Publisher._failed",
            "workers.poller.language:StatusReceiver._failed",
            "workers.poller.language:StatusReceiver._is_acked",  # quarantine ends with its last writer here, or with a fence (R12)
            "workers.bootstrap.encode:Admission._forget_pending_of",
            "workers.bootstrap.language:GrantSender._drop_link_of",
            "workers.transfer.encode:TransferWorker._scan",  # lets go of its payload
        ),
        again="its entry stays DEAD until no slot refers to it; every scan compares the slots with it",
    ),
    Dead.WRITER: Row(
        leaves="an entry among those who can write into our payload; blocks in quarantine that wait for it",
        noticed="pipeline.node.run_socket_server:RunSocketServer._gone",
        launcher=strike_writer,
        acts=("pipeline.node.recovery:strike_writer", "workers.poller.language:StatusReceiver._is_acked"),
        again="the entry is gone or not; every scan of the poller looks",
    ),
}


def process_row(role: Role, name: str) -> Row:
    """The row of a process of a node, by the name that it has in the process table."""
    if name.startswith("worker"):
        return ROWS[Dead.WORKER if role == Role.ENCODE else Dead.TARGET]
    return ROWS[{"bootstrap": Dead.BOOTSTRAP, "poller": Dead.POLLER, "registrar": Dead.REGISTRAR, "launcher": Dead.LAUNCHER}[name]]


class Recovery:
    """The launcher's end of it: one control segment, and its ring to the poller."""

    def __init__(self, control: Control, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._control = control
        self._clock = clock
        self._to_poller = control.sender("launcher", "poller")

    def died(self, dead: Dead, number: int) -> None:
        """Somebody outside the node is gone: do the launcher's part, and have the poller do its own now."""
        act = ROWS[dead].launcher
        assert act is not None, dead
        act(self._control, self._to_poller, number)
        self.flush()

    def client_died(self, lane: int) -> None:
        self.died(Dead.ENCODER if self._control.role == Role.ENCODE else Dead.SCHEDULER, lane)

    def fail_requests_of(self, name: str, why: str, *, poller_is_dead: bool) -> int:
        """A process cannot be kept alive: the requests that need it fail with that reason. Returns how many were told.

        Words are the poller's to write. While there is no poller, and none is being started, the launcher raises them to Failed itself: or
        nobody would, not even at their deadline (P8). Whatever else their end asks for is done by the next poller, which finds them so.
        """
        control, failed = self._control, 0
        needed_by, index = process_row(control.role, name).needed_by, control.processes.names.index(name)
        if needed_by is None:
            assert name in NOT_ESSENTIAL, name
            return 0
        for slot, epoch in control.current_slots():
            word = split(control.status.load(slot))
            if word.phase >= TERMINAL or not needed_by(control, slot, index):
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
        """What did not fit into the ring to the poller goes now."""
        self._to_poller.flush()
