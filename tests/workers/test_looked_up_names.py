"""Requests that have a name in their address: each waits for the name, and where it leads is forgotten when nobody
answers there.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone
from support.wires import wired

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg
from embridge.workers.addresses import Found
from embridge.workers.keys import new_key_pair
from embridge.workers.role import Disconnect, Send

pytestmark = pytest.mark.usefixtures("quiet")

NAME = "tcp://encoder.example:4000"


def names(node: LanguageAlone, found: dict[str, Found | None]) -> None:
    """What has come of each name so far."""
    node.world.find = lambda address: found[address]  # type: ignore[method-assign]


def why(receiver: Any) -> tuple[FailureCode, str]:
    failure = receiver.failure_exception()
    assert failure is not None
    return failure.code, failure.reason


def test_only_the_request_with_the_name_waits_for_it_and_at_most_as_long_as_for_a_connection() -> None:
    """P21, P8, D10."""
    node = LanguageAlone()
    names(node, {NAME: None})
    slow = node.client.receiver(NAME, 1)
    other = node.receiver(2)
    assert other.handshake_done
    sends = [item for _, item in node.wire.sent if isinstance(item, Send)]
    assert [item.address for item in sends if isinstance(item.message, msg.Register)] == [ENCODE_ADDRESS]
    timeout_s = node.world.timing.connect_timeout_s
    node.advance(timeout_s - 0.1)
    assert slow.poll() == Phase.Bootstrapping
    node.advance(0.7)
    assert why(slow) == (
        FailureCode.UNREACHABLE,
        f"no encode node answers at {NAME} for {timeout_s:g} s; name encoder.example does not resolve: no answer yet",
    )


def test_who_joins_those_who_wait_for_a_name_has_as_long_as_they_had() -> None:
    """P21, P8: the requests before it are no reason to fail early; and who is asked for again waits on."""
    node = LanguageAlone()
    names(node, {NAME: None})
    timeout_s = node.world.timing.connect_timeout_s
    first = node.client.receiver(NAME, 1)
    node.advance(timeout_s - 1)
    second = node.client.receiver(NAME, 2)
    library_of(node.client).attachment.kick_bootstrap(Kick.OPEN, first.slot, first.epoch)
    node.advance(1.7)
    assert (first.poll(), second.poll()) == (Phase.Failed, Phase.Bootstrapping)
    node.advance(timeout_s - 2)
    assert second.poll() == Phase.Bootstrapping
    node.advance(1.0)
    assert why(second) == why(first)


def test_who_joins_those_who_wait_for_a_connection_has_as_long_as_they_had() -> None:
    """P21, P8: here the node starts late: too late for the first, in time for the second, in a registration after the
    first one's (R14).
    """
    node = LanguageAlone()
    timeout_s = node.world.timing.connect_timeout_s
    first = node.client.receiver(ENCODE_ADDRESS, 1)
    node.advance(timeout_s - 1)
    second = node.client.receiver(ENCODE_ADDRESS, 2)
    library_of(node.client).attachment.kick_bootstrap(Kick.OPEN, first.slot, first.epoch)
    node.advance(1.7)
    assert why(first) == (
        FailureCode.UNREACHABLE,
        f"no encode node answers at {ENCODE_ADDRESS} for {timeout_s:g} s; check its address and that it is up",
    )
    node.advance(timeout_s - 2)
    assert second.poll() == Phase.Bootstrapping
    node.registered()
    assert second.handshake_done
    numbers = [message.registration for message in node.sent(msg.Register)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 2


def test_of_those_who_wait_for_a_connection_each_fails_in_its_time() -> None:
    """P8: also where there is always one more, and the line is renewed, so that nothing piles up in a socket."""
    node = LanguageAlone()
    timeout_s = node.world.timing.connect_timeout_s
    every_s, receivers = timeout_s / 4, []
    for room in range(13):
        receivers.append(node.client.receiver(ENCODE_ADDRESS, room))
        node.advance(every_s)
    assert [receiver.poll() == Phase.Failed for receiver in receivers] == [True] * 9 + [False] * 4
    assert sum(isinstance(item, Disconnect) for _, item in node.wire.sent) == 3
    node.advance(timeout_s)
    assert [receiver.poll() for receiver in receivers] == [Phase.Failed] * 13
    node.advance(timeout_s)  # for their aborts, which find nobody, either
    assert not node.actor("bootstrap").role._links  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["given up", "refused", "nobody listens", "its port is closed", "it is dead"])
def test_where_a_name_leads_is_forgotten_when_nobody_answers_there(how: str) -> None:
    """P21: else whoever asks for that name goes there for as long as an answer is kept, wherever its node is by now."""
    node = LanguageAlone()
    forgotten: list[str] = []
    node.world.forget = lambda endpoint: forgotten.append(endpoint)  # type: ignore[method-assign]
    names(node, {NAME: Found(ENCODE_ADDRESS)})
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    if how in ("its port is closed", "it is dead"):
        node.registered()
        assert receiver.handshake_done
    assert not forgotten
    match how:
        case "given up":
            node.advance(node.world.timing.connect_timeout_s + 0.6)
        case "refused":
            refusal = msg.Refused(node.envelope(node_id=20), FailureCode.REFUSED, "not here")
            node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
        case "it is dead":
            node.advance(node.world.timing.peer_timeout_s + 1)
        case _:
            node.actor("bootstrap").refused.append(ENCODE_ADDRESS)
            node.settle()
    assert set(forgotten) == {ENCODE_ADDRESS}


def test_a_name_that_does_not_resolve_may_do_so_later_until_the_time_to_connect_is_over() -> None:
    """P8: a node's name may come with the node."""
    node = LanguageAlone()
    found: dict[str, Found | None] = {
        NAME: Found("", "name encoder.example does not resolve: Name or service not known")
    }
    names(node, found)
    first = node.client.receiver(NAME, 1)
    node.advance(1.0)
    assert first.poll() == Phase.Bootstrapping
    found[NAME] = Found(ENCODE_ADDRESS)
    node.advance(0.6)
    node.registered()
    assert first.handshake_done
    found[NAME] = Found("", "name encoder.example does not resolve: Name or service not known")
    second = node.client.receiver(NAME, 2)
    node.advance(node.world.timing.connect_timeout_s + 0.6)
    assert why(second)[1].endswith(" s; name encoder.example does not resolve: Name or service not known")


