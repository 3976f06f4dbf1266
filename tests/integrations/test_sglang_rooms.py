"""The seven scenarios of the first documents by classes of SGLang's shape, driven as its schedulers do: blocks are
allocated before the length is known, rows are given once, and a transfer goes on with new blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.engines import stand_in_for_sglang
from support.nodes import Station
from support.rows import DELTA, arrived, difference, rows_of
from support.waiting import wait_until

from embridge import TransferAborted, TransferTimeout

stand_in_for_sglang()
from sglang.srt.disaggregation.base import KVPoll  # noqa: E402

from embridge.integrations.sglang.rooms import EmbridgeKVManager, EmbridgeKVReceiver, EmbridgeKVSender  # noqa: E402

pytestmark = pytest.mark.process

DEFAULT = 1024
ONE_ROUND = [KVPoll.WaitingForInput, KVPoll.Success]
RESUMED = [KVPoll.WaitingForInput, KVPoll.Transferring, KVPoll.Success]
Making = Callable[..., EmbridgeKVManager]


@pytest.fixture
def managers(shelved: Station, language: Station) -> Iterator[Making]:
    """Makes managers of a mode."""
    made = []

    def make(mode: str, **named: Any) -> EmbridgeKVManager:
        node = shelved if mode == "prefill" else language
        made.append(EmbridgeKVManager(None, SimpleNamespace(value=mode), None, run_dir=node.run_dir, **named))
        return made[-1]

    yield make
    for it in made:
        it.close()
    for node in (shelved, language):
        node.wait_idle()


class Driver:
    """A receiver, and what its scheduler has seen of it."""

    def __init__(self, manager: EmbridgeKVManager, address: str, room: int) -> None:
        self.receiver = EmbridgeKVReceiver(manager, address, room)
        assert self.receiver.poll() == KVPoll.Bootstrapping
        self.receiver.init(0)
        self.path: list[int] = []
        self.lengths: list[int] = []

    def look(self) -> int:
        found = self.receiver.poll()
        if found not in self.path and found != KVPoll.Bootstrapping:
            self.path.append(found)
        return found

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(lambda: (self.look(), condition())[1], what=lambda: f"{self.path}, {self.lengths}")

    def grant(self, tokens: int) -> None:
        """The initial transfer, or a resumed one."""
        receiver = self.receiver
        self.wait(lambda: self.look() == KVPoll.WaitingForInput or receiver.sent_tokens > 0)
        blocks = receiver.allocate(tokens)
        assert len(blocks) == -(-tokens // 128)
        if receiver.sent_tokens:
            receiver.resume_transfer(blocks, receiver.sent_tokens, allocated_tokens=tokens)
        else:
            receiver.send_metadata(blocks, allocated_tokens=tokens)

    def take(self) -> None:
        if (chunk := self.receiver.take()) is not None:
            self.lengths.append(chunk.end - chunk.first)

    def go_on(self) -> int:
        """As a scheduler's loop does, until the end: resume with what remains, or with the default."""
        receiver = self.receiver
        while True:
            self.wait(lambda: receiver.needs_resume or self.look() in (KVPoll.Success, KVPoll.Failed))
            self.take()
            if not receiver.needs_resume:
                return self.look()
            self.grant(min(DEFAULT, receiver.total_embedding_length - receiver.sent_tokens))

    def is_right(self, manager: EmbridgeKVManager, room: int) -> bool:
        result = self.receiver.result()
        aux = (int(result.aux_datas[0]), result.mrope_position_delta)
        assert difference(manager.client.geometry, room, 0, arrived(result)) == ""
        return aux == (self.receiver.total_embedding_length, DELTA)


def send(manager: EmbridgeKVManager, room: int, total: int) -> EmbridgeKVSender:
    sender = EmbridgeKVSender(manager, "", room)
    assert sender.poll() == KVPoll.Bootstrapping
    rows = rows_of(manager.client.geometry, room, 0, total)
    assert not sender.send_embedding(*rows)  # an unknown room: no effect
    sender.init(total, mrope_position_delta=DELTA)
    assert sender.send_embedding(*rows)
    assert not sender.send_embedding(*rows)  # again: no effect
    return sender


