"""Requests between two clients of one host, over real nodes: where nothing goes wrong, no process of either node hears
of them; else they are told of them, and they end as all others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread, current_thread
from typing import Any

import pytest
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.posted import BindStep, grants_in, offers_in
from support.scheduling import ByHand, Queues
from support.stopping import stopped
from support.untold import LONGER, TOTAL, is_posted, joined_by, kicks, settle, tell_all, tell_both
from support.waiting import wait_until

from embridge import Client, EmbeddingReceiver, EmbeddingSender, attach
from embridge.allocator._core import Turn, TurnTaker
from embridge.allocator.records import JoinedBy, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.direct_path import DirectPath
from embridge.pipeline.client.library import Library
from embridge.pipeline.inspection.node_status import node_status

pytestmark = pytest.mark.process


def _is_settled(sender: EmbeddingSender) -> bool:
    return sender._final is not None


def _opened(client: Client) -> set[int]:
    """The nodes to which it has doors."""
    doors = library_of(client).doors
    assert doors is not None
    return {door.node[0] for _, door in doors.open_ones}


def _never(*_: object) -> None:
    raise AssertionError


# ---- nothing goes wrong


def test_requests_that_go_well_cost_no_process_of_either_node_a_kick(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R37, R78, R80: one after the other in the same slots, and each is counted, by the clients."""
    before = kicks(encode, language)
    for _ in range(20):
        room = next(rooms)
        receiving.add(encode.addr, room)
        wait_until(partial(is_posted, receiving, room))
        sender = open_sender(sending, room, TOTAL)
        assert sender.is_untold
        assert give(sender)
        assert sender.poll() == Phase.Success
        assert receiving.take(room, 20).difference == ""
        wait_until(partial(_is_settled, sender))
        assert not is_posted(receiving, room)
    wait_until(lambda: not language.in_flight())
    after = kicks(encode, language)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        f"{node.run_dir.name}/clients": 20 for node in (encode, language)
    }
    encode.wait_idle(10)


