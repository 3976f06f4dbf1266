"""Untold requests in one call a step: what opens, sends, lends and releases them, and what it leaves to others."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from enum import IntEnum
from typing import Final

import numpy as np
import pytest
from core_support import SharedMemory
from support.posted import grants_in

from embridge.allocator import untold
from embridge.allocator._core import (
    BIND_BOUND,
    BIND_TOLD,
    OPENED_AND_POSTED,
    OPENER_ASKED,
    OPENER_EPOCH_SHIFT,
    RECEIVER_CAME_BITS,
    RECEIVER_EPOCH_SHIFT,
    RENEWED_BUT_TOLD,
    SENDER_END_SHIFT,
)
from embridge.allocator.blocks import EXPOSED, FREE
from embridge.allocator.claims import Claim, ClaimState, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.direct import columns, direct_writer, grant_binder
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.metrics import Metric
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Lent, NodeState, SegmentHeader, Slot, Told
from embridge.allocator.request_tables import address_words
from embridge.allocator.segment import map_segment
from embridge.allocator.status import Phase, split
from embridge.allocator.untold import untold_opener, untold_receiver, untold_sender

GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=16, block_size=4)
LIMITS: Final = Limits(num_slots=64, max_clients=4, num_workers=1, ring_records=16, max_peers=1, max_peer_slots=64)
ENCODE, LANGUAGE = (7, 3), (9, 4)
ROOM, TOKENS, LANE = (1 << 62) + 5, 6, 2
SLOT, THERE, PEER = 11, 23, 0
ADDRESS: Final = "tcp://10.0.0.1:1"
ENOUGH: Final = 4


def _control(
    role: Role, node: tuple[int, int], other: tuple[int, int], limits: Limits = LIMITS
) -> tuple[Control, SharedMemory]:
    memory = SharedMemory(ControlLayout.of(role, GEOMETRY, limits).size)
    mapping = memory.map()
    format_control(mapping, role, GEOMETRY, limits, node_id=node[0], incarnation=node[1], now_ns=1)
    control = Control(mapping)
    control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
    assert control.peers.register(PeerRecord(*other, 16, 16, 64, 1, ADDRESS, "", ""), 1, ()) == PEER
    return control, memory


class Pair:
    """Two nodes that know each other, and a client of each."""

    def __init__(self) -> None:
        self.own, _ = _control(Role.ENCODE, ENCODE, LANGUAGE)
        self.language, self.memory = _control(Role.LANGUAGE, LANGUAGE, ENCODE)
        begin, size = self.language.layout.writers_part
        part = map_segment(self.memory.fd, size, offset=begin)
        payload = SharedMemory(PayloadLayout.of(GEOMETRY).size).map()
        there = self.language.layout
        writer = direct_writer(self.own, part, there, payload, GEOMETRY, WriterId(1, 1), lambda: 77)
        binder = grant_binder(self.own, part, there, GEOMETRY, LANGUAGE)
        self.opener = untold_opener(self.own, LANE)
        self.sender = untold_sender(self.own, writer, binder, columns(GEOMETRY))
        self.receiver = untold_receiver(self.language, LANE)
        self.watch = self.language.poster.watch
        self.out = array("I", bytes(8))
        self.rows = [np.ones(TOKENS * size, np.uint8) for size in columns(GEOMETRY)[1::2]]
        self.epoch = self.there = 1

    def receive(self, enough: int = ENOUGH) -> int:
        return self.receiver.open(
            THERE, ROOM, 5, 9, address_words(ADDRESS), PEER, *ENCODE, TOKENS, enough, self.out
        )

    def open(self) -> int:
        return self.opener.open(SLOT, ROOM, 5, 9, array("i", range(16)))

    def send(self, *, may_leave: bool = False) -> object:
        at = [rows.ctypes.data for rows in self.rows]
        return self.sender.send(PEER, ROOM, SLOT, self.epoch, TOKENS, may_leave, 0, TOKENS, *at)

    def lend(self, enough: int = ENOUGH) -> int:
        return self.receiver.lend(THERE, self.there, 2, enough)

    def leave(self) -> object:
        return self.sender.leave(ROOM, SLOT, self.epoch)

    def release(self) -> object:
        return self.receiver.release(THERE, self.there, ROOM, 2, 8)

    def carry(self) -> None:
        """Until all rows are there."""
        assert self.receive() == 1 << RECEIVER_EPOCH_SHIFT | 2 << RECEIVER_CAME_BITS | OPENED_AND_POSTED
        assert self.open() == self.epoch << OPENER_EPOCH_SHIFT
        assert self.send() == TOKENS << SENDER_END_SHIFT | BIND_BOUND

    @property
    def states(self) -> list[int]:
        return [self.language.blocks.cells.cell(block)[0] for block in self.out]

    def wait_for(self, word: SegmentHeader) -> None:
        self.language.header.set_bits(word, 1)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_request_goes_from_its_opening_to_its_release_by_six_calls(pair: Pair) -> None:
    """R35, R37, R78, R80: on either side nothing of it is left, and each knows when it came into which phase."""
    pair.carry()
    own, there = pair.own, pair.language
    words = there.slots.get_all(THERE)
    assert (words[Slot.ROOM], words[Slot.LANE], words[Slot.PEER], words[Slot.REQUIRED]) == (ROOM, LANE, PEER + 1, 1)
    assert there.slots.address(THERE) == ADDRESS
    assert list(own.slots.aux(SLOT)) == list(range(16))
    assert own.untold.get(ROOM) == 1
    assert pair.states == [EXPOSED, EXPOSED]
    assert split(there.status.load(THERE)) == (1, Phase.Success, TOKENS)
    assert pair.lend() == 1
    assert (there.slots.get(THERE, Slot.LENT), there.lanes.num_lent()) == (Lent.RESULT, 0)  # nobody is in the lane
    left, released = pair.leave(), pair.release()
    for ended, status, slot in ((left, own.status, SLOT), (released, there.status, THERE)):
        assert ended == (status.load(slot), status.stamps(slot))
    for control, slot in ((own, SLOT), (there, THERE)):
        assert control.slots.told(slot, 1) == Told.RELEASED
        assert control.slots.get(slot, Slot.RELEASED_EPOCH) == 1
        assert control.metrics.row(len(control.metrics.names) - 1)[Metric.SUCCEEDED.name.lower()] == 1
    assert (own.untold.get(ROOM), own.finished.has(ROOM), pair.states) == (0, True, [FREE, FREE])
    assert pair.leave() is pair.release() is None
    assert pair.open() == 2 << 1
    assert not own.finished.has(ROOM)


def test_a_room_that_somebody_has_asked_for_is_seen_when_it_is_opened(pair: Pair) -> None:
    """R80: it is counted before, so that one of the two sees the other."""
    pair.own.asked.add(ROOM, 1)
    assert pair.open() == 1 << OPENER_EPOCH_SHIFT | OPENER_ASKED


NOTHING: Final[dict[str, Callable[[Pair], object]]] = {
    "the node is no more": lambda pair: pair.language.header.store(SegmentHeader.NODE_STATE, NodeState.DRAINING),
    "a process of it fails": lambda pair: pair.language.header.store(SegmentHeader.FAILING, 2),
    "somebody waits for a block": lambda pair: pair.wait_for(SegmentHeader.BLOCK_WAITERS),
    "somebody waits for a slot": lambda pair: pair.wait_for(SegmentHeader.SLOT_WAITERS),
    "the encode node is dead": lambda pair: pair.language.peers.bury(PEER),
    "few blocks are free": lambda pair: pair.language.blocks.acquire(1, 1, 13, may_take_reserve=False),
}


@pytest.mark.parametrize("why", NOTHING)
def test_what_is_out_of_the_ordinary_is_opened_as_any_other(pair: Pair, why: str) -> None:
    """R21, R35: nothing has happened then."""
    NOTHING[why](pair)
    assert pair.receive() == 0
    assert pair.language.status.load(THERE) == 0


@pytest.mark.parametrize("why", [why for why in NOTHING if "blocks" in why or "waits" in why])
def test_what_others_may_need_is_not_lent(pair: Pair, why: str) -> None:
    """R35: what is lent leaves the others enough."""
    pair.carry()
    NOTHING[why](pair)
    assert pair.lend() == 0
    assert pair.language.slots.get(THERE, Slot.LENT) == Lent.NOTHING


def test_what_is_not_all_rows_or_has_not_succeeded_is_not_lent(pair: Pair) -> None:
    """R35, P6: blocks behind the last row come free first."""
    assert pair.receive() & 7 == 4
    assert pair.lend() == 0
    assert pair.open()
    assert pair.send()
    assert pair.receiver.lend(THERE, 1, 1, ENOUGH) == 0
    pair.language.slots.set(THERE, Slot.SESSION, 1)  # rows may come late over a network
    assert pair.lend() == 0


KEPT: Final[dict[str, Callable[[Pair], object]]] = {
    "its node is told": lambda pair: pair.own.slots.tell(SLOT, 1),
    "the language node is told": lambda pair: pair.language.posts.show_told(THERE, 1),
    "the bootstrap has joined it": lambda pair: pair.own.slots.set(SLOT, Slot.JOINED_BY, 2),
}


@pytest.mark.parametrize("why", KEPT)
def test_a_request_of_which_somebody_has_heard_is_released_by_its_node(pair: Pair, why: str) -> None:
    """R78, R80: whoever was told waits for an answer."""
    pair.carry()
    KEPT[why](pair)
    assert pair.leave() is None
    assert pair.own.slots.get(SLOT, Slot.RELEASED_EPOCH) == 0
    assert not pair.own.finished.has(ROOM)


def test_a_request_that_has_not_ended_is_not_released(pair: Pair) -> None:
    """P11: neither side."""
    assert pair.receive()
    assert pair.open()
    assert pair.leave() is pair.release() is None


def test_who_has_ended_or_finds_no_grant_sends_nothing(pair: Pair) -> None:
    """R37, P5: a failed request is bound to nothing."""
    assert pair.open()
    assert pair.send() == 0
    assert pair.receive() & 7 == 4
    assert pair.own.status.advance(SLOT, 1, Phase.Failed, 0, 7)
    assert pair.send() == 0
    assert pair.own.slots.get(SLOT, Slot.JOINED_BY) == 0
    assert pair.language.claims.get(THERE).state == ClaimState.OPEN


def test_who_is_told_meanwhile_says_so_and_writes(pair: Pair) -> None:
    """R79: its bootstrap takes the destination up."""
    assert pair.receive()
    assert pair.open()
    assert pair.own.slots.tell(SLOT, 1)
    assert pair.send() == TOKENS << 4 | BIND_BOUND | BIND_TOLD


# ---- a grant that is withdrawn


def _renew(pair: Pair) -> int:
    return pair.receiver.renew(THERE, pair.there, ROOM, 8)


def test_a_grant_to_which_nobody_has_come_is_withdrawn_and_its_request_opened_anew(pair: Pair) -> None:
    """R34, R78: blocks and post are back; the next epoch has room, node, lane and times of the one before, and the node
    has it. An encoder that comes finds nothing.
    """
    assert pair.receive() & 7 == 4
    there = pair.language
    before, posts = there.slots.get_all(THERE), grants_in(there.posts, ROOM)
    assert posts == [(THERE, 1)]
    assert _renew(pair) == 2
    after = there.slots.get_all(THERE)
    kept = (Slot.ROOM, Slot.LANE, Slot.PEER, Slot.REQUIRED, Slot.OPENED_NS, Slot.DEADLINE_NS)
    assert [after[word] for word in kept] == [before[word] for word in kept]
    assert there.slots.address(THERE) == ADDRESS
    assert (after[Slot.GRANTED], after[Slot.DRAINED_BLOCKS], after[Slot.INIT_ASKED], after[Slot.EPOCH]) == (0, 0, 0, 2)
    assert (there.slots.told(THERE, 2), after[Slot.RELEASED_EPOCH]) == (Told.TOLD, 1)
    assert split(there.status.load(THERE)) == (2, Phase.Bootstrapping, 0)
    assert there.status.stamps(THERE) == (5, 0, 0, 0, 0)
    assert (grants_in(there.posts, ROOM), pair.states) == ([], [FREE, FREE])
    assert there.claims.get(THERE) == Claim(2, ClaimState.SHUT)
    assert pair.open()
    assert pair.send() == 0
    assert pair.own.slots.get(SLOT, Slot.JOINED_BY) == 0


STAYS: Final[dict[str, Callable[[Pair], object]]] = {
    "an encoder is bound to it": lambda pair: pair.language.posts.bind(THERE, 1),
    "the node is told": lambda pair: pair.language.slots.tell(THERE, 1),
    "it has begun": lambda pair: pair.language.status.advance(THERE, 1, Phase.WaitingForInput, 0, 7),
    "it has ended": lambda pair: pair.language.status.advance(THERE, 1, Phase.Failed, 0, 7),
    "it is another's": lambda pair: setattr(pair, "there", 2),
}


@pytest.mark.parametrize("why", STAYS)
def test_what_may_be_somebodys_is_not_withdrawn(pair: Pair, why: str) -> None:
    """R34, R79: nothing has happened then."""
    assert pair.receive() & 7 == 4
    STAYS[why](pair)
    assert _renew(pair) == 0
    assert pair.states == [EXPOSED, EXPOSED]
    assert grants_in(pair.language.posts, ROOM) == [(THERE, 1)]
    assert pair.language.claims.get(THERE).state == ClaimState.OPEN


class WithdrawStep(IntEnum):
    """What is about to change, as `native/grant.h` numbers it."""

    DRAINED = 6
    FREE = 7
    TAKE_OFF = 8
    RELEASE = 9
    OPEN = 10
    KEEP = 13
    END = 14


ORDER: Final = [WithdrawStep(step) for step in (13, 14, 6, 7, 8, 9, 10)]


def test_the_steps_of_a_withdrawal_have_their_order(pair: Pair) -> None:
    """R34: the grant is kept from encoders first, and the slot is released when nothing is left."""
    seen: list[int] = []
    pair.watch(seen.append)
    assert pair.receive() & 7 == 4
    seen.clear()
    assert _renew(pair) == 2
    assert seen == ORDER


class _StopError(Exception):
    pass


@pytest.mark.parametrize("last", ORDER)
def test_a_death_in_a_withdrawal_leaves_what_came_before_it(pair: Pair, last: WithdrawStep) -> None:
    """P1, R30, R34: no block is free to whose grant an encoder may bind itself, and the slot is its client's still."""

    def before(step: int) -> None:
        if step == last:
            raise _StopError

    assert pair.receive() & 7 == 4
    pair.watch(before)
    with pytest.raises(_StopError):
        _renew(pair)
    done, there = ORDER.index(last), pair.language
    is_kept = not there.posts.bind(THERE, 1)
    assert is_kept == (done > ORDER.index(WithdrawStep.KEEP))
    assert (there.claims.get(THERE).state == ClaimState.ENDED) == (done > ORDER.index(WithdrawStep.END))
    assert (pair.states == [FREE, FREE]) == (done > ORDER.index(WithdrawStep.FREE))
    assert (not grants_in(there.posts, ROOM)) == (done > ORDER.index(WithdrawStep.TAKE_OFF))
    is_released = there.slots.told(THERE, 1) == Told.RELEASED
    assert is_released == (done > ORDER.index(WithdrawStep.RELEASE))
    assert split(there.status.load(THERE)).epoch == 1