@pytest.mark.parametrize(
    ("total", "path", "rounds"),
    [
        (500, ONE_ROUND, [500]),
        (2000, RESUMED, [1024, 976]),
        (1024, ONE_ROUND, [1024]),
        (10_000, RESUMED, [1024] * 9 + [784]),
    ],
    ids=["scenario 1", "scenario 2", "scenario 3", "scenario 4"],
)
def test_a_request_of_any_length_arrives_in_the_rounds_that_its_scheduler_grants(
    shelved: Station, managers: Making, room: int, total: int, path: list[int], rounds: list[int]
) -> None:
    """Scenarios 1, 2, 3, 4, P6: the phases in SGLang's numbers, on both sides, and every byte."""
    encoding, decoding = managers("prefill"), managers("decode")
    driver = Driver(decoding, shelved.addr.removeprefix("tcp://"), room)
    driver.grant(DEFAULT)
    sender = send(encoding, room, total)
    assert driver.go_on() == KVPoll.Success
    assert (driver.path, driver.lengths) == (path, rounds)
    assert driver.is_right(decoding, room)
    wait_until(lambda: sender.poll() == KVPoll.Success)
    for it in (sender, driver.receiver):
        it.failure_exception()  # there is none
        assert it.get_transfer_metric().transfer_total_bytes == total * decoding.client.geometry.token_bytes
        it.clear()


def test_rows_may_be_given_from_blocks_of_the_encoders_own(shelved: Station, managers: Making, room: int) -> None:
    """In chunks, the last of which ends within a block."""
    encoding, decoding = managers("prefill"), managers("decode")
    rows = rows_of(encoding.client.geometry, room, 0, 512)
    order = torch.tensor([2, 0, 3, 1])
    blocks = {name: it.view(4, 128, *it.shape[1:])[order.argsort()] for name, it in rows._asdict().items()}
    driver = Driver(decoding, shelved.addr, room)
    driver.grant(DEFAULT)
    sender = EmbridgeKVSender(encoding, "", room)
    sender.send(order[:2].numpy())  # not open: no effect
    sender.init(500, mrope_position_delta=DELTA)
    with pytest.raises(ValueError, match="set_source"):
        sender.send(order[:2].numpy())
    encoding.set_source(**blocks)
    with pytest.raises(ValueError, match="257 > 256 in these blocks"):
        sender.send(order[:2].numpy(), num_kv_tokens=257)
    sender.send(order[:2].numpy())
    sender.send(order[2:3].numpy(), num_kv_tokens=128)
    sender.send(order[3:].numpy())
    assert driver.go_on() == KVPoll.Success
    assert driver.is_right(decoding, room)
    sender.clear()
    driver.receiver.clear()


def test_a_resume_without_blocks_waits_keeps_what_came_and_goes_on_when_some_come_free(
    shelved: Station, managers: Making, room: int, rooms: Iterator[int]
) -> None:
    """Scenario 5."""
    encoding, decoding = managers("prefill"), managers("decode")
    driver, other = Driver(decoding, shelved.addr, room), Driver(decoding, shelved.addr, next(rooms))
    driver.grant(DEFAULT)
    sender = send(encoding, room, 1500)
    driver.wait(lambda: driver.receiver.needs_resume)
    driver.take()
    other.wait(lambda: other.look() == KVPoll.WaitingForInput)
    held = other.receiver.allocate(1152)
    assert len(driver.receiver.allocate(476)) + len(held) <= 9
    assert len(held) == 9
    assert driver.look() == KVPoll.Transferring
    other.receiver.abort()
    other.receiver.clear()
    wait_until(lambda: decoding.client.is_closed or len(_try(driver)) == 4)
    assert driver.go_on() == KVPoll.Success
    assert driver.lengths == [1024, 476]
    assert driver.is_right(decoding, room)
    sender.clear()
    driver.receiver.clear()


def _try(driver: Driver) -> Any:
    """Resume with four blocks, if they are there."""
    blocks = driver.receiver.allocate(476)
    if len(blocks) == 4:
        driver.receiver.resume_transfer(blocks, 1024, 476)
    return blocks


def test_a_resume_that_waits_too_long_fails_on_both_sides(shelved: Station, managers: Making, room: int) -> None:
    """Scenario 5, scenario 6: its deadline ends it; all blocks are back (`wait_idle`)."""
    encoding, decoding = managers("prefill"), managers("decode", timeout_s=1.0)
    driver = Driver(decoding, shelved.addr, room)
    driver.grant(128)
    sender = send(encoding, room, 300)
    driver.wait(lambda: driver.look() == KVPoll.Failed)
    with pytest.raises(TransferTimeout):
        driver.receiver.failure_exception()
    assert driver.receiver.take() is None
    wait_until(lambda: sender.poll() == KVPoll.Failed)
    with pytest.raises(Exception, match=r"deadline|timeout|in time"):
        sender.failure_exception()
    sender.clear()
    driver.receiver.clear()


