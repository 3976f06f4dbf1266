"""The other nodes that this one exchanges rows with, and the tombstones of their requests (R15).

An entry is one incarnation of one node. The bootstrap writes it and then sets its state; the poller declares it dead. A
dead entry is used again when no slot refers to it. The same incarnation gets it again at once, if that turns out to be
alive after all (D3); it then finds its tombstones, so nothing that was over begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

from embridge.allocator._core import Mapping, Records, Words
from embridge.allocator.geometry import Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.plain_enums import Peer, PeerState
from embridge.allocator.records import (
    ADDRESS_BYTES,
    FINDER_SLOT_BITS,
    PEER_BOOTSTRAP_OFFSET,
    PEER_BYTES,
    PEER_KEY_OFFSET,
    PEER_OFFER_OFFSET,
    PEER_POLLER_OFFSET,
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
_TEXTS_OFFSET = PEER_BOOTSTRAP_OFFSET  # they stand one behind the other
_TEXTS_BYTES = len(_TEXTS) * TEXT_BYTES
assert list(_TEXTS.values()) == list(range(_TEXTS_OFFSET, _TEXTS_OFFSET + _TEXTS_BYTES, TEXT_BYTES))


class PeerTable:
    """The peer entries and, on the encode side, the highest epoch seen of each slot of each peer."""

    get: Callable[[int, Peer], int]
    """get(peer, field)"""
    put: Callable[[int, Peer, int], None]
    """put(peer, field, value)"""
    raise_to: Callable[[int, Peer, int], bool]
    """raise_to(peer, field, value): store it if it is greater than what stands there; True if it was."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_peers = layout.limits.max_peers
        self.num_slots = layout.limits.max_peer_slots
        self._stride = PEER_BYTES // 8
        self._words = Words(mapping, layout.peers, self.num_peers * self._stride)
        self._bytes = memoryview(mapping)[layout.peers : layout.peers + self.num_peers * PEER_BYTES]
        records = Records(mapping, layout.peers, self.num_peers, self._stride)
        self.get, self.put, self.raise_to = records.get, records.set, records.raise_to  # native ones, for their cost
        self._texts: dict[int, tuple[bytes, tuple[str, str, str, str]]] = {}  # peer -> its texts as read last
        self._found: dict[int, int] = {}  # id of a node -> where it was found last
        self._tombstones = self._finders = None
        if layout.role == Role.ENCODE:
            self._tombstones = Words(mapping, layout.tombstones, self.num_peers * self.num_slots)
            self._finders = Words(mapping, layout.finders, self.num_peers * self.num_slots)

    def is_alive(self, peer: int) -> bool:
        """Whether an entry is that of a node that lives; -1, where nobody has entered a destination yet, is none."""
        return peer >= 0 and self.get(peer, Peer.STATE) == PeerState.REGISTERED

    def is_it(self, peer: int, incarnation: int) -> bool:
        """Whether an entry is that of a node that lives, in this incarnation; -1 is none."""
        get = self.get
        return (
            peer >= 0
            and get(peer, Peer.STATE) == PeerState.REGISTERED
            and get(peer, Peer.INCARNATION) == incarnation
        )

    def is_here(self, peer: int, node: tuple[int, int]) -> bool:
        """Whether this incarnation (id, incarnation) has the entry, and lives."""
        return self._words.load_many(peer * self._stride, Peer.INCARNATION + 1) == [PeerState.REGISTERED, *node]

    def bury(self, peer: int) -> bool:
        """Declare a peer dead (poller only). True the first time."""
        at = peer * self._stride + Peer.STATE
        return self._words.compare_exchange(at, PeerState.REGISTERED, PeerState.DEAD)

    def find(self, node_id: int, incarnation: int) -> int | None:
        """The entry of a registered, living incarnation."""
        last = self._found.get(node_id, 0)
        for peer in (last, *range(self.num_peers)) if last else range(self.num_peers):
            if self._identity(peer) == (node_id, incarnation) and self.is_alive(peer):
                self._found[node_id] = peer
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
        return self._all_texts(peer)[3]

    def poller_addr(self, peer: int) -> str:
        """Where a peer takes reports and heartbeats."""
        return self._all_texts(peer)[1]

    def where_its_bootstrap_is(self, peer: int) -> tuple[str, str]:
        """(address, public key) of a peer's bootstrap."""
        address, _, _, key = self._all_texts(peer)
        return address, key

    def where_its_poller_is(self, peer: int) -> tuple[str, str]:
        """(address, public key) of a peer's poller."""
        _, address, _, key = self._all_texts(peer)
        return address, key

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
        bootstrap_addr, poller_addr, offer, key = self._all_texts(peer)
        words = self._words.load_many(peer * self._stride, Peer.REGISTRATION + 1)
        return PeerRecord(
            node_id=words[Peer.NODE_ID],
            incarnation=words[Peer.INCARNATION],
            window_blocks=words[Peer.WINDOW],
            num_blocks=words[Peer.NUM_BLOCKS],
            num_slots=words[Peer.NUM_SLOTS],
            engine=words[Peer.ENGINE],
            bootstrap_addr=bootstrap_addr,
            poller_addr=poller_addr,
            offer=offer,
            registration=words[Peer.REGISTRATION],
            key=key,
        )

    def _all_texts(self, peer: int) -> tuple[str, str, str, str]:
        """The texts of an entry, in the order of `_TEXTS`. Bytes that are as they were are not decoded again."""
        raw = bytes(self._at(peer, _TEXTS_OFFSET, _TEXTS_BYTES))
        known = self._texts.get(peer)
        if known is None or known[0] != raw:
            first, second, third, last = (
                unpacked(raw[at : at + TEXT_BYTES]) for at in range(0, _TEXTS_BYTES, TEXT_BYTES)
            )
            known = self._texts[peer] = raw, (first, second, third, last)
        return known[1]

    def _at(self, peer: int, offset: int, size: int = TEXT_BYTES) -> memoryview[int]:
        """The bytes of one text of an entry, or of so many of its bytes."""
        if not 0 <= peer < self.num_peers:
            raise IndexError(f"peer {peer} of {self.num_peers}")
        first = peer * PEER_BYTES + offset
        return self._bytes[first : first + size]

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
