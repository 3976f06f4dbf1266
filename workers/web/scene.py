"""A node at one moment, as its web process sees it."""

from __future__ import annotations

from functools import cached_property

from embridge.allocator import layout as lay
from embridge.allocator._core import Words
from embridge.allocator.control import Control
from embridge.allocator.ends import Ended
from embridge.allocator.records import CLAIM_WORDS, RING_HEADER_BYTES, Lane, LaneState, Peer
from embridge.workers.inspection.open_slots import OpenSlots
from embridge.workers.timing import NS, Timing


class Scene:
    """A node at one moment, each part looked at once; and what never changes, which is looked up once."""

    def __init__(self, control: Control, timing: Timing) -> None:
        self.control = control
        self.timing = timing
        at, mapping = control.layout, control.mapping
        self.open_slots = OpenSlots(control)
        self.claim_words = Words(mapping, at.claims, control.limits.num_slots, 8 * CLAIM_WORDS)
        self.rings = [
            (pair, Words(mapping, at.ring(*pair), RING_HEADER_BYTES // 8)) for pair in lay.ring_pairs(control.limits)
        ]
        self.now_ns = 0

    def at(self, now_ns: int) -> Scene:
        """The same node, at another moment."""
        for name in ("ended", "attached", "peers"):
            self.__dict__.pop(name, None)
        self.now_ns = now_ns
        return self

    @cached_property
    def ended(self) -> Ended:
        return self.control.ends.read()

    @cached_property
    def attached(self) -> list[int]:
        """The lanes of living clients."""
        lanes = self.control.lanes
        return [lane for lane in range(lanes.num_lanes) if lanes.get(lane, Lane.STATE) == LaneState.ATTACHED]

    @cached_property
    def peers(self) -> dict[int, float]:
        """The registered peers, and for how many seconds nothing was heard of each."""
        peers = self.control.peers
        return {peer: self.age_s(peers.get(peer, Peer.HEARD_NS)) for peer in peers.alive()}

    def age_s(self, at_ns: int) -> float:
        """Seconds since then; 0 for what has never been."""
        return max(0, self.now_ns - at_ns) / NS if at_ns else 0.0
