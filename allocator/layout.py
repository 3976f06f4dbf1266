"""Every offset, size and alignment of the two segments: a map one can draw, and no logic.

    control segment, with the role that alone has a table
    +---------------------------------------------------------------------------------+
    | header                  magic, version, size, identity, geometry, limits, state |
    | doorbells               a line for whoever can be woken                         |
    | claims        language  who may write into the blocks of a slot                 |
    | meetings      language  what an encoder reads of the grant of a slot            |
    | posts         language  grants and offers, by which both find each other        |
    | windows       language  blocks granted for a slot                               |
    | words                   a status word a slot                                    |
    | stamps                  when it first entered each phase                        |
    | dirty                   a bit a slot and view: the word has changed             |
    | processes               pid, beat, state, restarts of each process              |
    | lanes                   a record a client                                       |
    | pages                   which lane leases a page of 64 slots                    |
    | slots                   a record a slot                                         |
    | destinations  encode    watermarks of each destination of a slot                |
    | grants        encode    blocks granted by the destinations of a slot            |
    | staging       encode    source blocks that cache rows of a slot                 |
    | wanted        encode    rooms that somebody has asked for                       |
    | asked         encode    how many grants wait for an encoder, by room            |
    | untold        encode    how many requests only clients know of, by room         |
    | finished      encode    rooms of such requests that have succeeded              |
    | sessions      language  the engine of each worker                               |
    | ports         language  a bit a port that an engine had                         |
    | cells                   the owner of each block                                 |
    | exposure                the session that may write into each block              |
    | shelf         encode    generations and the floor of published items            |
    | heads         encode    how each published item stands                          |
    | items         encode    its key, its blocks, its rows                           |
    | held          encode    the owner of each block of the shelf                    |
    | readers       encode    processes of other nodes that read the shelf            |
    | uses          encode    when each item was used last                            |
    | ledgers       encode    which items each reader pins                            |
    | fetches                 the item that a slot's request fetches                  |
    | peers                   other nodes                                             |
    | tombstones    encode    the highest epoch of each slot of each peer             |
    | finders       encode    the slot that has found a grant of a peer's slot        |
    | writers                 processes of other nodes that map the payload           |
    | notices       language  what each client hears of items that it follows         |
    | missed        encode    keys of items that were asked for in vain               |
    | refused       language  encode nodes with which this one cannot work, and why   |
    | routes                  the registrar's record; nodes that discovery tells of   |
    | metrics                 a row of counters a process, and one of all clients     |
    | ends                    how requests ended, by whom counts; how long they took  |
    | rings                   one from each process or lane to each that it kicks     |
    +---------------------------------------------------------------------------------+

    payload segment, with what each pool begins on
    +------------------------------------------------------------------------+
    | embeddings  2 MiB   input_embeddings [block][token][hidden]            |
    | deepstack   2 MiB   deepstack_embeddings [block][token][layer][hidden] |
    | positions   a page  mrope_positions [block][token][3] int32            |
    | ids         a page  fill_ids [block][token] int32                      |
    | aux         a page  aux_datas [block][16] int32                        |
    +------------------------------------------------------------------------+

`allocator.drawing` draws this, and a test compares them. A table begins on a line of 64 bytes, the rings on a page.
The tables from doorbells to dirty are the *writers' part*, pages of their own: it is all that a writer of another node
maps of this segment, so that a wild store of its process hits no ring, no peer and no lane.

Every word is 64 bits, little-endian, and has one writer (or is moved by CAS); `docs/design/words.md` says who. A
process that attaches checks `MAGIC`, `LAYOUT_VERSION` and the size before it trusts any offset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from embridge.allocator.geometry import AUX_WORDS, SLOTS_PER_PAGE, Geometry, Limits, Role
from embridge.allocator.records import (
    CLAIM_WORDS,
    DESTINATION_WORDS,
    DOORBELL_BYTES,
    END_WORDS,
    FETCHED_WORDS,
    HEARD_WORDS,
    ITEM_WORDS,
    LANE_WORDS,
    LINE_BYTES,
    MAX_READERS,
    MAX_WRITERS,
    MEETING_WORDS,
    METRIC_WORDS,
    MISSED_WORDS,
    NUM_END_ROWS,
    NUM_MISSED,
    NUM_REFUSED,
    NUM_VIEWS,
    PEER_BYTES,
    PORT_WORDS,
    POSTS_A_SLOT,
    PROCESS_WORDS,
    READER_WORDS,
    RECORD_BYTES,
    REFUSED_WORDS,
    RING_HEADER_BYTES,
    ROUTE_WORDS,
    SESSION_WORDS,
    SHELF_RECORD_WORDS,
    SLOT_BYTES,
    WRITER_WORDS,
)

MAGIC: Final = 0x31454744_4952424D  # "MBRIDGE1"
LAYOUT_VERSION: Final = 12
PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20


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
    """What a pool of the payload holds, and on which boundary it begins."""

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
    "doorbells": "a line for whoever can be woken",
    "claims": "who may write into the blocks of a slot",
    "meetings": "what an encoder reads of the grant of a slot",
    "posts": "grants and offers, by which both find each other",
    "windows": "blocks granted for a slot",
    "words": "a status word a slot",
    "stamps": "when it first entered each phase",
    "dirty": "a bit a slot and view: the word has changed",
    "processes": "pid, beat, state, restarts of each process",
    "lanes": "a record a client",
    "pages": "which lane leases a page of 64 slots",
    "slots": "a record a slot",
    "destinations": "watermarks of each destination of a slot",
    "grants": "blocks granted by the destinations of a slot",
    "staging": "source blocks that cache rows of a slot",
    "wanted": "rooms that somebody has asked for",
    "asked": "how many grants wait for an encoder, by room",
    "untold": "how many requests only clients know of, by room",
    "finished": "rooms of such requests that have succeeded",
    "sessions": "the engine of each worker",
    "ports": "a bit a port that an engine had",
    "cells": "the owner of each block",
    "exposure": "the session that may write into each block",
    "shelf": "generations and the floor of published items",
    "heads": "how each published item stands",
    "items": "its key, its blocks, its rows",
    "held": "the owner of each block of the shelf",
    "readers": "processes of other nodes that read the shelf",
    "uses": "when each item was used last",
    "ledgers": "which items each reader pins",
    "fetches": "the item that a slot's request fetches",
    "peers": "other nodes",
    "tombstones": "the highest epoch of each slot of each peer",
    "finders": "the slot that has found a grant of a peer's slot",
    "writers": "processes of other nodes that map the payload",
    "notices": "what each client hears of items that it follows",
    "missed": "keys of items that were asked for in vain",
    "refused": "encode nodes with which this one cannot work, and why",
    "routes": "the registrar's record; nodes that discovery tells of",
    "metrics": "a row of counters a process, and one of all clients",
    "ends": "how requests ended, by whom counts; how long they took",
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
                "positions": tokens * geometry.position_bytes,
                "ids": tokens * geometry.id_bytes,
                "aux": geometry.num_blocks * 4 * AUX_WORDS,
            }.items()
        }
        return cls(**offsets, size=_up(m.end, HUGE_PAGE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLayout:
    """Byte offsets of the tables in the control segment."""

    role: Role
    limits: Limits  # with the window that this pool has
    num_blocks: int
    own_window: int  # blocks of this pool that one request can hold; staging and windows repeat after this number
    header: int
    doorbells: int
    claims: int
    meetings: int
    posts: int
    windows: int
    words: int
    stamps: int
    dirty: int
    processes: int
    lanes: int
    pages: int
    slots: int
    destinations: int
    grants: int
    staging: int
    wanted: int
    asked: int
    untold: int
    finished: int
    sessions: int
    ports: int
    cells: int
    exposure: int
    shelf: int
    heads: int
    items: int
    held: int
    readers: int
    uses: int
    ledgers: int
    fetches: int
    peers: int
    tombstones: int
    finders: int
    writers: int
    notices: int
    missed: int
    refused: int
    routes: int
    metrics: int
    ends: int
    rings: int
    size: int

    @classmethod
    def of(cls, role: Role, geometry: Geometry, limits: Limits) -> ControlLayout:
        m, n = _Map(), limits.num_slots
        encode, language = role == Role.ENCODE, role == Role.LANGUAGE
        num_processes = len(process_names(limits))
        assert geometry.num_blocks, "the launcher chooses the size of the pool first"
        limits = replace(limits, window_blocks=limits.window_in(geometry.num_blocks))
        own_window = min(limits.window_blocks, geometry.num_blocks)
        offsets = {
            "header": m.take(PAGE_BYTES),
            "doorbells": m.take((num_processes + 2 * limits.num_lanes) * DOORBELL_BYTES, PAGE_BYTES),
            "claims": m.take(n * CLAIM_WORDS * 8 * language),
            "meetings": m.take(n * MEETING_WORDS * 8 * language),
            "posts": m.take(n * POSTS_A_SLOT * 8 * language),
            "windows": m.take(n * own_window * 8 * language),
            "words": m.take(n * 8),
            "stamps": m.take(n * 5 * 8),
            "dirty": m.take(NUM_VIEWS * n // SLOTS_PER_PAGE * 8),
            "processes": m.take(num_processes * PROCESS_WORDS * 8, PAGE_BYTES),
            "lanes": m.take(limits.num_lanes * LANE_WORDS * 8),
            "pages": m.take(n // SLOTS_PER_PAGE * 8),
            "slots": m.take(n * SLOT_BYTES),
            "destinations": m.take(n * limits.max_destinations * DESTINATION_WORDS * 8 * encode),
            "grants": m.take(n * limits.window_blocks * 8 * encode),
            "staging": m.take(n * own_window * 8 * encode),
            "wanted": m.take((LINE_BYTES + n * 8) * encode),
            "asked": m.take(n * 8 * encode),
            "untold": m.take(n * 8 * encode),
            "finished": m.take(n * 8 * encode),
            "sessions": m.take(limits.num_workers * SESSION_WORDS * 8 * language),
            "ports": m.take(PORT_WORDS * 8 * language),
            "cells": m.take(geometry.num_blocks * 8),
            "exposure": m.take(geometry.num_blocks * 8),
            **_shelf_tables(m, limits.shelf_entries * encode, limits.shelf_blocks * encode),
            "fetches": m.take(n * FETCHED_WORDS * 8 * (language or limits.shelf_bytes > 0)),
            "peers": m.take(limits.max_peers * PEER_BYTES),
            "tombstones": m.take(limits.max_peers * limits.max_peer_slots * 8 * encode),
            "finders": m.take(limits.max_peers * limits.max_peer_slots * 8 * encode),
            "writers": m.take(MAX_WRITERS * WRITER_WORDS * 8),
            "notices": m.take(limits.max_clients * HEARD_WORDS * 8 * language),
            "missed": m.take(NUM_MISSED * MISSED_WORDS * 8 * (encode and limits.shelf_bytes > 0)),
            "refused": m.take(NUM_REFUSED * REFUSED_WORDS * 8 * language),
            "routes": m.take((1 + limits.max_routes) * ROUTE_WORDS * 8 * (limits.max_routes > 0)),
            "metrics": m.take(len(metric_names(limits)) * METRIC_WORDS * 8),
            "ends": m.take(NUM_END_ROWS * END_WORDS * 8),
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

    @property
    def ledger_bytes(self) -> int:
        """Bytes of one reader's ledger: whole pages, for each reader maps its own alone."""
        return ledger_bytes(self.limits.shelf_entries)

    @property
    def writers_part(self) -> tuple[int, int]:
        """Where the writers' part begins, and its size in bytes."""
        return self.doorbells, self.processes - self.doorbells

    def ring(self, source: str, target: str) -> int:
        """Offset of the ring from one process (or lane) to another, named as in `ring_pairs`."""
        index = ring_pairs(self.limits).index((source, target))
        return self.rings + index * (RING_HEADER_BYTES + self.limits.ring_records * RECORD_BYTES)

    def doorbell(self, name: str) -> int:
        """Offset of the doorbell of a process (`worker0`), a client (`lane3`), or a library thread (`library3`)."""
        return self.doorbells + doorbell_names(self.limits).index(name) * DOORBELL_BYTES


