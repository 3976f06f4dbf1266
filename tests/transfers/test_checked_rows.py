"""Nodes that verify: rows are checked on receipt, and a byte that was changed fails the request on both sides (R27)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.encoding import ended, give, open_sender
from support.nodes import Station, every_engine
from support.scheduling import Queues
from support.stopping import stopped
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Destination, Slot
from embridge.pipeline.client.client import library_of

pytestmark = [pytest.mark.process, every_engine]

NUM_BLOCKS, BLOCK_SIZE = 9, 128
LAYOUT = ["input_embeddings", "deepstack_embeddings", "mrope_positions", "fill_ids", "aux_datas"]


@pytest.fixture(scope="session")
def encode(stations: Callable[..., Station], engine: str) -> Station:
    return stations("encode", "verifying-e", engine, num_blocks=16, verify=True)


@pytest.fixture(scope="session")
def language(stations: Callable[..., Station], engine: str) -> Station:
    return stations("language", "verifying-l", engine, num_blocks=NUM_BLOCKS, default_allocate_tokens=1024, verify=True)


@pytest.fixture(scope="session")
def plain(stations: Callable[..., Station], engine: str) -> Station:
    """The language node that other modules share: it does not verify."""
    return stations("language", "l", engine, num_blocks=9, default_allocate_tokens=1024)


@pytest.mark.parametrize(("total", "rounds"), [(1, 1), (1024, 1), (2000, 2), (10_000, 9)])
def test_a_request_arrives_whole_whatever_its_length(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, total: int, rounds: int
) -> None:
    """R27, P6, scenarios 1 to 4: on the path of phases that it takes without."""
    sender = open_sender(sending, room, total)
    receiving.add(encode.addr, room)
    for first in range(0, total, 3000):
        give(sender, first, min(first + 3000, total))
    received = receiving.take(room, 30)
    assert (received.error, received.difference, received.total) == ("", "", total)
    assert received.rounds >= rounds
    path = ["Bootstrapping", "WaitingForInput", *(["Transferring"] if rounds > 1 else []), "Success"]
    assert received.path == ended(sender).path == path
    assert language.control.metrics.all()["poller"]["corrupt"] == 0


@pytest.mark.parametrize("buffer", LAYOUT)
def test_a_byte_that_was_changed_fails_the_request_on_both_sides(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, buffer: str
) -> None:
    """R27, P6, D11: between the write and the look at it, in any buffer. The next request is served."""
    request = receiving.add(encode.addr, room)
    receiver = wait_until(lambda: request.receiver)
    assert receiver is not None
    sender = open_sender(sending, room, 200, announce=True)
    dsts = encode.control.destinations
    wait_until(lambda: dsts.get(sender.slot, 0, Destination.GRANTED_TOKENS) >= 200, 20, lambda: f"{sender} granted")
    before = language.control.metrics.all()["poller"]["corrupt"]
    with stopped(language.pid_of("poller")):
        give(sender)
        wait_until(lambda: dsts.get(sender.slot, 0, Destination.SENT) == 200, 20, lambda: f"{sender} sent")
        change(receiving.client, language, receiver.slot, buffer)
    received, sent = receiving.take(room, 20), ended(sender)
    assert received.error == sent.error == "TransferError"
    assert received.reason == sent.reason
    assert received.reason.startswith("blocks 0 to 1, rows 0 to 199: checksum ")
    assert received.path == sent.path == ["Bootstrapping", "WaitingForInput", "Failed"]
    assert encode.control.slots.get(sender.slot, Slot.FAILURE) == FailureCode.CORRUPT
    assert language.control.metrics.all()["poller"]["corrupt"] == before + 1
    assert language.says(f"room {room}: rows are not those that were sent: {received.reason}")
    again = room + (1 << 40)
    give(open_sender(sending, again, 300))
    receiving.add(encode.addr, again)
    assert receiving.take(again, 20).difference == ""


def change(client: Client, language: Station, slot: int, buffer: str) -> None:
    """One bit of the request's first block."""
    block = language.control.windows.get(slot, 0)
    geometry = language.geometry
    at = {pool.name: pool.offset + (block * BLOCK_SIZE + 77) * pool.row_bytes for pool in pools(geometry)}
    at["aux_datas"] = aux_offset(geometry, block) + 60
    np.frombuffer(library_of(client).attachment.payload, np.uint8, 1, at[buffer])[:] ^= 4


def test_the_death_of_processes_fails_no_check(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R27, P11: whatever was being summed or compared is done again by the next one, on either node."""
    ours = [next(rooms) for _ in range(4)]
    senders = {room: open_sender(sending, room, 3000) for room in ours}
    for room in ours:
        receiving.add(encode.addr, room)
        give(senders[room])
    wait_until(lambda: any(s.sent_tokens for s in senders.values()), 20, lambda: f"{senders} under way")
    for process in ("worker0", "poller"):
        for it in (encode, language):
            os.kill(it.pid_of(process), signal.SIGKILL)
    for room in ours:
        received = receiving.take(room, 40)
        assert (received.error, received.reason, received.difference) == ("", "", "")
        assert ended(senders[room]).error == ""


def test_a_node_that_verifies_refuses_one_that_does_not(encode: Station, plain: Station, room: int) -> None:
    """R27: both values are named."""
    with attach(plain.run_dir) as client:
        queues = Queues(client)
        queues.add(encode.addr, room)
        received = queues.take(room, 20)
    assert (
        received.reason
        == f"encode node {encode.addr} refused: verify: language False, encode True; launch both with the same"
    )
    plain.wait_idle()