@pytest.mark.parametrize("who", ["sender", "receiver", "encoder leaves"])
def test_what_is_interrupted_is_failed_on_both_sides_with_the_reason(
    shelved: Station, managers: Making, room: int, who: str
) -> None:
    """Scenario 6: Failed is SGLang's 0, so the least of all ranks' phases is Failed, too."""
    encoding, decoding = managers("prefill"), managers("decode")
    driver = Driver(decoding, shelved.addr, room)
    driver.grant(128)
    sender = send(encoding, room, 300)
    driver.wait(lambda: driver.receiver.needs_resume)
    if who == "encoder leaves":
        encoding.close()
    else:
        (sender if who == "sender" else driver.receiver).abort()
    driver.wait(lambda: driver.look() == KVPoll.Failed)
    assert KVPoll.Failed == min(driver.path) == 0
    with pytest.raises(Exception, match=r"room \d+") as failed:
        driver.receiver.failure_exception()
    if who != "encoder leaves":
        assert failed.type is TransferAborted
        wait_until(lambda: sender.poll() == KVPoll.Failed)
        with pytest.raises(TransferAborted):
            sender.failure_exception()
    driver.receiver.clear()


@pytest.mark.parametrize("fails", [False, True], ids=["all have all", "one fails"])
def test_of_several_ranks_all_succeed_or_all_fail(shelved: Station, managers: Making, room: int, fails: bool) -> None:
    """Scenario 7."""
    encoding = managers("prefill")
    ranks = [managers("decode", required_dst_info_num=2) for _ in range(2)]
    drivers = [Driver(rank, shelved.addr, room) for rank in ranks]
    for driver in drivers:
        driver.grant(256)
    sender = send(encoding, room, 300)
    if fails:
        drivers[0].receiver.abort()
        for driver in drivers:
            driver.wait(lambda: driver.look() == KVPoll.Failed)  # noqa: B023
            with pytest.raises(TransferAborted):
                driver.receiver.failure_exception()
        wait_until(lambda: sender.poll() == KVPoll.Failed)
    else:
        drivers[0].wait(lambda: drivers[0].receiver.needs_resume)
        drivers[0].take()
        drivers[0].grant(44)
        assert sender.poll() != KVPoll.Success  # one of them lacks rows
        assert drivers[1].go_on() == drivers[0].go_on() == KVPoll.Success
        assert all(driver.is_right(rank, room) for driver, rank in zip(drivers, ranks, strict=True))
        wait_until(lambda: sender.poll() == KVPoll.Success)
    for it in (sender, *(driver.receiver for driver in drivers)):
        it.clear()


def test_blocks_are_taken_only_for_a_node_that_is_there(shelved: Station, managers: Making, room: int) -> None:
    """P5: until the handshake a request is Bootstrapping, and holds nothing."""
    receiver = EmbridgeKVReceiver(managers("decode"), shelved.addr, room)
    receiver.init(0)
    assert receiver._handle is not None
    while not receiver._handle.handshake_done:
        found = receiver.poll()
        assert found == KVPoll.Bootstrapping or receiver._handle.handshake_done
    assert receiver.poll() == KVPoll.WaitingForInput
    receiver.abort()
    wait_until(lambda: receiver.poll() == KVPoll.Failed)
    receiver.clear()


def test_what_does_not_fit_is_refused(shelved: Station, language: Station, managers: Making) -> None:
    with pytest.raises(ValueError, match="'null' is none of prefill"):
        managers("null")
    with pytest.raises(ValueError, match="is of role encode"):
        EmbridgeKVManager(None, "decode", None, run_dir=shelved.run_dir)
    decoding = managers("decode")
    decoding.register_to_bootstrap()
    with pytest.raises(ValueError, match="has a room"):
        EmbridgeKVReceiver(decoding, shelved.addr)
    receiver = EmbridgeKVReceiver(decoding, shelved.addr, 7)
    with pytest.raises(ValueError, match="call init"):
        receiver.allocate(1)
    with pytest.raises(ValueError, match="0 of 0 rows were taken"):
        receiver.result()
