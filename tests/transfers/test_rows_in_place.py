"""Rows that an encoder makes in the blocks of the destination: views, which count when they are committed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
import pytest
import torch
from support import direct, encoding
from support.agents import Agent, running
from support.direct import claims_of, once_before, since, wait_direct, written
from support.direct_steps import DirectStep
from support.encoding import ended, give, open_sender, through_workers, wait_doors
from support.nodes import Station
from support.rows import arrived, difference, rows_of
from support.scheduling import ByHand, Queues
from support.waiting import wait_until
from support.watching import watch

from embridge import Client, EmbeddingRequest, EmbeddingSender, NodeBusyError, attach
from embridge.allocator.claims import ClaimState
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.in_place import WritableRows
from embridge.pipeline.client.kept_rows import KeptRows

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]) -> Client:
    """A client of the encode node that has a door to the language node."""
    receiving.add(encode.addr, room := next(rooms))
    assert give(open_sender(sending, room, 10))
    assert receiving.take(room, 20).difference == ""
    wait_doors(sending)
    return sending


@pytest.fixture(autouse=True)
def _nobody_looks_on() -> Iterator[None]:
    yield
    watch(None)


def fill(sender: EmbeddingSender, rows: WritableRows) -> None:
    """Write the sender's rows where they are wanted, as a device would."""
    geometry = sender._attachment.geometry
    for view, want in zip(rows[3:], rows_of(geometry, sender.room, rows.first, rows.end), strict=True):
        assert (view is None) == (want is None)
        if view is not None and want is not None:
            view.copy_(want)


def make(sender: EmbeddingSender, end: int | None = None, *, most: int = 10_000) -> list[tuple[int, int, bool]]:
    """Make rows where they are needed, up to `end`; which lots were handed out."""
    lots = []
    end = sender.total_tokens if end is None else end
    start = sender._taken
    while start < end:
        rows = sender.rows(start, min(end - start, most))
        lots.append((rows.first, rows.end, rows.is_in_place))
        fill(sender, rows)
        assert sender.commit(rows.end)
        start = rows.end
    return lots


def granted(encode: Station, sending: Client, receiving: Queues, room: int) -> tuple[EmbeddingSender, ByHand]:
    it = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    it.grant(4, TOTAL)
    wait_direct(sender, TOTAL)
    return sender, it


