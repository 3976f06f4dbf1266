"""The other nodes that this one exchanges rows with, and the tombstones of their requests (R15).

An entry is one incarnation of one node. The bootstrap writes it and then sets its state; the poller declares it dead. A
dead entry is used again when no slot refers to it. The same incarnation gets it again at once, if that turns out to be
alive after all (D3); it then finds its tombstones, so nothing that was over begins again.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from embridge.allocator._core import Mapping, Words
from embridge.allocator.geometry import Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    ADDRESS_BYTES,
    FINDER_SLOT_BITS,
    PEER_BOOTSTRAP_OFFSET,
    PEER_BYTES,
    PEER_KEY_OFFSET,
    PEER_OFFER_OFFSET,
    PEER_POLLER_OFFSET,
    Peer,
    PeerState,
)
from embridge.allocator.texts import packed, unpacked


class PeerRecord(NamedTuple):
    """One incarnation of another node, as it registered."""

    node_id: int
    incarnation: int
    window_blocks: int
    num_blocks: int
    num_slots: int
    engine: int
    bootstrap_addr: str
    poller_addr: str
    offer: str  # what the engine needs to know of the peer, from its registration (encode side)
    registration: int = 0
    key: str = ""  # the public key that it registered with; "" on a plain connection

    def __str__(self) -> str:
        return f"node {self.node_id:x} at {self.bootstrap_addr}"


_TEXTS = {
    "bootstrap_addr": PEER_BOOTSTRAP_OFFSET,
    "poller_addr": PEER_POLLER_OFFSET,
    "offer": PEER_OFFER_OFFSET,
    "key": PEER_KEY_OFFSET,
}
TEXT_BYTES = ADDRESS_BYTES


class PeerTable:
    """The peer entries and, on the encode side, the highest epoch seen of each slot of each peer."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_peers = layout.limits.max_peers
        self.num_slots = layout.limits.max_peer_slots
        self._stride = PEER_BYTES // 8
        self._words = Words(mapping, layout.peers, self.num_peers * self._stride)
        self._bytes = memoryview(mapping)[layout.peers : layout.peers + self.num_peers * PEER_BYTES]
        self._tombstones = self._finders = None
        if layout.role == Role.ENCODE:
            self._tombstones = Words(mapping, layout.tombstones, self.num_peers * self.num_slots)
            self._finders = Words(mapping, layout.finders, self.num_peers * self.num_slots)

    def get(self, peer: int, field: Peer) -> int:
        return self._words.load(peer * self._stride + field)

    def put(self, peer: int, field: Peer, value: int) -> None:
        self._words.store(peer * self._stride + field, value)

    def raise_to(self, peer: int, field: Peer, value: int) -> bool:
        return self._words.raise_to(peer * self._stride + field, value)

    def is_alive(self, peer: int) -> bool:
        """Whether an entry is that of a node that lives; -1, where nobody has entered a destination yet, is none."""
        return peer >= 0 and self.get(peer, Peer.STATE) == PeerState.REGISTERED

    def is_here(self, peer: int, node: tuple[int, int]) -> bool:
        """Whether this incarnation (id, incarnation) has the entry, and lives."""
        state, *now = self._words.load_many(peer * self._stride, Peer.INCARNATION + 1)
        return state == PeerState.REGISTERED and tuple(now) == node

    def bury(self, peer: int) -> bool:
        """Declare a peer dead (poller only). True the first time."""
        at = peer * self._stride + Peer.STATE
        return self._words.compare_exchange(at, PeerState.REGISTERED, PeerState.DEAD)

    def find(self, node_id: int, incarnation: int) -> int | None:
        """The entry of a registered, living incarnation."""
        for peer in range(self.num_peers):
            if self._identity(peer) == (node_id, incarnation) and self.is_alive(peer):
                return peer
        return None

    def belongs_to_another(self, node_id: int, incarnation: int, key: str) -> bool:
        """Whether this node is known here with another key (D15, P17).

        A living incarnation of it counts, and this one, alive or dead.
        """
        for peer in range(self.num_peers):
            if self.get(peer, Peer.NODE_ID) != node_id or self.get(peer, Peer.STATE) == PeerState.EMPTY:
                continue
            if (self.is_alive(peer) or self.get(peer, Peer.INCARNATION) == incarnation) and self.key(peer) != key:
                return True
        return False

    def key(self, peer: int) -> str:
        """The public key that a peer registered with; "" on a plain connection."""
        return self._text(peer, PEER_KEY_OFFSET)

    def poller_addr(self, peer: int) -> str:
        """Where a peer takes reports and heartbeats."""
        return self._text(peer, PEER_POLLER_OFFSET)

    def alive(self) -> list[int]:
        return [peer for peer in range(self.num_peers) if self.is_alive(peer)]

    def register(self, record: PeerRecord, now_ns: int, in_use: Container[int]) -> int | None:
        """Enter one incarnation (bootstrap only). Returns its entry, or None if the table is full.

        `in_use` are dead entries that slots still refer to.
        """
        for peer in range(self.num_peers):
            if self._identity(peer) == (record.node_id, record.incarnation):
                self._write(peer, record, now_ns, keep_tombstones=True)
                return peer
        for state in (PeerState.EMPTY, PeerState.DEAD):
            for peer in range(self.num_peers):
                if self.get(peer, Peer.STATE) == state and peer not in in_use:
                    self._write(peer, record, now_ns, keep_tombstones=False)
                    return peer
        return None

    def _identity(self, peer: int) -> tuple[int, int]:
        return self.get(peer, Peer.NODE_ID), self.get(peer, Peer.INCARNATION)

    def _write(self, peer: int, record: PeerRecord, now_ns: int, *, keep_tombstones: bool) -> None:
        self.put(peer, Peer.STATE, PeerState.EMPTY)
        for name, offset in _TEXTS.items():
            self._at(peer, offset)[:] = packed(getattr(record, name), TEXT_BYTES)
        for field, value in (
            (Peer.NODE_ID, record.node_id),
            (Peer.INCARNATION, record.incarnation),
            (Peer.WINDOW, record.window_blocks),
            (Peer.NUM_BLOCKS, record.num_blocks),
            (Peer.NUM_SLOTS, record.num_slots),
            (Peer.ENGINE, record.engine),
            (Peer.HEARD_NS, now_ns),
            (Peer.REGISTERED_NS, now_ns),
            (Peer.REGISTRATION, record.registration),
        ):
            self.put(peer, field, value)
        if not keep_tombstones:
            self.put(peer, Peer.TAINTED, 0)
            self.put(peer, Peer.REACHED, 0)
        if self._tombstones is not None and self._finders is not None and not keep_tombstones:
            for slot in range(min(record.num_slots, self.num_slots)):
                self._tombstones.store(peer * self.num_slots + slot, 0)
                self._finders.store(peer * self.num_slots + slot, 0)
        self.put(peer, Peer.STATE, PeerState.REGISTERED)

    def record(self, peer: int) -> PeerRecord:
        texts = {name: self._text(peer, offset) for name, offset in _TEXTS.items()}
        return PeerRecord(
            node_id=self.get(peer, Peer.NODE_ID),
            incarnation=self.get(peer, Peer.INCARNATION),
            window_blocks=self.get(peer, Peer.WINDOW),
            num_blocks=self.get(peer, Peer.NUM_BLOCKS),
            num_slots=self.get(peer, Peer.NUM_SLOTS),
            engine=self.get(peer, Peer.ENGINE),
            registration=self.get(peer, Peer.REGISTRATION),
            **texts,
        )

    def _text(self, peer: int, offset: int) -> str:
        return unpacked(bytes(self._at(peer, offset)))

    def _at(self, peer: int, offset: int) -> memoryview[int]:
        """The bytes of one text of an entry."""
        if not 0 <= peer < self.num_peers:
            raise IndexError(f"peer {peer} of {self.num_peers}")
        first = peer * PEER_BYTES + offset
        return self._bytes[first : first + TEXT_BYTES]

    def tombstone(self, peer: int, slot: int) -> int:
        """The highest epoch that was seen of a peer's slot (encode side)."""
        assert self._tombstones is not None
        return self._tombstones.load(peer * self.num_slots + slot)

    def raise_tombstone(self, peer: int, slot: int, epoch: int) -> bool:
        """Raise the highest epoch of a peer's slot. True if the epoch is news (encode side, bootstrap only)."""
        assert self._tombstones is not None
        return self._tombstones.raise_to(peer * self.num_slots + slot, epoch)

    def finder(self, peer: int, slot: int, epoch: int) -> int | None:
        """The slot of this node whose client has marked that grant of a peer as found (encode side, R81).

        Who looks here has raised the epoch's tombstone: then nobody who marks it later binds itself to it.
        """
        assert self._finders is not None
        # not a load: who marks it after that sees the tombstone
        word = self._finders.add(peer * self.num_slots + slot, 0)
        return word & (1 << FINDER_SLOT_BITS) - 1 if word >> FINDER_SLOT_BITS == epoch else None
