"""P16: bytes that no node would send, to every role of a node: none is a crash or a caught error, and good requests end
well meanwhile.

The hostile node is the worst there can be: it is listed, and registered, and it speaks in the name of others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
from support.alone import ENCODE_ADDRESS, Alone, LanguageAlone
from support.frames import FrameMaker
from support.questions import Shelved

from embridge.allocator.errors import ProtocolError
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.role import Arrival

GOOD, HOSTILE = "the good node's key", "the hostile node's key"
ELSEWHERE = "tcp://10.0.0.21:1"
BATCH = 500

# Four roles, one of them also where nodes verify: together over 10^5 frames in the tests, and 10^6 in the storm.
QUICK, STORM = 10_000, 250_000


pytestmark = pytest.mark.usefixtures("quiet")


def attack(node: Alone, role: str, maker: FrameMaker, count: int, *, address: str | None = None) -> tuple[int, int]:
    """Frames as the wire would hand them over, over the hostile node's connection. (came through the schema, refused by
    it).
    """
    passed = refused = 0
    arrivals = node.actor(role).arrivals
    for number, frame in enumerate(maker.frames(count)):
        try:
            message: msg.Message | msg.Foreign | None = msg.decode(frame, "the hostile node")
        except ProtocolError:
            refused += 1
            message = msg.decode_foreign(frame)
        if message is not None:
            passed += 1
            over = address if number % 2 else None
            arrivals.append(Arrival(message, None if over else b"hostile", over, HOSTILE))
    node.settle()
    node.forget_sent()
    return passed, refused


def no_error(node: Alone) -> bool:
    """No exception was caught in any role: `RoleContext.isolated` counts them."""
    return all(row["errors"] == 0 for row in node.control.metrics.all().values())


def attack_encode(role: str, count: int, *, verify: bool = False) -> None:
    node = Shelved(identities={10: GOOD, 11: HOSTILE}, verify=verify)
    node.publish("cat", 7)
    node.register(node_id=11)
    maker = FrameMaker(
        random.Random(16), node.control.incarnation, [(11, 1), (11, 1), (10, 1), (12, 1), (2**63 - 2, 5)]
    )
    passed = refused = room = 0
    while passed + refused < count:
        room += 1
        slot = 40 + room % 20
        sender = node.sender(1000 + room, 8, rows=4)
        node.init(1000 + room, [room % 16, (room + 1) % 16], slot=slot, epoch=room)
        more, less = attack(node, role, maker, BATCH)
        passed, refused = passed + more, refused + less
        node.write(sender, 4, 8)
        key = msg.RequestKey(slot, room, 1000 + room)
        if verify:
            assert sender.poll() < Phase.Success
            node.hears("poller", msg.Checked(node.envelope(node_id=10), [msg.CheckedRows(key, 8)]))
        assert sender.poll() == Phase.Success, (room, sender.failure_exception())
        node.hears("poller", msg.Close(node.envelope(node_id=10), key))
        sender.clear()
        node.settle()
        assert no_error(node)
    assert node.blocks_written()[-1] == [(room + 1) % 16]
    assert passed > count // 4
    assert refused > count // 8
    assert node.metric(role, "messages_forged") > 50


def registered(node: LanguageAlone) -> msg.Registered:
    return msg.Registered(node.envelope(node_id=21), ELSEWHERE, "tcp://10.0.0.21:2", node.world.engine.name, 16, 16, "")


def attack_language(role: str, count: int) -> None:
    node = LanguageAlone(identities={20: GOOD, 21: HOSTILE})
    maker = FrameMaker(random.Random(16), node.control.incarnation, [(21, 1), (21, 1), (20, 1), (22, 1)])
    passed = refused = room = 0
    while passed + refused < count:
        room += 1
        # there is a line to the hostile node, and a request that it may end
        victim = node.client.receiver(ELSEWHERE, room)
        node.settle()
        node.hears("bootstrap", registered(node), address=ELSEWHERE)
        assert victim.handshake_done
        receiver = node.receiver(1000 + room)
        node.status(receiver, Phase.WaitingForInput, 0, total_tokens=8)
        more, less = attack(node, role, maker, BATCH, address=ELSEWHERE)
        passed, refused = passed + more, refused + less
        node.status(receiver, Phase.Success, 8, total_tokens=8)
        assert receiver.poll() == Phase.Success, (room, receiver.failure_exception())
        receiver.clear()
        node.is_refused("poller", "tcp://10.0.0.21:2")
        assert victim.poll() == Phase.Failed
        victim.clear()
        node.settle()
        assert no_error(node)
    assert node.counts().get("free", 0) >= 6
    assert passed > count // 4
    assert refused > count // 8
    assert node.metric(role, "messages_forged") > 50


ATTACKS: dict[str, tuple[Callable[[str, int], None], str]] = {
    "the encode node's bootstrap": (attack_encode, "bootstrap"),
    "the encode node's poller": (attack_encode, "poller"),
    "the encode node's poller, where nodes verify": (partial(attack_encode, verify=True), "poller"),
    "the language node's bootstrap": (attack_language, "bootstrap"),
    "the language node's poller": (attack_language, "poller"),
}


@pytest.mark.parametrize("where", ATTACKS)
def test_frames_of_a_hostile_node_end_nobody_elses_request(where: str) -> None:
    """P16, D4, D15."""
    call, role = ATTACKS[where]
    call(role, QUICK)


@pytest.mark.storm
@pytest.mark.parametrize("where", ATTACKS)
def test_a_million_frames_of_a_hostile_node_end_nobody_elses_request(where: str) -> None:
    """P16, D4, D15."""
    call, role = ATTACKS[where]
    call(role, STORM)


def test_a_frame_of_the_schema_is_what_it_was() -> None:
    """The maker's messages are well formed, and it makes every kind: else nothing above would be tried."""
    maker = FrameMaker(random.Random(1), 1, [(1, 1)])
    kinds = {type(msg.decode(maker.lie(), "the test")).__name__ for _ in range(500)}
    assert kinds == {kind.__name__ for kind in msg.Message.__args__}
    assert ENCODE_ADDRESS != ELSEWHERE