def test_the_first_request_of_a_scheduler_that_has_just_attached_goes_well_untold(
    encode: Station, language: Station, sending: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R37, R78: it looks who the neighbours of its node are before the library thread does."""
    monkeypatch.setattr(Library, "_look_at_node", lambda _: None)
    room = next(rooms)
    with attach(language.run_dir) as client, stopped(language.pid_of("bootstrap")):
        queues = Queues(client)
        queues.add(encode.addr, room)
        assert is_posted(queues, room)
        assert give(open_sender(sending, room, TOTAL))
        assert queues.take(room, 20).difference == ""


def test_the_first_receiver_by_hand_of_a_client_that_has_just_attached_goes_well_untold(
    encode: Station, language: Station, sending: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R37, R78: no queue looks again for it."""
    monkeypatch.setattr(Library, "_look_at_node", lambda _: None)
    room = next(rooms)
    with attach(language.run_dir) as client, stopped(language.pid_of("bootstrap")):
        it = ByHand(client, encode.addr, room)
        assert it.receiver.is_untold
        it.grant(1, TOTAL)
        assert grants_in(library_of(client).attachment.control.posts, room)
        assert give(open_sender(sending, room, TOTAL))
        assert it.finish(TOTAL).difference == ""


def test_a_scheduler_looks_again_for_a_neighbour_that_has_come_since(
    encode: Station, language: Station, sending: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R37, R78: at once, and not in its library thread's next slow look."""
    monkeypatch.setattr(Library, "_look_at_node", lambda _: None)
    with attach(language.run_dir) as client, stopped(language.pid_of("bootstrap")):
        library_of(client).neighbours.by_address.clear()
        queues, room = Queues(client), next(rooms)
        queues.add(encode.addr, room)
        assert is_posted(queues, room)
        assert give(open_sender(sending, room, TOTAL))
        assert queues.take(room, 20).difference == ""


@pytest.mark.usefixtures("sending")
def test_an_encoder_that_has_just_attached_has_its_doors_open(encode: Station, language: Station) -> None:
    """R33: where the nodes know each other, and answer."""
    with attach(encode.run_dir) as client:
        assert language.control.node_id in _opened(client)


@pytest.mark.usefixtures("sending")
def test_an_encoder_attaches_though_a_node_does_not_answer(encode: Station, language: Station) -> None:
    with stopped(language.pid_of("launcher")), attach(encode.run_dir) as client:
        assert language.control.node_id not in _opened(client)


def test_all_rows_are_sent_and_the_request_is_left_in_one_call(
    sending: Client, receiving: Queues, posted: EmbeddingReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R80: nothing is made for it that only others need."""
    sender = open_sender(sending, posted.room, TOTAL)
    monkeypatch.setattr(DirectPath, "__init__", _never)
    assert give(sender)
    assert sender._final is not None
    assert sender.done
    assert sender.poll() == Phase.Success
    assert [it for it in sending.poll() if it is sender] == [sender]
    assert receiving.take(posted.room, 20).difference == ""


def test_what_a_callback_is_to_hear_is_left_to_the_library_thread(
    sending: Client, receiving: Queues, posted: EmbeddingReceiver
) -> None:
    """P22: a callback is called by it, and once."""
    sender, called = open_sender(sending, posted.room, TOTAL), list[tuple[object, str]]()
    sender.add_done_callback(lambda it: called.append((it, current_thread().name)))
    assert give(sender)
    wait_until(lambda: called, 10)
    assert receiving.take(posted.room, 20).difference == ""
    assert called == [(sender, "embridge-library")]


@pytest.mark.usefixtures("posted")
def test_who_comes_to_a_room_that_was_finished_untold_hears_of_it(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P24: its clients have noted it."""
    assert give(open_sender(sending, room, TOTAL))
    assert receiving.take(room, 20).difference == ""
    library_of(receiving.client).requests.untold.late_ns = 0
    receiving.add(encode.addr, room)
    assert f"room {room} was finished here before: 1 of 1" in receiving.take(room, 20).reason


@pytest.mark.parametrize("is_taken", [False, True])
def test_whoever_writes_the_last_row_ends_the_request_if_nobody_has_the_turn(
    sending: Client, receiving: Queues, posted: EmbeddingReceiver, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """R80, D2: else its library thread does."""
    library, sender = library_of(sending), open_sender(sending, posted.room, TOTAL)
    with monkeypatch.context() as patch, TurnTaker(library.view.turn if is_taken else Turn()) as has_turn:
        patch.setattr(library, "_take_turn", lambda: False)
        assert has_turn
        assert give(sender)
        assert (sender.done, _is_settled(sender)) == (not is_taken, not is_taken)
    library.wake()
    wait_until(partial(_is_settled, sender))
    assert receiving.take(posted.room, 20).difference == ""


@pytest.mark.parametrize("is_asked_first", [True, False])
def test_an_announced_length_is_known_before_any_row(
    encode: Station, sending: Client, receiving: Queues, room: int, is_asked_first: bool
) -> None:
    """B3, B7, R37: what is granted by the clients alone is a default, so whoever announces more has the nodes told."""
    total = 3 * encode.geometry.block_size * encode.control.limits.window_blocks
    if is_asked_first:
        request = receiving.add(encode.addr, room)
        wait_until(lambda: is_posted(receiving, room))
    sender = open_sender(sending, room, total)
    assert sender.is_untold
    sender.announce()
    if not is_asked_first:
        request = receiving.add(encode.addr, room)
    wait_until(lambda: request.total_embedding_length == total, 10)  # long before the node is told of what takes long
    sender.abort("enough")
    receiving.wait(room, 20)


def test_a_request_is_shown_while_only_its_clients_know_of_it(
    encode: Station, language: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver
) -> None:
    """P8: who waits can tell for whom."""
    sender = open_sender(sending, posted.room, TOTAL)
    for node in (encode, language):
        (request,) = [it for it in node_status(node.run_dir)["requests"] if it["room"] == posted.room]
        assert (request["line"], request["process"]) == ("untold", "client")
    assert give(sender)
    assert receiving.take(posted.room, 20).difference == ""


# ---- something goes wrong, or takes long


@pytest.mark.parametrize("is_bound", [False, True], ids=["before rows", "between rows"])
@pytest.mark.parametrize(
    "late", [lambda sending, _: tell_all(sending), lambda _, scheduling: tell_all(scheduling), tell_both],
    ids=["the encode node", "the language node", "both"],
)  # fmt: skip
def test_who_is_told_late_goes_on_with_it_and_both_sides_end(
    encode: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver,
    late: Callable[[Client, Client], None], is_bound: bool,
) -> None:  # fmt: skip
    """R78 to R80: either side told, or both, in the middle of the request; nothing of it is left."""
    sender = open_sender(sending, posted.room, TOTAL)
    if is_bound:
        assert give(sender, 0, 10)
    late(sending, receiving.client)
    assert give(sender, 10 if is_bound else 0)
    assert receiving.take(posted.room, 20).difference == ""
    assert ended(sender).error == ""
    settle(encode)
    encode.wait_idle(10)


def test_rows_that_come_first_are_written_when_they_are_granted(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R37: the encoder's offer says that it waits."""
    sender = open_sender(sending, room, TOTAL)
    assert give(sender)
    posts = library_of(receiving.client).attachment.control.posts
    wait_until(lambda: offers_in(posts, room))
    receiving.add(encode.addr, room)
    assert receiving.take(room, 20).difference == ""
    assert ended(sender).error == ""
    wait_until(lambda: not offers_in(posts, room))


def test_rows_behind_the_first_grant_are_granted_by_messages(
    encode: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver
) -> None:
    """R1, R79: the encode node takes up what its client has found, and goes on with it."""
    total = posted.granted_tokens + 1000
    sender = open_sender(sending, posted.room, total)
    assert give(sender)
    received = receiving.take(posted.room, 20)
    assert (received.difference, received.total) == ("", total)
    assert ended(sender).error == ""


@pytest.mark.parametrize("is_bound", [False, True], ids=["before rows", "between rows"])
@pytest.mark.parametrize("who", ["encoder", "scheduler"])
def test_who_gives_up_is_heard_by_the_other(
    encode: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver, who: str, is_bound: bool
) -> None:
    """D11, R78: the failure of one side is the other's, though no node had heard of either."""
    sender = open_sender(sending, posted.room, TOTAL)
    if is_bound:
        assert give(sender, 0, 10)
    handle: Any = sender if who == "encoder" else receiving.requests[posted.room]
    handle.abort("no longer wanted")
    if not is_bound and who == "scheduler":
        tell_both(sending, receiving.client)  # in time each tells its node
    received = receiving.take(posted.room, 20)
    assert "no longer wanted" in received.reason
    if who == "scheduler":
        tell_all(sending)
    assert "no longer wanted" in ended(sender).reason
    encode.wait_idle(10)


# ---- the room once more


@pytest.fixture
def joined(sending: Client, posted: EmbeddingReceiver) -> EmbeddingSender:
    """The encoder's side of a request whose grant stands where encoders look, and was sent to its node as well."""
    posted.tell()
    sender = open_sender(sending, posted.room, TOTAL)
    sender.tell()
    wait_until(lambda: joined_by(sender) == JoinedBy.BOOTSTRAP)
    return sender


def test_a_later_sender_of_a_room_finds_nothing_of_the_request_before(
    encode: Station, language: Station, sending: Client, receiving: Queues, joined: EmbeddingSender
) -> None:
    """R81, D7, P6: its language node has not taken back the slot of the request before yet."""
    room = joined.room
    with stopped(language.pid_of("bootstrap")):
        assert give(joined)
        assert receiving.take(room, 20).difference == ""
        assert ended(joined).error == ""
        settle(encode)
        again = open_sender(sending, room, 2 * TOTAL)
        assert give(again)
        posts = library_of(receiving.client).attachment.control.posts
        wait_until(lambda: offers_in(posts, room))
        assert joined_by(again) == JoinedBy.NOBODY
        assert again.sent_tokens == 0
    receiving.add(encode.addr, room)
    received = receiving.take(room, 20)
    assert (received.difference, received.total) == ("", 2 * TOTAL)
    assert ended(again).error == ""


def test_a_grant_that_was_sent_is_bound_to_the_sender_that_writes(
    receiving: Queues, joined: EmbeddingSender, posted: EmbeddingReceiver
) -> None:
    """R81: so nobody else who looks there finds it."""
    assert give(joined, 0, 10)
    posts = library_of(receiving.client).attachment.control.posts
    assert not grants_in(posts, posted.room)
    assert not posts.bind(posted.slot, posted.epoch)
    assert give(joined, 10)
    assert receiving.take(posted.room, 20).difference == ""


def test_a_sender_that_its_node_joins_while_it_binds_itself_is_bound_to_the_same_grant(
    language: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver
) -> None:
    """R79, R81: its other thread, which has the node's word for the grant, takes it for no other sender's."""
    sender = open_sender(sending, posted.room, TOTAL)
    assert sender._direct is not None
    other = Thread(target=sender._direct.decide)
    [door] = [door for _, door in sender._direct._doors.open_ones if door.node[0] == language.control.node_id]

    def is_joined_by_its_node(step: int) -> None:
        if step != BindStep.JOIN:
            return
        door.grants.watch(None)
        posted.tell()
        sender.tell()
        wait_until(lambda: sender._slots.get(sender.slot, Slot.NUM_DESTINATIONS) > 0)
        other.start()
        other.join(0.2)

    door.grants.watch(is_joined_by_its_node)
    assert give(sender)
    other.join()
    assert joined_by(sender) == JoinedBy.BOOTSTRAP
    assert receiving.take(posted.room, 20).difference == ""
    assert ended(sender).error == ""


def test_a_sender_whose_grant_another_has_writes_nothing_and_fails(
    sending: Client, receiving: Queues, posted: EmbeddingReceiver
) -> None:
    """R81, P6: two senders of one room."""
    assert library_of(receiving.client).attachment.control.posts.bind(posted.slot, posted.epoch)
    posted.tell()
    sender = open_sender(sending, posted.room, TOTAL)
    sender.tell()
    give(sender)
    assert ended(sender).reason == f"room {posted.room} is in use by another sender of this node"
    assert sender.sent_tokens == 0
    assert "in use by another sender" in receiving.take(posted.room, 20).reason


def test_what_has_come_is_as_long_as_its_rows(sending: Client, receiving: Queues, posted: EmbeddingReceiver) -> None:
    """R81, B7, P6: another sender of the room has announced another length."""
    library_of(receiving.client).attachment.control.slots.set(posted.slot, Slot.TOTAL, LONGER)
    assert give(open_sender(sending, posted.room, TOTAL))
    received = receiving.take(posted.room, 20)
    assert (received.total, received.difference) == (TOTAL, "")
