"""What the processes of a node and its requests look like from outside: the views that `explain` asks about."""

from __future__ import annotations

from collections import Counter
from functools import cache, cached_property
from typing import Any, Final

from embridge.allocator._core import Words
from embridge.allocator.blocks import FREE, QUARANTINED, BlockCounts
from embridge.allocator.claims import HELD, ClaimState, WriterId
from embridge.allocator.control import Control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.records import Destination, Lane, LaneState, Peer, Process, Slot, WrittenBy
from embridge.allocator.request_tables import STAGE_READING, STAGE_STAGED, StageEntry
from embridge.allocator.sessions import SHM_EXPOSURE, of_exposure
from embridge.allocator.status import TERMINAL, is_whole, split
from embridge.workers.inspection.conditions import DEAD, condition_of
from embridge.workers.inspection.views import NOBODY, Actor, DestinationView, EncodeView, LanguageView
from embridge.workers.process_spec import READY
from embridge.workers.timing import NS
from embridge.workers.transfer import engines

SILENT_NS: Final = 2 * NS  # a process beats four times a second; a busy machine may delay several
PEER_SILENT_NS: Final = 3 * NS  # with requests in flight a node sends ten heartbeats a second
MANY_HOLDERS: Final = 3


class Scene:
    """The processes, clients, peers and blocks of a node at one moment; each is looked at once, for all requests."""

    def __init__(self, control: Control, now_ns: int, *, sees_pids: bool = False) -> None:
        """`sees_pids`: the node's pids mean the same here, so the kernel can be asked about its processes."""
        self.control = control
        self.now_ns = now_ns
        self._sees_pids = sees_pids
        self.process = cache(self._process)
        self.client = cache(self._client)
        self.node = cache(self._node)
        self.writer = cache(self._writer)
        self.waiters = control.blocks.waiters()

    def _process(self, name: str) -> Actor:
        """A process of the node, and what keeps it from working."""
        get = self.control.processes.get
        pid, beat_ns, restarts = get(name, Process.PID), get(name, Process.BEAT_NS), get(name, Process.NUM_RESTARTS)
        beat = f"its last beat was {(self.now_ns - beat_ns) / NS:.1f} s ago" if beat_ns else "it has not beaten yet"
        since_ns = max(beat_ns, get(name, Process.STARTED_NS))
        condition = condition_of(pid) if self._sees_pids else ""
        if condition:
            return Actor(name, pid, f"{condition}, {beat}", since_ns)
        if get(name, Process.STATE) != READY:
            return Actor(name, pid, f"it is being started ({restarts} restarts), {beat}", since_ns)
        if self.now_ns - beat_ns > SILENT_NS:
            return Actor(name, pid, beat, since_ns)
        return Actor(name, pid)

    def _client(self, lane: int) -> Actor:
        """The client of a lane; it beats when its library thread turns."""
        pid, beat_ns = self.control.lanes.get(lane, Lane.PID), self.control.lanes.get(lane, Lane.BEAT_NS)
        if self.is_client_gone(lane):
            return Actor("client", pid)
        trouble = condition_of(pid) if self._sees_pids else ""
        if not trouble and beat_ns and self.now_ns - beat_ns > SILENT_NS:
            trouble = f"its library thread last turned {(self.now_ns - beat_ns) / NS:.1f} s ago"
        return Actor("client", pid, trouble, beat_ns if trouble else 0)

    def is_client_gone(self, lane: int) -> bool:
        return self.control.lanes.get(lane, Lane.STATE) != LaneState.ATTACHED

    def _node(self, peer: int) -> Actor:
        """A peer, as this node knows it, and for how long it has been silent, if that is long."""
        record = self.control.peers.record(peer)
        side = "language" if self.control.role == Role.ENCODE else "encode"
        name = f"{side} node {record.node_id:x} at {record.bootstrap_addr}"
        heard_ns = self.control.peers.get(peer, Peer.HEARD_NS)
        silent_ns = self.now_ns - heard_ns
        if silent_ns > PEER_SILENT_NS:
            return Actor(name, 0, f"nothing was heard of it for {silent_ns / NS:.1f} s", heard_ns)
        return Actor(name)

    def _writer(self, writer: WriterId) -> tuple[Actor, bool]:
        """The process that a claim names, and whether it is dead: a client of the encode node."""
        pid = self.control.writers.pid_of(writer)
        if pid is None:
            return Actor("direct writer"), True
        condition = condition_of(pid) if self._sees_pids else ""
        return Actor("direct writer", pid, condition), condition == DEAD

    @cached_property
    def blocks(self) -> BlockCounts:
        return self.control.blocks.counts()

    @cached_property
    def holders(self) -> list[tuple[int, int]]:
        """(slot, blocks) of the requests that hold blocks, those with most first."""
        found = Counter(cell >> 2 & 0xFFFF for cell in self._cells if cell & 3 != FREE)
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))

    @cached_property
    def quarantined(self) -> dict[int, int]:
        """How many blocks of each slot are in quarantine."""
        if not self.blocks.quarantined:
            return {}
        return Counter(cell >> 2 & 0xFFFF for cell in self._cells if cell & 3 == QUARANTINED)

    @property
    def _cells(self) -> list[int]:
        at = self.control.layout
        return Words(self.control.mapping, at.cells, at.num_blocks).load_many(0, at.num_blocks)

    @cached_property
    def quarantine(self) -> list[tuple[dict[str, Any], int]]:
        """The quarantined blocks, by what ends their quarantine, and the worker whose end that is (-1: none)."""
        if self.control.role != Role.LANGUAGE or not self.blocks.quarantined:
            return []
        found = []
        for word, blocks in self.control.sessions.quarantined().items():
            worker, number = of_exposure(word)
            if word == SHM_EXPOSURE:
                session = "shared memory"
                ends = "the abort's acknowledgement and the claim's end, or the writers' death"
            else:
                is_over = number < self.control.sessions.number(worker)
                session = f"session {number} of worker{worker}"
                ends = "the poller's next look: that session is over" if is_over else f"a fence of worker{worker}"
            found.append(({"session": session, "blocks": len(blocks), "ends_with": ends}, worker))
        return sorted(found, key=lambda entry: -int(entry[0]["blocks"]))


