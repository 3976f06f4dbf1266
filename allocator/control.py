"""The control segment as one object: formatted once, checked by whoever attaches, and opened table by table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Mapping as MappingType
from dataclasses import fields
from functools import cached_property

from embridge.allocator import layout as lay
from embridge.allocator._core import Consumer, Doorbell, GrantPoster, Mapping, Producer, SlotLooks, Words, format_ring
from embridge.allocator.blocks import BlockPool
from embridge.allocator.claims import ClaimTable
from embridge.allocator.ends import Ends
from embridge.allocator.errors import SegmentError
from embridge.allocator.fetches import FetchTable
from embridge.allocator.geometry import (
    GEOMETRY_WORDS,
    SLOTS_PER_PAGE,
    Geometry,
    Limits,
    Role,
    pack,
    unpack_geometry,
    unpack_limits,
)
from embridge.allocator.lanebits import LaneBits
from embridge.allocator.lanes_and_processes import LaneTable, ProcessTable, WantedNodes, WriterTable
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.metrics import Metrics
from embridge.allocator.missed_items import MissedItems
from embridge.allocator.notices import NoticeTable
from embridge.allocator.opening import SlotOpener
from embridge.allocator.peertable import PeerTable
from embridge.allocator.posts import PostTable
from embridge.allocator.records import (
    CLAIM_WORDS,
    HEADER_WEB_BYTES,
    HEADER_WEB_OFFSET,
    MEETING_WORDS,
    NUM_VIEWS,
    POSTS_A_SLOT,
    RING_HEADER_BYTES,
    RING_REFUSED,
    SLOT_BYTES,
    NodeState,
    SegmentHeader,
)
from embridge.allocator.refused_nodes import RefusedNodes
from embridge.allocator.request_tables import DestinationTable, SlotTable, StagingTable, WindowTable
from embridge.allocator.rings import KickInbox, KickSender
from embridge.allocator.routes import RouteReader, RouteWriter
from embridge.allocator.sessions import SessionTable
from embridge.allocator.shelf import ShelfTable, begin_shelf
from embridge.allocator.status import StatusTable
from embridge.allocator.texts import packed, unpacked
from embridge.allocator.wanted import FinishedRooms, RoomCounts, WantedLog

_HEADER_WORDS = 64


def format_control(
    mapping: Mapping,
    role: Role,
    geometry: Geometry,
    limits: Limits,
    *,
    node_id: int,
    incarnation: int,
    now_ns: int,
    verify: bool = False,
    unsent_max_bytes: int = 1 << 30,
) -> None:
    """Write the header and empty rings into a fresh, zeroed control segment (launcher only). The magic comes last."""
    layout = ControlLayout.of(role, geometry, limits)
    for source, target in lay.ring_pairs(limits):
        format_ring(mapping, layout.ring(source, target), limits.ring_records)
    header = Words(mapping, layout.header, _HEADER_WORDS)
    words = {
        SegmentHeader.VERSION: lay.LAYOUT_VERSION,
        SegmentHeader.CONTROL_BYTES: layout.size,
        SegmentHeader.PAYLOAD_BYTES: PayloadLayout.of(geometry).size,
        SegmentHeader.NODE_ID: node_id,
        SegmentHeader.INCARNATION: incarnation,
        SegmentHeader.ROLE: role,
        SegmentHeader.STARTED_NS: now_ns,
        SegmentHeader.VERIFY: verify,
        SegmentHeader.UNSENT_MAX_BYTES: unsent_max_bytes,
    }
    for base, value in ((SegmentHeader.GEOMETRY, geometry), (SegmentHeader.LIMITS, limits)):
        assert isinstance(value, Geometry | Limits)
        for i, word in enumerate(pack(value)):
            header.store(base + i, word)
    for word_index, word in words.items():
        header.store(word_index, word)
    if layout.limits.shelf_entries and role == Role.ENCODE:
        begin_shelf(mapping, layout, incarnation)
    header.store(SegmentHeader.MAGIC, lay.MAGIC)


class Control:
    """All tables of one control segment. `event_fds` are the eventfds that this process was given, by doorbell name."""

    is_open: Callable[[int, int], bool]
    """is_open(slot, epoch): whether this epoch of a slot has not been released, whoever has it."""
    is_current: Callable[[int, int], bool]
    """is_current(slot, epoch): whether the node's processes have this epoch of a slot: its status word and record are
    both about it, it has not been released, and its client has told of it or is dead (R78).
    """
    is_live: Callable[[int, int], bool]
    """is_live(slot, epoch): whether a request is current and has not ended."""
    has_client: Callable[[int], bool]
    """has_client(slot): whether the client lives whose lane the slot's record names."""
    open_in: Callable[[int], list[tuple[int, int]]]
    """open_in(room): (slot, epoch) of the room's requests that are not released, whoever has them."""

    def __init__(self, mapping: Mapping, event_fds: MappingType[str, int] | None = None) -> None:
        self.mapping = mapping
        self.event_fds = dict(event_fds or {})
        if mapping.size < lay.PAGE_BYTES:
            raise SegmentError(f"control segment: {mapping.size} bytes < {lay.PAGE_BYTES} bytes of its header")
        self.header = Words(mapping, 0, _HEADER_WORDS)
        self._check()
        try:
            self.role = Role(self.header.load(SegmentHeader.ROLE))
            self.geometry = unpack_geometry(
                [self.header.load(SegmentHeader.GEOMETRY + i) for i in range(GEOMETRY_WORDS)]
            )
            limits = unpack_limits([self.header.load(SegmentHeader.LIMITS + i) for i in range(len(fields(Limits)))])
            NodeState(self.header.load(SegmentHeader.NODE_STATE))
        except ValueError as error:
            raise SegmentError(f"control segment: its header cannot be right: {error}; restart the node") from error
        self.layout = at = ControlLayout.of(self.role, self.geometry, limits)
        self.limits = at.limits
        if at.size > mapping.size:
            raise SegmentError(f"control segment: {mapping.size} bytes < {at.size} bytes that its header describes")
        payload_bytes, described = self.header.load(SegmentHeader.PAYLOAD_BYTES), PayloadLayout.of(self.geometry).size
        if payload_bytes != described:
            raise SegmentError(
                f"control segment: payload of {payload_bytes} bytes, its geometry makes {described}; restart the node"
            )
        self.node_id = self.header.load(SegmentHeader.NODE_ID)
        self.incarnation = self.header.load(SegmentHeader.INCARNATION)
        self.verify = self.header.load(SegmentHeader.VERIFY) == 1
        self._may_fetch = self.role == Role.LANGUAGE or self.has_shelf
        self.status = StatusTable(mapping, at.words, at.stamps, at.dirty, self.limits.num_slots, NUM_VIEWS)
        self.slots = SlotTable(mapping, at)
        self.blocks = BlockPool(mapping, at)
        self.processes = ProcessTable(mapping, at)
        self.lanes = LaneTable(mapping, at)
        self.writers = WriterTable(mapping, at)
        self.peers = PeerTable(mapping, at)
        self.metrics = Metrics(mapping, at)
        self.ends = Ends(mapping, at, self.status)
        self.slot_waiters = LaneBits(mapping, at, SegmentHeader.SLOT_WAITERS)
        self.room_waiters = LaneBits(mapping, at, SegmentHeader.ROOM_WAITERS)
        looks = SlotLooks(self.status, self.slots.words, self.lanes.words, self.lanes.pages)
        self.is_open, self.is_current, self.is_live = looks.is_open, looks.is_current, looks.is_live
        self.open_in, self.has_client = looks.open_in, looks.has_client
        self._bells: dict[str, Doorbell] = {}
        self._lane_bells: dict[int, tuple[Doorbell, Doorbell]] = {}
        self._library_bells: dict[int, Doorbell] = {}

    def close(self) -> None:
        """Let go of the memory, and of the copies of eventfds that its doorbells keep.

        What was taken from here before reads as zeroes from now on.
        """
        for bells in (self._bells, self._lane_bells, self._library_bells):
            bells.clear()
        self.mapping.discard()

    def _check(self) -> None:
        magic, version = self.header.load(SegmentHeader.MAGIC), self.header.load(SegmentHeader.VERSION)
        if magic != lay.MAGIC:
            raise SegmentError(f"control segment: magic {magic:#x} is not {lay.MAGIC:#x}; this is no embridge segment")
        if version != lay.LAYOUT_VERSION:
            raise SegmentError(
                f"control segment: layout version {version}, this process speaks {lay.LAYOUT_VERSION}; "
                "run the same embridge version in the node and in its clients"
            )
        if self.header.load(SegmentHeader.CONTROL_BYTES) > self.mapping.size:
            raise SegmentError(f"control segment: {self.mapping.size} bytes mapped, its header says more")

    @cached_property
    def shelf(self) -> ShelfTable:
        """Published items (encode side, with `shelf_bytes`)."""
        assert self.has_shelf
        return ShelfTable(self.mapping, self.layout)

    @cached_property
    def fetches(self) -> FetchTable:
        """The published items that requests fetch (language side, or with a shelf)."""
        assert self.role == Role.LANGUAGE or self.has_shelf
        return FetchTable(self.mapping, self.layout)

    def is_fetch(self, slot: int, epoch: int) -> bool:
        """Whether a request fetches a published item; one that is open."""
        return self._may_fetch and self.fetches.has(slot, epoch)

    @property
    def has_shelf(self) -> bool:
        """Whether this node has a shelf: only an encode node that is told its size."""
        return self.role == Role.ENCODE and self.limits.shelf_bytes > 0

    @property
    def opener(self) -> SlotOpener:
        return SlotOpener(self.mapping, self.layout, self.status)

    @cached_property
    def destinations(self) -> DestinationTable:
        assert self.role == Role.ENCODE
        return DestinationTable(self.mapping, self.layout)

    @property
    def staging(self) -> StagingTable:
        assert self.role == Role.ENCODE
        return StagingTable(self.mapping, self.layout)

    @property
    def wanted(self) -> WantedLog:
        assert self.role == Role.ENCODE
        return WantedLog(self.mapping, self.layout)

    @cached_property
    def claims(self) -> ClaimTable:
        assert self.role == Role.LANGUAGE
        return ClaimTable(self.mapping, self.layout.claims, self.limits.num_slots)

    @property
    def asked(self) -> RoomCounts:
        """Grants that wait in the bootstrap for an encoder."""
        assert self.role == Role.ENCODE
        return RoomCounts(self.mapping, self.layout.asked, self.limits.num_slots)

    @property
    def untold(self) -> RoomCounts:
        """Requests of encoders of which the node's processes were not told."""
        assert self.role == Role.ENCODE
        return RoomCounts(self.mapping, self.layout.untold, self.limits.num_slots)

    @property
    def finished(self) -> FinishedRooms:
        """Rooms of such requests that have succeeded."""
        assert self.role == Role.ENCODE
        return FinishedRooms(self.mapping, self.layout.finished, self.limits.num_slots)

    @cached_property
    def posts(self) -> PostTable:
        assert self.role == Role.LANGUAGE
        return PostTable(self.mapping, self.layout.posts, self.layout.meetings, self.limits.num_slots)

    @cached_property
    def poster(self) -> GrantPoster:
        """Posts grants for one of its clients, of which this is the view; native, for their order is what R30, R37 and
        R78 ask for, and the client may die between any two steps.
        """
        assert self.role == Role.LANGUAGE
        at, mapping, count = self.layout, self.mapping, self.limits.num_slots
        return GrantPoster(
            status=self.status,
            cells=self.blocks.cells,
            slots=Words(mapping, at.slots, count * SLOT_BYTES // 8),
            windows=Words(mapping, at.windows, count * at.own_window),
            claims=Words(mapping, at.claims, count * CLAIM_WORDS),
            meetings=Words(mapping, at.meetings, count * MEETING_WORDS),
            posts=Words(mapping, at.posts, count * POSTS_A_SLOT),
            slot_words=SLOT_BYTES // 8,
            window_blocks=at.own_window,
        )

    @property
    def windows(self) -> WindowTable:
        assert self.role == Role.LANGUAGE
        return WindowTable(self.mapping, self.layout)

    @property
    def wanted_nodes(self) -> WantedNodes:
        assert self.role == Role.LANGUAGE
        return WantedNodes(self.mapping, self.layout)

    def notices(self, lane: int) -> NoticeTable:
        """What the client of a lane hears of items that it follows."""
        assert self.role == Role.LANGUAGE
        return NoticeTable(self.mapping, self.layout, lane)

    @property
    def missed_items(self) -> MissedItems:
        assert self.has_shelf
        return MissedItems(self.mapping, self.layout)

    @property
    def refused_nodes(self) -> RefusedNodes:
        assert self.role == Role.LANGUAGE
        return RefusedNodes(self.mapping, self.layout)

    @property
    def has_discovery(self) -> bool:
        """Whether this node has a registrar, and so a route table."""
        return self.limits.max_routes > 0

    @property
    def routes(self) -> RouteReader:
        assert self.has_discovery
        return RouteReader(self.mapping, self.layout)

    @property
    def route_writer(self) -> RouteWriter:
        """The writer of the route table, for the registrar alone."""
        assert self.has_discovery
        return RouteWriter(self.mapping, self.layout)

    @property
    def web_addr(self) -> str:
        """Where the node's HTTP port is, as `http://address:port`; empty: it has none."""
        return unpacked(bytes(self._web_text))

    @web_addr.setter
    def web_addr(self, address: str) -> None:
        self._web_text[:] = packed(address, HEADER_WEB_BYTES)

    @property
    def _web_text(self) -> memoryview[int]:
        return memoryview(self.mapping)[HEADER_WEB_OFFSET : HEADER_WEB_OFFSET + HEADER_WEB_BYTES]

    @property
    def state(self) -> NodeState:
        return NodeState(self.header.load(SegmentHeader.NODE_STATE))

    @property
    def is_ending(self) -> bool:
        """Whether the node takes nothing new, or has ended; one load."""
        return self.header.load(SegmentHeader.NODE_STATE) >= NodeState.DRAINING

    @property
    def is_sound(self) -> bool:
        """Whether the node is READY, and none of its processes is failing; two loads."""
        load = self.header.load
        return load(SegmentHeader.NODE_STATE) == NodeState.READY and not load(SegmentHeader.FAILING)

    def failing(self) -> list[str]:
        """The names of the processes that cannot be kept alive; one load while there are none."""
        word = self.header.load(SegmentHeader.FAILING)
        return [name for index, name in enumerate(self.processes.names) if word >> index & 1] if word else []

    def current_slots(self) -> Iterator[tuple[int, int]]:
        """(slot, epoch) of all that the node's processes have: the slow look, after a restart and on a timer."""
        return self._slots_that(self.is_current)

    def open_slots(self) -> Iterator[tuple[int, int]]:
        """(slot, epoch) of every slot that is not released, also of those that only their clients have."""
        return self._slots_that(self.is_open)

    def _slots_that(self, is_meant: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
        for page in range(self.lanes.num_pages):
            if self.lanes.page_lane(page) is None:
                continue
            for slot in range(page * SLOTS_PER_PAGE, (page + 1) * SLOTS_PER_PAGE):
                epoch = self.status.epoch(slot)
                if epoch and is_meant(slot, epoch):
                    yield slot, epoch

    @property
    def sessions(self) -> SessionTable:
        assert self.role == Role.LANGUAGE
        return SessionTable(self.mapping, self.layout)

    def bell(self, name: str) -> Doorbell:
        """The doorbell of a process, a lane or a lane's library thread, by name."""
        if name not in self._bells:
            self._bells[name] = Doorbell(self.mapping, self.layout.doorbell(name), self.event_fds.get(name, -1))
        return self._bells[name]

    def sender(self, source: str, target: str) -> KickSender:
        return KickSender(Producer(self.mapping, self.layout.ring(source, target)), self.bell(target))

    def num_refused(self, source: str) -> int:
        """How often a ring of this process or lane had no room for a kick, which then had to wait."""
        pairs = [pair for pair in lay.ring_pairs(self.limits) if pair[0] == source]
        words = RING_HEADER_BYTES // 8
        return sum(Words(self.mapping, self.layout.ring(*pair), words).load(RING_REFUSED) for pair in pairs)

    def inbox(self, target: str) -> KickInbox:
        pairs = lay.ring_pairs(self.limits)
        return KickInbox(
            {s: Consumer(self.mapping, self.layout.ring(s, t)) for s, t in pairs if t == target},
        )

    def ring_lane(self, lane: int) -> None:
        """Wake both the user and the library thread of a lane."""
        for bell in self._bells_of(lane):
            bell.ring()

    def ring_client(self, lane: int) -> None:
        """Wake whoever of a lane goes on with a request that has succeeded (language side)."""
        caller, library = self._bells_of(lane)
        caller.ring_client(library)

    def _bells_of(self, lane: int) -> tuple[Doorbell, Doorbell]:
        bells = self._lane_bells.get(lane)
        if bells is None:
            bells = self._lane_bells[lane] = self.bell(f"lane{lane}"), self.bell(f"library{lane}")
        return bells

    def ring_library(self, lane: int) -> None:
        """Wake the library thread of a lane."""
        bell = self._library_bells.get(lane)
        if bell is None:
            bell = self._library_bells[lane] = self.bell(f"library{lane}")
        bell.ring()

    def ring_block_waiters(self) -> None:
        """Wake the library threads that wait for a block, because blocks came free."""
        for lane in self.blocks.waiters():
            self.ring_library(lane)

    def ring_libraries(self) -> None:
        """Wake the library threads of all clients that hold slots."""
        for lane in {lane for page in range(self.lanes.num_pages) if (lane := self.lanes.page_lane(page)) is not None}:
            self.ring_library(lane)

    def ring_slot_waiters(self) -> None:
        """Wake the library threads that wait for a slot, because slots came free."""
        for lane in self.slot_waiters.lanes():
            self.ring_library(lane)

    def worker_of(self, room: int) -> int:
        """The transfer worker of a room; sharding is by room, so a pair of nodes uses all workers (D18)."""
        return room % self.limits.num_workers
