"""Several destinations of one request on the direct path: an encoder writes to each itself, and all end alike, whoever
stops or dies between two of their words.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from support import direct, encoding
from support.agents import Agent
from support.direct import STEPS, doomed_encoder, since, wait_direct, written, written_by
from support.direct_steps import DirectStep
from support.encoding import ended, give, open_sender, wait_doors
from support.nodes import Station, station
from support.rows import rows_of
from support.scheduling import ByHand, Queues
from support.stopping import is_stopped, stopped
from support.waiting import wait_until
from support.watching import watch

from embridge import Client, Phase, attach
from embridge.allocator.records import Slot, WrittenBy
from embridge.allocator.status import is_whole, split

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128
ONE_ROUND: Final = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED: Final = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


@pytest.fixture(params=["one language node", "two language nodes"])
def other_place(request: pytest.FixtureRequest, language: Station, other_language: Station) -> Iterator[Station]:
    place = language if request.param == "one language node" else other_language
    yield place
    language.wait_idle()
    place.wait_idle()


@pytest.fixture
def others(other_place: Station) -> Iterator[Queues]:
    """A second scheduler: of the same language node, or of another one."""
    with attach(other_place.run_dir) as client:
        yield Queues(client)


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, others: Queues, rooms: Iterator[int]) -> Client:
    """A client of the encode node that has a door to both."""
    for queues in (receiving, others):
        queues.add(encode.addr, room := next(rooms))
        assert give(open_sender(sending, room, 10))
        assert queues.take(room, 20).difference == ""
    wait_doors(sending)
    return sending


@pytest.fixture(autouse=True)
def _nobody_looks_on() -> Iterator[None]:
    yield
    watch(None)


@pytest.fixture
def agent(encode: Station, language: Station) -> Iterator[Agent]:
    with doomed_encoder(encode, language) as agent:
        yield agent


def both_by_hand(encode: Station, one: Client, other: Client, room: int, *, granted: int = TOTAL) -> list[ByHand]:
    """A request of two schedulers, each of which has granted its first rows."""
    hands = [ByHand(client, encode.addr, room, required=2) for client in (one, other)]
    for it in hands:
        it.grant(-(-granted // 128), granted)
    return hands


# ---- rows arrive


@pytest.mark.parametrize("is_lent", [False, True], ids=["copied", "lent"])
@pytest.mark.parametrize("is_granted", [False, True], ids=["rows first", "grants first"])
def test_rows_come_to_all_destinations_and_no_worker_has_written_one(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int, is_granted: bool, is_lent: bool
) -> None:
    """R28, R32, R36, P6: by the caller's thread where they are granted, else by the library thread."""
    before = written(encode)
    sender = open_sender(sending, room, TOTAL)
    hands = both_by_hand(encode, receiving.client, others.client, room) if is_granted else []
    if is_granted:
        wait_direct(sender, TOTAL, 2)
    assert sender.send_embedding(*rows_of(encode.geometry, room, 0, TOTAL), borrow=is_lent)
    if is_granted:
        assert sender.poll() == Phase.Success, "the call has written them"
    for it in hands or both_by_hand(encode, receiving.client, others.client, room):
        received = it.finish(TOTAL)
        assert (received.error, received.difference, received.total, received.path) == ("", "", TOTAL, ONE_ROUND)
    assert ended(sender).path == ONE_ROUND
    wait_until(lambda: sender.done)
    assert since(encode, before) == {"clients": 2 * TOTAL, "workers": 0}


