"""`GrantBinder`: which grants it takes, what it changes and in which order, and who may come between."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
from core_support import SharedMemory
from support.claims import shut
from support.posted import BindStep, grants_in, post_grant, write_down

from embridge.allocator._core import BIND_BOUND, BIND_GONE, BIND_TOLD, GrantBinder, Mapping
from embridge.allocator.claims import WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.direct import grant_binder
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.posts import PostTable
from embridge.allocator.records import (
    DESTINATION_WORDS,
    FINDER_SLOT_BITS,
    MEETING_WORDS,
    Destination,
    JoinedBy,
    Peer,
    Slot,
    Told,
    WrittenBy,
)
from embridge.allocator.segment import map_segment

GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=200, block_size=4)
LIMITS: Final = Limits(num_slots=64, max_clients=4, num_workers=1, ring_records=16, max_peers=3, max_peer_slots=64)
WINDOW: Final = 100  # more than there is on the stack
ENCODE, LANGUAGE = (7, 3), (1 << 63, 9)
ROOM: Final = (1 << 63) - 1
PEER, SLOT, EPOCH, THERE, THERE_EPOCH = 1, 5, 4, 63, 6
BLOCKS: Final = [4, 199, 2]
TOKENS: Final = 10


def _control(role: Role, node: tuple[int, int], limits: Limits) -> tuple[Control, SharedMemory]:
    memory = SharedMemory(ControlLayout.of(role, GEOMETRY, limits).size)
    mapping = memory.map()
    format_control(mapping, role, GEOMETRY, limits, node_id=node[0], incarnation=node[1], now_ns=1)
    return Control(mapping), memory


class Pair:
    """An untold request of an encode node, and a grant for it that a language node has posted."""

    def __init__(self) -> None:
        limits = replace(LIMITS, window_blocks=WINDOW)
        self.own, _ = _control(Role.ENCODE, ENCODE, limits)
        self.language, memory = _control(Role.LANGUAGE, LANGUAGE, limits)
        begin, size = self.language.layout.writers_part
        self.part = map_segment(memory.fd, size, offset=begin)
        self.binder = self._binder(self.part)
        other = PeerRecord(8, 8, 1, 1, 64, 1, "", "", "")
        for peer in (other, other._replace(node_id=LANGUAGE[0], incarnation=LANGUAGE[1], registration=12)):
            self.own.peers.register(peer, 1, ())
        self.own.slots.set(SLOT, Slot.TOLD, EPOCH << 2 | Told.UNTOLD)
        self.grant(THERE)

    def _binder(self, part: Mapping) -> GrantBinder:
        return grant_binder(self.own, part, self.language.layout, GEOMETRY, LANGUAGE)

    @property
    def posts(self) -> PostTable:
        return self.language.posts

    def begin(
        self, slot: int, room: int = ROOM, node: tuple[int, int] = ENCODE, blocks: int = 3, tokens: int = TOKENS
    ) -> None:
        """Write down what is granted."""
        write_down(self.posts, slot, THERE_EPOCH, room, node, blocks, tokens)

    def grant(self, slot: int) -> None:
        """Grant, and post it."""
        for k, block in enumerate(BLOCKS):
            self.language.windows.set(slot, k, block)
        self.begin(slot)
        shut(self.language.claims, slot, THERE_EPOCH, 0)
        assert self.language.claims.offer(slot, THERE_EPOCH)
        assert post_grant(self.posts, ROOM, slot, THERE_EPOCH)

    def bind(self) -> int:
        return self.binder.bind(PEER, ROOM, SLOT, EPOCH)

    def is_bound(self, slot: int = THERE) -> bool:
        """Whether an encoder is bound to the grant."""
        return self.posts._meetings.load(slot * MEETING_WORDS + 5) == THERE_EPOCH << 1 | 1

    @property
    def joined_by(self) -> int:
        return self.own.slots.get(SLOT, Slot.JOINED_BY)

    @property
    def has_destination(self) -> bool:
        return bool(self.own.slots.get(SLOT, Slot.NUM_DESTINATIONS))

    def is_untouched(self) -> bool:
        """Whether nobody is bound to anything."""
        destination = self.own.destinations.get_all(SLOT, 0)
        return not (self.is_bound() or self.joined_by or self.has_destination or any(destination))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def _noted(slot: int = THERE) -> list[int]:
    words = array("Q", bytes(8 * DESTINATION_WORDS))
    for field, value in {
        Destination.PEER: PEER + 1,
        Destination.INCARNATION: LANGUAGE[1],
        Destination.REMOTE_SLOT: slot,
        Destination.REMOTE_EPOCH: THERE_EPOCH,
        Destination.GRANTED_TOKENS: TOKENS,
        Destination.GRANTED_BLOCKS: len(BLOCKS),
        Destination.FIRST_GRANT: TOKENS,
        Destination.REGISTRATION: 12,
        Destination.WINDOW: WINDOW,
        Destination.WRITTEN_BY: WrittenBy.CLIENT,
    }.items():
        words[field] = value
    return list(words)


# ---- what becomes of a grant


def test_a_grant_and_a_slot_are_bound_to_each_other(pair: Pair) -> None:
    """R37, R38, R79: the destination is noted as the bootstrap notes one, and the post is taken off."""
    assert pair.bind() == BIND_BOUND
    assert pair.is_bound()
    assert pair.joined_by == JoinedBy.CLIENT
    assert pair.own.destinations.get_all(SLOT, 0) == _noted()
    assert [pair.own.destinations.grant(SLOT, 0, k)[0] for k in range(3)] == BLOCKS
    assert (pair.own.slots.get(SLOT, Slot.REQUIRED), pair.has_destination) == (1, True)
    assert grants_in(pair.posts, ROOM) == []


def test_a_slot_is_bound_once(pair: Pair) -> None:
    """R38."""
    assert pair.bind()
    pair.grant(THERE - 1)
    assert pair.bind() == 0
    assert pair.own.destinations.get_all(SLOT, 0) == _noted()
    assert not pair.is_bound(THERE - 1)


def test_a_grant_that_is_refused_hides_no_other(pair: Pair) -> None:
    """R37: all grants of the bucket are looked at."""
    pair.begin(THERE, room=ROOM - 1)
    pair.grant(THERE - 1)
    assert pair.bind() == BIND_BOUND
    assert pair.own.destinations.get_all(SLOT, 0) == _noted(THERE - 1)
    assert grants_in(pair.posts, ROOM) == [(THERE, THERE_EPOCH)]


def test_a_grant_may_fill_the_window(pair: Pair) -> None:
    """R1: up to its last entry."""
    blocks = [*range(100, 200)]
    for k, block in enumerate(blocks):
        pair.language.windows.set(THERE, k, block)
    pair.begin(THERE, blocks=WINDOW, tokens=4 * WINDOW)
    assert pair.bind() == BIND_BOUND
    assert [pair.own.destinations.grant(SLOT, 0, k)[0] for k in range(WINDOW)] == blocks


def _posts(slot: int, epoch: int) -> Callable[[Pair], object]:
    def post(pair: Pair) -> None:
        pair.posts.take_off_grant(ROOM, THERE, THERE_EPOCH)
        assert post_grant(pair.posts, ROOM, slot, epoch)

    return post


REFUSED: Final[dict[str, Callable[[Pair], object]]] = {
    "another room": lambda pair: pair.begin(THERE, room=ROOM - 1),
    "another encode node": lambda pair: pair.begin(THERE, node=(8, 3)),
    "another incarnation": lambda pair: pair.begin(THERE, node=(7, 4)),
    "a record that is being written": lambda pair: pair.posts._meetings.store(THERE * MEETING_WORDS, 0),
    "a claim that is not offered": lambda pair: shut(pair.language.claims, THERE, THERE_EPOCH, 0),
    "a claim that has ended": lambda pair: pair.language.claims.revoke(THERE, THERE_EPOCH),
    "a claim that is held": lambda pair: pair.language.claims.take(THERE, THERE_EPOCH, WriterId(1, 1)),
    "a claim of the next epoch": lambda pair: shut(pair.language.claims, THERE, THERE_EPOCH + 1, 0),
    "a post of another epoch": _posts(THERE, THERE_EPOCH + 1),
    "a slot that there is not": _posts(64, THERE_EPOCH),
    "the last slot that a post can name": _posts((1 << 16) - 1, THERE_EPOCH),
    "an offer": lambda pair: (_posts(0, 1)(pair), pair.posts.post_offer(ROOM, WriterId(1, 1))),
    "no block": lambda pair: pair.begin(THERE, blocks=0, tokens=0),
    "more blocks than the window has": lambda pair: pair.begin(THERE, blocks=WINDOW + 1, tokens=4 * WINDOW + 1),
    "as many blocks as a word can say": lambda pair: pair.begin(THERE, blocks=(1 << 32) - 1, tokens=(1 << 32) - 1),
    "more tokens than its blocks have": lambda pair: pair.begin(THERE, tokens=13),
    "a block without a token": lambda pair: pair.begin(THERE, tokens=8),
    "a block outside of the pool": lambda pair: pair.language.windows.set(THERE, 1, 200),
    "the last block that a word can say": lambda pair: pair.language.windows.set(THERE, 2, (1 << 64) - 1),
    "one block twice": lambda pair: pair.language.windows.set(THERE, 2, BLOCKS[0]),
    "a dead node": lambda pair: pair.own.peers.bury(PEER),
    "a node whose entry is another's": lambda pair: setattr(pair, "binder", _of_another(pair)),
    "an epoch of which its node has heard": lambda pair: pair.own.peers.raise_tombstone(PEER, THERE, THERE_EPOCH),
    "a later epoch, too": lambda pair: pair.own.peers.raise_tombstone(PEER, THERE, THERE_EPOCH + 1),
}


def _of_another(pair: Pair) -> GrantBinder:
    return grant_binder(pair.own, pair.part, pair.language.layout, GEOMETRY, (LANGUAGE[0], LANGUAGE[1] - 1))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_true_is_left_alone(pair: Pair, what: str) -> None:
    """R37, R79: nothing is changed on either side, and a good grant is found beside it."""
    REFUSED[what](pair)
    assert pair.bind() == 0
    assert pair.is_untouched()
    assert pair.own.peers.finder(PEER, THERE, THERE_EPOCH) is None
    pair.grant(THERE - 2)
    is_good = what not in ("a dead node", "a node whose entry is another's")
    assert pair.bind() == (BIND_BOUND if is_good else 0)
    assert pair.is_bound(THERE - 2) == is_good


def test_an_older_epoch_that_its_node_has_heard_of_hinders_nothing(pair: Pair) -> None:
    """R79, and so does what it has heard of other slots and of other nodes."""
    pair.own.peers.raise_tombstone(PEER, THERE, THERE_EPOCH - 1)
    pair.own.peers.raise_tombstone(PEER, THERE - 1, THERE_EPOCH)
    pair.own.peers.raise_tombstone(PEER - 1, THERE, THERE_EPOCH)
    assert pair.bind() == BIND_BOUND


def test_a_grant_has_one_encoder(pair: Pair) -> None:
    """R38: who comes second is not bound, and takes nothing off."""
    assert pair.posts.bind(THERE, THERE_EPOCH)
    assert pair.bind() == 0
    assert (pair.joined_by, pair.has_destination) == (JoinedBy.NOBODY, False)
    assert pair.is_bound()
    assert grants_in(pair.posts, ROOM)


# ---- step by step

STEPS: Final = [step for step in BindStep if step != BindStep.UNBIND]


class _StopError(Exception):
    pass


def test_the_steps_have_their_order(pair: Pair) -> None:
    """R38, R79, R81: the mark, the grant, the slot, the destination, and how many; nothing else lies in between."""
    seen: list[int] = []
    pair.binder.watch(seen.append)
    assert pair.bind() == BIND_BOUND
    assert seen == STEPS
    pair.binder.watch(None)
    assert pair.bind() == 0
    assert seen == STEPS


@pytest.mark.parametrize("last", STEPS)
def test_a_death_before_any_step_leaves_what_came_before_it(pair: Pair, last: BindStep) -> None:
    """P1, R38, R79: the destination is there when its count says so, and whole by then."""

    def before(step: int) -> None:
        if step == last:
            raise _StopError

    pair.binder.watch(before)
    with pytest.raises(_StopError):
        pair.bind()
    assert pair.own.peers.finder(PEER, THERE, THERE_EPOCH) == (SLOT if last > BindStep.MARK else None)
    assert pair.is_bound() == (last > BindStep.GRANT)
    assert pair.joined_by == (JoinedBy.CLIENT if last > BindStep.JOIN else JoinedBy.NOBODY)
    assert pair.own.slots.get(SLOT, Slot.REQUIRED) == (last > BindStep.REQUIRED)
    assert pair.own.destinations._grants.load(SLOT * WINDOW) == (BLOCKS[0] if last > BindStep.BLOCKS else 0)
    assert pair.own.destinations.get_all(SLOT, 0) == (_noted() if last > BindStep.RECORD else [0] * DESTINATION_WORDS)
    assert pair.has_destination == (last > BindStep.COUNT)
    assert grants_in(pair.posts, ROOM) == [(THERE, THERE_EPOCH)]


def test_a_grant_is_let_go_of_where_the_bootstrap_was_faster(pair: Pair) -> None:
    """R79: one of the two enters the destination; the grant is nobody's again, and its post stays."""
    seen: list[int] = []

    def before(step: int) -> None:
        seen.append(step)
        if step == BindStep.JOIN:
            assert pair.own.slots.join(SLOT, JoinedBy.BOOTSTRAP)

    pair.binder.watch(before)
    pair.grant(THERE - 1)
    assert pair.bind() == 0
    assert seen == [BindStep.MARK, BindStep.GRANT, BindStep.JOIN, BindStep.UNBIND]
    assert not pair.is_bound()
    assert pair.joined_by == JoinedBy.BOOTSTRAP
    assert not pair.has_destination
    assert len(grants_in(pair.posts, ROOM)) == 2