def test_a_request_of_which_its_node_is_told_meanwhile_is_not_opened_anew(pair: Pair) -> None:
    """R78: its blocks are back, and the node has the slot."""
    assert pair.receive() & 7 == 4
    pair.watch(lambda step: step == WithdrawStep.RELEASE and pair.language.slots.tell(THERE, 1))
    assert _renew(pair) == RENEWED_BUT_TOLD
    assert pair.states == [FREE, FREE]
    assert pair.language.slots.told(THERE, 1) == Told.TOLD
    assert split(pair.language.status.load(THERE)).epoch == 1


# ---- refusals

LARGE: Final = Limits(num_slots=128, max_clients=4, num_workers=1, ring_records=16, max_peers=1, max_peer_slots=128)


def test_a_receiver_and_its_poster_have_the_same_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: a slot that the poster has not would lie beyond its tables."""
    large, _ = _control(Role.LANGUAGE, LANGUAGE, ENCODE, LARGE)
    monkeypatch.setattr(large, "poster", Pair().language.poster)
    with pytest.raises(ValueError, match="status: 128 slots, and the poster has 64"):
        untold_receiver(large, LANE)


def test_a_sender_and_its_binder_have_the_same_slots() -> None:
    """P7."""
    pair = Pair()
    large, _ = _control(Role.ENCODE, ENCODE, LANGUAGE, LARGE)
    begin, size = pair.language.layout.writers_part
    part, there = map_segment(pair.memory.fd, size, offset=begin), pair.language.layout
    payload = SharedMemory(PayloadLayout.of(GEOMETRY).size).map()
    writer = direct_writer(large, part, there, payload, GEOMETRY, WriterId(1, 1), lambda: 77)
    with pytest.raises(ValueError, match="binder: of 64 slots and 64 there, not 128 and 64"):
        untold_sender(large, writer, grant_binder(pair.own, part, there, GEOMETRY, LANGUAGE), columns(GEOMETRY))


def test_an_opener_of_a_read_only_mapping_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: its first `open` would be a SIGSEGV."""
    control, memory = _control(Role.ENCODE, ENCODE, LANGUAGE)
    status = untold._status(Control(memory.map(writable=False)))
    monkeypatch.setattr(untold, "_status", lambda _: status)
    with pytest.raises(ValueError, match="read-only"):
        untold_opener(control, LANE)


def test_a_slot_that_is_none_costs_no_reference(pair: Pair) -> None:
    def before(step: int) -> None:
        """Nobody calls it."""

    pair.watch(before)
    count = sys.getrefcount(before)
    for _ in range(3):
        with pytest.raises(IndexError):
            pair.receiver.lend(LIMITS.num_slots, 1, 2, ENOUGH)
    assert sys.getrefcount(before) == count
