"""Nodes that offer several engines: each peer is dealt with by the one that was agreed with it, and by no other."""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, StubEngine

from embridge.allocator.records import Destination, Peer
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import Outcome
from embridge.workers.transfer.engines.mooncake import MOONCAKE
from embridge.workers.transfer.engines.shm import SHARED_MEMORY

BOTH = (SHARED_MEMORY, MOONCAKE)
ELSEWHERE = {"shm": "elsewhere.sock", "mooncake": "2"}  # the offers of a node on another host
OTHER_ADDRESS = "tcp://10.0.0.21:1"

pytestmark = pytest.mark.usefixtures("quiet")


# ---- the encode node


class Pair:
    """An encode node with a writer of each engine: 10 is on its host, 11 on another one."""

    def __init__(self, outcome: Outcome = Outcome.DONE) -> None:
        self.here = StubEngine(outcome=outcome)
        self.afar = StubEngine(late_writes=True, outcome=outcome)
        self.node = EncodeAlone(engine=self.afar, engines=BOTH)
        self.node.node.make_writers = lambda: {SHARED_MEMORY.number: self.here, MOONCAKE.number: self.afar}
        self.node.actor("worker0").start()
        self.node.register(node_id=11, offers=ELSEWHERE)

    def agreed(self) -> list[str]:
        return [it.engine for it in self.node.sent(msg.Registered)]


def test_the_engine_that_was_agreed_stays_whoever_asks_and_when() -> None:
    """R14: one that registers again is told the same, also by a bootstrap process that was born since."""
    pair = Pair()
    assert pair.agreed() == ["shm", "mooncake"]
    for registration in (2, 3):
        pair.node.forget_sent()
        pair.node.register(node_id=11, offers=ELSEWHERE, registration=registration)
        pair.node.register(node_id=10, registration=registration)
        assert pair.agreed() == ["mooncake", "shm"]
        pair.node.restart("bootstrap")


def test_each_destination_is_written_through_its_own_engine() -> None:
    """R10: under its session where that has sessions."""
    pair = Pair()
    sender = pair.node.sender(1, 8)
    pair.node.init(1, [3, 4], required=2, session=0)
    pair.node.init(1, [5, 6], required=2, node_id=11, session=7)
    assert sender.poll() == Phase.Success
    find = pair.node.control.peers.find
    assert [peer for peer, _ in pair.here.submitted] == [find(10, 1)]
    assert [peer for peer, _ in pair.afar.submitted] == [find(11, 1)]
    assert [pair.node.get(sender, Destination.ATTEMPT_SESSION, d) for d in (0, 1)] == [0, 7]


def test_what_a_dead_worker_was_writing_is_tainted_where_it_may_still_land() -> None:
    """R6, R12: and through shared memory it cannot."""
    pair = Pair(Outcome.PENDING)
    senders = [pair.node.sender(room, 8) for room in (1, 2)]
    pair.node.init(1, [3, 4], session=0)
    pair.node.init(2, [5, 6], node_id=11, session=7)
    assert [pair.node.get(sender, Destination.ISSUED) for sender in senders] == [8, 8]
    pair.here.outcome = pair.afar.outcome = Outcome.DONE
    pair.node.actor("worker0").start()
    pair.node.advance(0.1)
    assert [pair.node.get(sender, Destination.TAINTED) for sender in senders] == [0, 8]
    assert [sender.poll() for sender in senders] == [Phase.Success] * 2


# ---- the language node


def language(**options: Any) -> LanguageAlone:
    return LanguageAlone(late_writes=True, engines=BOTH, **options)


def from_here(node: LanguageAlone, room: int) -> EmbeddingReceiver:
    """A request to the encode node 21, with which shared memory is agreed; with 20 it is Mooncake."""
    receiver = node.client.receiver(OTHER_ADDRESS, room)
    node.settle()
    answer = msg.Registered(node.envelope(node_id=21), OTHER_ADDRESS, "tcp://10.0.0.21:2", "shm", 16, 16, "")
    node.hears("bootstrap", answer, address=OTHER_ADDRESS)
    receiver.init(receiver.allocate(2))
    node.settle()
    return receiver


def test_a_grant_names_a_session_to_those_alone_who_write_under_it() -> None:
    """R10, R12: whichever engine stands first; and a bootstrap process that was born since grants like its
    predecessor.
    """
    node = language()
    node.receiver(1)
    receiver = from_here(node, 2)
    live = node.control.sessions.live(0)
    assert live == LiveSession(1, 10_001, 1 << 32)
    grants = {it.key.room: it for it in node.sent(msg.Init)}
    assert (grants[1].session_id, grants[1].dst_port, grants[1].base) == live
    assert (grants[2].session_id, grants[2].dst_port, grants[2].base) == (0, 0, 0)
    peers = node.control.peers
    found = {peers.get(peer, Peer.NODE_ID): peers.get(peer, Peer.ENGINE) for peer in peers.alive()}
    assert found == {20: MOONCAKE.number, 21: SHARED_MEMORY.number}
    node.restart("bootstrap")
    node.forget_sent()
    receiver.resume_transfer(receiver.allocate(1), 0)
    node.settle()
    answer = msg.Registered(node.envelope(node_id=21), OTHER_ADDRESS, "tcp://10.0.0.21:2", "shm", 16, 16, "")
    node.hears("bootstrap", answer, address=OTHER_ADDRESS)
    again = [it for it in node.sent(msg.Init) if it.key.room == 2]
    assert {it.session_id for it in again} == {0}
    assert len(again[-1].dst_embedding_indices) == 3


def test_a_registration_offers_every_engine() -> None:
    node = language()
    node.client.receiver(ENCODE_ADDRESS, 1)
    node.settle()
    (register,) = node.sent(msg.Register)
    assert register.offers == {"shm": node.node.own_addresses.run_socket, "mooncake": MOONCAKE.offer("")}


def test_one_engine_with_sessions_is_enough_for_a_fence() -> None:
    """R11, P7: what may land late is fenced though another engine of the node has no sessions; and what came through
    that one waits for no fence.
    """
    node = language()
    afar, here = node.receiver(1), from_here(node, 2)
    for receiver, node_id, tainted in ((afar, 20, 2), (here, 21, 0)):
        receiver.abort()
        node.settle()
        key = msg.RequestKey(receiver.slot, receiver.epoch, receiver.room)
        node.hears("poller", msg.AbortAck(node.envelope(node_id=node_id), key, tainted))
        receiver.clear()
        node.settle()
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.advance(node.world.timing.fence_after_s + 0.5)
    assert node.control.sessions.number(0) == 2
    assert node.counts() == {"free": 8}