@pytest.mark.parametrize("when", [BindStep.MARK, BindStep.GRANT])
def test_who_marks_a_grant_sees_its_tombstone_or_is_seen(pair: Pair, when: BindStep) -> None:
    """R81: so of an encoder that binds itself and a bootstrap that has joined another, one knows of the other."""
    found: list[int | None] = []

    def before(step: int) -> None:
        if step == when:
            pair.own.peers.raise_tombstone(PEER, THERE, THERE_EPOCH)
            found.append(pair.own.peers.finder(PEER, THERE, THERE_EPOCH))

    pair.binder.watch(before)
    is_seen = when == BindStep.GRANT
    assert pair.bind() == (BIND_BOUND if is_seen else 0)
    assert found == [SLOT if is_seen else None]
    assert pair.is_untouched() != is_seen


@pytest.mark.parametrize(
    ("epoch", "slot", "may"),
    [(THERE_EPOCH, SLOT + 1, False), (THERE_EPOCH + 1, SLOT, False), (THERE_EPOCH - 1, SLOT + 1, True),
     (THERE_EPOCH, SLOT, True)],
    ids=["another's", "of a later epoch", "of an older one", "its own"],
)  # fmt: skip
def test_a_grant_has_one_mark_an_epoch(pair: Pair, epoch: int, slot: int, may: bool) -> None:
    """R81: who was the first to mark it is not hidden by who comes later."""
    finders, at = pair.own.peers._finders, PEER * pair.own.peers.num_slots + THERE
    assert finders is not None
    finders.store(at, epoch << FINDER_SLOT_BITS | slot)
    assert pair.bind() == (BIND_BOUND if may else 0)
    assert pair.is_untouched() != may
    assert finders.load(at) == (THERE_EPOCH << FINDER_SLOT_BITS | SLOT if may else epoch << FINDER_SLOT_BITS | slot)


