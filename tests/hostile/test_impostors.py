"""D15, P17: a node that is listed cannot speak for another: what it says in another's name is dropped and counted."""

from __future__ import annotations

import logging

import pytest
from support.alone import ENCODE_ADDRESS, Alone, EncodeAlone, LanguageAlone

from embridge.allocator.records import Destination, Peer, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.role import Arrival

OWN, THEIRS = "key of the node", "key of the impostor"
ELSEWHERE = "tcp://10.0.0.21:1"


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def encode() -> EncodeAlone:
    """An encode node where 10 and 11 are registered, each with its key."""
    node = EncodeAlone(identities={10: OWN, 11: THEIRS})
    node.register(node_id=11)
    return node


@pytest.fixture
def language() -> LanguageAlone:
    """A language node that knows encode node 20 by its key."""
    return LanguageAlone(identities={20: OWN, 21: THEIRS})


def forged(node: Alone) -> int:
    return sum(row["messages_forged"] for row in node.control.metrics.all().values())


def test_a_registration_keeps_the_key_that_it_came_with(encode: EncodeAlone) -> None:
    """P17: also for a bootstrap process that is born later."""
    encode.restart("bootstrap")
    peers = encode.control.peers
    assert {peers.get(peer, Peer.NODE_ID): peers.key(peer) for peer in peers.alive()} == {10: OWN, 11: THEIRS}
    assert [peers.record(peer).key for peer in peers.alive()] == [OWN, THEIRS]


def test_a_grant_in_the_name_of_another_opens_nothing(encode: EncodeAlone) -> None:
    sender = encode.sender(1, 8)
    key = msg.RequestKey(1, 1, 1)
    encode.forget_sent()
    encode.hears("bootstrap", msg.Init(encode.envelope(), key, "", 0, 1, 0, [3, 4], 0, 1, 8, 1), identity=THEIRS)
    assert encode.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 0
    assert (forged(encode), encode.wire.sent) == (1, [])
    encode.init(1, [3, 4])
    assert encode.blocks_written() == [[3, 4]]


def test_an_abort_in_the_name_of_another_ends_nothing(encode: EncodeAlone) -> None:
    sender = encode.sender(1, 8, rows=4)
    encode.init(1, [3, 4])
    for key in (msg.RequestKey(1, 1, 1), msg.RequestKey(2, 1, 2)):
        encode.hears("bootstrap", msg.Abort(encode.envelope(), key, 3, "not mine"), identity=THEIRS)
    assert forged(encode) == 2
    encode.write(sender, 4, 8)
    assert sender.poll() == Phase.Success
    assert encode.sender(2, 8).poll() == Phase.Bootstrapping


def test_a_close_in_the_name_of_another_closes_nothing(encode: EncodeAlone) -> None:
    """R23: the destination itself says that it has the outcome."""
    sender = encode.sender(1, 8)
    encode.init(1, [3, 4])
    encode.hears("poller", msg.Close(encode.envelope(), msg.RequestKey(1, 1, 1)), identity=THEIRS)
    assert encode.get(sender, Destination.CLOSED) == 0
    encode.close(1)
    assert encode.get(sender, Destination.CLOSED) == 1


def test_a_heartbeat_in_the_name_of_another_keeps_nobody_alive(encode: EncodeAlone) -> None:
    """P4: 10 is silent, whatever 11 says."""
    timeout_s = encode.world.timing.peer_timeout_s
    for _ in range(8):
        encode.hears("poller", msg.Heartbeat(encode.envelope(node_id=10), [], [], 0, 0, 0), identity=THEIRS)
        encode.hears("poller", msg.Heartbeat(encode.envelope(node_id=11), [], [], 0, 0, 0))
        encode.advance(timeout_s / 5)
    peers = encode.control.peers
    assert [peers.key(peer) for peer in peers.alive()] == [THEIRS]


def test_what_another_says_that_a_destination_has_checked_is_not_believed() -> None:
    """R27, P17: in its name, or in the speaker's own."""
    node = EncodeAlone(identities={10: OWN, 11: THEIRS}, verify=True)
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    rows = [msg.CheckedRows(msg.RequestKey(1, 1, 1), 8)]
    node.hears("poller", msg.Checked(node.envelope(), rows), identity=THEIRS)
    node.checked(1, 8, node_id=11)
    assert (forged(node), node.get(sender, Destination.VERIFIED)) == (1, 0)
    assert sender.poll() == Phase.WaitingForInput
    node.checked(1, 8)
    assert sender.poll() == Phase.Success


@pytest.mark.parametrize("incarnation", [1, 2])
def test_nobody_registers_as_a_node_that_is_known_with_another_key(encode: EncodeAlone, incarnation: int) -> None:
    """D15: neither takes its place under a later incarnation, nor begins it again under this one; and it is told."""
    sender = encode.sender(1, 8, rows=4)
    encode.init(1, [3, 4])
    encode.identities[10] = THEIRS
    encode.forget_sent()
    encode.register(node_id=10, incarnation=incarnation, registration=9)
    assert forged(encode) == 1
    assert "known with another key" in encode.sent(msg.Refused)[0].reason
    encode.identities[10] = OWN
    encode.write(sender, 4, 8)
    assert sender.poll() == Phase.Success


