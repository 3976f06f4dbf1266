"""A room that has ended: whoever still comes to it is told at once, and its number is free again as soon as nobody is
to come.
"""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone

from embridge import EmbeddingSender, Phase
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.workers import messages as msg
from embridge.workers.bootstrap.ended_rooms import MAX_ROOMS, EndedRooms, Remote

BEFORE = "room 3 failed here before: the picture is broken; a room number is used once"


def failed(node: EncodeAlone, *, room: int = 3) -> EmbeddingSender:
    """Its encoder gives a room up, and the node is done with it."""
    sender = node.sender(room, 8)
    sender.abort("the picture is broken")
    node.settle()
    assert node.slots.get(sender.slot, Slot.RELEASED_EPOCH) == sender.epoch
    node.forget_sent()
    return sender


def refusals(node: EncodeAlone) -> list[str]:
    return [refused.reason for refused in node.sent(msg.Refused)]


def test_a_room_that_failed_before_its_destination_came_is_free_when_that_one_knows() -> None:
    """R15, D11: it is told, again and again, until it says that it knows; then the number is as good as new, whoever
    comes first.
    """
    node = EncodeAlone()
    failed(node)
    node.init(3, [3, 4])
    node.init(3, [3, 4])  # the answer was lost
    assert refusals(node) == [BEFORE, BEFORE]
    node.abort(3, reason=BEFORE)
    assert len(node.sent(msg.AbortAck)) == 1
    node.init(3, [3, 4], epoch=2)
    sender = node.sender(3, 8)
    assert sender.poll() == Phase.Success


def test_what_a_destination_of_the_first_use_sends_late_does_not_reach_the_second() -> None:
    """R15, P17: its init and its abort, once more."""
    node = EncodeAlone()
    failed(node)
    node.init(3, [3, 4])
    node.abort(3, reason=BEFORE)
    sender = node.sender(3, 8)
    node.init(3, [5, 6])
    node.abort(3, reason=BEFORE)
    assert sender.poll() == Phase.Bootstrapping
    node.init(3, [7, 8], epoch=2)
    assert sender.poll() == Phase.Success
    assert node.blocks_written() == [[7, 8]]


def test_an_encoder_that_opens_a_room_that_is_barred_hears_that_it_was_used_before() -> None:
    """R15: its own reason would be another one's; and its failure bars nothing anew."""
    node = EncodeAlone()
    failed(node)
    again = node.sender(3, 8, rows=0)
    assert BEFORE in str(again.failure_exception())
    again.clear()
    node.settle()
    node.advance(node.world.timing.request_timeout_s + 2)
    assert node.sender(3, 8, rows=0).poll() == Phase.Bootstrapping


@pytest.mark.parametrize("late", ["nobody", "one that is lost"])
def test_a_room_is_barred_for_no_longer_than_a_request_may_take(late: str) -> None:
    """R15, D6: where nobody comes, or whose node is lost before it could say that it knows."""
    node = EncodeAlone()
    failed(node)
    if late == "one that is lost":
        node.init(3, [3, 4])
        node.is_refused("poller", "tcp://language10:2")
        node.register(incarnation=2)
        node.init(3, [3, 4], incarnation=2)
        assert node.sender(3, 8).poll() == Phase.Success
    else:
        node.advance(node.world.timing.request_timeout_s + 2, until=lambda: False)
        node.register(incarnation=2, registration=2)
        assert node.sender(3, 8, rows=0).poll() == Phase.Bootstrapping


def test_each_of_several_destinations_is_told_before_the_room_is_free() -> None:
    """D11, R15: one that is still to come is told, though another has been."""
    node = EncodeAlone()
    node.register(node_id=11)
    failed(node)
    node.init(3, [3, 4], required=2)
    node.abort(3, reason=BEFORE)
    assert BEFORE in str(node.sender(3, 8, rows=0).failure_exception())
    node.forget_sent()
    node.init(3, [3, 4], required=2, node_id=11)
    assert refusals(node) == [BEFORE]
    node.abort(3, node_id=11, reason=BEFORE)
    node.settle()
    assert node.sender(3, 8, rows=0).poll() == Phase.Bootstrapping


def test_a_destination_that_gives_up_first_bars_the_room_until_its_encoder_has_come() -> None:
    """R15: the encoder hears its reason; then nobody is to come."""
    node = EncodeAlone()
    node.init(3, [3, 4])
    node.abort(3, reason="the user went away")
    first = node.sender(3, 8)
    assert str(first.failure_exception()).count("the user went away") == 1
    assert "before" not in str(first.failure_exception())
    first.clear()
    node.settle()
    node.init(3, [5, 6], epoch=2)
    assert node.sender(3, 8).poll() == Phase.Success


def test_a_destination_that_comes_to_a_finished_room_is_told_within_a_second() -> None:
    """P24, D7: it does not wait for its deadline, unless an encoder opens the room again meanwhile: then it is a new
    request.
    """
    node = EncodeAlone()
    sender = node.sender(3, 8)
    node.init(3, [3, 4])
    assert sender.poll() == Phase.Success
    sender.clear()
    node.close(3)
    node.init(3, [5, 6], epoch=2)
    assert refusals(node) == []
    node.advance(1.0)
    finished = "room 3 was finished here before: 1 of 1 destinations have its rows; a room number is used once"
    assert refusals(node) == [finished]
    node.init(3, [5, 6], epoch=3)
    again = node.sender(3, 8)
    assert again.poll() == Phase.Success
    node.advance(1.0)
    assert refusals(node) == [finished]


def test_a_second_sender_of_a_room_that_is_in_use_bars_nothing() -> None:
    """R15: it has failed, the room has not."""
    node = EncodeAlone()
    first = node.sender(3, 8)
    second = node.new_client().sender(3, 8)
    node.settle()
    assert "in use by another sender" in str(second.failure_exception())
    node.init(3, [3, 4])
    assert first.poll() == Phase.Success
    first.clear()
    node.close(3)
    second.clear()
    node.settle()
    assert node.sender(3, 8, rows=0).poll() == Phase.Bootstrapping


def test_what_is_kept_of_ended_rooms_is_bounded() -> None:
    """P12: of rooms, and of destinations of one of them, whatever peers send; what is old goes by itself."""
    rooms = EndedRooms(1.0, 4)
    for room in range(2 * MAX_ROOMS):
        rooms.fail(room, FailureCode.ABORTED, "given up", 0)
        rooms.released(-room, None, 0, required=1, joined=[Remote(0, 1, room)])
    assert len(rooms) == 2 * MAX_ROOMS
    room = 2 * MAX_ROOMS - 1
    for epoch in range(1000):
        assert rooms.came(room, Remote(0, 1, epoch), 1, 0) is not None
        rooms.fail(room, FailureCode.ABORTED, "given up", 0, told=[Remote(0, 1, epoch)])
    assert all(len(entry.told) <= 4 and len(entry.refused) <= 4 for entry in rooms._failed.values())
    rooms.peer_gone(0, 0)
    rooms.forget_old(2_000_000_000)
    assert len(rooms) == 0
