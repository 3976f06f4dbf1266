"""Writing over a network: sessions, the fence between two of them, and which engine a peer is written through."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import pytest
from support.alone import EncodeAlone, LanguageAlone, StubEngine

from embridge.allocator.layout import PayloadLayout
from embridge.allocator.records import Destination, Peer
from embridge.allocator.sessions import LiveSession, SessionTable
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers import messages as msg
from embridge.workers.engine_kind import EngineKind
from embridge.workers.transfer.engines import mooncake, numbered
from embridge.workers.transfer.engines.base import Outcome
from embridge.workers.transfer.engines.mooncake import MOONCAKE
from embridge.workers.transfer.engines.shm import SHARED_MEMORY


def network_language(**options: Any) -> LanguageAlone:
    return LanguageAlone(late_writes=True, **options)


def network_encode(outcome: Outcome = Outcome.DONE) -> EncodeAlone:
    return EncodeAlone(engine=StubEngine(late_writes=True, outcome=outcome))


def grants(node: LanguageAlone) -> list[msg.Init | msg.Resume]:
    return [*node.sent(msg.Init), *node.sent(msg.Resume)]


def fail_tainted(node: LanguageAlone, receiver: EmbeddingReceiver) -> None:
    """It ends, and an attempt for it may still land under session 1."""
    receiver.abort()
    node.settle()
    node.abort_ack(receiver, tainted=2)
    receiver.clear()
    node.settle()


# ---- the language side


def test_a_grant_names_its_session_with_its_port_and_address() -> None:
    """R10: and through shared memory none."""
    node = network_language()
    node.receiver(1)
    (grant,) = grants(node)
    session = node.control.sessions.live(0)
    assert (grant.session_id, grant.dst_port, grant.base) == session == LiveSession(1, 10_001, 1 << 32)
    here = LanguageAlone()
    here.receiver(1)
    (grant,) = grants(here)
    assert (grant.session_id, grant.dst_port, grant.base) == (0, 0, 0)


def test_in_a_new_session_every_window_is_granted_anew() -> None:
    """R10: after a "dead transfer worker (language)": each as it stands, and under the new number."""
    node = network_language()
    one, two = node.receiver(1), node.receiver(2, None)
    node.status(one, Phase.Transferring, 4)
    one.release_drained(4)
    node.forget_sent()
    node.restart("worker0")
    node.settle()
    (grant,) = grants(node)
    assert (grant.key.room, grant.session_id, grant.first_block) == (1, 2, 1)
    assert grant.dst_embedding_indices == one.current_allocation().tolist()
    assert two.granted_blocks == 0


def test_a_heartbeat_that_knows_of_an_older_session_is_answered_with_the_window() -> None:
    """R24: the message with the new session was lost."""
    node = network_language()
    receiver = node.receiver(1)
    node.status(receiver, Phase.WaitingForInput, 0)
    node.restart("worker0")
    node.settle()
    node.forget_sent()
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 0, session=2))
    assert grants(node) == []
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 0, session=1))
    (grant,) = grants(node)
    assert grant.session_id == 2


def test_quarantined_blocks_are_fenced_after_a_while_and_come_free() -> None:
    """R11, P7: nobody waits for them, so it is not done at once; and the process of the old session is dead before."""
    node = network_language()
    fail_tainted(node, node.receiver(1))
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.advance(node.world.timing.fence_after_s - 0.5)
    assert node.counts() == {"free": 6, "quarantined": 2}
    assert node.control.sessions.number(0) == 1
    node.advance(1.0)
    assert node.control.sessions.number(0) == 2
    assert node.counts() == {"free": 8}


def somebody_waits(node: LanguageAlone) -> None:
    lane = node.control.lanes.take(1, node.now_ns)
    assert lane is not None
    node.control.blocks.set_waiting(lane, True)


def test_when_somebody_waits_for_a_block_the_fence_comes_soon() -> None:
    """R11."""
    node = network_language()
    fail_tainted(node, node.receiver(1))
    somebody_waits(node)
    node.advance(node.world.timing.fence_wait_s + 0.3)
    assert node.counts() == {"free": 8}


def test_quarantines_that_end_in_time_bring_no_fence_however_many_follow_one_another() -> None:
    """R11: a fence breaks off what others are sending; here there is always some block in quarantine, and none for
    long.
    """
    node = network_language()
    somebody_waits(node)
    node.advance(1.0)
    ending = None
    for room in range(1, 13):
        receiver = node.receiver(room)
        receiver.abort()
        receiver.clear()
        node.settle()
        if ending is not None:
            node.abort_ack(ending)
        assert node.counts() == {"free": 6, "quarantined": 2}
        node.advance(node.world.timing.fence_wait_s / 2)
        ending = receiver
    assert node.control.sessions.number(0) == 1
    node.advance(node.world.timing.fence_wait_s + 0.3)
    assert node.control.sessions.number(0) == 2
    assert node.counts() == {"free": 8}


def test_a_fence_frees_only_what_was_exposed_under_a_lesser_session() -> None:
    """R10: what was granted meanwhile under the new one, and failed there, stays."""
    node = network_language()
    old = node.receiver(1)
    node.restart("worker0")
    new = node.receiver(2)
    for receiver, tainted in ((old, 0), (new, 3)):
        receiver.abort()
        node.settle()
        node.abort_ack(receiver, tainted=tainted)
        receiver.clear()
        node.settle()
    node.advance(0.5)
    assert node.counts() == {"free": 6, "quarantined": 2}


def test_when_a_peer_dies_what_it_may_have_written_over_the_network_waits_for_the_fence() -> None:
    """R12: kernels still deliver what a dead process has sent."""
    node = network_language()
    receiver = node.receiver(1)
    node.is_refused("poller", "tcp://10.0.0.20:2")
    assert receiver.poll() == Phase.Failed
    receiver.clear()
    node.advance(0.5)
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.advance(node.world.timing.fence_after_s + 1)
    assert node.counts() == {"free": 8}


def test_no_two_sessions_have_a_port_or_an_address_in_common() -> None:
    """R10: until some ten thousand have passed."""
    sessions = network_language().control.sessions
    assert sessions.take_port(15_000)
    assert not sessions.take_port(15_000)
    size = 5 << 30
    bases = [SessionTable.base_of(number, size) for number in range(1, 10_000)]
    assert len(set(bases)) == len(bases)
    assert all(high - low >= size for low, high in itertools.pairwise(sorted(bases)))
    assert all(base % (2 << 20) == 0 for base in bases)


# ---- the encode side


def test_a_worker_writes_under_the_session_of_its_grant_or_not_at_all() -> None:
    """R10: blocks of an older session wait for the window under the newer one; a batch has one session."""
    node = network_encode()
    sender = node.sender(1, 16, rows=8)
    node.engine.outcome = Outcome.PENDING
    node.init(1, [3, 4], session=1)
    node.resume(1, [3, 4, 5, 6], first=0, session=1)
    node.resume(1, [8, 9], first=2, session=2)  # the window from block 2 on
    node.write(sender, 8, 16)
    assert node.blocks_written() == [[3, 4]]  # under way in session 1: what is of another waits for its end
    node.engine.outcome = Outcome.DONE
    node.advance(0.1)
    assert node.blocks_written() == [[3, 4], [8, 9]]  # the first two were under way in session 1
    assert sender.poll() == Phase.Success


def test_a_window_of_which_only_a_part_has_come_in_the_new_session_waits() -> None:
    """R10: a row granted under session 1 only is written no more once session 2 is known."""
    node = network_encode()
    node.sender(1, 16, rows=0)
    node.init(1, [3, 4, 5, 6], session=1)
    node.resume(1, [9, 10], first=2, session=2)
    node.write(next(iter(library_of(node.client).requests.by_slot.values())), 0, 16)  # type: ignore[arg-type]
    node.advance(0.3)
    assert node.engine.submitted == []
    node.resume(1, [7, 8, 9, 10], first=0, session=2)
    node.advance(0.3)
    assert node.blocks_written() == [[7, 8, 9, 10]]


def test_an_abort_of_what_is_forgotten_is_acknowledged_with_what_its_peer_has_tainted() -> None:
    """R7: for whether that very request has, nobody knows any more."""
    node = network_encode(Outcome.FAILED)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], session=4)
    node.engine.outcome = Outcome.DONE
    node.advance(0.5)
    assert sender.poll() == Phase.Success
    node.close(1)
    sender.clear()
    node.advance(0.5)
    node.forget_sent()
    node.abort(1)
    (ack,) = node.sent(msg.AbortAck)
    assert ack.tainted == 5
    node.abort(2)  # this one was never here
    assert node.sent(msg.AbortAck)[-1].tainted == 0


def test_a_request_whose_writes_all_fail_ends_with_the_reason_and_the_next_is_tried_again() -> None:
    """D3: nothing is remembered against the peer."""
    node = network_encode(Outcome.FAILED)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    for _ in range(8):
        node.hears("poller", msg.Heartbeat(node.envelope(), [], [], 0, 0, 0))
        node.advance(1.0)
    assert sender.poll() == Phase.Failed
    assert "every write to node a at tcp://10.1.0.10:1 through stub has failed for 5." in str(
        sender.failure_exception()
    )
    node.engine.outcome = Outcome.DONE
    later = node.sender(2, 8)
    node.init(2, [5, 6])
    node.advance(0.5)
    assert later.poll() == Phase.Success
    assert node.get(later, Destination.FAILING_NS) == 0


# ---- which engine


def answer(engines: tuple[EngineKind, ...], **register: Any) -> msg.Registered | msg.Refused:
    node = EncodeAlone()
    node.actor("bootstrap").ctx.engines = engines
    node.forget_sent()
    node.register(node_id=11, **register)
    replies: list[msg.Registered | msg.Refused] = [*node.sent(msg.Registered), *node.sent(msg.Refused)]
    (reply,) = replies
    if isinstance(reply, msg.Registered):
        peer = node.control.peers.find(11, 1)
        assert peer is not None
        chosen = numbered(node.control.peers.get(peer, Peer.ENGINE))
        assert chosen is not None
        assert chosen.name == reply.engine
    return reply


BOTH = (SHARED_MEMORY, MOONCAKE)
PROTO = str(mooncake.PROTO)


@pytest.mark.parametrize(
    ("engines", "offers", "expected"),
    [
        (BOTH, {"shm": "here.sock", "mooncake": PROTO}, SHARED_MEMORY),
        (BOTH, {"shm": "elsewhere.sock", "mooncake": PROTO}, MOONCAKE),
        (BOTH, {"mooncake": PROTO}, MOONCAKE),
        ((MOONCAKE,), {"shm": "here.sock", "mooncake": PROTO}, MOONCAKE),
        ((SHARED_MEMORY,), {"shm": "here.sock"}, SHARED_MEMORY),
        ((SHARED_MEMORY,), {"shm": "here.sock", "unheard-of": ""}, SHARED_MEMORY),
    ],
)
def test_the_engine_is_chosen_by_where_the_peer_is(
    engines: tuple[EngineKind, ...], offers: dict[str, str], expected: EngineKind
) -> None:
    """A peer whose run socket answers is on this host."""
    reply = answer(engines, offers=offers)
    assert isinstance(reply, msg.Registered)
    assert reply.engine == expected.name


@pytest.mark.parametrize(
    ("engines", "offered", "reason"),
    [
        (
            (SHARED_MEMORY,),
            {"mooncake": "2"},
            "its run socket does not answer here; this encode node offers no Mooncake",
        ),
        ((MOONCAKE,), {}, "it offers no Mooncake; this encode node offers no shared memory"),
        (BOTH, {}, "its run socket does not answer here; it offers no Mooncake"),
        (BOTH, {"mooncake": "1"}, "its Mooncake has framing 1, which reports writes done before they land"),
        (BOTH, {"mooncake": "-2"}, "its Mooncake has framing '-2', which is no number"),
        (BOTH, {"mooncake": "9" * 128}, "its Mooncake has framing '9999999999999999', which is no number"),
        (BOTH, {"shm": ""}, "it has no run socket; it offers no Mooncake"),
    ],
)
def test_peers_without_an_engine_in_common_are_told_why(
    engines: tuple[EngineKind, ...], offered: dict[str, str], reason: str
) -> None:
    """R13, P16: Mooncake's older framing is no engine, nor is what is no framing at all."""
    reply = answer(engines, offers={"shm": "elsewhere.sock", **offered})
    assert isinstance(reply, msg.Refused)
    assert reason in reply.reason


