"""Two senders of one room, of which one finds the grant by itself and the other is joined to it by their node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import pytest
from support.encoding import ended, give, open_sender, through_workers, wait_doors
from support.nodes import Station
from support.posted import BindStep
from support.scheduling import Queues
from support.stopping import stopped
from support.untold import LONGER, TOTAL, joined_by, kicks, tell_both
from support.waiting import wait_until

from embridge import Client, EmbeddingReceiver, EmbeddingSender, attach
from embridge.allocator.records import Destination, JoinedBy, Slot
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process


@pytest.fixture
def waiting(encode: Station, sending: Client, room: int, request: pytest.FixtureRequest) -> Iterator[EmbeddingSender]:
    """A sender of another client, of the same room but longer, which its node has. By a parameter: it has no doors."""
    with attach(encode.run_dir) as other:
        wait_doors(other)
        before = kicks(encode)
        with through_workers(other) if getattr(request, "param", "") else nullcontext():
            sender = open_sender(other, room, LONGER)
        sender.tell()
        wait_until(lambda: kicks(encode) != before)
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


def _reasons(posted: EmbeddingReceiver) -> tuple[str, str]:
    """The second is the destination's own, if it has heard of both senders by then."""
    in_use = f"room {posted.room} is in use by another sender of this node"
    return in_use, f"the encode side announced {TOTAL} tokens and then {LONGER}"


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
    wait_until(lambda: joined_by(waiting) == JoinedBy.BOOTSTRAP)
    encode.control.untold.add(posted.room, 1)
    reasons = _reasons(posted)
    with monkeypatch.context() as patch:
        if late:
            patch.setattr(library_of(receiving.client), "_take_turn", lambda: False)
        give(waiting)
        assert ended(waiting).reason in reasons
        assert waiting.sent_tokens == 0
        wait_until(lambda: not late or _is_released(encode, waiting))
        tell_both(sending, receiving.client)
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
    wait_until(lambda: joined_by(waiting) == JoinedBy.BOOTSTRAP)
    sender = open_sender(sending, posted.room, TOTAL)
    assert give(sender)
    assert joined_by(sender) == JoinedBy.NOBODY
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
    assert joined_by(waiting) == JoinedBy.NOBODY
    wait_until(lambda: _is_released(encode, sender))


@contextmanager
def _bind_watched(language: Station, sender: EmbeddingSender, step: BindStep, do: Callable[[], None]) -> Iterator[None]:
    """Before that step of the sender, which binds itself to a grant, this is done, once."""
    assert sender._direct is not None
    [door] = [door for _, door in sender._direct._doors.open_ones if door.node[0] == language.control.node_id]

    def before(now: int) -> None:
        if now == step:
            door.grants.watch(None)
            do()

    door.grants.watch(before)
    yield
    door.grants.watch(None)


def _join(encode: Station, waiting: EmbeddingSender, posted: EmbeddingReceiver) -> None:
    """The node is sent the grant, does not see the untold sender, joins the other, and has done with it."""
    encode.control.untold.add(posted.room, -1)
    posted.tell()
    dsts = encode.control.destinations
    wait_until(
        lambda: (
            dsts.get(waiting.slot, 0, Destination.GRANTED_TOKENS) > 0
            or waiting._slots.get(waiting.slot, Slot.FAILURE) > 0
        )
    )
    encode.control.untold.add(posted.room, 1)


@DOORLESS
@pytest.mark.parametrize("step", [BindStep.GRANT, BindStep.JOIN])
def test_a_sender_that_is_about_to_bind_itself_does_not_when_its_node_joins_another(
    encode: Station, language: Station, sending: Client, receiving: Queues, waiting: EmbeddingSender,
    posted: EmbeddingReceiver, step: BindStep,
) -> None:  # fmt: skip
    """R81, P6: it has looked at the tombstone before that was raised."""
    sender = open_sender(sending, posted.room, TOTAL)
    with _bind_watched(language, sender, step, lambda: _join(encode, waiting, posted)):
        assert give(sender, 0, 10)
    assert joined_by(sender) == JoinedBy.BOOTSTRAP
    assert joined_by(waiting) == JoinedBy.BOOTSTRAP
    assert give(waiting)
    received = receiving.take(posted.room, 20)
    assert (received.total, received.difference) == (LONGER, "")
    assert sender.sent_tokens == 0
    sender.abort("enough")


@DOORLESS
@pytest.mark.parametrize("step", [BindStep.REQUIRED, BindStep.COUNT, BindStep.TAKE_OFF])
def test_a_node_that_finds_a_sender_bound_to_the_grant_fails_the_other_and_grants_it_nothing(
    encode: Station, language: Station, sending: Client, receiving: Queues, waiting: EmbeddingSender,
    posted: EmbeddingReceiver, step: BindStep,
) -> None:  # fmt: skip
    """R79, R81, P6, P8: whether that has noted its destination or not. All end."""
    sender = open_sender(sending, posted.room, TOTAL)
    give(waiting)
    with _bind_watched(language, sender, step, lambda: _join(encode, waiting, posted)):
        give(sender, 0, 10)
    assert joined_by(sender) == JoinedBy.CLIENT
    assert encode.control.destinations.get(waiting.slot, 0, Destination.GRANTED_TOKENS) == 0
    reasons = _reasons(posted)
    assert ended(waiting).reason in reasons
    assert waiting.sent_tokens == 0
    assert receiving.take(posted.room, 20).reason in reasons
    tell_both(sending, receiving.client)
    assert ended(sender).error
    wait_until(lambda: _is_released(encode, sender) and _is_released(encode, waiting))