def test_marks_end_with_the_node_that_had_the_entry(pair: Pair) -> None:
    """R81: another's grants of the same slots and epochs are marked by nobody."""
    assert pair.bind()
    peers = pair.own.peers
    record = peers.record(PEER)
    assert peers.register(record, 2, ()) == PEER  # once more
    assert peers.finder(PEER, THERE, THERE_EPOCH) == SLOT
    assert peers.bury(PEER)
    for node_id in (20, 21):
        assert peers.register(record._replace(node_id=node_id), 3, ()) is not None
    assert peers.get(PEER, Peer.NODE_ID) in (20, 21)
    assert peers.finder(PEER, THERE, THERE_EPOCH) is None


@pytest.mark.parametrize("when", STEPS)
def test_a_node_that_is_told_meanwhile_is_seen_to_be(pair: Pair, when: BindStep) -> None:
    """R79: who notes a destination looks then whether its node is told."""
    pair.binder.watch(lambda step: step == when and pair.own.slots.tell(SLOT, EPOCH))
    assert pair.bind() == BIND_BOUND | BIND_TOLD


def test_a_word_of_another_epoch_counts_as_told(pair: Pair) -> None:
    """R78."""
    assert pair.own.slots.told(SLOT, EPOCH) == Told.UNTOLD
    assert pair.binder.bind(PEER, ROOM, SLOT, EPOCH + 1) == BIND_BOUND | BIND_TOLD


