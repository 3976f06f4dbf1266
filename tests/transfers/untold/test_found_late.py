"""Requests whose two sides do not meet at once, over real nodes: rows that come before their scheduler, and schedulers
that come when no block is free. Both wait a little before any process of either node is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.posted import offers_in
from support.scheduling import Queues
from support.untold import TOTAL, is_posted, kicks, post
from support.waiting import wait_until

from embridge import Client
from embridge.pipeline.client import untold
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.rendezvous import Rendezvous
from embridge.pipeline.scheduler import straight, withdrawing
from embridge.workers.timing import NS

pytestmark = pytest.mark.process


@pytest.fixture
def receiving(receiving: Queues) -> Queues:
    """Its default is one of the nine blocks."""
    receiving.transfer.default.now = receiving.client.geometry.block_size
    return receiving


def _offers(receiving: Queues, room: int) -> bool:
    return bool(offers_in(library_of(receiving.client).attachment.control.posts, room))


def _offers_no_more(receiving: Queues, room: int) -> bool:
    return not _offers(receiving, room)


def _untold(receiving: Queues, room: int) -> bool:
    receiver = receiving.requests[room].receiver
    return receiver is not None and receiver.is_untold


def _arrives(receiving: Queues, room: int) -> None:
    received = receiving.take(room, 10)  # sooner than whoever is late is told
    assert (received.total, received.difference) == (TOTAL, "")


# ---- rows first


def test_rows_that_come_first_cost_no_process_of_either_node_a_kick(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """R37, R78: their encoder looks again for a while, and their scheduler waits as long with telling its node."""
    monkeypatch.setattr(untold, "LOOK_NS", NS // 20)  # some processes run beside this one
    before = kicks(encode, language)
    for _ in range(3):
        room = next(rooms)
        sender = open_sender(sending, room, TOTAL)
        assert give(sender)
        wait_until(partial(_offers, receiving, room))
        receiving.add(encode.addr, room)
        _arrives(receiving, room)
        assert ended(sender).error == ""
        wait_until(partial(_offers_no_more, receiving, room))
    wait_until(lambda: not language.in_flight())
    after = kicks(encode, language)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        f"{node.run_dir.name}/clients": 3 for node in (encode, language)
    }


@pytest.mark.parametrize("is_straight", [False, True], ids=["step by step", "in one call"])
def test_an_encoder_that_looks_no_more_is_told_of_its_grant(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch, is_straight: bool
) -> None:
    """R37, P8: the node of its scheduler is told soon, and not as late as others."""
    monkeypatch.setattr(straight, "FEW", 8 if is_straight else 100)
    sender = open_sender(sending, room, TOTAL)
    assert give(sender)
    wait_until(lambda: _offers(receiving, room))
    monkeypatch.setattr(Rendezvous, "bind", lambda _: None)
    receiving.add(encode.addr, room)
    _arrives(receiving, room)
    assert ended(sender).error == ""


def test_of_many_encoders_that_wait_for_grants_all_get_theirs(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R37, P8, D13: only the first of them look again."""
    monkeypatch.setattr(untold, "MOST_LOOKING", 2)
    early = [next(rooms) for _ in range(5)]
    senders = [open_sender(sending, room, TOTAL) for room in early]
    assert all(give(sender) for sender in senders)
    wait_until(lambda: all(_offers(receiving, room) for room in early))
    for room in reversed(early):
        receiving.add(encode.addr, room)
    for room in early:
        _arrives(receiving, room)
    assert [ended(sender).error for sender in senders] == [""] * 5


# ---- without a block


def _fill(encode: Station, receiving: Queues, rooms: Iterator[int]) -> list[int]:
    """Requests that have all blocks but the reserve, each one."""
    others = [next(rooms) for _ in range(8)]
    for room in others:
        post(encode, receiving, room)
    return others


def test_a_request_for_which_there_is_no_block_waits_a_little_for_others_to_end(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """R78, P21: it is granted as any other when one of them has, and no process of either node has heard of it."""
    monkeypatch.setattr(straight, "WAITS_NS", 60 * NS)
    monkeypatch.setattr(withdrawing, "SOON_NS", 60 * NS)
    monkeypatch.setattr(untold, "LOOK_NS", NS // 20)
    others = _fill(encode, receiving, rooms)
    before, room = kicks(encode, language), next(rooms)
    receiving.add(encode.addr, room)
    wait_until(lambda: _untold(receiving, room))
    sender = open_sender(sending, room, TOTAL)
    assert give(sender)
    wait_until(lambda: _offers(receiving, room))
    assert not is_posted(receiving, room)
    for other in others:
        assert give(open_sender(sending, other, TOTAL))
        _arrives(receiving, other)
    _arrives(receiving, room)
    assert ended(sender).error == ""
    wait_until(lambda: not language.in_flight())
    after = kicks(encode, language)
    assert [name for name in after if after[name] != before[name] and not name.endswith("clients")] == []


def test_a_request_for_which_no_block_comes_free_is_told_soon(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R19, R78: the encode node knows then that this destination is there, long before it is late."""
    others, room = _fill(encode, receiving, rooms), next(rooms)
    receiving.add(encode.addr, room)
    wait_until(lambda: receiving.requests[room].record.is_contacted, 10)
    assert not _untold(receiving, room)
    for it in (room, *others):
        assert give(open_sender(sending, it, TOTAL))
        _arrives(receiving, it)


def test_rows_of_which_nobody_is_told_have_a_grant_taken_back_that_nobody_has_found(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34, P21: their encoder's offer says that they wait; the oldest grant goes."""
    monkeypatch.setattr(straight, "WAITS_NS", 60 * NS)
    others, room = _fill(encode, receiving, rooms), next(rooms)
    receiving.add(encode.addr, room)
    assert give(open_sender(sending, room, TOTAL))
    _arrives(receiving, room)
    withdrawn = [other for other in others if receiving.requests[other].record.is_withdrawn]
    assert withdrawn == others[:1]
    for other in others:
        assert give(open_sender(sending, other, TOTAL))
        _arrives(receiving, other)