def test_rows_are_made_in_the_blocks_of_the_destination_and_nothing_is_copied(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R28, R32: each lot counts when it is committed, not before; deepstack rows, ids and positions, too."""
    before = written(encode)
    sender, it = granted(encode, sending, receiving, room)
    theirs = library_of(receiving.client).attachment.buffers
    rows = sender.rows(0, 300)
    assert (rows.first, rows.end, rows.is_in_place) == (0, 300, True)
    fill(sender, rows)
    there = torch.as_tensor(theirs.fill_ids[it.receiver.block_of(0)])
    assert torch.equal(there, rows_of(encode.geometry, room, 0, 128).fill_ids), "they are there already"
    assert (sender.sent_tokens, it.receiver.sent_tokens) == (0, 0)
    assert [claim.state for claim in claims_of(language).values()] == [ClaimState.WRITING]
    assert sender.commit(200)
    assert (sender.sent_tokens, it.receiver.sent_tokens) == (200, 200)
    assert not claims_of(language)
    assert make(sender, 401, most=128) == [(200, 328, True), (328, 401, True)]
    assert make(sender) == [(401, TOTAL, True)]
    assert sender.poll() == it.receiver.poll() == Phase.Success
    assert since(encode, before) == {"clients": TOTAL, "workers": 0}
    assert it.finish(TOTAL).difference == ""
    assert ended(sender).error == ""


def test_rows_that_lie_elsewhere_or_are_not_granted_yet_are_handed_out_later(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R29: as many as are granted and lie in one run; those beyond are in host memory, and travel as they can."""
    it = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    holder = ByHand(receiving.client, encode.addr, room + (1 << 40))
    wait_until(lambda: it.receiver.handshake_done)
    first = it.receiver.allocate(1)
    between = holder.receiver.allocate(1)
    second = it.receiver.allocate(1)
    assert len(between) == 1
    assert first[0] + 1 != second[0]
    it.receiver.init(np.concatenate([first, second]), 256)
    wait_direct(sender, 256)
    assert make(sender, 256) == [(0, 128, True), (128, 256, True)]
    assert make(sender, 300) == [(256, 300, False)]
    assert sender.sent_tokens == 256
    rest = it.receiver.allocate(2)
    it.receiver.resume_transfer(rest, 256, TOTAL - 256)
    wait_until(lambda: sender.sent_tokens == 300)
    assert [lot[2] for lot in make(sender)] == [True] * (1 + (rest[1] != rest[0] + 1))
    assert it.receiver.poll() == Phase.Success
    assert it.finish(TOTAL).difference == ""
    holder.receiver.clear()


@pytest.mark.parametrize("is_short", [False, True])
def test_where_the_worker_writes_rows_are_made_in_source_blocks_while_there_are_enough(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """R21: else in host memory; they arrive all the same."""
    with through_workers(sending):
        receiving.add(encode.addr, room)
        sender = open_sender(sending, room, TOTAL)
        if is_short:
            monkeypatch.setattr(library_of(sending), "spare_blocks", lambda: 0)
            assert make(sender, most=200) == [(0, 200, False), (200, 400, False), (400, TOTAL, False)]
        else:
            assert make(sender, most=200) == [(0, 128, True), (128, 256, True), (256, 384, True), (384, TOTAL, True)]
        assert receiving.take(room, 20).difference == ""


def test_a_mistake_is_told_and_changes_nothing(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P22: also where there is no room for rows in host memory: they stay out, and may be committed again."""
    sender = open_sender(sending, room, TOTAL)
    with pytest.raises(ValueError, match=r"^commit: no rows are out; call rows\(\) first$"):
        sender.commit(0)
    with pytest.raises(ValueError, match=r"^start: 1 is not 0, the number of rows given so far$"):
        sender.rows(1, 1)
    with pytest.raises(ValueError, match=r"^num_rows: 0 is outside 1 to"):
        sender.rows(0, 0)
    with pytest.raises(ValueError, match=r"^rows: 501 > 500 tokens"):
        sender.rows(0, TOTAL + 1)
    rows = sender.rows(0, 200)
    fill(sender, rows)
    with pytest.raises(ValueError, match=r"^start: rows 0 to 199 are out; commit them first$"):
        sender.rows(0, 1)
    with pytest.raises(ValueError, match=r"^start: rows 0 to 199 are out; commit them first$"):
        give(sender)
    with pytest.raises(ValueError, match=r"^end: 201 is outside 0 to 200, the rows that are out$"):
        sender.commit(201)

    def full(*_: object) -> None:
        raise NodeBusyError("it is full")

    monkeypatch.setattr(KeptRows, "make_room", full)
    with pytest.raises(NodeBusyError):
        sender.commit(200)
    monkeypatch.undo()
    assert sender.commit(100)
    rows = sender.rows(100, 50)
    assert sender.commit(100), "none of them is given"
    receiving.add(encode.addr, room)
    make(sender)
    assert receiving.take(room, 20).difference == ""


def test_rows_that_are_out_when_the_request_fails_harm_nobody_until_they_are_committed(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R30, R31, P7: the claim is revoked, and the blocks are in quarantine: others fill all that is free meanwhile."""
    sender, it = granted(encode, sending, receiving, next(rooms))
    rows = sender.rows(0, TOTAL)
    it.receiver.abort("the scheduler has no use for it")
    assert ended(sender).reason == "the scheduler has no use for it"
    it.receiver.clear()
    wait_until(lambda: [claim.state for claim in claims_of(language).values()] == [ClaimState.REVOKED])
    fill(sender, rows)
    for _ in range(language.control.blocks.num_blocks // 2):
        receiving.add(encode.addr, room := next(rooms))
        assert give(open_sender(sending, room, TOTAL))
        rows.input_embeddings.zero_()
        assert receiving.take(room, 20).difference == ""
    assert language.counts().quarantined == 4
    assert not sender.commit(TOTAL)
    language.wait_idle()
    late = sender.rows(0, 10)
    assert not late.is_in_place
    assert not sender.commit(10)


def test_a_commit_that_crosses_the_end_of_its_request_says_nothing(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R30, R81: the claim is revoked between the look at the phase and the word."""
    sender, it = granted(encode, sending, receiving, room)
    fill(sender, sender.rows(0, TOTAL))

    def abort() -> None:
        it.receiver.abort("in the middle")
        wait_until(lambda: it.receiver.poll() == Phase.Failed)
        wait_until(lambda: [claim.state for claim in claims_of(language).values()] == [ClaimState.REVOKED])

    once_before(DirectStep.COPY, abort)
    sender.commit(TOTAL)
    assert ended(sender).reason == ended(it.receiver).reason == "in the middle"
    it.receiver.clear()
    language.wait_idle()


def take_rows(state: SimpleNamespace, run_dir: Path, room: int, tokens: int) -> bool:
    """Of an agent: hand out rows, and write half of them."""
    direct.ready_to_write(state, run_dir, room, tokens)
    state.rows = state.senders[room].rows(0, tokens)
    state.rows.input_embeddings[: tokens // 2] = 1
    return bool(state.rows.is_in_place)


def commit_too_late(state: SimpleNamespace, room: int) -> str:
    """Of an agent that has left the node with rows out: what `commit` says then."""
    try:
        return str(state.senders[room].commit(1))
    except RuntimeError as error:
        return str(error)


@pytest.fixture
def agent(encode: Station, language: Station) -> Iterator[Agent]:
    with running("encoder with rows out") as agent:
        yield agent
        if agent.process.exitcode is None:
            agent.call(encoding.leave, encode.run_dir)
    encode.wait_idle()
    language.wait_idle()
    wait_until(lambda: not claims_of(language), what=lambda: claims_of(language))


def test_the_blocks_of_an_encoder_that_dies_with_rows_out_come_back(
    agent: Agent, encode: Station, language: Station, receiving: Queues, room: int
) -> None:
    """R33, P1: the claim names the dead; no row counts."""
    agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
    it = ByHand(receiving.client, encode.addr, room)
    it.grant(4, TOTAL)
    assert agent.call(take_rows, encode.run_dir, room, TOTAL)
    agent.process.kill()
    agent.process.join()
    assert ended(it.receiver).sent == 0
    it.receiver.clear()
    language.wait_idle()


def test_a_client_that_leaves_with_rows_out_keeps_its_door_until_they_are_committed(
    agent: Agent, encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R33: its process may still write through the views, so nobody else is given their blocks."""
    agent.call(encoding.open_room, encode.run_dir, room := next(rooms), TOTAL)
    it = ByHand(receiving.client, encode.addr, room)
    it.grant(4, TOTAL)
    assert agent.call(take_rows, encode.run_dir, room, TOTAL)
    agent.call(encoding.leave, encode.run_dir)
    assert ended(it.receiver).sent == 0
    it.receiver.clear()
    receiving.add(encode.addr, other := next(rooms))  # whatever was to be done, was done when this has come
    assert give(open_sender(sending, other, TOTAL))
    assert receiving.take(other, 20).difference == ""
    wait_until(lambda: [claim.state for claim in claims_of(language).values()] == [ClaimState.REVOKED])
    assert language.counts().quarantined == 4
    assert "this client is closed" in str(agent.call(commit_too_late, room))
    language.wait_idle()


@pytest.mark.parametrize("has_left", [False, True])
def test_a_forked_child_writes_to_memory_of_its_own_and_gives_no_claim_back(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, has_left: bool
) -> None:
    """R28, R33, P7: the rows that are out are the parent's, also if its client has left."""
    client = attach(encode.run_dir)
    sender, it = granted(encode, client, receiving, room)
    rows = sender.rows(0, TOTAL)
    assert rows.is_in_place
    fill(sender, rows)
    if has_left:
        client.close()
        ended(it.receiver)
        it.receiver.clear()
    state = ClaimState.REVOKED if has_left else ClaimState.WRITING
    wait_until(lambda: [claim.state for claim in claims_of(language).values()] == [state])
    claims = claims_of(language)
    pid = os.fork()
    if not pid:
        for view in rows[3:]:
            view.fill_(99)  # type: ignore[union-attr]
        with contextlib.suppress(RuntimeError):
            sender.commit(TOTAL)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert claims_of(language) == claims
    for view, want in zip(rows[3:], rows_of(encode.geometry, room, 0, TOTAL), strict=True):
        assert view is not None
        assert want is not None
        assert torch.equal(view.view(torch.uint8), want.contiguous().view(torch.uint8))
    if has_left:
        with pytest.raises(RuntimeError, match="closed"):
            sender.commit(TOTAL)
    else:
        assert sender.commit(TOTAL)
        assert it.finish(TOTAL).difference == ""
        client.close()
    assert not claims_of(language)


def test_rows_that_were_made_in_place_are_read_in_place_as_they_land(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R82: nobody copies a byte, from the encoder's views to the scheduler's."""
    request = EmbeddingRequest(room=room, bootstrap_addr=encode.addr, is_streamed=True)
    receiving.requests[room] = request
    receiving.prealloc.add(request)
    sender = open_sender(sending, room, TOTAL)
    wait_direct(sender, TOTAL)
    assert make(sender, 300) == [(0, 300, True)]
    wait_until(lambda: request.available_tokens == 300)
    assert difference(encode.geometry, room, 0, arrived(request.available()[0])) == ""
    make(sender)
    assert receiving.take(room, 20).difference == ""


def test_a_client_may_attach_again_after_it_has_left_with_all_committed(
    encode: Station, language: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """P9: no door is left behind."""
    for _ in range(2):
        with attach(encode.run_dir) as client:
            wait_until(lambda: library_of(client).doors is not None)
            wait_doors(client)
            sender, it = granted(encode, client, receiving, next(rooms))
            assert all(lot[2] for lot in make(sender))
            it.receiver.clear()
            ended(sender)