def view_of(scene: Scene, slot: int) -> EncodeView | LanguageView:
    """The view of one request: its words, and those about its processes. They may change while they are read."""
    control = scene.control
    get = control.slots.get
    word, stamps = split(control.status.load(slot)), control.status.stamps(slot)
    opened_ns, lane = get(slot, Slot.OPENED_NS), get(slot, Slot.LANE)
    # Who holds blocks is of interest where none is free, and a look at all of them.
    others = [] if scene.blocks.free else [pair for pair in scene.holders[: MANY_HOLDERS + 1] if pair[0] != slot]
    common: dict[str, Any] = {
        "now_ns": scene.now_ns,
        "room": get(slot, Slot.ROOM),
        "phase": word.phase,
        "sent": word.sent,
        "total": get(slot, Slot.TOTAL),
        "opened_ns": opened_ns,
        "deadline_ns": get(slot, Slot.DEADLINE_NS),
        "moved_ns": max(opened_ns, get(slot, Slot.MOVED_NS), *stamps),
        "ended_ns": max(stamps[TERMINAL:]),
        "has_failure": bool(get(slot, Slot.FAILURE) or get(slot, Slot.FAILURE_CLAIMED)),
        "failure": control.slots.reason(slot),
        "is_cleared": get(slot, Slot.CLEARED_EPOCH) == word.epoch,
        "is_client_gone": scene.is_client_gone(lane),
        "is_untold": control.slots.is_untold(slot, word.epoch),
        "waits_for_block": lane in scene.waiters,
        "free_blocks": scene.blocks.free,
        "client": scene.client(lane),
        "bootstrap": scene.process("bootstrap"),
        "poller": scene.process("poller"),
        "worker": scene.process(f"worker{control.worker_of(get(slot, Slot.ROOM))}"),
    }
    if others:
        common["held"] = ", ".join(
            f"{blocks} held by room {get(other, Slot.ROOM)}" for other, blocks in others[:MANY_HOLDERS]
        )
    if control.role == Role.ENCODE:
        return _encode_view(scene, slot, word.epoch, common)
    common["holder"] = scene.client(get(others[0][0], Slot.LANE)) if others else common["client"]
    return _language_view(scene, slot, word.epoch, common)


def _encode_view(scene: Scene, slot: int, epoch: int, common: dict[str, Any]) -> EncodeView:
    get = scene.control.slots.get
    count = min(get(slot, Slot.NUM_DESTINATIONS), scene.control.limits.max_destinations)
    destinations = tuple(_destination_view(scene, slot, d) for d in range(count))
    return EncodeView(
        **common,
        ready=get(slot, Slot.READY),
        granted=min((d.granted for d in destinations), default=0),
        required=get(slot, Slot.REQUIRED),
        destinations=destinations,
        is_quiet=get(slot, Slot.QUIESCED_EPOCH) == epoch,
    )


