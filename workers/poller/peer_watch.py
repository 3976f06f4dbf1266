"""Liveness of the other nodes: who was heard when, who is told that we are here, and when a peer is taken for dead.

A port where nobody listens any more is death at once: the launcher holds a node's listening sockets, so they close only
when the whole node is gone, not when one of its processes is restarted. Silence is death after `peer_timeout_s`. What
this process did not hear while it was itself stopped, or had not begun, is not held against anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from embridge.allocator.peertable import PeerTable
from embridge.allocator.plain_enums import Kick, Metric, Peer
from embridge.workers import messages as msg
from embridge.workers.role import Disconnect, Out, RoleContext, Send
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

COPIED = "its `identity` file was copied"  # short: the text of a failure has 128 bytes; the documents say what to do
WAS_COPIED = "was its `identity` file copied?"
STALLED_NS = NS  # a gap between two steps of this process after which it trusts no silence


def why_lost(peers: PeerTable, peer: int) -> str:
    """Who is lost, and whether its id is there again: its next start, or a node with a copy of its identity."""
    text = f"{peers.record(peer)} is lost"
    for other in peers.alive():
        if other != peer and peers.get(other, Peer.NODE_ID) == peers.get(peer, Peer.NODE_ID):
            return f"{text}: its id came again; {WAS_COPIED}"
    return text


class PeerWatch:
    """Signs of life out and in.

    `num_rooms(peer)` says how many requests are in flight with that peer; `beats(peer, envelope)` is its sign of life,
    in as many messages as that takes.
    """

    def __init__(
        self,
        ctx: RoleContext,
        num_rooms: Callable[[int], int],
        beats: Callable[[int, msg.Envelope], list[msg.Message]],
    ) -> None:
        self._ctx = ctx
        self._peers = ctx.control.peers
        self._num_rooms = num_rooms
        self._beats = beats
        self._beaten_ns: dict[int, int] = {}
        self._by_identity: dict[tuple[int, int], tuple[int, str]] = {}  # -> (peer, its key)
        self._heartbeat_ns = int(ctx.timing.heartbeat_s * NS)
        self._stepped_ns = 0
        self._next_ns = 0

    def heard(self, envelope: msg.Envelope, now_ns: int, key: str = "") -> int | None:
        """Note a sign of life. Returns the peer, or None for what has no effect; the reason is counted.

        A stranger, a dead incarnation and a message for another one of us are stale. `key` is what the connection has
        proved: a message in the name of a node whose key is another is forged (D15, P17).
        """
        identity = (envelope.node_id, envelope.incarnation)
        peer, peers_key = self._by_identity.get(identity, (None, ""))
        if peer is None or not self._peers.is_here(peer, identity):
            peer = self._peers.find(*identity)
            if peer is not None:
                peers_key = self._peers.key(peer)
                if len(self._by_identity) > self._peers.num_peers:  # incarnations that are no more
                    self._by_identity.clear()
                self._by_identity[identity] = (peer, peers_key)
        if peer is None or envelope.for_incarnation != self._ctx.control.incarnation:
            self._ctx.count(Metric.MESSAGES_STALE)
            return None
        if peers_key != key:
            self._ctx.count(Metric.MESSAGES_FORGED)
            return None
        self._peers.put(peer, Peer.HEARD_NS, now_ns)
        return peer

    def step(self, now_ns: int, refused: Sequence[str], out: list[Out]) -> bool:
        """Send what is due and declare the dead. True if somebody died."""
        if not refused and now_ns < self._next_ns:
            return False
        timing = self._ctx.timing
        stalled = not self._stepped_ns or now_ns - self._stepped_ns > STALLED_NS + self._longest_sleep_ns()
        self._stepped_ns = now_ns
        died = False
        self._next_ns = now_ns + int(timing.idle_heartbeat_s * NS)
        for peer in self._peers.alive():
            record = self._peers.record(peer)
            if stalled:
                self._peers.put(peer, Peer.HEARD_NS, now_ns)
            silent_ns = now_ns - self._peers.get(peer, Peer.HEARD_NS)
            if record.poller_addr in refused:
                died |= self.bury(peer, record.incarnation, "its port is closed", out)
                continue
            if silent_ns > timing.peer_timeout_s * NS:
                died |= self.bury(peer, record.incarnation, f"silent for {silent_ns / NS:.1f} s", out)
                continue
            every_ns = int((timing.heartbeat_s if self._num_rooms(peer) else timing.idle_heartbeat_s) * NS)
            is_due = now_ns - self._beaten_ns.get(peer, 0) >= every_ns
            if is_due:
                self._beaten_ns[peer] = now_ns
            self._next_ns = min(self._next_ns, self._beaten_ns.get(peer, 0) + every_ns)
            if is_due:
                beats = self._beats(peer, self._ctx.envelope(record.incarnation))
                out += [Send(record.poller_addr, message, record.key) for message in beats]
        return died

    def spoke(self, peer: int, now_ns: int) -> None:
        """A peer was told something: a sign of life, as good as a heartbeat that says no more."""
        self._beaten_ns[peer] = now_ns

    def hurry(self, now_ns: int) -> None:
        """There is a request in flight: do not sleep through the short heartbeat."""
        self._next_ns = min(self._next_ns, now_ns + self._heartbeat_ns)

    def _longest_sleep_ns(self) -> int:
        return int(self._ctx.timing.idle_heartbeat_s * NS)

    def bury(self, peer: int, incarnation: int, why: str, out: list[Out]) -> bool:
        """Declare one incarnation dead. True the first time."""
        if self._peers.get(peer, Peer.INCARNATION) != incarnation or not self._peers.bury(peer):
            return False
        record = self._peers.record(peer)
        log.log(logging.WARNING if self._num_rooms(peer) else logging.INFO, "%s is lost: %s", record, why)
        out.append(Disconnect(record.poller_addr))
        self._ctx.to("bootstrap").send(Kick.PEER_DEAD, peer, incarnation)
        return True

    def next_ns(self) -> int:
        return self._next_ns
