"""First contact of an encode worker with its peers: each request has the whole time for it, whoever has asked
before.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.alone import EncodeAlone, StubEngine
from support.waiting import wait_until

from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Peer
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.timing import NS
from embridge.workers.transfer.contact import Contact
from embridge.workers.transfer.engines import mooncake
from embridge.workers.transfer.engines.base import NoAnswer
from embridge.workers.transfer.engines.mooncake import MooncakeEngine
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

pytestmark = pytest.mark.usefixtures("quiet")


class Unanswered(StubEngine):
    """An engine whose peer has not answered for long, until it does."""

    answers = False

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        if not self.answers:
            raise NoAnswer("it does not answer for 3 s", 3 * NS)
        return True


def advance(node: EncodeAlone, seconds: int) -> None:
    """Time passes, and its peer is alive."""
    for _ in range(seconds):
        node.hears("poller", msg.Heartbeat(node.envelope(), [], [], 0, 0, 0))
        node.advance(1.0)


def test_a_request_that_comes_while_a_peer_does_not_answer_has_as_long_as_the_first() -> None:
    """P21, D3: the first one fails, those that came later wait on, and are served when it answers."""
    engine = Unanswered()
    node = EncodeAlone(engine=engine)
    first = node.sender(1, 4)
    node.init(1, [3])
    advance(node, 2)
    second = node.sender(2, 4)
    node.init(2, [4])
    advance(node, 2)
    failure = first.failure_exception()
    assert failure is not None
    assert failure.reason == "it does not answer for 3 s"
    assert second.poll() < Phase.Success
    engine.answers = True
    advance(node, 1)
    assert second.poll() == Phase.Success


def test_a_peer_that_does_not_answer_is_tried_by_every_call_and_each_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: not one of many, with as much time again for the others."""
    now, code, asked = [NS], [-1], threading.Semaphore(0)

    def send_probe(name: str) -> int:
        asked.release()
        return code[0]

    monkeypatch.setattr(mooncake, "start_engine", lambda *_: SimpleNamespace(send_probe=send_probe))
    monkeypatch.setattr(mooncake, "_register", lambda *_: None)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    nothing: Any = None
    engine = MooncakeEngine(nothing, None, "127.0.0.1", MooncakeSettings())
    record: Any = SimpleNamespace(poller_addr="tcp://10.0.0.7:1")
    session = LiveSession(1, 15_001, 1 << 32)
    assert not engine.open(0, record, session)
    for _ in range(3):
        wait_until(lambda: engine._remotes[0][session.port].thread is None, 10)
        now[0] += 4 * NS
        for _ in range(2):
            with pytest.raises(NoAnswer, match=r"10\.0\.0\.7:15001 does not answer for 3 s") as raised:
                engine.open(0, record, session)
            assert raised.value.patience_ns == 3 * NS
    assert all(asked.acquire(timeout=10) for _ in range(4))
    wait_until(lambda: engine._remotes[0][session.port].thread is None, 10)
    code[0], now[0] = 0, now[0] + NS
    with pytest.raises(NoAnswer):
        engine.open(0, record, session)
    wait_until(lambda: engine._remotes[0][session.port].opened, 10)
    assert engine.open(0, record, session)


def test_a_node_s_record_is_that_of_its_latest_registration() -> None:
    """R14: what is kept of an earlier one, or of the node that had its entry, is not taken for it."""
    node = EncodeAlone()
    contact = Contact(node.actor("worker0").ctx)
    node.register()
    first = contact.record_of(0)
    assert contact.record_of(0) is first
    assert first == node.control.peers.record(0)
    node.control.peers.put(0, Peer.REGISTRATION, first.registration + 1)
    again = contact.record_of(0)
    assert again.registration == first.registration + 1
    assert contact.record_of(0) is again
    node.control.peers.bury(0)
    assert contact.record_of(0) == node.control.peers.record(0)
    other = first._replace(node_id=77, poller_addr="tcp://10.0.0.77:2")
    node.control.peers._write(0, other, node.now_ns, keep_tombstones=False)
    assert contact.record_of(0).poller_addr == "tcp://10.0.0.77:2"


def test_a_session_of_the_same_number_on_another_host_has_another_name() -> None:
    """R10: each host counts its own ports."""
    engine = MooncakeEngine.__new__(MooncakeEngine)
    engine._remotes, engine._host, engine._num_over = {}, "10.0.0.7", 0
    session = LiveSession(3, 15001, 1 << 40)
    record = PeerRecord(1, 1, 16, 16, 16, 2, "tcp://10.0.0.8:1", "tcp://10.0.0.8:2", "2")
    here = engine._remote(0, record, session)
    assert engine._remote(0, record, session) is here
    there = engine._remote(0, record._replace(poller_addr="tcp://10.0.0.9:2"), session)
    assert (here.name, there.name) == ("10.0.0.8:15001", "10.0.0.9:15001")
    assert engine._remote(0, record, session) is not here
