"""A worker that is worn, or out of descriptors, begins anew; no request fails by it, and no peer is blamed."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.alone import EncodeAlone, StubEngine

from embridge.allocator.errors import FailureCode
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import Phase
from embridge.workers import descriptors
from embridge.workers import messages as msg
from embridge.workers.timing import NS
from embridge.workers.transfer.encode import WORN_WAIT_NS, YOUNG_NS
from embridge.workers.transfer.engines import mooncake
from embridge.workers.transfer.engines.base import Outcome, OwnShortage
from embridge.workers.transfer.engines.mooncake import MooncakeEngine
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

pytestmark = pytest.mark.usefixtures("quiet")


class Wearing(StubEngine):
    """It is as new with each process."""

    def __init__(self) -> None:
        super().__init__(late_writes=True)
        self.short = ""
        self.num_ended = 0

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        if self.short:
            raise OwnShortage(self.short)
        return True

    def shutdown(self) -> None:
        self.worn = self.short = ""
        self.num_ended += 1


@pytest.fixture
def engine() -> Wearing:
    return Wearing()


@pytest.fixture
def node(engine: Wearing) -> EncodeAlone:
    node = EncodeAlone(engine=engine)
    advance(node, YOUNG_NS / NS + 0.1)
    return node


def advance(node: EncodeAlone, seconds: float) -> None:
    """Time passes, and its peer is alive."""
    end = node.now_ns + int(seconds * NS)
    while node.now_ns < end:
        node.hears("poller", msg.Heartbeat(node.envelope(), [], [], 0, 0, 0))
        node.advance(min(1.0, (end - node.now_ns) / NS))


def test_a_worn_worker_lets_what_is_under_way_end_and_begins_anew(node: EncodeAlone, engine: Wearing) -> None:
    """P11, P23: nothing is tainted, for nothing was broken off."""
    engine.outcome = Outcome.PENDING
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    engine.worn = "it is worn"
    advance(node, 2.0)
    assert engine.num_ended == 0
    engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert engine.num_ended == 1
    assert sender.poll() == Phase.Success
    assert node.metric("worker0", "writes_failed") == 0


def test_when_there_is_no_quiet_moment_none_is_submitted_until_there_is_one(node: EncodeAlone, engine: Wearing) -> None:
    """P8, P11: else a busy worker would never begin anew."""
    engine.outcome = Outcome.PENDING
    first = node.sender(1, 8)
    node.init(1, [3, 4])
    engine.worn = "it is worn"
    advance(node, WORN_WAIT_NS / NS + 1.5)
    second = node.sender(2, 8)
    node.init(2, [5, 6])
    assert len(engine.submitted) == 1
    assert engine.num_ended == 0
    engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert engine.num_ended == 1
    assert first.poll() == second.poll() == Phase.Success


def test_a_worker_without_descriptors_begins_anew_and_fails_no_request(node: EncodeAlone, engine: Wearing) -> None:
    """P23, D3: at its limit every request to a new session would fail, for ever."""
    engine.short = "this process has no descriptors left: it may have 256; raise `ulimit -n`"
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    node.advance(0.1)
    assert engine.num_ended == 1
    assert sender.poll() == Phase.Success


def test_where_a_new_process_has_none_either_the_request_fails_and_no_peer_is_blamed(engine: Wearing) -> None:
    """P13: it would only begin anew again and again."""
    node = EncodeAlone(engine=engine)
    engine.short = "this process has no descriptors left: it may have 256; raise `ulimit -n`"
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    failure = sender.failure_exception()
    assert failure is not None
    assert (failure.code, failure.reason) == (FailureCode.UNREACHABLE, engine.short)
    assert engine.num_ended == 0


# ---- what this process may have


@pytest.fixture
def few() -> Iterator[int]:
    """This process may open eight descriptors more than a moment ago, but not the spare ones."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.dup(2)
    os.close(fd)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + descriptors.SPARE - 1, before[1]))
        yield fd
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_shortage_is_named_as_ours_before_the_last_descriptor_is_gone(few: int) -> None:
    open_before = descriptors.num_open()
    assert descriptors.why_short() == f"this process has no descriptors left: it may have {few + 7}; raise `ulimit -n`"
    assert descriptors.num_open() == open_before
    assert descriptors.shortage(OSError(errno.ENFILE, "")).startswith("this machine has no descriptors left")
    assert descriptors.shortage(OSError(errno.ECONNREFUSED, "")) == ""


def test_a_process_takes_what_it_may_have(few: int) -> None:
    assert descriptors.limit() == few + 7
    descriptors.raise_limit()
    assert descriptors.limit() > few + 7
    assert descriptors.why_short() == ""


# ---- what Mooncake keeps


class Contact:
    """An engine that has contact with every session at once, or fails with this code."""

    code = 0

    def send_probe(self, name: str) -> int:
        return self.code


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> MooncakeEngine:
    monkeypatch.setattr(mooncake, "start_engine", lambda *_: Contact())
    monkeypatch.setattr(mooncake, "_register", lambda *_: None)
    nothing: Any = None
    return MooncakeEngine(nothing, None, "127.0.0.1", MooncakeSettings())


def meet(engine: MooncakeEngine, peer: int, session: int) -> None:
    record: Any = SimpleNamespace(poller_addr="tcp://10.0.0.7:1")
    while not engine.open(peer, record, LiveSession(session, 15_000 + session, 1 << 32)):
        pass


def test_a_contact_that_fails_for_want_of_descriptors_is_no_fault_of_the_peer(
    keeper: MooncakeEngine, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P23: nor of its firewall."""
    monkeypatch.setattr(Contact, "code", -101)
    with pytest.raises(OwnShortage, match=r"no contact with 10.0.0.7:15001: this process has no descriptors left"):
        meet(keeper, 0, 1)


def test_sessions_that_are_over_are_counted_until_they_have_an_eighth_of_the_descriptors(
    keeper: MooncakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P23: of nodes that are gone."""
    monkeypatch.setattr(descriptors, "limit", lambda: 1024)
    for peer in range(31):
        meet(keeper, peer, 1)
        keeper.close(peer)
        keeper.close(peer)
    assert keeper.wear() == ""
    meet(keeper, 40, 1)
    keeper.close(40)
    assert keeper.wear() == "32 sessions of peers are over, and Mooncake keeps its sockets to them"


def test_a_session_that_a_later_one_has_taken_the_place_of_is_over(
    keeper: MooncakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P23: a worker of a peer that lives on has been restarted; another worker's session may be older, and in use."""
    now = [0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(descriptors, "limit", lambda: 64)
    for session in (1, 2, 3):
        meet(keeper, 0, session)
    now[0] = 61 * NS
    meet(keeper, 0, 2)
    assert keeper.wear() == ""
    assert len(keeper._remotes[0]) == 2
    meet(keeper, 0, 4)
    now[0] = 122 * NS
    assert keeper.wear() == "3 sessions of peers are over, and Mooncake keeps its sockets to them"


def test_idle_sessions_are_let_go_when_descriptors_become_few(
    keeper: MooncakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P12: a peer whose worker is restarted again and again in a minute has many; each may still be in use."""
    now, num_open = [0], [70]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(descriptors, "limit", lambda: 100)
    monkeypatch.setattr(descriptors, "num_open", lambda: num_open[0])
    for session in range(1, 14):
        meet(keeper, 0, session)
    num_open[0] = 80
    assert keeper.wear() == ""
    now[0] = 2 * NS
    assert keeper.wear() == "80 of 100 descriptors are open, some of them to sessions that nobody uses"
    num_open[0] = 70
    assert keeper.wear() == ""