def _destination_view(scene: Scene, slot: int, d: int) -> DestinationView:
    control = scene.control
    table, peers, bs = control.destinations, control.peers, control.geometry.block_size

    def get(field: Destination) -> int:
        return table.get(slot, d, field)

    peer, sent, granted = get(Destination.PEER) - 1, get(Destination.SENT), get(Destination.GRANTED_TOKENS)
    if peer < 0:
        return DestinationView(node=Actor("language node"), sent=sent, granted=granted)
    is_lost = not peers.is_alive(peer) or any(
        peers.get(peer, known) != get(field)
        for known, field in ((Peer.INCARNATION, Destination.INCARNATION), (Peer.REGISTRATION, Destination.REGISTRATION))
    )
    session = table.grant(slot, d, sent // bs)[1] if sent < granted else 0
    return DestinationView(
        node=scene.node(peer),
        is_lost=is_lost,
        sent=sent,
        granted=granted,
        issued=get(Destination.ISSUED),
        staged=_staged(control, slot, sent, min(granted, control.slots.get(slot, Slot.READY))),
        is_fenced=sent < granted
        and engines.has_sessions(peers.get(peer, Peer.ENGINE))
        and session != get(Destination.SESSION),
        failing_ns=get(Destination.FAILING_NS),
        is_closed=bool(get(Destination.CLOSED)),
        written_by=WrittenBy(get(Destination.WRITTEN_BY))
        if control.slots.get(slot, Slot.MAY_WRITE)
        else WrittenBy.WORKER,
    )


def _staged(control: Control, slot: int, sent: int, limit: int) -> int:
    """The row to which source blocks hold, without a gap, what can move from `sent` on."""
    if control.is_fetch(slot, control.slots.get(slot, Slot.EPOCH)):
        return max(limit, sent)  # they lie on the shelf
    bs, end = control.geometry.block_size, sent
    for k in range(sent // bs, -(-limit // bs)):
        entry = StageEntry.of(control.staging.load(slot, k))
        if entry.state not in (STAGE_STAGED, STAGE_READING) or entry.block != k or k * bs + entry.rows <= end:
            break
        end = min(limit, k * bs + entry.rows)
    return end


def _language_view(scene: Scene, slot: int, epoch: int, common: dict[str, Any]) -> LanguageView:
    control = scene.control
    get, peers = control.slots.get, control.peers
    peer = get(slot, Slot.PEER) - 1
    blocks, granted = control.slots.granted(slot)
    fencing = scene.quarantine[0][1] if scene.quarantine else -1
    over_network = peer >= 0 and engines.has_sessions(peers.get(peer, Peer.ENGINE))
    unreachable = peer < 0 and get(slot, Slot.FAILURE) in (FailureCode.UNREACHABLE, FailureCode.REFUSED)
    claim = control.claims.get(slot)
    is_held = claim.epoch == epoch and claim.state in HELD
    writer, is_writer_gone = scene.writer(claim.writer) if is_held else (NOBODY, False)
    sent = common["sent"]  # rows that were written directly are ahead of what the encode node tells
    return LanguageView(
        **common,
        ready=max(get(slot, Slot.PEER_READY), sent),
        granted=granted,
        required=max(get(slot, Slot.REQUIRED), 1),
        other=scene.node(peer) if peer >= 0 else Actor(f"encode node at {control.slots.address(slot)}"),
        has_peer=peer >= 0,
        is_peer_lost=peer >= 0 and not peers.is_alive(peer),
        has_asked=bool(get(slot, Slot.INIT_ASKED)),
        has_engine=not over_network or control.sessions.number(control.worker_of(get(slot, Slot.ROOM))) > 0,
        is_contacted=get(slot, Slot.CONTACTED_EPOCH) == epoch,
        is_heard=get(slot, Slot.HEARD_EPOCH) == epoch or sent > 0,
        is_whole=is_whole(control.status.load(slot)),
        is_acked=get(slot, Slot.ACKED_EPOCH) == epoch or unreachable,
        block_size=control.geometry.block_size,
        granted_blocks=blocks,
        known_blocks=max(get(slot, Slot.KNOWN_BLOCKS), -(-sent // control.geometry.block_size)),
        drained_blocks=get(slot, Slot.DRAINED_BLOCKS),
        is_lent=control.slots.is_lent(slot),
        quarantined_blocks=scene.blocks.quarantined,
        fence=", ".join(str(entry["session"]) for entry, _ in scene.quarantine),
        fencing=scene.process(f"worker{fencing}") if fencing >= 0 else scene.process("poller"),
        launcher=scene.process("launcher"),
        claim=claim.state if claim.epoch == epoch else ClaimState.SHUT,
        writer=writer,
        is_writer_gone=is_writer_gone,
        own_quarantined_blocks=scene.quarantined.get(slot, 0),
    )