def ledger_bytes(num_entries: int) -> int:
    """Bytes of the ledger of a reader of a shelf with so many entries."""
    return _up(num_entries * 8, PAGE_BYTES)


def _shelf_tables(m: _Map, num_entries: int, num_blocks: int) -> dict[str, int]:
    """The tables of the shelf; readers map the last two, and nobody else maps part of a page of these."""
    alignment = PAGE_BYTES if num_entries else LINE_BYTES
    return {
        "shelf": m.take(SHELF_RECORD_WORDS * 8 * (num_entries > 0)),
        "heads": m.take(num_entries * 8),
        "items": m.take(num_entries * ITEM_WORDS * 8),
        "held": m.take(num_blocks * 8),
        "readers": m.take(MAX_READERS * READER_WORDS * 8 * (num_entries > 0)),
        "uses": m.take(ledger_bytes(num_entries), alignment),
        "ledgers": m.take(MAX_READERS * ledger_bytes(num_entries), alignment),
    }


def first_worker() -> int:
    """Index of `worker0` in the process table, after launcher, bootstrap and poller."""
    return 3


def process_names(limits: Limits) -> list[str]:
    """The processes of a node, in the order of the process table."""
    others = ["registrar"] * (limits.max_routes > 0) + ["web"] * limits.has_web
    return ["launcher", "bootstrap", "poller", *(f"worker{w}" for w in range(limits.num_workers)), *others]


def metric_names(limits: Limits) -> list[str]:
    """The rows of counters: each process of a node has one, and its clients have one together."""
    return [*process_names(limits), "clients"]


def doorbell_names(limits: Limits) -> list[str]:
    """The names of all who can be woken, in the order of the doorbells."""
    lanes = range(limits.num_lanes)
    return [*process_names(limits), *(f"lane{i}" for i in lanes), *(f"library{i}" for i in lanes)]


def ring_pairs(limits: Limits) -> list[tuple[str, str]]:
    """(producer, consumer) of every ring: one ring for each pair, so that each has one writer and one reader."""
    workers = [f"worker{w}" for w in range(limits.num_workers)]
    pairs = [("launcher", "poller"), ("bootstrap", "poller"), ("poller", "bootstrap")]
    for worker in workers:
        pairs += [("bootstrap", worker), ("poller", worker), (worker, "poller")]
    for lane in range(limits.max_clients):
        targets = ["bootstrap", "poller", *workers]
        pairs += [(f"lane{lane}", target) for target in targets]
    return pairs
