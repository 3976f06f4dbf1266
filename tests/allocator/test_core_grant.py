"""`GrantPoster`: what it changes for a grant and at a request's end, in which order, and what it leaves to the node."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import Final

import pytest
from core_support import SharedMemory
from support.posted import grants_in, post_grant

from embridge.allocator._core import GrantPoster, Words
from embridge.allocator.blocks import EXPOSED, FREE, OWNED, QUARANTINED
from embridge.allocator.claims import ClaimState, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.posts import POSTED_LATE, Granted
from embridge.allocator.records import BUCKET_POSTS, Slot, Told
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.status import Phase

GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=16, block_size=4)
LIMITS: Final = Limits(
    num_slots=64, max_clients=4, num_workers=1, ring_records=16, max_peers=3, max_peer_slots=64, window_blocks=4
)
LARGER: Final = replace(LIMITS, num_slots=128)
NODE: Final = (1 << 63, 3)
ROOM: Final = (1 << 63) - 1
SLOT: Final = 63
TOKENS: Final = 10
NOW_NS: Final = 77


class GrantStep(IntEnum):
    """What `GrantPoster` is about to change, as `native/grant.h` numbers it."""

    WINDOW = 0
    RECORD = 1
    EXPOSE = 2
    WRITE_DOWN = 3
    OFFER = 4
    POST = 5
    DRAINED = 6
    FREE = 7
    TAKE_OFF = 8
    RELEASE = 9


class Request:
    """An untold request of a language node, with blocks that were taken for it."""

    def __init__(self) -> None:
        mapping = SharedMemory(ControlLayout.of(Role.LANGUAGE, GEOMETRY, LIMITS).size).map()
        format_control(mapping, Role.LANGUAGE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
        self.control = control = Control(mapping)
        self.poster, self.posts, self.slots = control.poster, control.posts, control.slots
        control.opener.open(SLOT, SlotRecord(), 1, is_untold=True)
        self.epoch = control.opener.open(SLOT, SlotRecord(), 1, is_untold=True)
        self.blocks = control.blocks.acquire(SLOT, self.epoch, 3, may_take_reserve=False)

    def post(self) -> int:
        return self.poster.post(SLOT, self.epoch, ROOM, *NODE, self.blocks, TOKENS, NOW_NS)

    def succeed(self) -> bool:
        return self.control.status.advance(SLOT, self.epoch, Phase.Success, TOKENS, NOW_NS)

    def release(self) -> bool:
        return self.poster.release(SLOT, self.epoch, ROOM, NOW_NS + 1)

    @property
    def is_recorded(self) -> bool:
        """Whether the grant is in the slot's record."""
        blocks = [self.control.windows.get(SLOT, k) for k in range(3)]
        words = self.slots.get_all(SLOT)
        counts = words[Slot.NUM_ROUNDS], words[Slot.GRANTED], words[Slot.MOVED_NS], words[Slot.INIT_ASKED]
        return (blocks, counts) == (self.blocks.tolist(), (1, 3 << 32 | TOKENS, NOW_NS, 1))

    @property
    def states(self) -> set[int]:
        return {self.control.blocks.cells.cell(block)[0] for block in self.blocks}

    @property
    def claim(self) -> ClaimState:
        return self.control.claims.get(SLOT).state

    @property
    def is_posted(self) -> bool:
        return grants_in(self.posts, ROOM) == [(SLOT, self.epoch)]

    @property
    def told(self) -> Told:
        return Told(self.slots.get(SLOT, Slot.TOLD) & 3)


@pytest.fixture
def request_() -> Request:
    return Request()


# ---- a grant


def test_a_grant_is_recorded_and_posted(request_: Request) -> None:
    """R37: an encoder finds it by its room, with what it needs to know of it."""
    assert request_.post() == 1
    assert request_.is_recorded
    assert request_.states == {EXPOSED}
    assert request_.claim == ClaimState.OPEN
    assert request_.posts.granted(SLOT, request_.epoch) == Granted(ROOM, NODE, 3, TOKENS)
    assert request_.posts.bind(SLOT, request_.epoch)
    assert request_.is_posted


