"""Every offset, size and alignment of the two segments: a map one can draw, and no logic.

    control segment, with the role that alone has a table
    ┌─────────────────────────────────────────────────────────────────────────────────┐
    │ header                  magic, version, size, identity, geometry, limits, state │
    │ processes               pid, beat, state, restarts of each process              │
    │ doorbells               a line for whoever can be woken                         │
    │ lanes                   a seat for a client                                     │
    │ pages                   which lane leases a page of 64 slots                    │
    │ words                   a status word a slot                                    │
    │ stamps                  when it first entered each phase                        │
    │ dirty                   a bit a slot and view: the word has changed             │
    │ slots                   a record a slot                                         │
    │ destinations  encode    watermarks of each destination of a slot                │
    │ grants        encode    blocks granted by the destinations of a slot            │
    │ staging       encode    source blocks that cache rows of a slot                 │
    │ wanted        encode    rooms that somebody has asked for                       │
    │ windows       language  blocks granted for a slot                               │
    │ sessions      language  the engine of each worker                               │
    │ ports         language  a bit a port that an engine had                         │
    │ cells                   the owner of each block                                 │
    │ exposure                the session that may write into each block              │
    │ peers                   other nodes                                             │
    │ tombstones    encode    the highest epoch of each slot of each peer             │
    │ writers                 processes of other nodes that map the payload           │
    │ routes                  the registrar's record; nodes that discovery tells of   │
    │ metrics                 a row of counters a process                             │
    │ rings                   one from each process or lane to each that it kicks     │
    └─────────────────────────────────────────────────────────────────────────────────┘

    payload segment, with what each pool begins on
    ┌────────────────────────────────────────────────────────────────────────┐
    │ embeddings  2 MiB   input_embeddings [block][token][hidden]            │
    │ deepstack   2 MiB   deepstack_embeddings [block][token][layer][hidden] │
    │ positions   a page  mrope_positions [block][token][3] int32            │
    │ ids         a page  fill_ids [block][token] int32                      │
    │ aux         a page  aux_datas [block][16] int32                        │
    └────────────────────────────────────────────────────────────────────────┘

`allocator.drawing` draws this, and a test compares them. A table begins on a line of 64 bytes, the rings on a page.

Every word is 64 bits, little-endian, and has one writer (or is moved by CAS); `docs/architecture.md` says who. A
process that attaches checks `MAGIC`, `LAYOUT_VERSION` and the size before it trusts any offset.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = 0x31454744_4952424D  # "MBRIDGE1"
LAYOUT_VERSION: Final = 5
LINE_BYTES: Final = 64
PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20
SLOTS_PER_PAGE: Final = 64  # one word of a dirty bitmap
AUX_WORDS: Final = 16  # int32 a request: [0] total length, [1] mrope_position_delta
POSITION_AXES: Final = 3
DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}

NUM_VIEWS: Final = 2
USER_VIEW: Final = 0  # dirty bits that `client.poll()` takes
LIBRARY_VIEW: Final = 1  # dirty bits that the client's library thread takes


class Role(IntEnum):
    """Which side of the transfer a node is."""

    ENCODE = 0
    LANGUAGE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The shape of one node's blocks. Two nodes that exchange rows agree on all of it but `num_blocks`.

    `hidden_size` elements of `dtype` a token; `deepstack_layers` more rows of that size a token (0: none; Qwen3-VL: 3).
    `num_blocks`: 0 leaves it to the launcher (`pipeline.sizing`), which chooses one before anything is laid out.
    """

    hidden_size: int = 3584
    block_size: int = 128
    num_blocks: int = 0
    dtype: str = "bfloat16"
    deepstack_layers: int = 0

    def __post_init__(self) -> None:
        limits = {
            "hidden_size": (1, 1 << 20),
            "block_size": (1, MAX_BLOCK_SIZE),
            "num_blocks": (0, MAX_BLOCKS),
            "deepstack_layers": (0, 64),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is outside {low} to {high}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype: {self.dtype!r} is unknown; use one of {', '.join(DTYPE_BYTES)}")

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one token's row of `input_embeddings`."""
        return self.hidden_size * DTYPE_BYTES[self.dtype]

    @property
    def deepstack_bytes(self) -> int:
        """Bytes of one token's deepstack rows; 0 where the model has none."""
        return self.embedding_bytes * self.deepstack_layers

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all per-token buffers together."""
        return self.embedding_bytes + self.deepstack_bytes + 4 + 4 * POSITION_AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of everything a node holds; fixed when it is launched.

    `num_slots`: requests in flight; others wait. In pages of 64: half of the pages of an encode node, rounded down, are for rooms that
    nobody has asked for yet, so with a single page an encoder's room has a slot only once it was asked for.
    `window_blocks`: the most blocks that one request may hold at one time, at all its destinations together.
    `ring_records`: what is on its way from one process to another. A full ring costs no kick: its producer keeps what
    did not fit, and looks again within a millisecond or two; 256 are what a consumer takes at a time.
    `max_routes`: nodes of the other role that discovery may tell of; 0: no discovery, so no route table and no registrar.
    """

    num_slots: int = 2048
    max_clients: int = 16
    num_workers: int = 2
    max_destinations: int = 4
    window_blocks: int = 128
    max_peers: int = 32
    max_peer_slots: int = 2048
    ring_records: int = 256
    max_routes: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "num_slots": (SLOTS_PER_PAGE, 1 << 16),
            "max_clients": (1, 64),
            "num_workers": (1, 16),
            "max_destinations": (1, 64),
            "window_blocks": (1, 4096),
            "max_peers": (1, 256),
            "max_peer_slots": (SLOTS_PER_PAGE, 1 << 16),
            "ring_records": (16, 1 << 20),
            "max_routes": (0, 1024),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is outside {low} to {high}")
        if self.num_slots % SLOTS_PER_PAGE:
            raise ValueError(f"num_slots: {self.num_slots} is no multiple of {SLOTS_PER_PAGE}")
        if self.ring_records & (self.ring_records - 1):
            raise ValueError(f"ring_records: {self.ring_records} is no power of two")
        if self.window_blocks < self.max_destinations:
            raise ValueError(
                f"window_blocks: {self.window_blocks} < max_destinations {self.max_destinations}, which share it"
            )


MAX_BLOCK_SIZE: Final = (1 << 14) - 1  # rows in a staging entry
MAX_BLOCKS: Final = (1 << 24) - 1  # block index in a staging entry
MAX_TOKENS: Final = (1 << 32) - 1  # `sent` in a status word


class Header(IntEnum):
    """Words of the header."""

    MAGIC = 0
    VERSION = 1
    CONTROL_BYTES = 2
    PAYLOAD_BYTES = 3
    NODE_ID = 4
    INCARNATION = 5
    ROLE = 6
    NODE_STATE = 7
    LAST_SESSION = 8  # language: the highest session number given to an engine (add)
    BLOCK_WAITERS = 9  # bit a lane that waits for a block
    LAUNCHER_PID = 10
    STARTED_NS = 11
    LOCKED = 12  # what pinning took effect: 0 not tried, 1 locked, else errno << 8 | 1
    FAILING = 13  # launcher: bit a process (as in the table) that cannot be kept alive
    VERIFY = 14  # 1: rows are checked on receipt
    UNSENT_MAX_BYTES = 15  # encode: of all clients together
    GEOMETRY = 16
    SLOT_WAITERS = 24  # bit a lane that finds no slot
    ROOM_WAITERS = 25  # encode: bit a lane whose calls wait for a slot; it reads the log of wanted rooms
    LIMITS = 32


class NodeState(IntEnum):
    """`Header.NODE_STATE`; only rises."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPED = 3


class Process(IntEnum):
    """Words of one entry of the process table; the launcher writes them, but for what the comments say."""

    PID = 0
    BEAT_NS = 1  # that process; before it is READY the launcher, for it
    STATE = 2  # that process; 0 by the launcher before it is born
    STARTED_NS = 3
    NUM_RESTARTS = 4
    LAST_EXIT = 5  # its exit status, or minus the signal, as 32 bits
    NUM_SILENT = 6  # how often it was killed because it did not beat


class Lane(IntEnum):
    """Words of one lane: the seat of a client. The launcher writes them, but for those that say otherwise."""

    STATE = 0
    NUM_WAITING = 1  # the client: its requests that wait for a slot
    PID = 2
    ATTACHED_NS = 3
    BEAT_NS = 4  # the client's library thread, each turn; 0: it has taken none
    PINNED = 5  # the client: from now on a device may copy between its memory and our payload
    LEFT = 6  # the client: it leaves of its own accord
    UNSENT_BYTES = 7  # encode, the client: host memory with rows that wait to be sent
    NUM_EARLY = 8  # encode: the client, pages in which it opens slots before anybody has asked for their rooms; the poller at the end


class LaneState(IntEnum):
    """`Lane.STATE`."""

    FREE = 0
    ATTACHED = 1
    DEAD = 2  # its slots are being reaped


class Slot(IntEnum):
    """Words of a slot's record; the comment names who writes.

    All but `RELEASED_EPOCH` are reset by the client before it opens the epoch.
    """

    ROOM = 0  # client
    EPOCH = 1  # client: the epoch this record is about
    LANE = 2  # client
    TOTAL = 3  # encode: client, language: poller, or the client before it opens a retry; once; 0 unknown
    OPENED_NS = 4  # client
    DEADLINE_NS = 5  # client
    READY = 6  # encode: client
    REQUIRED = 7  # encode: bootstrap, language: client
    CLEARED_EPOCH = 9  # client: it needs nothing of this epoch any more
    RELEASED_EPOCH = 10  # bootstrap: nobody touches this epoch any more
    FAILURE = 11  # the code of the failure, written after its reason by whoever has `FAILURE_CLAIMED`
    PEER = 12  # language: bootstrap, index of the encode node + 1 once the handshake is done
    GRANTED = 13  # language: client, `blocks:32 | tokens:32` in one word
    FAILURE_CLAIMED = 14  # CAS: who finds the failure first says why
    DRAINED_BLOCKS = 15  # language: client
    MOVED_NS = 16  # CAS, whoever moves a watermark: when one moved last; only `embridge status` reads it
    KNOWN_BLOCKS = 17  # language: poller, how much of the grant the encode side has said it knows
    PEER_READY = 18  # language: poller, rows that the encode side has ready
    TAINTED = 19  # language: poller, tainted session + 1 (R6, R7)
    NUM_DESTINATIONS = 20  # encode: bootstrap
    QUIESCED_EPOCH = 21  # encode: worker, no attempt of this epoch can read or write any more
    CONTACTED_EPOCH = 22  # language: bootstrap, before the first grant or abort leaves
    ACKED_EPOCH = 23  # language: poller, the abort was acknowledged, or nobody is left who could write
    NUM_ROUNDS = 24  # language: client
    HEARD_EPOCH = 25  # language: poller, the encode side has answered for this epoch
    INIT_ASKED = 26  # language: client, it has called init, if only with no blocks
    SESSION = 27  # language: bootstrap, the latest session under which a grant left; 0: through shared memory only
    VERIFIED = 28  # language: poller (client: before it opens a retry), `tokens:32 | checksum:32` of the rows that were checked (R27)


SLOT_WORDS: Final = 32
REASON_OFFSET: Final = 8 * SLOT_WORDS
REASON_BYTES: Final = 128
AUX_OFFSET: Final = REASON_OFFSET + REASON_BYTES
ADDRESS_OFFSET: Final = AUX_OFFSET + 4 * AUX_WORDS
ADDRESS_BYTES: Final = 128
SLOT_BYTES: Final = ADDRESS_OFFSET + ADDRESS_BYTES


class Destination(IntEnum):
    """Words of one destination of a slot, on the encode side; the comment names who writes."""

    PEER = 0  # bootstrap: index of the language node + 1
    INCARNATION = 1  # bootstrap: of that node
    REMOTE_SLOT = 2  # bootstrap
    REMOTE_EPOCH = 3  # bootstrap
    GRANTED_TOKENS = 4  # bootstrap: rows that may be written, contiguous from 0
    GRANTED_BLOCKS = 5  # bootstrap: blocks known, contiguous from 0
    FIRST_GRANT = 6  # bootstrap: tokens of the first grant that had blocks
    SENT = 7  # worker; first the bootstrap, where the destination begins, before anybody can see it
    ISSUED = 8  # worker: upper end of the attempt under way (R6)
    TAINTED = 9  # worker: session + 1 whose attempt ended other than done (R6)
    CLOSED = 10  # poller: the destination has acknowledged the end
    ATTEMPT_SESSION = 12  # worker
    REGISTRATION = 13  # bootstrap: under which that node had registered
    SESSION = 14  # bootstrap: the latest session of its grants, written after the two that follow
    PORT = 15  # bootstrap: of that session's engine
    BASE = 16  # bootstrap: where its payload lies there
    FAILING_NS = 17  # worker: since when no attempt has succeeded; 0: the last one did
    RETRY_NS = 18  # worker: when the next attempt may be made
    BEGIN = 19  # bootstrap: rows that it has from another encode node; they are not sent again (R26)
    SUMMED = 20  # worker, first the bootstrap as `SENT`: `tokens:32 | checksum:32` of the rows that are there, before `SENT` (R27)
    VERIFIED = 21  # poller: rows that the destination has checked (R27)
    WINDOW = 22  # bootstrap: entries that it has of the slot's grants, which its destinations share evenly


DESTINATION_WORDS: Final = 24


class Peer(IntEnum):
    """Words of one entry of the peer table."""

    STATE = 0  # bootstrap registers, poller declares dead (CAS)
    NODE_ID = 1
    INCARNATION = 2
    HEARD_NS = 3  # poller
    WINDOW = 4
    NUM_BLOCKS = 5
    NUM_SLOTS = 6
    ENGINE = 7  # bootstrap: how rows travel between us, a number of `Engine`
    REGISTERED_NS = 8
    REGISTRATION = 9  # bootstrap: which of the registrations of this incarnation counts; only rises (R14)
    TAINTED = 10  # encode: workers raise it, session + 1 of the latest attempt to it that ended other than done (R7)
    REACHED = 11  # encode: workers, 1: rows have been written there


class Engine(IntEnum):
    """`Peer.ENGINE`; the names are those of the configuration."""

    SHM = 1
    MOONCAKE = 2


class PeerState(IntEnum):
    """`Peer.STATE`."""

    EMPTY = 0
    REGISTERED = 1
    DEAD = 2


PEER_WORDS: Final = 16
PEER_BOOTSTRAP_OFFSET: Final = 8 * PEER_WORDS
PEER_POLLER_OFFSET: Final = 256
PEER_SOCKET_OFFSET: Final = 384
PEER_KEY_OFFSET: Final = 512
PEER_BYTES: Final = 640

MAX_WRITERS: Final = 256


class Writer(IntEnum):
    """Words of one process of another node that has our payload mapped; the launcher writes them."""

    NODE_ID = 0  # 0: entry free
    INCARNATION = 1
    PID = 2


WRITER_WORDS: Final = 4


class Session(IntEnum):
    """Words of one transfer worker's engine on the language side; that worker writes them, `NUMBER` last."""

    NUMBER = 0  # 0: it has none
    PORT = 1
    BASE = 2  # where the payload lies in its process


SESSION_WORDS: Final = 8
PORT_WORDS: Final = (1 << 16) // 64


class Route(IntEnum):
    """Words of one route: a node that discovery knows. The registrar writes all of them, between two steps of `GENERATION`."""

    GENERATION = 0  # odd while the others are being written
    STATE = 1  # a NodeState; 0: entry free
    NODE_ID = 2
    INCARNATION = 3
    HEALTHY = 4
    OUTSTANDING_TOKENS = 5
    OUTSTANDING_REQUESTS = 6
    FREE_BLOCKS = 7
    NUM_BLOCKS = 8
    REPORTED_NS = 9  # when it was measured, by this host's clock


class Discovery(IntEnum):
    """Words of the registrar's own record, which stands before the routes and is written as they are."""

    GENERATION = 0
    STATE = 1
    SINCE_NS = 2
    HEARD_NS = 3  # the last answer that was as it should be; 0: none yet
    NUM_FAILURES = 4  # since then


class DiscoveryState(IntEnum):
    """`Discovery.STATE`."""

    STARTING = 0
    REGISTERED = 1
    REFUSED = 2  # the server answers, and does not take our registration
    UNREACHABLE = 3
    LEFT = 4


ROUTE_WORDS: Final = 64
ROUTE_BOOTSTRAP: Final = 16  # texts: 16 words each
ROUTE_UNHEALTHY: Final = 32
ROUTE_POLLER: Final = 48
DISCOVERY_URL: Final = 16
DISCOVERY_REASON: Final = 32
ROUTE_TEXT_BYTES: Final = 128
DISCOVERY_REASON_BYTES: Final = 256

METRIC_WORDS: Final = 64
DOORBELL_BYTES: Final = LINE_BYTES
RECORD_BYTES: Final = 64
RING_HEADER_BYTES: Final = 3 * LINE_BYTES
RING_HEAD: Final = LINE_BYTES // 8  # words of a ring's header
RING_TAIL: Final = 2 * LINE_BYTES // 8
RING_REFUSED: Final = RING_TAIL + 1
PROCESS_WORDS: Final = 8
LANE_WORDS: Final = 16


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


class _Map:
    """Hands out offsets one after the other."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, size: int, alignment: int = LINE_BYTES) -> int:
        offset = _up(self.end, alignment)
        self.end = offset + size
        return offset


class Pool(NamedTuple):
    """What a pool of the payload holds, and on what it begins."""

    what: str
    alignment: int


PAYLOAD_POOLS: Final = {
    "embeddings": Pool("input_embeddings [block][token][hidden]", HUGE_PAGE_BYTES),
    "deepstack": Pool("deepstack_embeddings [block][token][layer][hidden]", HUGE_PAGE_BYTES),
    "positions": Pool("mrope_positions [block][token][3] int32", PAGE_BYTES),
    "ids": Pool("fill_ids [block][token] int32", PAGE_BYTES),
    "aux": Pool("aux_datas [block][16] int32", PAGE_BYTES),
}
"""The pools of the payload, as `drawing` shows them."""

CONTROL_TABLES: Final = {
    "header": "magic, version, size, identity, geometry, limits, state",
    "processes": "pid, beat, state, restarts of each process",
    "doorbells": "a line for whoever can be woken",
    "lanes": "a seat for a client",
    "pages": "which lane leases a page of 64 slots",
    "words": "a status word a slot",
    "stamps": "when it first entered each phase",
    "dirty": "a bit a slot and view: the word has changed",
    "slots": "a record a slot",
    "destinations": "watermarks of each destination of a slot",
    "grants": "blocks granted by the destinations of a slot",
    "staging": "source blocks that cache rows of a slot",
    "wanted": "rooms that somebody has asked for",
    "windows": "blocks granted for a slot",
    "sessions": "the engine of each worker",
    "ports": "a bit a port that an engine had",
    "cells": "the owner of each block",
    "exposure": "the session that may write into each block",
    "peers": "other nodes",
    "tombstones": "the highest epoch of each slot of each peer",
    "writers": "processes of other nodes that map the payload",
    "routes": "the registrar's record; nodes that discovery tells of",
    "metrics": "a row of counters a process",
    "rings": "one from each process or lane to each that it kicks",
}
"""The tables of the control segment, as `drawing` shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLayout:
    """Byte offsets of the pools in the payload segment."""

    embeddings: int
    deepstack: int
    positions: int
    ids: int
    aux: int
    size: int

    @classmethod
    def of(cls, geometry: Geometry) -> PayloadLayout:
        assert geometry.num_blocks, "the launcher chooses the size of the pool first"
        m, tokens = _Map(), geometry.num_blocks * geometry.block_size
        offsets = {
            name: m.take(size, PAYLOAD_POOLS[name].alignment)
            for name, size in {
                "embeddings": tokens * geometry.embedding_bytes,
                "deepstack": tokens * geometry.deepstack_bytes,
                "positions": tokens * 4 * POSITION_AXES,
                "ids": tokens * 4,
                "aux": geometry.num_blocks * 4 * AUX_WORDS,
            }.items()
        }
        return cls(**offsets, size=_up(m.end, HUGE_PAGE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLayout:
    """Byte offsets of the tables in the control segment."""

    role: Role
    limits: Limits
    num_blocks: int
    own_window: int  # blocks of this pool that one request can hold: staging and windows repeat after so many
    header: int
    processes: int
    doorbells: int
    lanes: int
    pages: int
    words: int
    stamps: int
    dirty: int
    slots: int
    destinations: int
    grants: int
    staging: int
    wanted: int
    windows: int
    sessions: int
    ports: int
    cells: int
    exposure: int
    peers: int
    tombstones: int
    writers: int
    routes: int
    metrics: int
    rings: int
    size: int

    @classmethod
    def of(cls, role: Role, geometry: Geometry, limits: Limits) -> ControlLayout:
        m, n = _Map(), limits.num_slots
        encode, language = role == Role.ENCODE, role == Role.LANGUAGE
        num_processes = len(process_names(limits))
        assert geometry.num_blocks, "the launcher chooses the size of the pool first"
        own_window = min(limits.window_blocks, geometry.num_blocks)
        offsets = {
            "header": m.take(PAGE_BYTES),
            "processes": m.take(num_processes * PROCESS_WORDS * 8),
            "doorbells": m.take((num_processes + 2 * limits.max_clients) * DOORBELL_BYTES),
            "lanes": m.take(limits.max_clients * LANE_WORDS * 8),
            "pages": m.take(n // SLOTS_PER_PAGE * 8),
            "words": m.take(n * 8),
            "stamps": m.take(n * 5 * 8),
            "dirty": m.take(NUM_VIEWS * n // SLOTS_PER_PAGE * 8),
            "slots": m.take(n * SLOT_BYTES),
            "destinations": m.take(n * limits.max_destinations * DESTINATION_WORDS * 8 * encode),
            "grants": m.take(n * limits.window_blocks * 8 * encode),
            "staging": m.take(n * own_window * 8 * encode),
            "wanted": m.take((LINE_BYTES + n * 8) * encode),
            "windows": m.take(n * own_window * 8 * language),
            "sessions": m.take(limits.num_workers * SESSION_WORDS * 8 * language),
            "ports": m.take(PORT_WORDS * 8 * language),
            "cells": m.take(geometry.num_blocks * 8),
            "exposure": m.take(geometry.num_blocks * 8),
            "peers": m.take(limits.max_peers * PEER_BYTES),
            "tombstones": m.take(limits.max_peers * limits.max_peer_slots * 8 * encode),
            "writers": m.take(MAX_WRITERS * WRITER_WORDS * 8),
            "routes": m.take((1 + limits.max_routes) * ROUTE_WORDS * 8 * (limits.max_routes > 0)),
            "metrics": m.take(num_processes * METRIC_WORDS * 8),
        }
        ring = RING_HEADER_BYTES + limits.ring_records * RECORD_BYTES
        rings = m.take(len(ring_pairs(limits)) * ring, PAGE_BYTES)
        return cls(
            role=role,
            limits=limits,
            num_blocks=geometry.num_blocks,
            own_window=own_window,
            **offsets,
            rings=rings,
            size=_up(m.end, PAGE_BYTES),
        )

    def ring(self, source: str, target: str) -> int:
        """Offset of the ring from one process (or lane) to another, named as in `ring_pairs`."""
        index = ring_pairs(self.limits).index((source, target))
        return self.rings + index * (RING_HEADER_BYTES + self.limits.ring_records * RECORD_BYTES)

    def doorbell(self, name: str) -> int:
        """Offset of the doorbell of a process (`worker0`), of a lane's user (`lane3`), or of its library thread (`library3`)."""
        return self.doorbells + doorbell_names(self.limits).index(name) * DOORBELL_BYTES


def first_worker() -> int:
    """Index of `worker0` in the process table, after launcher, bootstrap and poller."""
    return 3


def process_names(limits: Limits) -> list[str]:
    """The processes of a node, in the order of the process table."""
    registrar = ["registrar"] if limits.max_routes else []
    return ["launcher", "bootstrap", "poller", *(f"worker{w}" for w in range(limits.num_workers)), *registrar]


def doorbell_names(limits: Limits) -> list[str]:
    """Who can be woken, in the order of the doorbells."""
    lanes = range(limits.max_clients)
    return [*process_names(limits), *(f"lane{i}" for i in lanes), *(f"library{i}" for i in lanes)]


def ring_pairs(limits: Limits) -> list[tuple[str, str]]:
    """(producer, consumer) of every ring: one a pair, so that each has one writer and one reader."""
    workers = [f"worker{w}" for w in range(limits.num_workers)]
    pairs = [("launcher", "poller"), ("bootstrap", "poller"), ("poller", "bootstrap")]
    for worker in workers:
        pairs += [("bootstrap", worker), ("poller", worker), (worker, "poller")]
    for lane in range(limits.max_clients):
        pairs += [(f"lane{lane}", "bootstrap"), *((f"lane{lane}", worker) for worker in workers)]
    return pairs


def pack(value: Geometry | Limits) -> list[int]:
    """The words that describe a geometry or limits in the header; a dtype is its position in `DTYPE_BYTES`."""
    words = []
    for field in fields(value):
        item = getattr(value, field.name)
        words.append(list(DTYPE_BYTES).index(item) if field.name == "dtype" else item)
    return words


def unpack_geometry(words: list[int]) -> Geometry:
    """The geometry that `pack` wrote. Raises ValueError for words that describe none."""
    hidden, block, blocks, dtype, deepstack = words[:5]
    names = list(DTYPE_BYTES)
    if dtype >= len(names):
        raise ValueError(f"dtype: code {dtype} is outside 0 to {len(names) - 1}")
    if not blocks:
        raise ValueError("num_blocks: 0 < 1")
    return Geometry(
        hidden_size=hidden, block_size=block, num_blocks=blocks, dtype=names[dtype], deepstack_layers=deepstack
    )


def unpack_limits(words: list[int]) -> Limits:
    """The limits that `pack` wrote. Raises ValueError for words that describe none."""
    return Limits(**{field.name: word for field, word in zip(fields(Limits), words, strict=False)})