def test_a_peer_of_the_other_family_of_addresses_is_told_so() -> None:
    """Mooncake would fail each handshake, and blame a firewall; an IPv6 node reaches IPv4 peers by mapped addresses."""
    reply = answer(BOTH, offers={"shm": "elsewhere.sock", "mooncake": PROTO}, poller_addr="tcp://[fd00::8]:2")
    assert isinstance(reply, msg.Refused)
    assert reply.reason.endswith("; Mooncake goes over IPv4 here, over IPv6 there; bind both alike")
    assert mooncake.why_out_of_reach("fd00::7", "10.0.0.8") == ""
    assert mooncake.session_name("fd00::7", "10.0.0.8", 15001) == "[::ffff:10.0.0.8]:15001"
    assert mooncake.session_name("fd00::7", "fd00::8", 15001) == "[fd00::8]:15001"
    assert mooncake.session_name("10.0.0.7", "10.0.0.8", 15001) == "10.0.0.8:15001"


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [("hidden_size", 4, 2), ("block_size", 8, 4), ("dtype", "float16", "bfloat16"), ("deepstack_layers", 3, 0)],
)
def test_nodes_of_another_geometry_are_refused_with_both_values(name: str, value: Any, ours: object) -> None:
    """Before an engine is chosen; the text reaches the scheduler whole."""
    reply = answer(BOTH, **{name: value})
    assert isinstance(reply, msg.Refused)
    assert reply.reason == f"{name}: language {value}, encode {ours}; launch both with the same"


def test_an_older_framing_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """R13: by the environment, or by the version of the module."""
    monkeypatch.setenv("MC_TCP_PROTO", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert "MC_TCP_PROTO=1 is set" in mooncake.why_unavailable()
    monkeypatch.delenv("MC_TCP_PROTO")
    monkeypatch.setattr(mooncake, "module_version", lambda: "mooncake-transfer-engine 0.3.11.post1")
    assert "at least 0.3.12 is needed: pip install -U mooncake-transfer-engine" in mooncake.why_unavailable()
    monkeypatch.setattr(mooncake, "module_version", lambda: "mooncake-transfer-engine 0.3.13.post1")
    assert mooncake.why_unavailable() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'embridge[mooncake]'" in mooncake.why_unavailable()


def test_the_payload_layout_is_the_same_in_every_session() -> None:
    """A peer computes addresses from the geometry that was registered and the base of the session."""
    node = network_language()
    assert PayloadLayout.of(node.node.geometry).size <= SessionTable.base_of(
        2, node.node.payload.size
    ) - SessionTable.base_of(1, node.node.payload.size)
