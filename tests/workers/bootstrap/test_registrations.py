"""A node that takes another for dead gives back what it had granted to it; nothing of that is valid when the two meet
again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, StubEngine
from support.simulation import Answered

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Destination, Peer, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.bootstrap.registrations import MAX_QUESTIONS, QUESTION_NS
from embridge.workers.timing import NS

pytestmark = pytest.mark.usefixtures("quiet")


def test_what_was_granted_before_a_node_registered_again_is_not_written_any_more() -> None:
    """D2, D3, R14: the node had taken this one for dead, and the blocks may be somebody else's by now."""
    node = EncodeAlone()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    node.register(registration=2)
    node.write(sender, 0, 8)
    assert node.blocks_written() == []
    failure = sender.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.PEER_LOST


def test_a_grant_that_was_sent_before_a_node_registered_again_opens_nothing() -> None:
    """D2, R14, R15: it stood in a queue while this node was stopped; no tombstone knows of it."""
    node = EncodeAlone()
    node.register(registration=2)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], registration=1)
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 0
    assert node.blocks_written() == []


def test_a_grant_that_waits_for_its_encoder_is_dropped_when_its_node_registers_again() -> None:
    """D2, R14: as the others of that registration."""
    node = EncodeAlone()
    node.init(1, [3, 4])
    node.register(registration=2)
    sender = node.sender(1, 8)
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 0
    assert node.blocks_written() == []


def test_the_worker_looks_once_more_when_the_door_has_opened() -> None:
    """D2, R14: it may have knocked before the node registered again, and been let in after."""

    class SlowDoor(StubEngine):
        on_open: Callable[[], None] = staticmethod(lambda: None)

        def open(self, peer: int, record: object, session: object) -> bool:
            self.on_open()
            return True

    door = SlowDoor()
    node = EncodeAlone(engine=door)
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    door.on_open = lambda: node.control.peers.put(0, Peer.REGISTRATION, 2)
    node.write(sender, 0, 8)
    assert node.blocks_written() == []
    assert node.metric("worker0", "errors") == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_registration_that_comes_twice_or_late_changes_nothing(number: int) -> None:
    """P17, R14: only a later one voids what was granted."""
    node = EncodeAlone()
    sender = node.sender(1, 8, rows=0)
    node.init(1, [3, 4])
    node.register(registration=number)
    node.write(sender, 0, 8)
    assert sender.poll() == Phase.Success
    assert node.get(sender, Destination.SENT) == 8


def test_each_registration_has_a_greater_number_and_a_grant_carries_that_of_its_own() -> None:
    """R14, D3: also when the node that was taken for dead comes back under the same incarnation, and after a
    restart.
    """
    node = LanguageAlone()
    numbers = []
    for room in (1, 2, 3):
        receiver = node.client.receiver(ENCODE_ADDRESS, room)
        receiver.init([])
        node.settle()
        numbers.append(node.sent(msg.Register)[-1].registration)
        node.registered()
        assert node.sent(msg.Init)[-1].registration == numbers[-1]
        node.is_refused("bootstrap", ENCODE_ADDRESS)
        assert receiver.poll() == Phase.Failed
        node.restart("bootstrap")
    assert numbers == sorted(set(numbers))


def test_a_node_with_more_slots_than_an_entry_has_room_for_is_refused_with_both_numbers() -> None:
    """P12: its tombstones would lie in those of another."""
    node = EncodeAlone()
    limit = node.control.limits.max_peer_slots
    node.register(node_id=11, num_slots=limit + 1)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason == f"num_slots: {limit + 1} > max_peer_slots {limit} of this node"
    assert node.control.peers.find(11, 1) is None
    node.register(node_id=11, num_slots=limit)
    assert node.control.peers.find(11, 1) is not None


def test_when_all_entries_are_taken_the_next_node_is_told_so_and_nobody_loses_its_own() -> None:
    """P12: a limit that says which setting to raise."""
    node = EncodeAlone()
    others = range(11, 10 + node.control.limits.max_peers)  # the first has an entry already
    for other in others:
        node.register(node_id=other)
    assert node.sent(msg.Refused) == []
    node.register(node_id=99)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason == f"all {node.control.limits.max_peers} peer entries are taken; raise max_peers"
    assert all(node.control.peers.find(other, 1) is not None for other in (10, *others))


def test_a_registration_waits_for_who_listens_at_its_run_socket_and_nobody_else_does() -> None:
    """P21: the question is answered by another node's launcher, in its own time, or not at all."""
    node = EncodeAlone()
    known: list[str] = []
    node.world.ask_at = lambda *_: Answered(known[0] if known else "", lambda: not known)  # type: ignore[method-assign]
    node.register(node_id=11)
    node.register(node_id=11)
    node.world.ask_at = node.who_listens  # type: ignore[method-assign]
    node.register(node_id=12)
    assert [message.envelope.for_incarnation for message in node.sent(msg.Registered)] == [1, 1]
    assert node.control.peers.find(11, 1) is None
    assert node.control.peers.find(12, 1) is not None
    known.append("")
    node.advance(0.1)
    assert node.control.peers.find(11, 1) is not None


def test_a_run_socket_that_does_not_say_whose_it_is_is_not_taken_for_one_of_this_host() -> None:
    """P8."""
    node = EncodeAlone()
    node.world.ask_at = lambda *_: Answered("", lambda: True)  # type: ignore[method-assign]
    node.register(node_id=11)
    assert node.sent(msg.Refused) == []
    node.advance(QUESTION_NS / NS + 0.1)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason.startswith("no engine in common: its run socket does not say whose it is; ")


def test_a_registration_that_is_answered_otherwise_is_asked_about_no_more() -> None:
    """P16, P21: a newer incarnation has come meanwhile; the older one is refused once, and nothing of it waits."""
    node = EncodeAlone()
    node.world.ask_at = lambda *_: Answered("", lambda: True)  # type: ignore[method-assign]
    node.register(node_id=11, incarnation=5)
    node.world.ask_at = node.who_listens  # type: ignore[method-assign]
    node.register(node_id=11, incarnation=6)
    node.advance(QUESTION_NS / NS + 1)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason.startswith("incarnation 5 is older than 6")


def test_more_registrations_than_may_wait_are_told_nothing_yet_and_cost_nothing() -> None:
    """P12, P21: each question has a descriptor of this process."""
    node = EncodeAlone()
    asked: list[int] = []

    def ask_at(run_socket: str, node_id: int, incarnation: int) -> Answered:
        asked.append(node_id)
        return Answered("", lambda: True)

    node.world.ask_at = ask_at  # type: ignore[method-assign]
    for node_id in range(100, 100 + 2 * MAX_QUESTIONS):
        node.register(node_id=node_id)
    assert len(asked) == MAX_QUESTIONS
    assert node.sent(msg.Refused) == []