def test_of_an_encoder_that_waits_already_its_scheduler_hears(request_: Request) -> None:
    """R37: an offer of the room is seen after the grant has been entered."""
    assert request_.posts.post_offer(ROOM, WriterId(1, 1))
    assert request_.post() == POSTED_LATE
    assert request_.is_posted


def test_another_rooms_offer_is_none(request_: Request) -> None:
    """R37: in the same bucket, with another tag."""
    first = request_.posts._place(ROOM)[1]
    other = next(room for room in range(1 << 20) if request_.posts._place(room)[1] == first)
    assert request_.posts.post_offer(other, WriterId(1, 1))
    assert request_.post() == 1


def test_a_full_bucket_takes_no_more(request_: Request) -> None:
    """R37: the encode node is sent the grant, which is recorded."""
    for slot in range(BUCKET_POSTS):
        assert post_grant(request_.posts, ROOM, slot, 1)
    assert not request_.post()
    assert request_.is_recorded
    assert request_.claim == ClaimState.OPEN
    assert (SLOT, request_.epoch) not in grants_in(request_.posts, ROOM)


def test_a_block_that_is_not_the_requests_any_more_is_offered_to_nobody(request_: Request) -> None:
    """R30: whoever ended the request has taken it back, and another request may have it."""
    request_.control.blocks.release(request_.blocks[2:], SLOT, request_.epoch)
    assert not request_.post()
    assert request_.is_recorded
    assert request_.claim == ClaimState.SHUT
    assert not grants_in(request_.posts, ROOM)


def test_an_ended_claim_is_not_offered_again(request_: Request) -> None:
    """R30: who ends a request may be faster than who grants it."""
    assert request_.control.claims.revoke(SLOT, request_.epoch)
    request_.post()
    assert request_.claim == ClaimState.ENDED


@pytest.mark.parametrize(
    ("blocks", "error"),
    [((), ValueError), ((1, 2, 3, 4, 5), ValueError), ((1, 16), IndexError)],
    ids=["none", "more than the window has", "outside the pool"],
)
def test_what_is_no_grant_is_refused(request_: Request, blocks: tuple[int, ...], error: type[Exception]) -> None:
    """D4: nothing is changed."""
    before = bytes(memoryview(request_.control.mapping))
    with pytest.raises(error, match="blocks"):
        request_.poster.post(SLOT, request_.epoch, ROOM, *NODE, array("I", blocks), TOKENS, NOW_NS)
    assert bytes(memoryview(request_.control.mapping)) == before


# ---- its end


def test_the_end_gives_everything_back(request_: Request) -> None:
    """R78: blocks, post and slot, of a request of which no process of the node was told."""
    request_.post()
    request_.succeed()
    assert request_.release()
    assert request_.states == {FREE}
    assert not request_.is_posted
    assert request_.told == Told.RELEASED
    words = request_.slots.get_all(SLOT)
    assert (words[Slot.DRAINED_BLOCKS], words[Slot.MOVED_NS]) == (3, NOW_NS + 1)
    assert words[Slot.RELEASED_EPOCH] == request_.epoch
    assert not request_.release()


def test_what_was_given_back_before_stays_with_who_has_it_now(request_: Request) -> None:
    """P6: blocks behind the last row are another request's by then."""
    request_.post()
    request_.succeed()
    blocks = request_.control.blocks
    blocks.release(request_.blocks[:1], SLOT, request_.epoch)
    assert blocks.acquire(1, 1, 1, may_take_reserve=False).tolist() == request_.blocks[:1].tolist()
    assert request_.release()
    assert blocks.cells.cell(request_.blocks[0])[:3] == (OWNED, 1, 1)


NOT_TO_BE_RELEASED: Final[dict[str, Callable[[Request], object]]] = {
    "it has not ended": lambda request: None,
    "it has failed": lambda request: request.control.status.advance(SLOT, request.epoch, Phase.Failed, 0, 1),
    "its node was told": lambda request: request.succeed() and request.slots.tell(SLOT, request.epoch),
    "rows came over a network": lambda request: request.succeed() and request.slots.raise_to(SLOT, Slot.SESSION, 1),
}


@pytest.mark.parametrize("prepare", NOT_TO_BE_RELEASED.values(), ids=NOT_TO_BE_RELEASED)
def test_what_is_not_the_clients_alone_is_left_alone(request_: Request, prepare: Callable[[Request], object]) -> None:
    """R78, R7: the node's processes do the rest."""
    request_.post()
    prepare(request_)
    before = bytes(memoryview(request_.control.mapping))
    assert not request_.release()
    assert bytes(memoryview(request_.control.mapping)) == before


