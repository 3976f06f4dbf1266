"""Scenario 6: whatever dies or is given up, in whatever phase, both sides end as Failed with the reason, and all blocks
come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import encoding, scheduling
from support.agents import running
from support.carrying import carried
from support.encoding import ended, give, open_sender
from support.nodes import Station, every_engine, station
from support.ports import port_to_keep
from support.scheduling import ByHand, Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingReceiver, EmbeddingSender, attach
from embridge.allocator.errors import NodeGoneError
from embridge.allocator.records import Slot
from embridge.pipeline.client.client import library_of

pytestmark = [pytest.mark.process, every_engine]

PHASES = ["Bootstrapping", "WaitingForInput", "Transferring"]


def bring_to(
    phase: str, encode: Station, sending: Client, receiving: Queues, room: int
) -> tuple[EmbeddingSender, EmbeddingReceiver]:
    """A request in that phase on both sides."""
    request = receiving.add(encode.addr, room, required=2 if phase == "Bootstrapping" else 1)
    receiver = wait_until(lambda: request.receiver)
    assert receiver is not None
    sender = open_sender(sending, room, 3000)
    if phase == "Transferring":
        give(sender, 0, 2000)
    if phase == "Bootstrapping":  # its other destination is missing, but this one has joined
        wait_until(lambda: encode.control.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 1)
    wait_until(
        lambda: sender.poll().name == receiver.poll().name == phase, 20, lambda: f"{sender} {receiver} in {phase}"
    )
    return sender, receiver


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("side", ["encoder", "scheduler"])
def test_an_abort_from_either_side_in_any_phase_fails_both_with_its_reason(
    encode: Station, sending: Client, receiving: Queues, room: int, phase: str, side: str
) -> None:
    """Scenario 6: the clients' fixtures then see every block and slot given back, on both nodes."""
    sender, receiver = bring_to(phase, encode, sending, receiving, room)
    (sender if side == "encoder" else receiver).abort(f"the {side} has other plans")
    received, sent = receiving.take(room, 20), ended(sender)
    assert received.error == sent.error == "TransferAborted"
    assert received.reason == sent.reason == f"the {side} has other plans"
    path = [*PHASES[: PHASES.index(phase) + 1], "Failed"]
    assert received.path == sent.path == path