def test_a_node_that_is_asked_by_name_and_by_number_has_one_link() -> None:
    """R14, D2: a second registration would void what was granted under the first."""
    node = LanguageAlone()
    names(node, {NAME: Found(ENCODE_ADDRESS)})
    node.receiver(1)
    by_name = node.client.receiver(NAME, 2)
    mapped = node.client.receiver(ENCODE_ADDRESS.replace("10.0.0.20", "[::ffff:10.0.0.20]"), 3)
    node.settle()
    assert by_name.handshake_done
    assert mapped.handshake_done
    assert len(node.sent(msg.Register)) == 1


def test_a_request_that_ends_while_its_name_is_looked_up_leaves_nothing() -> None:
    """D6."""
    node = LanguageAlone()
    names(node, {NAME: None})
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    receiver.abort()
    receiver.clear()
    node.advance(node.world.timing.connect_timeout_s + 1)
    assert not list(node.control.open_slots())
    assert not node.actor("bootstrap").role._lookups  # type: ignore[attr-defined]


def test_after_a_restart_of_the_bootstrap_process_the_name_is_looked_up_again() -> None:
    """P11."""
    node = LanguageAlone()
    found: dict[str, Found | None] = {NAME: None}
    names(node, found)
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    node.restart("bootstrap")
    found[NAME] = Found(ENCODE_ADDRESS)
    node.settle()
    node.registered()
    assert receiver.handshake_done


def test_the_key_beside_a_name_is_that_of_the_address_behind_it(tmp_path: Any) -> None:
    """D15: the allow-list may know a node by its name."""
    pair, other = new_key_pair(), new_key_pair()
    allow = tmp_path / "nodes.allow"
    allow.write_text(f"encoder.example {other.public}\n")
    node = LanguageAlone()
    names(node, {NAME: Found("tcp://127.0.0.1:9")})
    with wired(node.actor("bootstrap"), pair, allow) as it:
        by_name = node.client.receiver(NAME, 1)
        it.turn_until(lambda: it.wire._dealers.by_address)
        assert it.wire._dealers.by_address["tcp://127.0.0.1:9"].key == other.public
        assert not node.slots.get(by_name.slot, Slot.FAILURE)
        by_number = node.client.receiver("tcp://127.0.0.2:9", 2)
        it.turn_until(lambda: node.slots.get(by_number.slot, Slot.FAILURE))
