"""`DirectWriter`: its words, what it refuses, and what it asks of who looks on. `test_direct` has the writes
themselves.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from direct_pair import BLOCKS, EPOCH, GEOMETRY, LIMITS, ME, SLOT, THERE, TOTAL, Pair
from support.claims import shut
from support.direct_steps import DirectStep

from embridge.allocator import _core
from embridge.allocator.claims import Claim, ClaimState, WriterId
from embridge.allocator.layout import PayloadLayout
from embridge.allocator.metrics import Metric
from embridge.allocator.posts import Meeting
from embridge.allocator.records import (
    CLAIM_WORDS,
    DESTINATION_WORDS,
    FINDER_SLOT_BITS,
    MEETING_WORDS,
    Destination,
    JoinedBy,
    Peer,
    PeerState,
    Slot,
    Told,
    WrittenBy,
)
from embridge.allocator.sessions import SHM_EXPOSURE
from embridge.allocator.status import Phase, is_whole


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_the_words_are_those_of_the_records() -> None:
    """R28, R29, R79: the native code has their places of its own."""
    for enum in (Slot, Destination, Metric, Peer, Meeting):
        prefix = f"{enum.__name__.upper()}_"
        places = {name: getattr(_core, name) for name in dir(_core) if name.startswith(prefix)}
        places.pop(f"{prefix}WORDS", None)
        assert len(places) >= 3
        assert places == {name: enum[name.removeprefix(prefix)] for name in places}
    assert (_core.DESTINATION_WORDS, _core.CLAIM_WORDS) == (DESTINATION_WORDS, CLAIM_WORDS)
    assert _core.MEETING_WORDS == MEETING_WORDS
    assert (_core.JOINED_BY_NOBODY, _core.JOINED_BY_CLIENT) == (JoinedBy.NOBODY, JoinedBy.CLIENT)
    assert _core.WRITTEN_BY_CLIENT == WrittenBy.CLIENT
    assert (_core.TOLD_UNTOLD, _core.TOLD_RELEASED) == (Told.UNTOLD, Told.RELEASED)
    assert _core.FINDER_SLOT_BITS == FINDER_SLOT_BITS
    assert _core.LOCAL_EXPOSURE == SHM_EXPOSURE
    assert PeerState.REGISTERED == _core.REGISTERED_STATE


# ---- a write


def test_rows_come_from_any_pieces_and_go_into_any_blocks(pair: Pair) -> None:
    """R29, R32, P6: with the auxiliary words, and both sides hear of all of them."""
    assert pair.write(0, 3, 7, TOTAL) == TOTAL
    assert pair.there(0, TOTAL)
    assert pair.rows.aux_datas[BLOCKS[0]].tolist() == list(range(16))
    success = (Phase.Success, TOTAL)
    assert pair.words == (success, success, TOTAL)
    assert pair.claim == Claim(EPOCH, ClaimState.ENDED)  # R81
    assert (pair.language.claims.length(THERE), pair.language.claims.lane(THERE)) == (TOTAL, 3)
    slots = pair.own.slots
    assert [slots.get(SLOT, field) for field in (Slot.TOTAL, Slot.READY, Slot.MOVED_NS)] == [TOTAL, TOTAL, 777]
    assert pair.own.status.stamps(SLOT)[Phase.Success] == pair.language.status.stamps(THERE)[Phase.Success] == 777
    row = pair.own.metrics.all()["clients"]
    counts = (row["writes"], row["bytes_written"], row["tokens_written"])
    assert counts == (1, TOTAL * GEOMETRY.token_bytes, TOTAL)


def test_large_rows_come_onto_their_pages_and_onto_no_other() -> None:
    """P6: the page table is filled ahead of the copy, for the pages of these rows."""
    geometry = replace(GEOMETRY, hidden_size=40_000)
    pair = Pair(geometry=geometry)
    row_bytes, page = 80_000, os.sysconf("SC_PAGESIZE")
    first = np.frombuffer(pair.payload, np.uint8).ctypes.data
    before = pages_of(first, pair.payload.size)
    assert pair.write(0, 7) == 7
    assert pair.write(7, TOTAL) == TOTAL
    assert pair.there(0, TOTAL)
    at = PayloadLayout.of(geometry).embeddings
    rows = [at + (BLOCKS[row // 4] * 4 + row % 4) * row_bytes for row in range(TOTAL)]
    written = {byte // page for row in rows for byte in (*range(row, row + row_bytes, page), row + row_bytes - 1)}
    others = pages_of(first, pair.payload.size) - before - written
    assert all(number < at // page or number * page >= at + geometry.num_blocks * 4 * row_bytes for number in others)


def pages_of(address: int, size: int) -> set[int]:
    """The pages of a mapping that are in this process's page table."""
    page = os.sysconf("SC_PAGESIZE")
    with open("/proc/self/pagemap", "rb", buffering=0) as entries:
        words = np.frombuffer(os.pread(entries.fileno(), size // page * 8, address // page * 8), np.uint64)
    return set(np.flatnonzero(words >> np.uint64(63)).tolist())


def test_no_row_is_written_that_is_not_granted(pair: Pair) -> None:
    """R29, D8: neither beyond the grant, nor beyond what is given; the phases rise as the first grant is full."""
    pair.set(Destination.FIRST_GRANT, 3)
    pair.set(Destination.GRANTED_TOKENS, 3)
    before = memoryview(pair.payload).tobytes()
    assert pair.write(0, 2) == 2
    assert pair.words == ((Phase.WaitingForInput, 2), (Phase.WaitingForInput, 2), 2)
    assert pair.write(2, TOTAL) == 3
    assert pair.words == ((Phase.Transferring, 3), (Phase.Transferring, 3), 3)
    assert pair.write(3, TOTAL) == 0
    assert pair.there(0, 3)
    assert not pair.there(3, 4)
    assert pair.write(5, TOTAL) == 0  # not the next rows
    pair.set(Destination.GRANTED_TOKENS, TOTAL)
    assert pair.write(5, TOTAL) == 0
    assert pair.write(3, TOTAL) == TOTAL
    assert pair.there(0, TOTAL)
    changed = np.frombuffer(before, np.uint8) != np.frombuffer(pair.payload, np.uint8)
    assert not changed[: PayloadLayout.of(GEOMETRY).embeddings + BLOCKS[2] * 4 * 16].any()


@pytest.mark.parametrize("state", [it for it in ClaimState if it != ClaimState.OPEN])
def test_nothing_is_written_where_the_claim_is_not_to_be_had(pair: Pair, state: ClaimState) -> None:
    """R28, R30."""
    claim, before = Claim(EPOCH, state, WriterId(2, 1)), memoryview(pair.payload).tobytes()
    pair.language.claims._words.store(THERE * CLAIM_WORDS, claim.pack())
    assert pair.write(0, TOTAL) == 0
    assert pair.claim == claim
    assert memoryview(pair.payload).tobytes() == before
    assert pair.words == ((0, 0), (0, 0), 0)


def test_a_request_that_fails_meanwhile_is_not_told_and_the_call_says_so(pair: Pair) -> None:
    """R36, D12."""

    def fail(step: int, *_: int) -> None:
        if step == DirectStep.COPY:
            pair.own.status.advance(SLOT, EPOCH, Phase.Failed, 0, 5)

    pair.writer.watch(fail)
    assert pair.write(0, TOTAL) == -TOTAL
    assert pair.words[1] == (Phase.WaitingForInput, 0)
    assert is_whole(pair.language.status.load(THERE))
    assert pair.claim == Claim(EPOCH, ClaimState.ENDED)  # all rows are there


def test_a_writer_whose_claim_was_revoked_while_it_copied_says_nothing(pair: Pair) -> None:
    """R81, R30: its request has failed at the language node, and whoever says why is on the way."""

    def revoke(step: int, *_: int) -> None:
        if step == DirectStep.COPY:
            assert not pair.language.claims.revoke(THERE, EPOCH)

    pair.writer.watch(revoke)
    assert pair.write(0, TOTAL) == 0  # nothing is sent, so whoever has the rows keeps them
    assert pair.words == ((0, 0), (0, 0), 0)
    assert pair.claim == Claim(EPOCH, ClaimState.ENDED)


@pytest.mark.parametrize("phase", [Phase.Success, Phase.Failed])
def test_nothing_is_written_where_the_request_has_ended(pair: Pair, phase: Phase) -> None:
    """R81, P6: whoever has ended it may have given its blocks away."""
    pair.language.status.advance(THERE, EPOCH, phase, 0, 5)
    before = memoryview(pair.payload).tobytes()
    assert pair.write(0, TOTAL) == 0
    assert memoryview(pair.payload).tobytes() == before
    assert pair.claim == Claim(EPOCH, ClaimState.OPEN)


def rung(pair: Pair, *cuts: int) -> list[str]:
    """Whose bells at the language node rise while these rows are written."""
    bells = {f"{who}{lane}": pair.language.bell(f"{who}{lane}") for who in ("lane", "library") for lane in range(4)}
    before = {name: bell.sequence() for name, bell in bells.items()}
    pair.write(*cuts)
    return [name for name, bell in bells.items() if bell.sequence() != before[name]]


def test_the_scheduler_is_rung_whose_slot_it_is(pair: Pair) -> None:
    """P8: its caller, too, when all rows are there: he may go on himself; no one where there is no news."""
    assert rung(pair, 0, 4) == ["library3"]
    assert rung(pair, 0, 4) == []
    assert rung(pair, 4, TOTAL) == ["lane3", "library3"]
    assert rung(pair, 4, TOTAL) == []


@pytest.mark.parametrize("is_armed", [False, True])
def test_a_library_thread_that_is_spared_hears_of_a_success_where_its_caller_is_not_awake(
    pair: Pair, is_armed: bool
) -> None:
    """P8: he may sleep in a poll loop, which no writer can wake; rows that are not the last are for it alone."""
    caller = pair.language.bell("lane3")
    pair.language.bell("library3").spare(True)
    assert rung(pair, 0, 4) == ["library3"]
    if is_armed:
        assert caller.arm(caller.sequence())
    assert rung(pair, 4, TOTAL) == (["lane3", "library3"] if is_armed else ["lane3"])


def test_a_lane_that_there_is_not_is_not_rung(pair: Pair) -> None:
    """P7: it is a word that others write."""
    shut(pair.language.claims, THERE, EPOCH, 4)
    assert pair.language.claims.offer(THERE, EPOCH)
    assert rung(pair, 0, TOTAL) == []
    assert pair.words[1] == (Phase.Success, TOTAL)


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 1])
def test_of_a_request_that_has_ended_no_row_is_written(pair: Pair, epoch: int) -> None:
    """R28, R16: nor of one whose slot is another's by now."""
    before = memoryview(pair.payload).tobytes()
    if epoch == EPOCH:
        assert pair.own.status.advance(SLOT, EPOCH, Phase.Failed, 0, 5)
    spans = array("Q", pair.span(0, TOTAL))
    assert pair.writer.write(SLOT, epoch, TOTAL, pair.columns, spans) == 0
    assert memoryview(pair.payload).tobytes() == before
    assert pair.words[1:] == ((0, 0), 0)
    assert pair.own.slots.get(SLOT, Slot.TOTAL) == 0