def test_rows_for_a_request_that_has_failed_are_not_taken(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """Scenario 6: `write` and `send_embedding` say so, with no effect, and an abort after the end changes nothing
    (D12).
    """
    sender, _ = bring_to("WaitingForInput", encode, sending, receiving, room)
    sender.abort("first reason")
    sent = ended(sender)
    assert not give(sender)
    sender.abort("second reason")
    assert ended(sender) == sent
    assert sent.reason == receiving.take(room, 20).reason == "first reason"


def test_an_abort_before_the_encoder_has_opened_the_room_fails_it_when_it_does(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """Scenario 6, R15: the sender that comes later is told, and does not wait for a destination that is gone."""
    request = receiving.add(encode.addr, room)
    wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens)
    request.abort("nobody waits for this any more")
    assert receiving.take(room, 20).reason == "nobody waits for this any more"
    sender = open_sender(sending, room, 10)
    sent = ended(sender)
    assert (sent.error, sent.reason) == ("TransferAborted", "nobody waits for this any more")


def test_an_encoder_that_gives_up_before_any_destination_has_come_tells_the_one_that_comes(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """Scenario 6, D11: the scheduler does not wait for a deadline when its encoder has failed long ago."""
    sender = open_sender(sending, room, 10)
    sender.abort("the image cannot be decoded")
    assert ended(sender).path == ["Bootstrapping", "Failed"]
    encode.wait_idle()
    receiving.add(encode.addr, room)
    received = receiving.take(room, 20)
    reason = f"room {room} failed here before: the image cannot be decoded; a room number is used once"
    assert (received.error, received.reason) == ("TransferAborted", reason)
    language.wait_idle()  # its abort is acknowledged: the encode node knows that it knows, so the number is free
    receiving.done.clear()
    assert carried(receiving, encode.addr, sending, room, 10).difference == ""


def test_a_resume_for_a_room_that_the_encode_side_does_not_know_fails_the_language_side(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """SPEC "Messages": it is answered, not ignored."""
    transfer = ByHand(receiving.client, encode.addr, room)
    wait_until(lambda: transfer.receiver.handshake_done)
    slots = library_of(receiving.client).attachment.control.slots
    # as if an encode side had answered before
    slots.set(transfer.receiver.slot, Slot.HEARD_EPOCH, transfer.receiver.epoch)
    transfer.grant(1, 128)
    outcome = ended(transfer.receiver)
    assert outcome.reason == f"room {room} is not known to the encode node"
    transfer.receiver.clear()


def test_when_the_encoder_process_is_killed_the_scheduler_is_told_and_every_block_comes_back(
    encode: Station, language: Station, receiving: Queues, room: int
) -> None:
    """Scenario 6, P4: a "dead encoder client", by SIGKILL in the middle of a transfer; the node and its other clients
    go on.
    """
    receiving.add(encode.addr, room)
    with running("doomed encoder") as doomed:
        doomed.call(encoding.open_room, encode.run_dir, room, 3000)
        doomed.call(encoding.write, room, 0, 2000)
        scheduling_phase = wait_until(lambda: receiving.requests[room].transferred_tokens == 2000)
        assert scheduling_phase
        doomed.kill()
        received = receiving.take(room, 20)
    assert (received.error, received.reason) == ("PeerLost", "the encoder process died")
    assert received.path == [*PHASES, "Failed"]
    encode.wait_idle()
    assert not any(encode.restarts().values())
    assert not any(language.restarts().values())


def test_a_room_whose_encoder_has_died_or_that_is_finished_is_answered_at_once(
    encode: Station, language: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """P24: who asks for it later is not left to its deadline of a minute, which would be a TransferTimeout."""
    dead, finished = next(rooms), next(rooms)
    with running("doomed encoder") as doomed:
        doomed.call(encoding.open_room, encode.run_dir, dead, 100)
        doomed.kill()
    encode.wait_idle()
    receiving.add(encode.addr, dead)
    received = receiving.take(dead, 20)
    reason = f"room {dead} failed here before: the encoder process died; a room number is used once"
    assert (received.error, received.reason) == ("PeerLost", reason)
    with attach(encode.run_dir) as sending:
        assert carried(receiving, encode.addr, sending, finished, 100).difference == ""
    encode.wait_idle()
    receiving.add(encode.addr, finished)
    received = receiving.take(finished, 20)
    reason = f"room {finished} was finished here before: 1 of 1 destinations have its rows; a room number is used once"
    assert (received.error, received.reason) == ("TransferError", reason)


def test_when_the_scheduler_process_is_killed_the_encoder_is_told_and_every_block_comes_back(
    encode: Station, language: Station, sending: Client, room: int
) -> None:
    """Scenario 6, P4: a "dead scheduler client", by SIGKILL while it holds granted blocks, one of them landed."""
    sender = open_sender(sending, room, 3000)
    give(sender, 0, 1000)
    with running("doomed scheduler") as doomed:
        doomed.call(scheduling.open_by_hand, language.run_dir, encode.addr, room)
        doomed.call(scheduling.step_by_hand, room, "grant", 4, 512)
        doomed.call(scheduling.step_by_hand, room, "wait_sent", 512)
        assert language.counts().exposed == 4
        doomed.kill()
        sent = ended(sender)
    assert (sent.error, sent.reason) == ("PeerLost", "the scheduler process died")
    assert sent.path == [*PHASES, "Failed"]
    language.wait_idle()


def test_when_the_whole_encode_node_is_killed_its_requests_fail_and_one_in_its_place_is_served(
    own_dir: Path, receiving: Queues, language: Station, rooms: Iterator[int], engine: str
) -> None:
    """Scenario 6, P4, D3, D5: both clients are told; the node that takes its run directory and port is another
    incarnation.
    """
    room, later = next(rooms), next(rooms)
    port = port_to_keep()
    with station("encode", own_dir / "e", deepstack_layers=3, bootstrap_port=port, engine=engine) as doomed:
        with attach(doomed.run_dir) as client:
            sender, _ = bring_to("Transferring", doomed, client, receiving, room)
            doomed.kill_group()
            received, sent = receiving.take(room, 20), ended(sender)
            assert received.error == sent.error == "PeerLost"
            assert f"at {doomed.addr} is lost" in received.reason
            assert sent.reason == "this client's own node is gone"
            assert received.path == sent.path == [*PHASES, "Failed"]
            with pytest.raises(NodeGoneError, match=r"the node in .* is gone; attach"):
                client.sender(later, 10)
        language.wait_idle()
        old = doomed.node.incarnation
    with station("encode", own_dir / "e", deepstack_layers=3, bootstrap_port=port, engine=engine) as fresh:
        assert fresh.node.incarnation > old
        receiving.add(fresh.addr, later)
        with attach(fresh.run_dir) as client:
            sender = open_sender(client, later, 3000)
            give(sender)
            assert receiving.take(later, 20).difference == ""
            assert ended(sender).error == ""


def test_when_the_whole_language_node_is_killed_its_requests_fail_on_both_sides(
    own_dir: Path, encode: Station, sending: Client, room: int, engine: str
) -> None:
    """Scenario 6, P4: a "dead peer": the encoder hears that the node is lost, its own scheduler that its node
    is gone.
    """
    with (
        station("language", own_dir / "l", deepstack_layers=3, engine=engine) as doomed,
        attach(doomed.run_dir) as client,
    ):
        queues = Queues(client)
        sender, _ = bring_to("Transferring", encode, sending, queues, room)
        doomed.kill_group()
        sent, received = ended(sender), queues.take(room, 20)
        assert received.error == sent.error == "PeerLost"
        assert "language node" in sent.reason
        assert "is lost" in sent.reason
        assert received.reason == "this client's own node is gone"
    encode.wait_idle()


@pytest.mark.parametrize("side", ["encoder", "scheduler"])
def test_a_client_that_closes_with_requests_in_flight_fails_them_on_both_sides(
    encode: Station, language: Station, rooms: Iterator[int], side: str
) -> None:
    """Scenario 6, D6: leaving is not forgetting, nor dying; blocks and slots come back on both nodes."""
    numbers = [next(rooms) for _ in PHASES]
    sending, receiving = attach(encode.run_dir), Queues(attach(language.run_dir))
    handles = [bring_to(p, encode, sending, receiving, n) for p, n in zip(PHASES, numbers, strict=True)]
    (sending if side == "encoder" else receiving.client).close()
    for room, (sender, _) in zip(numbers, handles, strict=True):
        outcome = receiving.take(room, 20) if side == "encoder" else ended(sender)
        assert (outcome.error, outcome.reason) == (
            "PeerLost",
            f"the {side} closed its client before the request had ended",
        )
    sending.close()
    receiving.client.close()
    encode.wait_idle()
    language.wait_idle()
