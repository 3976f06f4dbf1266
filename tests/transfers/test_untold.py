"""Requests between two clients of one host, over real nodes: where nothing goes wrong, no process of either node hears
of them; else they are told of them, and they end as all others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from threading import Thread
from typing import Any, Final

import pytest
from support.direct import open_door
from support.encoding import ended, give, open_sender, through_workers, wait_doors
from support.nodes import Station
from support.posted import BindStep, grants_in, offers_in
from support.scheduling import Queues
from support.stopping import stopped
from support.waiting import wait_until

from embridge import Client, EmbeddingReceiver, EmbeddingSender, attach
from embridge.allocator._core import Turn, TurnTaker
from embridge.allocator.records import JoinedBy, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.inspection.node_status import node_status
from embridge.workers.timing import NS

pytestmark = pytest.mark.process

TOTAL: Final = 100  # less than a block
LONGER: Final = 120
LONG_NS: Final = 25 * NS


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]) -> Iterator[Client]:
    """A client of the encode node that has a door to the language node, whose clients know that. Neither tells its
    node of a request because that takes long.
    """
    open_door(encode, sending, receiving, next(rooms))
    neighbours = library_of(receiving.client).neighbours
    wait_until(lambda: neighbours.find(encode.addr) is not None)
    _settle(encode, receiving)
    with pytest.MonkeyPatch.context() as patch:
        for client in (sending, receiving.client):
            patch.setattr(library_of(client).requests.untold, "late_ns", LONG_NS)
        yield sending


def _settle(encode: Station, receiving: Queues) -> None:
    """Until no process of the encode node has a request in flight."""
    wait_until(lambda: not node_status(encode.run_dir)["requests"])


def _kicks(*nodes: Station) -> dict[str, int]:
    """How many kicks the processes of these nodes have taken, and requests that have ended well, by whom."""
    rows = {f"{node.run_dir.name}/{name}": row for node in nodes for name, row in node.control.metrics.all().items()}
    return {name: row["succeeded" if name.endswith("clients") else "records"] for name, row in rows.items()}


def _is_posted(receiving: Queues, room: int) -> bool:
    return bool(grants_in(library_of(receiving.client).attachment.control.posts, room))


def _is_settled(sender: EmbeddingSender) -> bool:
    return sender._final is not None


@pytest.fixture
def posted(encode: Station, sending: Client, receiving: Queues, room: int) -> EmbeddingReceiver:
    """The scheduler's side of a request of which nobody else knows."""
    request = receiving.add(encode.addr, room)
    wait_until(lambda: _is_posted(receiving, room))
    assert request.receiver is not None
    assert request.receiver.is_untold
    return request.receiver


# ---- nothing goes wrong


