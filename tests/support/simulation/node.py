"""One node: its segments, its processes, what its launcher does, and what must hold of its shared memory."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.allocator._core import Mapping
from embridge.allocator.blocks import QUARANTINED
from embridge.allocator.buffers import PayloadBuffers, aux_offset, pools
from embridge.allocator.claims import HELD, Claim, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.drawing import control_spans
from embridge.allocator.geometry import AUX_WORDS, Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.records import CLAIM_WORDS, POSTS_A_SLOT, Destination, NodeState, SegmentHeader, Slot
from embridge.allocator.sessions import NO_SESSION, LiveSession
from embridge.allocator.shelf import shelf_size
from embridge.allocator.status import TERMINAL, is_whole, split
from embridge.pipeline.client.client import Client
from embridge.pipeline.node.recovery import Recovery
from embridge.workers.role import Addresses
from support.simulation.engine import SimulatedEngine
from support.simulation.processes import Actor, ClientActor, RoleActor
from support.simulation.settings import LIMITS, ROWS_A_ROOM

if TYPE_CHECKING:
    from support.simulation.world import World

CHECKED_TABLES = ("claims", "words", "slots", "destinations", "cells", "writers")
"""What `SimulatedNode.check` and `SimulatedNode.check_blocks` look at."""


def segment(size: int, *, alignment: int = 4096) -> Mapping:
    """Shared memory of this process alone."""
    return _segment(size, (0, size), alignment=alignment)[0]


def _segment(size: int, *parts: tuple[int, int], alignment: int = 4096) -> list[Mapping]:
    """Shared memory of this process alone; each part (offset, bytes) of it mapped for itself."""
    fd = os.memfd_create("embridge-simulation")
    try:
        os.ftruncate(fd, size)
        return [Mapping(fd, length, offset=offset, alignment=alignment) for offset, length in parts]
    finally:
        os.close(fd)


class SimulatedNode:
    """One node: its segments, its roles, its clients, and the little that its launcher does."""

    def __init__(
        self,
        world: World,
        name: str,
        role: Role,
        geometry: Geometry,
        *,
        node_id: int,
        incarnation: int = 1,
        limits: Limits = LIMITS,
        settings: dict[str, int] | None = None,
        key: str = "",
    ) -> None:
        self.key = key  # what its connections prove
        self.graves: list[object] = []  # roles that have died
        self.world = world
        self.name = name
        self.may_leak = False  # a test takes a block on purpose
        self.is_backlog_full = False  # nobody is let in who knocks at its run socket
        self.geometry = geometry
        self.settings = settings or {"host_buffer_bytes": 1 << 30, "default_allocate_tokens": 4 * geometry.block_size}
        layout = ControlLayout.of(role, geometry, limits)
        self.control_map, self.writers_part = _segment(layout.size, (0, layout.size), layout.writers_part)
        self.payload = segment(PayloadLayout.of(geometry).size)
        has_shelf = role == Role.ENCODE and limits.shelf_bytes > 0
        self.shelf = segment(shelf_size(limits)) if has_shelf else None
        format_control(
            self.control_map,
            role,
            geometry,
            limits,
            node_id=node_id,
            incarnation=incarnation,
            now_ns=world.now_ns,
            verify=world.verify,
        )
        self.control = Control(self.control_map)  # the launcher's and the test's own look
        self.control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
        host = ".".join(str(byte) for byte in (10, *zlib.crc32(name.encode()).to_bytes(4, "big")[1:]))
        self.addresses = {"bootstrap": f"tcp://{host}:1", "poller": f"tcp://{host}:2"}
        self.own_addresses = Addresses(self.addresses["bootstrap"], self.addresses["poller"], f"{name}.sock")
        self._recovery = Recovery(self.control, lambda: world.now_ns)
        self.clients: list[ClientActor] = []
        at = self.control.layout
        self._words = np.frombuffer(self.control_map, np.uint64, limits.num_slots, at.words)
        self._seen_words = self._words.copy()
        num_claims = limits.num_slots if role == Role.LANGUAGE else 0
        self._claims = np.frombuffer(self.control_map, np.uint64, num_claims * CLAIM_WORDS, at.claims)[::CLAIM_WORDS]
        self._posts = np.frombuffer(self.control_map, np.uint64, num_claims * POSTS_A_SLOT, at.posts)
        self._checked_tables = [
            memoryview(self.control_map)[span.offset : span.offset + span.size]
            for span in control_spans(at)
            if span.name in CHECKED_TABLES
        ]
        self._last_checked = b""
        self._pools = pools(geometry)
        self.make_engine: Callable[[], Any] = lambda: SimulatedEngine(self, late_writes=world.late_writes)
        self.make_writers: Callable[[], dict[int, Any]] = lambda: {world.engine.number: self.make_engine()}
        self._sessions: dict[int, int] = {}  # worker -> the session of its engine
        self.roles = [RoleActor(self, process) for process in self.control.processes.names[1:]]

    @property
    def actors(self) -> list[Actor]:
        return [*self.roles, *self.clients]

    def role(self, name: str) -> RoleActor:
        return next(actor for actor in self.roles if actor.role_name == name)

    def new_client(self) -> Client:
        actor = ClientActor(self, len(self.clients))
        self.clients.append(actor)
        self.world.actors_changed()
        return actor.client

    # ---- the launcher

    def bury_lane(self, lane: int) -> None:
        self._recovery.client_died(lane)

    def writer_gone(self, writer: WriterId) -> None:
        self._recovery.writer_died(writer)

    # ---- its network engines

    def begin_session(self, worker: int) -> LiveSession:
        """The engine of the process that is born now; that of the one before it died with it."""
        if not self.world.late_writes:
            return NO_SESSION
        number = self._sessions[worker] = self.control.sessions.next_number()
        return LiveSession(number, 10_000 + number, number << 32)

    def is_in_session(self, number: int) -> bool:
        return self in self.world.nodes and number in self._sessions.values()

    # ---- what must hold

    def check_if_changed(self) -> None:
        """All of `check` and `check_blocks`, unless every table that they look at is as it was found the last time."""
        tables = b"".join(self._checked_tables)
        if tables != self._last_checked:
            self.check()
            self.check_blocks()
            self._last_checked = tables

    def check(self) -> None:
        """P5, D12: words never decrease and terminal ones absorb.

        Every block that is not free belongs to an open request.
        """
        changed = np.nonzero(self._words != self._seen_words)[0]
        for slot in changed.tolist():
            before, word = int(self._seen_words[slot]), int(self._words[slot])
            old, new = split(before), split(word)
            assert word > before, f"{self.name}: slot {slot} went from {old} to {new}"
            is_still_whole = is_whole(word) or not is_whole(before) or new.epoch > old.epoch or new.phase >= TERMINAL
            assert is_still_whole, f"{self.name}: slot {slot} is whole at {old}, and not at {new}"
            assert new.epoch > old.epoch or old.phase < 3, f"{self.name}: slot {slot} left its end {old} for {new}"
            released = self.control.slots.get(slot, Slot.RELEASED_EPOCH)
            # a client that writes its last row may end a request and open the next one in one step
            assert new.epoch == old.epoch or old.epoch <= released, (
                f"{self.name}: slot {slot} reused before it was released"
            )
            self._seen_words[slot] = self._words[slot]
            self.world.note(f"{self.name} word {slot}: {new}{' whole' if is_whole(word) else ''}")
        if self.control.role == Role.ENCODE:
            self._check_watermarks()
        else:
            self._check_claims()

    def _check_watermarks(self) -> None:
        slots, destinations = self.control.slots, self.control_destinations
        for slot, _ in self.open_slots():
            ready = slots.get(slot, Slot.READY)
            for d in range(slots.get(slot, Slot.NUM_DESTINATIONS)):
                sent = destinations.get(slot, d, Destination.SENT)
                granted = destinations.get(slot, d, Destination.GRANTED_TOKENS)
                begin = destinations.get(slot, d, Destination.BEGIN)
                may = max(begin, min(ready, granted))
                assert begin <= sent <= may, (
                    f"{self.name}: slot {slot}.{d} begin {begin} sent {sent} ready {ready} granted {granted}"
                )

    def _check_claims(self) -> None:
        """R33: a claim is held by a process that is listed still."""
        for slot in np.nonzero(self._claims)[0].tolist():
            claim = Claim.of(int(self._claims[slot]))
            if claim.state in HELD:
                assert self.control.writers.pid_of(claim.writer) is not None, f"{self.name}: slot {slot}: {claim}"

    @functools.cached_property
    def control_destinations(self) -> Any:
        return self.control.destinations

    def check_blocks(self) -> None:
        """Conservation: the states add up, and what is not free is held by a request that has not been released."""
        self.control.blocks.check()
        for block in range(self.geometry.num_blocks):
            state, slot, epoch, _ = self.control.blocks.cells.cell(block)
            if state and not (state == QUARANTINED and self.world.late_writes):
                assert split(self.control.status.load(slot)).epoch == epoch, (
                    f"{self.name}: block {block} is of an older epoch"
                )
                released = self.control.slots.get(slot, Slot.RELEASED_EPOCH)
                assert released < epoch or self.may_leak, f"{self.name}: block {block} leaked by slot {slot}.{epoch}"

    def open_slots(self) -> Iterator[tuple[int, int]]:
        for slot in np.nonzero(self._words)[0].tolist():
            epoch = int(self._words[slot]) >> 36
            if self.control.is_open(slot, epoch):
                yield slot, epoch

    def num_posts(self) -> int:
        """How many grants and offers stand in its table (R37)."""
        return int(np.count_nonzero(self._posts))

    def write(self, to: int, data: bytes) -> None:
        """Bytes of another node land here."""
        for block in self._blocks_at(to, len(data)):
            self._check_write(block, to, data)
        np.frombuffer(self.payload, np.uint8, len(data), to)[:] = np.frombuffer(data, np.uint8)

    def damage(self, at: int) -> None:
        """A byte of the payload is not what was written."""
        self.world.num_damaged += 1
        self.world.note(f"{self.name} byte {at} is damaged")
        np.frombuffer(self.payload, np.uint8, 1, at)[:] ^= 1 << self.world.rng.randrange(8)

    def _check_write(self, block: int, to: int, data: bytes) -> None:
        """P7, B10, D2: they hit only a block that is exposed (or quarantined) for the very request whose rows
        they are.
        """
        state, slot, _, _ = self.control.blocks.cells.cell(block)
        if state == QUARANTINED and self.world.late_writes:
            return  # that is what it is for
        self.check_exposed(block)
        at = PayloadLayout.of(self.geometry)
        if at.ids <= to < at.aux:
            self._check_rows(slot, block, (to - at.ids) // 4, np.frombuffer(data, np.int32).tolist())

    def check_exposed(self, block: int) -> int:
        """P7, D2: a block may be written, exposed or quarantined. Returns the slot of its request."""
        state, slot, epoch, _ = self.control.blocks.cells.cell(block)
        assert state >= 2, f"{self.name}: a write hit block {block} in state {state}"
        assert split(self.control.status.load(slot)).epoch == epoch, (
            f"{self.name}: a write hit block {block} of an old epoch"
        )
        return int(slot)

    def check_landed(self, block: int, first: int, count: int) -> None:
        """Rows have landed in places [first, first + count) of a block."""
        ids = PayloadBuffers(self.payload, self.geometry).fill_ids[block, first : first + count]
        slot = self.control.blocks.cells.cell(block)[1]
        self._check_rows(slot, block, block * self.geometry.block_size + first, ids.tolist())

    def _blocks_at(self, to: int, size: int) -> Iterator[int]:
        aux = aux_offset(self.geometry, 0)
        if to >= aux:
            yield (to - aux) // (4 * AUX_WORDS)
            return
        pool = next(p for p in sorted(self._pools, key=lambda p: p.offset, reverse=True) if p.offset <= to)
        block_bytes = pool.row_bytes * self.geometry.block_size
        yield from range((to - pool.offset) // block_bytes, (to + size - 1 - pool.offset) // block_bytes + 1)

    def _check_rows(self, slot: int, block: int, first: int, ids: list[int]) -> None:
        """The ids say whose rows these are, and which: they belong exactly there."""
        room, bs = self.control.slots.get(slot, Slot.ROOM), self.geometry.block_size
        for place, value in enumerate(ids, first):
            if place // bs != block:
                continue
            assert value // ROWS_A_ROOM == room, (
                f"{self.name}: a row of room {value // ROWS_A_ROOM} in a block of room {room}"
            )
            row = value % ROWS_A_ROOM
            assert row % bs == place % bs, (
                f"{self.name}: row {row} of room {room} at place {place % bs} of block {block}"
            )
            held = self.control_windows.get(slot, row // bs)
            is_drained = row // bs < self.control.slots.get(slot, Slot.DRAINED_BLOCKS)  # only a late write comes then
            assert is_drained or held == block, (
                f"{self.name}: row {row} of room {room} in block {block}, its block is {held}"
            )

    @functools.cached_property
    def control_windows(self) -> Any:
        return self.control.windows

    def close(self) -> None:
        for client in self.clients:
            client.close()