def test_a_claim_that_is_revoked_meanwhile_is_ended(pair: Pair) -> None:
    """R30, R31."""
    def revoke(step: int, *_: int) -> None:
        if step == DirectStep.COPY:
            assert not pair.language.claims.revoke(THERE, EPOCH)

    pair.writer.watch(revoke)
    pair.write(0, 4)
    assert pair.claim == Claim(EPOCH, ClaimState.ENDED)


def test_a_block_outside_of_the_pool_is_refused_and_the_claim_given_back(pair: Pair) -> None:
    """P7: a grant is input, also in this node's own words."""
    pair.destinations.set_grant(SLOT, 0, 1, GEOMETRY.num_blocks, 3)
    with pytest.raises(IndexError, match="block 6 was granted, of a pool of 6"):
        pair.write(0, TOTAL)
    assert pair.words == ((0, 0), (0, 0), 0)
    assert pair.claim == Claim(EPOCH, ClaimState.OPEN)


@pytest.mark.parametrize(
    ("cuts", "error"),
    [((0, 0), "span 0"), ((0, TOTAL + 1), "span 0"), ((4, 2), "span 0"), ((0, 3, 3), "span 1"), ((0, 3, 2), "span 1")],
)
def test_spans_that_are_no_rows_in_order_are_refused(pair: Pair, cuts: tuple[int, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        pair.write(*cuts)


def test_arguments_that_do_not_fit_are_refused(pair: Pair) -> None:
    """P7: nothing outside of the payload is written, and no table is read beyond its end."""
    write, fit, span = pair.writer.write, pair.columns, array("Q", pair.span(0, 1))
    with pytest.raises(IndexError):
        write(64, EPOCH, TOTAL, fit, span)
    with pytest.raises(ValueError, match="no spans of 5"):
        write(SLOT, EPOCH, TOTAL, fit, span[:-1])
    with pytest.raises(IndexError, match="column 0"):
        write(SLOT, EPOCH, TOTAL, array("Q", [pair.payload.size, 1]), array("Q", [0, 1, 0]))
    with pytest.raises(IndexError, match="column 0"):
        write(SLOT, EPOCH, TOTAL, array("Q", [0, 1 << 62]), array("Q", [0, 1, 0]))
    with pytest.raises(ValueError, match="columns"):
        write(SLOT, EPOCH, TOTAL, array("Q", [0]), array("Q", []))
    pair.set(Destination.REMOTE_SLOT, 64)
    with pytest.raises(IndexError, match="slot 64"):
        pair.write(0, 1)
    pair.set(Destination.REMOTE_SLOT, THERE)
    pair.set(Destination.WINDOW, LIMITS.window_in(GEOMETRY.num_blocks) + 1)
    with pytest.raises(IndexError, match="window"):
        pair.write(0, 1)
    pair.destinations.set(SLOT, 1, Destination.WINDOW, 1 << 63)  # twice that is 0
    with pytest.raises(IndexError, match="window"):
        pair.writer.follow(SLOT, EPOCH, TOTAL, 1)
    assert pair.claim == Claim(EPOCH, ClaimState.OPEN)


# ---- who looks on


def test_who_looks_on_is_asked_before_each_step(pair: Pair) -> None:
    """R28 to R32, R36: the order of the steps."""
    seen: list[tuple[int, ...]] = []
    pair.set(Destination.FIRST_GRANT, 2)
    pair.writer.watch(lambda *said: seen.append(said))
    assert pair.write(0, TOTAL) == TOTAL
    S = DirectStep
    assert {slot for _, slot, *_ in seen} == {SLOT}
    steps = [(S(step), *numbers) for step, _, *numbers in seen]
    copies = [(S.COPY, 4, 0, 4), (S.COPIED, 4, 0, 4), (S.COPY, 5, 4, 8), (S.COPIED, 5, 4, 8)]
    copies += [(S.COPY, 2, 8, 10), (S.COPIED, 2, 8, 10)]
    words = [(which, phase, 0, 0) for which in (S.OWN_WORD, S.THEIR_WORD) for phase in (1, 2, 3)]
    assert steps == [
        (S.TOTAL, TOTAL, 0, 0), (S.TAKE, 0, 0, 0), (S.LOOK, 0, 0, 0), (S.READY, TOTAL, 0, 0), (S.AUX, 4, 0, 0), *copies,
        (S.LENGTH, TOTAL, 0, 0), (S.WHOLE, 1, 0, 0), (S.SENT, TOTAL, 0, 0), (S.MOVED, 0, 0, 0), (S.COUNT, 0, 0, 0),
        *words, (S.GIVE_BACK, 0, 0, 0), (S.RING, 0, 0, 0), (S.DONE, 0, 0, 0),
    ]  # fmt: skip


STEPS_OF_ALL: Final = [*DirectStep]


@pytest.mark.parametrize("last", STEPS_OF_ALL)
@pytest.mark.parametrize("is_dead", [False, True], ids=["goes wrong", "dies"])
def test_a_write_that_is_ended_at_a_step_leaves_the_claim_only_if_it_is_dead(
    pair: Pair, last: DirectStep, is_dead: bool
) -> None:
    """R33, P1: what is said is true wherever it ends."""
    asked: list[int] = []

    def before(step: int, *_: int) -> None:
        asked.append(step)
        if step == last or (is_dead and last in asked):
            raise LookupError(str(step))

    pair.writer.watch(before)
    with pytest.raises(LookupError, match=f"^{int(last)}$"):
        pair.write(0, TOTAL)
    (_, own), (_, theirs), sent = pair.words
    assert theirs <= own <= sent
    assert pair.there(0, sent)
    has_it = DirectStep.LOOK in asked and last <= DirectStep.GIVE_BACK
    is_left = has_it and (is_dead or last == DirectStep.GIVE_BACK)
    given_back = ClaimState.ENDED if last > DirectStep.SENT else ClaimState.OPEN  # all rows are there (R81)
    assert pair.claim == (Claim(EPOCH, ClaimState.WRITING, ME) if is_left else Claim(EPOCH, given_back))


def test_nobody_begins_to_write_once_it_is_closed(pair: Pair) -> None:
    """R33, P7: and who closes hears whether somebody is in it."""
    said: list[bool] = []
    pair.writer.watch(lambda *_: said.append(pair.writer.close()))
    assert pair.write(0, 4) == 4
    assert set(said) == {False}
    said.clear()
    assert pair.write(4, TOTAL) == 0
    assert pair.writer.close()
    assert not said


def test_a_clock_that_fails_ends_the_write() -> None:
    def clock() -> Any:
        raise LookupError("no time")

    pair = Pair(clock)
    with pytest.raises(LookupError, match="no time"):
        pair.write(0, TOTAL)
    assert pair.claim == Claim(EPOCH, ClaimState.OPEN)