def test_requests_that_go_well_cost_no_process_of_either_node_a_kick(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R37, R78, R80: one after the other in the same slots, and each is counted, by the clients."""
    before = _kicks(encode, language)
    for _ in range(20):
        room = next(rooms)
        receiving.add(encode.addr, room)
        wait_until(partial(_is_posted, receiving, room))
        sender = open_sender(sending, room, TOTAL)
        assert sender.is_untold
        assert give(sender)
        assert sender.poll() == Phase.Success
        assert receiving.take(room, 20).difference == ""
        wait_until(partial(_is_settled, sender))
        assert not _is_posted(receiving, room)
    wait_until(lambda: not language.in_flight())
    after = _kicks(encode, language)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        f"{node.run_dir.name}/clients": 20 for node in (encode, language)
    }
    encode.wait_idle(10)


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
    with monkeypatch.context() as patch, TurnTaker(library._turn if is_taken else Turn()) as has_turn:
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
        wait_until(lambda: _is_posted(receiving, room))
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


def _tell(client: Client) -> None:
    """Let it be late for all requests of a client."""
    library = library_of(client)
    for handle in library.requests.untold.handles():
        handle.tell()


def _both(sending: Client, scheduling: Client) -> None:
    _tell(sending)
    _tell(scheduling)


@pytest.mark.parametrize("is_bound", [False, True], ids=["before rows", "between rows"])
@pytest.mark.parametrize(
    "late", [lambda sending, _: _tell(sending), lambda _, scheduling: _tell(scheduling), _both],
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
    _settle(encode, receiving)
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
        _both(sending, receiving.client)  # in time each tells its node
    received = receiving.take(posted.room, 20)
    assert "no longer wanted" in received.reason
    if who == "scheduler":
        _tell(sending)
    assert "no longer wanted" in ended(sender).reason
    encode.wait_idle(10)


# ---- the room once more


def _joined(sender: EmbeddingSender) -> int:
    return sender._slots.get(sender.slot, Slot.JOINED_BY)


@pytest.fixture
def joined(sending: Client, posted: EmbeddingReceiver) -> EmbeddingSender:
    """The encoder's side of a request whose grant stands where encoders look, and was sent to its node as well."""
    posted.tell()
    sender = open_sender(sending, posted.room, TOTAL)
    sender.tell()
    wait_until(lambda: _joined(sender) == JoinedBy.BOOTSTRAP)
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
        _settle(encode, receiving)
        again = open_sender(sending, room, 2 * TOTAL)
        assert give(again)
        posts = library_of(receiving.client).attachment.control.posts
        wait_until(lambda: offers_in(posts, room))
        assert _joined(again) == JoinedBy.NOBODY
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
    [door] = [door for _, door in sender._direct._doors.open_ones() if door.node[0] == language.control.node_id]

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
    assert _joined(sender) == JoinedBy.BOOTSTRAP
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


@pytest.fixture
def waiting(encode: Station, sending: Client, room: int, request: pytest.FixtureRequest) -> Iterator[EmbeddingSender]:
    """A sender of another client, of the same room but longer, which its node has. By a parameter: it has no doors."""
    with attach(encode.run_dir) as other:
        wait_doors(other)
        before = _kicks(encode)
        with through_workers(other) if getattr(request, "param", "") else nullcontext():
            sender = open_sender(other, room, LONGER)
        sender.tell()
        wait_until(lambda: _kicks(encode) != before)
        yield sender
        sender.abort("enough")
        ended(sender)


def _is_released(encode: Station, sender: EmbeddingSender) -> bool:
    return all((it["slot"], it["epoch"]) != (sender.slot, sender.epoch) for it in encode.in_flight())


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.usefixtures("waiting")
def test_a_second_sender_that_has_found_its_grant_ends_as_its_destination_does(
    encode: Station, sending: Client, receiving: Queues, posted: EmbeddingReceiver, is_over: bool
) -> None:
    """R79, D6, D11, R23, P8: its node knows another one, and tells the destination all the same."""
    sender = open_sender(sending, posted.room, TOTAL)
    assert give(sender, 0, 10)
    with stopped(encode.pid_of("bootstrap")):
        sender.tell()
        if is_over:
            assert give(sender, 10)
    why = "" if is_over else f"room {posted.room} is in use by another sender of this node"
    assert ended(sender).reason == why
    assert receiving.take(posted.room, 20).reason == why
    wait_until(lambda: _is_released(encode, sender))


@pytest.mark.parametrize("late", [False, True])
def test_two_senders_of_a_room_with_one_grant_fail_and_are_released(
    encode: Station, sending: Client, receiving: Queues, waiting: EmbeddingSender, posted: EmbeddingReceiver,
    monkeypatch: pytest.MonkeyPatch, late: bool,
) -> None:  # fmt: skip
    """R79, R81, D6, R23: one has found it, and is being told of; the node has joined the other, whose rows nobody
    writes. The first may be told of late: its destination has closed the other by then, and waits for its scheduler.
    """
    sender = open_sender(sending, posted.room, TOTAL)
    assert give(sender, 0, 10)
    encode.control.untold.add(posted.room, -1)  # so its node does not look for it
    posted.tell()
    wait_until(lambda: _joined(waiting) == JoinedBy.BOOTSTRAP)
    encode.control.untold.add(posted.room, 1)
    reasons = (  # the second is the destination's own, if it has heard of both senders by then
        f"room {posted.room} is in use by another sender of this node",
        f"the encode side announced {TOTAL} tokens and then {LONGER}",
    )
    with monkeypatch.context() as patch:
        if late:
            patch.setattr(library_of(receiving.client), "_take_turn", lambda: False)
        give(waiting)
        assert ended(waiting).reason in reasons
        assert waiting.sent_tokens == 0
        wait_until(lambda: not late or _is_released(encode, waiting))
        _both(sending, receiving.client)
        assert ended(sender).error
    assert receiving.take(posted.room, 20).reason in reasons
    wait_until(lambda: _is_released(encode, sender) and _is_released(encode, waiting))


DOORLESS: Final = pytest.mark.parametrize("waiting", ["without doors"], indirect=True)


@DOORLESS
def test_a_sender_finds_no_grant_to_which_its_node_has_joined_another(
    sending: Client, receiving: Queues, waiting: EmbeddingSender, posted: EmbeddingReceiver
) -> None:
    """R79, R81: whose rows the worker writes."""
    posted.tell()
    wait_until(lambda: _joined(waiting) == JoinedBy.BOOTSTRAP)
    sender = open_sender(sending, posted.room, TOTAL)
    assert give(sender)
    assert _joined(sender) == JoinedBy.NOBODY
    assert give(waiting)
    assert receiving.take(posted.room, 20).total == LONGER
    assert sender.sent_tokens == 0
    sender.abort("enough")


@DOORLESS
def test_a_node_joins_nobody_to_a_grant_that_another_sender_has_found(
    encode: Station, sending: Client, receiving: Queues, waiting: EmbeddingSender, posted: EmbeddingReceiver
) -> None:
    """R79, R81: or its worker would write into the same blocks."""
    sender = open_sender(sending, posted.room, TOTAL)
    assert give(sender, 0, 10)
    give(waiting)
    posted.tell()
    why = f"room {posted.room} is in use by another sender of this node"
    assert receiving.take(posted.room, 20).reason == why
    assert ended(sender).reason == why
    assert _joined(waiting) == JoinedBy.NOBODY
    wait_until(lambda: _is_released(encode, sender))


def test_what_has_come_is_as_long_as_its_rows(sending: Client, receiving: Queues, posted: EmbeddingReceiver) -> None:
    """R81, B7, P6: another sender of the room has announced another length."""
    library_of(receiving.client).attachment.control.slots.set(posted.slot, Slot.TOTAL, LONGER)
    assert give(open_sender(sending, posted.room, TOTAL))
    received = receiving.take(posted.room, 20)
    assert (received.total, received.difference) == (TOTAL, "")
