"""Scenario 7: several destinations of one request, each with its own blocks and its own pace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import encoding, scheduling
from support.agents import Agent
from support.encoding import ended, give, open_sender
from support.nodes import Station, every_engine
from support.scheduling import ByHand, Holder, Queues
from support.waiting import wait_until

from embridge import Client, Phase, attach
from embridge.pipeline.client.client import library_of

pytestmark = [pytest.mark.process, every_engine]

ONE_ROUND = ["Bootstrapping", "WaitingForInput", "Success"]
RESUMED = ["Bootstrapping", "WaitingForInput", "Transferring", "Success"]


@pytest.fixture
def other_client(language: Station) -> Iterator[Client]:
    """A second scheduler of the same language node."""
    with attach(language.run_dir) as client:
        yield client


@pytest.fixture(params=["one language node", "two language nodes"])
def places(request: pytest.FixtureRequest, language: Station, other_language: Station) -> Iterator[list[Station]]:
    places = [language, language if request.param == "one language node" else other_language]
    yield places
    for place in places:
        place.wait_idle()


@pytest.mark.parametrize(
    ("total", "grants", "path"),
    [
        (500, [(4, 500)], ONE_ROUND),
        (512, [(4, 512)], ONE_ROUND),
        (2000, [(4, 512), (4, 512), (4, 512), (4, 464)], RESUMED),
    ],
)
def test_every_destination_gets_every_byte_in_the_rounds_that_it_grants(
    encode: Station,
    places: list[Station],
    encoder: Agent,
    scheduler: Agent,
    other_scheduler: Agent,
    room: int,
    total: int,
    grants: list[tuple[int, int]],
    path: list[str],
) -> None:
    """Scenario 7, B8: schedulers in processes of their own, on one language node or on two, take the same path to the
    same end.
    """
    agents = [scheduler, other_scheduler]
    for agent, place in zip(agents, places, strict=True):
        agent.start(scheduling.by_hand, place.run_dir, encode.addr, room, total, grants, required=2)
    encoder.call(encoding.send, encode.run_dir, room, total)
    for agent in agents:
        received, _ = agent.result()
        assert (received.error, received.difference, received.total, received.path) == ("", "", total, path)
        assert scheduling.aux_is_right(received)
        assert received.rounds == len(grants)
    sent = encoder.call(encoding.outcome, room)
    assert (sent.error, sent.sent, sent.path) == ("", total, path)
    encode.wait_idle()


def test_destinations_that_compete_for_blocks_all_get_every_byte(
    encode: Station, places: list[Station], encoder: Agent, scheduler: Agent, other_scheduler: Agent, room: int
) -> None:
    """Scenario 7, D8: through the queues, 5000 tokens to two schedulers whose pool holds 1024 of them."""
    agents = [scheduler, other_scheduler]
    for agent, place in zip(agents, places, strict=True):
        agent.call(scheduling.request, place.run_dir, encode.addr, room, required=2)
    encoder.call(encoding.send, encode.run_dir, room, 5000)
    for agent, place in zip(agents, places, strict=True):
        received = agent.call(scheduling.take, place.run_dir, room)
        assert (received.error, received.difference, received.path) == ("", "", RESUMED)
    assert encoder.call(encoding.outcome, room).path == RESUMED
    encode.wait_idle()


def test_success_comes_only_when_all_destinations_have_all_rows(
    encode: Station, sending: Client, receiving: Queues, other_client: Client, room: int
) -> None:
    """Scenario 7, R18: one destination has all 300 rows and is told so; the request goes on until the other has them,
    too.
    """
    quick = ByHand(receiving.client, encode.addr, room, required=2)
    slow = ByHand(other_client, encode.addr, room, required=2)
    sender = open_sender(sending, room, 300)
    assert give(sender)
    quick.grant(3, 300)
    slow.grant(1, 128)
    quick.wait_sent(300)
    slow.wait_sent(128)
    wait_until(lambda: sender.sent_tokens == 128)
    handles = [quick.receiver, slow.receiver, sender]
    wait_until(lambda: all(handle.poll() == Phase.Transferring for handle in handles), 20, lambda: handles)
    assert slow.receiver.needs_resume
    assert not quick.receiver.needs_resume
    slow.copy_out(128)
    slow.grant(2, 172)
    for transfer in (quick, slow):
        received = transfer.finish(300)
        assert (received.difference, received.path, received.total) == ("", RESUMED, 300)
    assert ended(sender).path == RESUMED


def test_a_destination_is_written_to_on_its_own_grant_only(
    encode: Station, sending: Client, receiving: Queues, other_client: Client, rooms: Iterator[int]
) -> None:
    """B10: one destination resumes twice; the blocks that the other has given back, and all others, keep every byte
    they had.
    """
    room = next(rooms)
    eager = ByHand(receiving.client, encode.addr, room, required=2)
    waiting = ByHand(other_client, encode.addr, room, required=2)
    sender = open_sender(sending, room, 384)
    assert give(sender)
    eager.grant(1, 128)
    waiting.grant(1, 128)
    waiting.wait_sent(128)
    waiting.copy_out(128)
    eager.wait_sent(128)
    holder = Holder(other_client, encode.addr, next(rooms))
    holder.take(4)
    buffers = library_of(other_client).attachment.buffers
    untouched = torch.tensor(holder.blocks)
    before = buffers.input_embeddings[untouched].view(torch.int16) ^ 0x5555
    buffers.input_embeddings[untouched] = before.view(torch.bfloat16)
    for end in (256, 384):
        eager.grant(1, 128)
        eager.wait_sent(end)
    assert waiting.receiver.sent_tokens == 128
    assert torch.equal(buffers.input_embeddings[untouched].view(torch.int16), before)
    holder.end()
    waiting.grant(2, 256)
    assert waiting.finish(384).difference == ""
    assert eager.finish(384).difference == ""
    assert ended(sender).error == ""


@pytest.mark.parametrize(
    "moment", ["before the other came", "while the other waits for rows", "when the other has all rows"]
)
def test_one_destination_that_gives_up_fails_all_and_all_are_told_why(
    encode: Station, sending: Client, receiving: Queues, other_client: Client, room: int, moment: str
) -> None:
    """Scenario 7, D11: the outcome goes to every destination and to the sender, with the reason."""
    one = ByHand(receiving.client, encode.addr, room, required=2)
    one.grant(3, 384)
    sender = open_sender(sending, room, 384)
    other = ByHand(other_client, encode.addr, room, required=2)
    if moment != "before the other came":
        other.grant(1, 128)
        wait_until(lambda: other.receiver.poll() == one.receiver.poll() == Phase.WaitingForInput)
    if moment == "when the other has all rows":
        give(sender)
        one.wait_sent(384)
    other.receiver.abort("the second rank has no more memory")
    for handle in (one.receiver, other.receiver, sender):
        outcome = ended(handle)
        assert (outcome.error, outcome.reason) == ("TransferAborted", "the second rank has no more memory")
    for transfer in (one, other):
        transfer.receiver.clear()


def test_a_destination_whose_process_is_killed_fails_all_and_all_are_told(
    encode: Station, sending: Client, receiving: Queues, language: Station, room: int
) -> None:
    """Scenarios 6, 7: SIGKILL of one scheduler; its blocks come back, and the others hear of it."""
    from support.agents import running

    sender = open_sender(sending, room, 3000)
    survivor = receiving.add(encode.addr, room, required=2)
    with running("doomed scheduler") as doomed:
        doomed.call(scheduling.open_by_hand, language.run_dir, encode.addr, room, required=2)
        doomed.call(scheduling.step_by_hand, room, "grant", 1, 128)
        give(sender, 0, 2000)
        doomed.call(scheduling.step_by_hand, room, "wait_sent", 128)
        doomed.kill()
        received, sent = receiving.take(room, 20), ended(sender)
    assert survivor.failure is not None
    assert received.error == sent.error == "PeerLost"
    assert received.reason == sent.reason == "the scheduler process died"


def test_destinations_that_disagree_on_their_number_fail_the_request(
    encode: Station, sending: Client, receiving: Queues, other_client: Client, room: int
) -> None:
    """Scenario 7, B3: nobody guesses how many there are."""
    one = ByHand(receiving.client, encode.addr, room, required=2)
    one.grant(1, 128)
    sender = open_sender(sending, room, 100)

    def announced() -> bool:
        sender.announce()
        return one.receiver.total_embedding_length > 0

    wait_until(announced)
    other = ByHand(other_client, encode.addr, room, required=3)
    other.grant(1, 128)
    for handle in (one.receiver, other.receiver, sender):
        assert "destinations disagree on required_dst_info_num: 2 and 3" in ended(handle).reason
    for transfer in (one, other):
        transfer.receiver.clear()
