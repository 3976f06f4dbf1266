"""What a direct write does under its claim, over real nodes: what it finds, what it says, and who ends it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest
import torch
from support.direct import once_before, open_door, wait_direct
from support.direct_steps import DirectStep
from support.encoding import ended, give, open_sender, wait_doors
from support.nodes import Station
from support.scheduling import ByHand, Queues
from support.stopping import stopped
from support.waiting import wait_until
from support.watching import watch

from embridge import Client, EmbeddingSender
from embridge.allocator.claims import ClaimState
from embridge.allocator.records import Lane
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]) -> Client:
    """A client of the encode node that has a door to the language node."""
    open_door(encode, sending, receiving, next(rooms))
    return sending


def in_mid_copy(sender: EmbeddingSender, do: Callable[[], object]) -> bool:
    """Give all rows; in the middle of the write something else happens. What `write` returns."""
    once_before(DirectStep.COPY, do)
    return give(sender)


@pytest.fixture(autouse=True)
def _nobody_looks_on() -> Iterator[None]:
    yield
    watch(None)


def granted_by_hand(encode: Station, sending: Client, client: Client, room: int) -> tuple[EmbeddingSender, ByHand]:
    """A request whose blocks are granted, and whose encoder may write into them."""
    wait_doors(sending)
    it = ByHand(client, encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    it.grant(4, TOTAL)
    wait_doors(sending)
    wait_direct(sender, TOTAL)
    return sender, it


def test_an_encoder_writes_nothing_where_it_does_not_get_the_claim(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R28, R30: the request has ended at the language node, and nobody has told the encode node of it yet."""
    sender, it = granted_by_hand(encode, sending, receiving.client, room)
    library = library_of(receiving.client)
    blocks = [it.receiver.block_of(k) for k in range(4)]
    payload = library.attachment.buffers.input_embeddings.view(torch.uint8)
    before = payload[blocks].clone()
    assert language.control.claims.revoke(it.receiver.slot, it.receiver.epoch)
    assert give(sender)  # its rows are taken, and kept
    wait_until(lambda: sender._seen == TOTAL)  # the library thread has tried, too
    assert payload[blocks].equal(before)
    assert (sender.sent_tokens, it.receiver.sent_tokens) == (0, 0)
    it.receiver.abort("the end")
    assert ended(sender).reason == ended(it.receiver).reason == "the end"
    it.receiver.clear()


def test_an_encoder_whose_claim_is_revoked_while_it_copies_keeps_its_rows_until_it_hears_why(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R81: its library thread would send them again, and is not to end the request for want of them."""
    sender, it = granted_by_hand(encode, sending, receiving.client, room)
    claims, slot, epoch = language.control.claims, it.receiver.slot, it.receiver.epoch
    assert in_mid_copy(sender, lambda: claims.revoke(slot, epoch))
    wait_until(lambda: sender._seen == TOTAL)
    assert claims.get(slot).state == ClaimState.ENDED
    assert (sender.poll(), sender.sent_tokens, it.receiver.sent_tokens) == (Phase.WaitingForInput, 0, 0)
    it.receiver.abort("the end")
    assert ended(sender).reason == ended(it.receiver).reason == "the end"
    it.receiver.clear()


def test_a_destination_is_not_told_of_an_arrival_that_its_encode_side_refused(
    encode: Station,
    language: Station,
    sending: Client,
    receiving: Queues,
    room: int,
) -> None:
    """R36: the encode side has failed while rows were copied, and the language node has not heard of it."""
    sender, it = granted_by_hand(encode, sending, receiving.client, room)
    with stopped(language.pid_of("poller"), language.pid_of("bootstrap")):

        def fail() -> None:
            sender.abort("the image was not wanted")
            wait_until(lambda: sender.poll() == Phase.Failed)

        assert in_mid_copy(sender, fail)
        assert it.receiver.poll() < Phase.Success
        assert it.receiver.sent_tokens == 0
    assert ended(it.receiver).reason == ended(sender).reason == "the image was not wanted"
    it.receiver.clear()


def test_a_request_that_fails_while_its_rows_are_written_leaves_its_slot_behind_its_writer(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R16, P22: the slot would be another request's at once; the writer has the library thread end it."""
    sender, it = granted_by_hand(encode, sending, receiving.client, room)
    library, beats = library_of(sending), list[int]()

    def beat() -> int:
        return encode.control.lanes.get(library.attachment.lane, Lane.BEAT_NS)

    def fail() -> None:
        sender.abort("the image was not wanted")
        wait_until(lambda: sender.poll() == Phase.Failed)
        for _ in range(3):  # turns of the library thread
            beats.append(beat())
            library.wake(sender)
            wait_until(lambda: beat() != beats[-1])
        assert library.requests.is_open(sender)
        assert not sender.done

    in_mid_copy(sender, fail)  # whether its rows were taken depends on who heard of the end first
    assert len(beats) == 3
    wait_until(lambda: sender.done)
    assert not library.requests.is_open(sender)
    assert ended(it.receiver).reason == "the image was not wanted"
    it.receiver.clear()


def test_the_encode_side_says_that_rows_are_there_before_the_destination_does(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R36, R32: and neither before they are there."""
    sender, it = granted_by_hand(encode, sending, receiving.client, room)
    seen: dict[DirectStep, tuple[int, int]] = {}
    watch(lambda _room, step, *_: seen.setdefault(step, (sender.sent_tokens, it.receiver.sent_tokens)))
    assert give(sender)
    assert {seen.pop(step) for step in [*DirectStep][-3:]} == {(TOTAL, TOTAL)}
    assert seen.pop(DirectStep.THEIR_WORD) == (TOTAL, 0)
    assert set(seen.values()) == {(0, 0)}
    assert [*DirectStep][:-4] == [*seen]
    assert it.finish(TOTAL).difference == ""


def test_a_writer_goes_by_what_it_finds_under_the_claim(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R29: rows that were sent between its look and its taking the claim are not written again."""
    sender = open_sender(sending, room, TOTAL)
    assert give(sender)
    wait_until(lambda: sender._seen == TOTAL)
    way, copies, is_within = sender._direct, list[tuple[int, int]](), False
    assert way is not None

    def before(_room: int, step: DirectStep, _block: int, first: int, end: int) -> None:
        nonlocal is_within
        if step == DirectStep.TAKE and not is_within:
            is_within = True
            assert way.serve(256, sender.stock, is_wanted_whole=False)  # a success would end the claim
        elif step == DirectStep.COPY:
            copies.append((first, end))

    watch(before)
    receiving.add(encode.addr, room)
    assert receiving.take(room, 20).difference == ""
    wait_until(lambda: sender.done)
    assert copies == [(0, 128), (128, 256), (256, 384), (384, TOTAL)]