@pytest.mark.parametrize("total", [1, 129, 1024, 1025, 4000])
def test_any_length_in_any_parts_through_few_blocks_of_each(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int, total: int
) -> None:
    """R29, R3, D8, P6: rows are kept until the slower one has them."""
    before = written(encode)
    for queues in (receiving, others):
        queues.add(encode.addr, room, required=2)
    sender = open_sender(sending, room, total)
    cuts = sorted({0, 1 % total, total // 3, total // 3 + 7, total // 2, total} & set(range(total + 1)))
    for first, end in pairwise(cuts):
        assert give(sender, first, end)
    for queues in (receiving, others):
        received = queues.take(room, 30)
        assert (received.error, received.difference, received.total) == ("", "", total)
    assert ended(sender).sent == total
    assert since(encode, before) == {"clients": 2 * total, "workers": 0}


def test_no_process_of_a_node_stands_between_a_write_and_its_arrival_at_all(
    encode: Station,
    language: Station,
    other_place: Station,
    sending: Client,
    receiving: Queues,
    others: Queues,
    room: int,
) -> None:
    """R28, R36: who writes the last row decides, and has the others follow."""
    sender = open_sender(sending, room, TOTAL)
    hands = both_by_hand(encode, receiving.client, others.client, room)
    wait_direct(sender, TOTAL, 2)
    nodes = {it.run_dir: it for it in (encode, language, other_place)}.values()
    pids = [pid for it in nodes for name, pid in it.pids().items() if name != "launcher"]
    with stopped(*pids):
        assert give(sender)
        for it in hands:
            assert ended(it.receiver).path == ONE_ROUND
        assert sender.poll() == Phase.Success
        assert all(is_stopped(pid) for pid in pids)
    for it in hands:
        assert it.finish(TOTAL).difference == ""
    assert ended(sender).error == ""


def test_one_that_has_all_rows_waits_for_the_other_and_shows_how_far_it_is(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int
) -> None:
    """R18, R36: it is whole, in the phase that all have."""
    hands = [ByHand(client, encode.addr, room, required=2) for client in (receiving.client, others.client)]
    quick, slow = hands
    sender = open_sender(sending, room, TOTAL)
    quick.grant(4, TOTAL)
    slow.grant(1, 128)
    wait_direct(sender, 128, 2)
    assert give(sender)
    quick.wait_sent(TOTAL)
    slow.wait_sent(128)
    assert is_whole(quick.words[-1] if quick.words else 0)
    handles = [quick.receiver, slow.receiver, sender]
    wait_until(lambda: all(handle.poll() == Phase.Transferring for handle in handles), 20, lambda: handles)
    assert sender.sent_tokens == 128
    slow.copy_out(128)
    slow.grant(3, TOTAL - 128)
    for it in hands:
        received = it.finish(TOTAL)
        assert (received.difference, received.path) == ("", RESUMED)
    assert ended(sender).path == RESUMED


def test_rows_in_place_are_for_one_destination_and_are_copied_for_several(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int
) -> None:
    """R28: no claim is held."""
    hands = both_by_hand(encode, receiving.client, others.client, room)
    sender = open_sender(sending, room, TOTAL)
    wait_direct(sender, TOTAL, 2)
    out = sender.rows(0, TOTAL)
    assert not out.is_in_place
    given = rows_of(encode.geometry, room, 0, TOTAL)
    for to, rows in zip(out[3:], given, strict=True):
        if to is not None:
            to.copy_(rows)  # type: ignore[arg-type]
    assert sender.commit(TOTAL)
    for it in hands:
        assert it.finish(TOTAL).difference == ""


# ---- which path


def test_of_two_destinations_one_may_be_the_worker_s(
    own_dir: Path, encode: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R28, R8: a node that takes no direct writes; rows are staged for the worker, and kept until both have them."""
    room = next(rooms)
    settings = {"deepstack_layers": 3, "num_blocks": 9, "default_allocate_tokens": 1024}
    with (
        station("language", own_dir / "l", direct=False, **settings) as apart,  # type: ignore[arg-type]
        attach(apart.run_dir) as client,
        attach(encode.run_dir) as sending,
    ):
        others = Queues(client)
        before = written(encode)
        for queues in (receiving, others):
            queues.add(encode.addr, room, required=2)
        sender = open_sender(sending, room, 3000)
        assert give(sender, 0, 700)
        assert give(sender, 700, 3000)
        for queues in (receiving, others):
            received = queues.take(room, 30)
            assert (received.error, received.difference, received.path) == ("", "", RESUMED)
        assert ended(sender).error == ""
        assert since(encode, before) == {"clients": 3000, "workers": 3000}
        apart.wait_idle()
    encode.wait_idle()


# ---- how they end


@pytest.mark.parametrize("moment", ["before the rows", "when one has all rows"])
def test_one_destination_that_gives_up_fails_all(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int, moment: str
) -> None:
    """D11, R36: also one that is whole, which is told."""
    hands = [ByHand(client, encode.addr, room, required=2) for client in (receiving.client, others.client)]
    sender = open_sender(sending, room, TOTAL)
    hands[0].grant(4, TOTAL)
    hands[1].grant(1, 128)
    wait_direct(sender, 128, 2)
    if moment == "when one has all rows":
        assert give(sender)
        hands[0].wait_sent(TOTAL)
    hands[moment != "when one has all rows"].receiver.abort("no more memory")
    for handle in (*(it.receiver for it in hands), sender):
        outcome = ended(handle)
        assert (outcome.error, outcome.reason) == ("TransferAborted", "no more memory")
    for it in hands:
        it.receiver.clear()


def test_one_that_would_fail_when_it_is_whole_takes_what_is_decided_for_all(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int
) -> None:
    """R36: it is given up while the encoder stands between its last row and that of the other; nobody ends
    otherwise.
    """
    hands = both_by_hand(encode, receiving.client, others.client, room)
    sender = open_sender(sending, room, TOTAL)
    wait_direct(sender, TOTAL, 2)
    num_seen = 0

    def before(_room: int, step: DirectStep, *_: int) -> None:
        nonlocal num_seen
        if step == DirectStep.TAKE:
            num_seen += 1
            if num_seen == 2:
                next(it.receiver for it in hands if is_whole(status_of(it))).abort("enough")

    watch(before)
    give(sender)
    watch(None)
    outcomes = [ended(handle) for handle in (sender, *(it.receiver for it in hands))]
    assert len({(outcome.error, outcome.reason) for outcome in outcomes}) == 1, outcomes
    for it in hands:
        it.receiver.clear()


def status_of(it: ByHand) -> int:
    """The status word of a receiver's request."""
    return it.receiver._status.load(it.receiver.slot)


@pytest.mark.parametrize(
    ("step", "is_last"),
    [
        pytest.param(step, is_last, marks=() if is_last or step in STEPS[::2] else pytest.mark.storm)
        for step in STEPS
        for is_last in (False, True)
    ],
    ids=[f"{step} of the {which}" for step in STEPS for which in ("first", "last")],
)
def test_an_encoder_that_is_killed_at_a_step_of_its_writes_leaves_all_agreed_and_every_block_free(
    encode: Station,
    language: Station,
    other_language: Station,
    receiving: Queues,
    room: int,
    agent: Agent,
    step: str,
    is_last: bool,
) -> None:
    """R33, R36, P1, D11: whatever one destination has, all have the end that the encode side's word says."""
    with attach(other_language.run_dir) as client:
        others = Queues(client)
        agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
        (slot,) = [it for it, _ in encode.control.open_slots() if encode.control.slots.get(it, Slot.ROOM) == room]
        for queues in (receiving, others):
            queues.add(encode.addr, room, required=2)
        agent.call(direct.ready_to_write, encode.run_dir, room, TOTAL, 2)
        agent.call(direct.strike_at, step, signal.SIGKILL, int(is_last))
        agent.start(encoding.write, room, 0, TOTAL)
        all_received = [queues.take(room, 20) for queues in (receiving, others)]
        agent.process.join()
        assert len({(it.error, it.reason) for it in all_received}) == 1, all_received
        received = all_received[0]
        has_decided = is_last and STEPS.index(step) >= STEPS.index("own word")
        if has_decided:
            assert received.error == ""
        elif not is_last or step != "sent":  # the poller may have seen all rows before the death
            assert (received.error, received.reason) == ("PeerLost", "the encoder process died")
        assert [it.difference for it in all_received] == ["", ""]
        encode.wait_idle()
        phase = split(encode.control.status.load(slot)).phase
        assert phase == (Phase.Failed if received.error else Phase.Success)
        other_language.wait_idle()


# ---- one destination, too


@pytest.mark.parametrize("step", ["whole", "sent", "own word"])
@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
def test_a_destination_that_is_whole_does_not_end_otherwise_than_its_encode_side(
    encode: Station, language: Station, receiving: Queues, room: int, agent: Agent, step: str, is_killed: bool
) -> None:
    """R36: its scheduler gives up while the encoder is stopped between its last row and the destination's word."""
    agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
    (slot,) = [it for it, _ in encode.control.open_slots() if encode.control.slots.get(it, Slot.ROOM) == room]
    it = ByHand(receiving.client, encode.addr, room)
    it.grant(4, TOTAL)
    agent.call(direct.ready_to_write, encode.run_dir, room, TOTAL)
    agent.call(direct.strike_at, step, signal.SIGSTOP)
    with stopped(encode.pid_of("bootstrap"), encode.pid_of("poller")):  # else they end what has its encode side's word
        agent.start(encoding.write, room, 0, TOTAL)
        wait_until(lambda: is_stopped(agent.pid))
        assert is_whole(status_of(it))
        it.receiver.abort("enough")
        wait_until(lambda: language.control.slots.get(it.receiver.slot, Slot.FAILURE))
        assert it.receiver.poll() < Phase.Success
        assert [row["line"] for row in language.in_flight() if row["room"] == room] == ["whole"]
    received = ended(it.receiver)
    phase = split(encode.control.status.load(slot)).phase
    assert (phase == Phase.Success) == (received.error == ""), received
    endings = {"whole": ("TransferAborted",), "sent": ("TransferAborted", ""), "own word": ("",)}
    assert received.error in endings[step]  # all is sent: the encode node may hear of that before it hears of the abort
    it.receiver.clear()
    if is_killed:
        agent.kill()
    else:
        os.kill(agent.pid, signal.SIGCONT)
        agent.result()
        assert agent.call(encoding.outcome, room).error == received.error


def test_who_writes_is_said_of_each_destination(
    encode: Station, sending: Client, receiving: Queues, others: Queues, room: int
) -> None:
    """R28: once each has come."""
    sender = open_sender(sending, room, TOTAL)
    receiving.add(encode.addr, room, required=2)
    wait_until(lambda: written_by(sender) == WrittenBy.CLIENT)
    assert written_by(sender, 1) == WrittenBy.UNDECIDED
    assert give(sender)
    others.add(encode.addr, room, required=2)
    wait_until(lambda: written_by(sender, 1) == WrittenBy.CLIENT)
    for queues in (receiving, others):
        assert queues.take(room, 20).difference == ""