def test_a_node_that_died_comes_back_with_another_key_under_a_later_incarnation_alone(encode: EncodeAlone) -> None:
    """R14, R15: its tombstones are for those who hold its key; a key may be exchanged."""
    encode.is_refused("poller", "tcp://10.1.0.10:2")
    encode.identities[10] = "a new key"
    encode.forget_sent()
    encode.register(node_id=10, incarnation=1, registration=2)
    assert encode.sent(msg.Registered) == []
    encode.register(node_id=10, incarnation=2)
    assert len(encode.sent(msg.Registered)) == 1


def test_what_an_encode_node_says_in_the_name_of_another_has_no_effect(language: LanguageAlone) -> None:
    """P17: at the poller, over connections to it, and on the line of the bootstrap process."""
    receiver = language.receiver(1)
    state = language.state(receiver, Phase.Failed, 0, code=3, reason="not mine")
    key = state.key
    for message in (
        msg.Status(language.envelope(node_id=20), state),
        msg.Heartbeat(language.envelope(node_id=20), [state], [], 0, 0, 0),
        msg.Announce(language.envelope(node_id=20), key, 99),
        msg.AbortAck(language.envelope(node_id=20), key, 0),
    ):
        language.hears("poller", message, identity=THEIRS)
    refused = msg.Refused(language.envelope(node_id=20), 7, "not mine", key)
    language.hears("bootstrap", refused, address=ENCODE_ADDRESS, identity=THEIRS)
    assert forged(language) == 5
    language.status(receiver, Phase.Success, 8, total_tokens=8)
    assert receiver.poll() == Phase.Success


def test_an_encode_node_cannot_register_as_another(language: LanguageAlone) -> None:
    """D15: it answers at its own address in the name of 20, under a later incarnation: 20 lives on, and the request
    fails with a reason.
    """
    receiver = language.receiver(1)
    other = language.client.receiver(ELSEWHERE, 2)
    language.settle()
    envelope = language.envelope(node_id=20, incarnation=2)
    answer = msg.Registered(envelope, ELSEWHERE, "tcp://10.0.0.21:2", "shm", 16, 16, "")
    language.hears("bootstrap", answer, address=ELSEWHERE, identity=THEIRS)
    assert forged(language) == 1
    assert not other.handshake_done
    language.status(receiver, Phase.Success, 8, total_tokens=8)
    assert receiver.poll() == Phase.Success
    language.heartbeat()
    for _ in range(int(language.world.timing.connect_timeout_s) + 1):
        language.advance(1.0)
        language.heartbeat()
    assert other.poll() == Phase.Failed
    assert "it speaks in the name of a node with another key" in language.slots.reason(other.slot)


def test_an_answer_of_another_version_fails_the_request_with_both_versions(language: LanguageAlone) -> None:
    """D5."""
    receiver = language.client.receiver(ENCODE_ADDRESS, 1)
    language.settle()
    actor = language.actor("bootstrap")
    data = msg.encode(msg.Refused(msg.Envelope(99, 20, 1, language.control.incarnation), 7, "whatever it says"))
    foreign = msg.decode_foreign(data)
    assert foreign is not None
    actor.arrivals.append(Arrival(foreign, None, ENCODE_ADDRESS, OWN))
    language.settle()
    assert receiver.poll() == Phase.Failed
    reason = language.slots.reason(receiver.slot)
    said = f"encode node {ENCODE_ADDRESS} speaks version 99 of the protocol, this node {msg.VERSION}"
    assert reason == f"{said}; run the same embridge on both"


# ---- what one node may have waiting


def test_a_slot_of_a_peer_has_one_grant_waiting(encode: EncodeAlone) -> None:
    """P12, P17: a later request of the slot replaces the one before it, and an earlier one that comes late has no
    effect.
    """
    role = encode.actor("bootstrap").role
    for epoch in range(1, 200):
        encode.init(1000 + epoch, [1], slot=5, epoch=epoch)
    for epoch in (1, 7, 198):
        encode.init(1000 + epoch, [2], slot=5, epoch=epoch)
    assert len(role._pending) == len(role._pending.rooms()) == 1  # type: ignore[attr-defined]
    assert role._pending.num_of(encode.control.peers.find(10, 1)) == 1  # type: ignore[attr-defined]
    assert encode.sender(1198, 4).poll() == Phase.Bootstrapping
    sender = encode.sender(1199, 4)
    assert sender.poll() == Phase.Success
    assert encode.blocks_written() == [[1]]
    assert not role._pending  # type: ignore[attr-defined]


def test_log_lines_about_a_peer_are_bounded(encode: EncodeAlone, caplog: pytest.LogCaptureFixture) -> None:
    """P16: 500 grants that are refused, and 500 messages in another's name."""
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    for number in range(500):
        encode.init(5000 + number, [99], slot=5, epoch=number + 1, node_id=11)
        encode.hears("bootstrap", msg.Abort(encode.envelope(), msg.RequestKey(1, 1, 1), 3, ""), identity=THEIRS)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 2 <= len(lines) <= 40