@pytest.mark.parametrize("when", STEPS)
def test_a_language_node_that_dies_meanwhile_is_seen_to_be_gone(pair: Pair, when: BindStep) -> None:
    """R79: its entry may be another's until the destination is noted."""
    pair.binder.watch(lambda step: step == when and pair.own.peers.bury(PEER))
    assert pair.bind() == BIND_BOUND | BIND_GONE


# ---- what is refused


def test_what_is_not_there_is_refused(pair: Pair) -> None:
    for arguments in ((3, ROOM, SLOT, EPOCH), (PEER, ROOM, 64, EPOCH), (-1, ROOM, SLOT, EPOCH)):
        with pytest.raises(IndexError):
            pair.binder.bind(*arguments)
    with pytest.raises(ValueError, match="epoch"):
        pair.binder.bind(PEER, ROOM, SLOT, 1 << 28)
    with pytest.raises(OverflowError):
        pair.binder.bind(PEER, 1 << 64, SLOT, EPOCH)
    assert pair.is_untouched()


def test_a_table_that_is_too_small_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R37: each is as long as its slots need."""
    for name, bad in {
        "MEETING_WORDS": "meetings",
        "DESTINATION_WORDS": "destinations",
        "POSTS_A_SLOT": "buckets",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"embridge.allocator.direct.{name}", 0)
            with pytest.raises(ValueError, match=bad):
                pair._binder(pair.part)