def test_another_epochs_end_is_left_alone(request_: Request) -> None:
    """R14, R78."""
    request_.post()
    request_.succeed()
    assert not request_.poster.release(SLOT, request_.epoch - 1, ROOM, NOW_NS)
    assert request_.states == {EXPOSED}


def test_blocks_in_quarantine_stay_there(request_: Request) -> None:
    """R30."""
    request_.post()
    request_.succeed()
    request_.control.blocks.cells.quarantine(request_.blocks, 0, 3, SLOT, request_.epoch)
    assert request_.release()
    assert request_.states == {QUARANTINED}


# ---- step by step


class _StopError(Exception):
    pass


def test_the_steps_have_their_order(request_: Request) -> None:
    """R30, R37, R78: nothing else lies in between."""
    seen: list[int] = []
    request_.poster.watch(seen.append)
    assert request_.post() == 1
    request_.succeed()
    assert request_.release()
    assert seen == list(GrantStep)
    request_.poster.watch(None)
    assert not request_.release()


@pytest.mark.parametrize("last", GrantStep)
def test_a_death_before_any_step_leaves_what_came_before_it(request_: Request, last: GrantStep) -> None:
    """P1, R37, R78: the claim is offered when all is written down, and the slot is released when nothing is left."""

    def before(step: int) -> None:
        if step == last:
            raise _StopError

    def live() -> None:
        request_.post()
        request_.succeed()
        request_.release()

    request_.poster.watch(before)
    with pytest.raises(_StopError):
        live()
    is_down = request_.posts.granted(SLOT, request_.epoch) is not None
    assert is_down == (last > GrantStep.WRITE_DOWN)
    assert (request_.control.windows.get(SLOT, 1) != 0) == (last > GrantStep.WINDOW)
    assert request_.is_recorded == (GrantStep.RECORD < last <= GrantStep.DRAINED)
    states = {OWNED} if last <= GrantStep.EXPOSE else {EXPOSED} if last <= GrantStep.FREE else {FREE}
    assert request_.states == states
    assert request_.claim == (ClaimState.OPEN if last > GrantStep.OFFER else ClaimState.SHUT)
    assert request_.is_posted == (GrantStep.POST < last <= GrantStep.TAKE_OFF)
    assert request_.told == Told.UNTOLD


def test_who_is_told_meanwhile_keeps_the_slot(request_: Request) -> None:
    """R78: blocks and post are back, and the node releases the rest."""
    request_.post()
    request_.succeed()
    request_.poster.watch(lambda step: step == GrantStep.RELEASE and request_.slots.tell(SLOT, request_.epoch))
    assert not request_.release()
    assert request_.told == Told.TOLD
    assert request_.slots.get(SLOT, Slot.RELEASED_EPOCH) < request_.epoch


# ---- refusals


SMALLER: Final = ("slots", "windows", "claims", "meetings")


@pytest.mark.parametrize("name", [*SMALLER, "slot_words", "window_blocks"])
def test_tables_that_are_too_small_are_refused(name: str) -> None:
    """D4: nothing is read beyond them."""
    small, mapping = Request().control, SharedMemory(ControlLayout.of(Role.LANGUAGE, GEOMETRY, LARGER).size).map()
    format_control(mapping, Role.LANGUAGE, GEOMETRY, LARGER, node_id=1, incarnation=1, now_ns=1)
    large = Control(mapping)
    tables = _tables(large) | ({name: _tables(small)[name]} if name in SMALLER else {})
    with pytest.raises(ValueError, match=r"<|slot_words"):
        GrantPoster(
            large.status,
            large.blocks.cells,
            posts=large.posts._posts,
            slot_words=31 if name == "slot_words" else large.slots._stride,
            window_blocks=0 if name == "window_blocks" else large.windows.window,
            **tables,
        )


def _tables(control: Control) -> dict[str, Words]:
    return {
        "slots": control.slots._words,
        "windows": control.windows._words,
        "claims": control.claims._words,
        "meetings": control.posts._meetings,
    }
