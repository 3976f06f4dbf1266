"""Grants to which no encoder has come, over real nodes: they make room for rows that wait, or go back before their node
is told of them, and the requests arrive all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.encoding import give, open_sender
from support.nodes import Station
from support.scheduling import Queues
from support.untold import TOTAL, is_posted, post
from support.waiting import wait_until

from embridge import Client, Phase, attach
from embridge.pipeline.client.client import library_of
from embridge.pipeline.scheduler import withdrawing
from embridge.workers.timing import NS

pytestmark = pytest.mark.process

LONG = 640  # five blocks: more than the waiting requests leave


@pytest.fixture
def receiving(receiving: Queues) -> Queues:
    """Its default is two of the nine blocks."""
    receiving.transfer.default.now = 2 * receiving.client.geometry.block_size
    return receiving


def _withdrawn(receiving: Queues, rooms: list[int]) -> list[int]:
    return [room for room in rooms if receiving.requests[room].record.is_withdrawn]


def _told(receiving: Queues, rooms: list[int]) -> list[int]:
    receivers = [(room, receiving.requests[room].receiver) for room in rooms]
    return [room for room, receiver in receivers if receiver is not None and not receiver.is_untold]


def _granted(receiving: Queues, room: int) -> int:
    receiver = receiving.requests[room].receiver
    assert receiver is not None
    return receiver.granted_blocks


def _arrives(sending: Client, receiving: Queues, room: int, total: int) -> None:
    assert give(open_sender(sending, room, total))
    received = receiving.take(room, 20)
    assert (received.total, received.difference) == (total, "")


def _posted(encode: Station, receiving: Queues, rooms: Iterator[int], count: int) -> list[int]:
    waiting = [next(rooms) for _ in range(count)]
    for room in waiting:
        post(encode, receiving, room)
    return waiting


@contextmanager
def _late_soon(receiving: Queues) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        untold = library_of(receiving.client).requests.untold
        patch.setattr(untold, "late_ns", NS // 20)
        yield


def test_grants_that_nobody_has_found_make_room_for_rows_that_wait(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34, P21: the oldest first, no more than are needed, and without a deadline; then their own rows come."""
    waiting = _posted(encode, receiving, rooms, 4)
    held = {room: _granted(receiving, room) for room in waiting}
    assert list(held.values()) == [2, 2, 2, 1]
    monkeypatch.setattr(withdrawing, "SOON_NS", 0)
    room = next(rooms)
    receiving.add(encode.addr, room)
    _arrives(sending, receiving, room, LONG)
    withdrawn = _withdrawn(receiving, waiting)
    assert withdrawn == waiting[: len(withdrawn)] != []
    assert all(_granted(receiving, room) == (0 if room in withdrawn else held[room]) for room in waiting)
    for room in waiting:
        _arrives(sending, receiving, room, TOTAL)
    receiving.transfer.memory.collect()
    assert receiving.transfer.memory.reserved_bytes == 0


def test_a_client_makes_room_for_rows_that_another_waits_with(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """R34, P21: the pool is all clients', and only whose grant it is can take it back."""
    waiting = _posted(encode, receiving, rooms, 4)
    monkeypatch.setattr(withdrawing, "SOON_NS", 0)
    with attach(language.run_dir) as client:
        other, room = Queues(client), next(rooms)
        other.add(encode.addr, room)
        _arrives(sending, other, room, LONG)
    assert _withdrawn(receiving, waiting)[:1] == waiting[:1]
    for room in waiting:
        _arrives(sending, receiving, room, TOTAL)


def test_what_an_encoder_has_found_is_left_to_it(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34, R79: it may write at any time."""
    bound, *silent = _posted(encode, receiving, rooms, 4)
    sender = open_sender(sending, bound, TOTAL)
    assert give(sender, 0, 10)
    monkeypatch.setattr(withdrawing, "SOON_NS", 0)
    room = next(rooms)
    receiving.add(encode.addr, room)
    _arrives(sending, receiving, room, LONG)
    withdrawn = _withdrawn(receiving, [bound, *silent])
    assert withdrawn == silent[: len(withdrawn)] != []
    assert give(sender, 10)
    assert receiving.take(bound, 20).difference == ""
    for room in silent:
        _arrives(sending, receiving, room, TOTAL)


def test_requests_that_are_late_are_told_without_their_grants(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R34, P21: their node cannot take back what an encode node knows, so it is done before it is told; while a quarter
    of the pool is held so.
    """
    waiting = _posted(encode, receiving, rooms, 4)
    with _late_soon(receiving):
        wait_until(lambda: _told(receiving, waiting) == waiting)
    assert _withdrawn(receiving, waiting) == waiting[:2]
    assert not any(is_posted(receiving, room) for room in waiting[:2])
    wait_until(lambda: all(receiving.requests[room].record.is_contacted for room in waiting))
    assert [_granted(receiving, room) for room in waiting] == [0, 0, 2, 1]
    for room in waiting:
        _arrives(sending, receiving, room, TOTAL)


def test_a_request_that_is_late_and_alone_keeps_its_grant(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R34: nobody needs it, and its rows go straight into it when they come."""
    (room,) = _posted(encode, receiving, rooms, 1)
    with _late_soon(receiving):
        wait_until(lambda: _told(receiving, [room]) == [room])
    assert (_withdrawn(receiving, [room]), _granted(receiving, room)) == ([], 2)
    _arrives(sending, receiving, room, TOTAL)


def test_a_request_that_is_given_up_while_its_grant_is_withdrawn_ends(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """P8, D2: what its caller says of the epoch before is not lost."""
    first, second, *others = _posted(encode, receiving, rooms, 4)
    for room in (first, second):
        receiving.requests[room].abort_reason = "enough"  # and the receiver has heard nothing yet
    with _late_soon(receiving):
        assert [receiving.take(room, 20).reason for room in (first, second)] == ["enough", "enough"]
    for room in others:
        _arrives(sending, receiving, room, TOTAL)


def test_who_looks_while_a_request_is_opened_anew_finds_that_it_has_not_begun(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R34: the slot has its next epoch, and the handle has yet to be told."""
    waiting = _posted(encode, receiving, rooms, 2)
    receiver = receiving.requests[waiting[0]].receiver
    assert receiver is not None
    epoch, receiver.epoch = receiver.epoch, receiver.epoch - 1
    assert (receiver.poll(), receiver.sent_tokens, receiver.has_risen()) == (Phase.Bootstrapping, 0, False)
    assert "Bootstrapping" in repr(receiver)
    receiver.epoch = epoch
    for room in waiting:
        _arrives(sending, receiving, room, TOTAL)
