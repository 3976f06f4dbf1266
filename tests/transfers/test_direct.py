"""The direct path, over real nodes: rows go from an encoder's process straight into the blocks of a scheduler, where
both nodes and the request allow it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from support.direct import open_door, since, wait_direct, written, written_by
from support.encoding import ended, give, open_sender, wait_doors
from support.nodes import Station, station
from support.rows import rows_of
from support.scheduling import ByHand, Queues
from support.stopping import is_stopped, stopped
from support.waiting import wait_until

from embridge import Client, NodeBusyError, attach
from embridge.allocator.records import Slot, WrittenBy
from embridge.pipeline.client import doors as doors_module
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.doors import Doors
from embridge.pipeline.client.neighbours import Neighbours
from embridge.workers.transfer.engines import shm
from embridge.workers.transfer.engines.base import EngineError

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128


@pytest.fixture
def sending(encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]) -> Client:
    """A client of the encode node that has a door to the language node."""
    open_door(encode, sending, receiving, next(rooms))
    return sending


# ---- rows arrive


@pytest.mark.parametrize("is_lent", [False, True], ids=["copied", "lent"])
@pytest.mark.parametrize("is_granted", [False, True], ids=["rows first", "grant first"])
def test_rows_arrive_and_no_worker_has_written_one(
    encode: Station, sending: Client, receiving: Queues, room: int, is_granted: bool, is_lent: bool
) -> None:
    """R28, R32, P6: by the caller's thread where they are granted, else by the library thread; deepstack rows, too."""
    before = written(encode)
    sender = open_sender(sending, room, TOTAL)
    wait_doors(sending)
    if is_granted:
        receiving.add(encode.addr, room)
        wait_direct(sender, TOTAL)
    rows = rows_of(encode.geometry, room, 0, TOTAL)
    assert sender.send_embedding(*rows, borrow=is_lent)
    if is_granted:
        assert sender.poll().name == "Success", "the call has written them"
    else:
        receiving.add(encode.addr, room)
    received = receiving.take(room, 20)
    assert (received.error, received.difference, received.total) == ("", "", TOTAL)
    assert ended(sender).error == ""
    wait_until(lambda: sender.done)
    assert since(encode, before) == {"clients": TOTAL, "workers": 0}


def test_who_has_rows_knows_the_length_though_no_message_has_come(
    own_dir: Path, language: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R26, B7: a retry of rows whose encode node has died begins behind them, and not at the first."""
    room = next(rooms)
    with station("encode", own_dir / "e", deepstack_layers=3) as doomed, attach(doomed.run_dir) as client:
        receiving.add(doomed.addr, known := next(rooms))
        assert give(open_sender(client, known, 10))
        assert receiving.take(known, 20).difference == ""
        wait_doors(client)
        first = ByHand(receiving.client, doomed.addr, room)
        first.grant(3, 384)
        sender = open_sender(client, room, 1000)
        wait_direct(sender, 384)
        with stopped(language.pid_of("poller")):
            assert give(sender, 0, 600)
            first.wait_sent(384)
            assert first.receiver.total_embedding_length == 1000
            doomed.kill_group()
        wait_until(lambda: first.receiver.poll().is_terminal)
    second = first.receiver.retry(doomed.addr, 300)
    assert (second.total_embedding_length, second.first_block) == (1000, 2)
    second.clear()
    first.receiver.clear()
    language.wait_idle()


@pytest.mark.parametrize("total", [1, 127, 128, 129, 1024, 1025, 4000])
def test_any_length_in_any_parts_through_few_blocks(
    encode: Station, sending: Client, receiving: Queues, room: int, total: int
) -> None:
    """R29, R3, D8, P6: parts that are granted whole, in part, or not at all; the grant goes on with what is drained."""
    before = written(encode)
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, total)
    cuts = sorted({0, 1 % total, total // 3, total // 3 + 7, total // 2, total} & set(range(total + 1)))
    for first, end in pairwise(cuts):
        assert give(sender, first, end)
    received = receiving.take(room, 20)
    assert (received.error, received.difference, received.total) == ("", "", total)
    assert ended(sender).sent == total
    assert since(encode, before) == {"clients": total, "workers": 0}


def test_a_request_that_waits_for_its_slot_is_written_when_it_has_one(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: its rows are kept until then."""
    before, requests = written(encode), library_of(sending).requests
    with monkeypatch.context() as patch:
        patch.setattr(requests, "enter", lambda handle, **options: False)
        sender = open_sender(sending, room, TOTAL)
        assert sender.is_waiting
        assert give(sender)
        receiving.add(encode.addr, room)
    assert receiving.take(room, 20).difference == ""
    assert ended(sender).error == ""
    assert since(encode, before) == {"clients": TOTAL, "workers": 0}


def test_no_process_of_a_node_stands_between_a_write_and_its_arrival(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R28, R32: when the grant is there, every one of them may be stopped."""
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    wait_doors(sending)
    wait_direct(sender, TOTAL)
    pids = [pid for it in (encode, language) for name, pid in it.pids().items() if name != "launcher"]
    with stopped(*pids):
        assert give(sender)
        assert ended(sender).error == ""
        received = receiving.take(room, 20)
        assert all(is_stopped(pid) for pid in pids)
    assert (received.error, received.difference) == ("", "")


@pytest.mark.parametrize("process", ["bootstrap", "poller"])
def test_a_process_that_is_restarted_between_the_grant_and_the_write_changes_nothing(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, process: str
) -> None:
    """P11: on both nodes."""
    before = written(encode)
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 3000)
    wait_direct(sender, 128)
    assert give(sender, 0, 300)
    for it in (encode, language):
        pid = it.pid_of(process)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: it.pid_of(process) != pid)  # noqa: B023
    assert give(sender, 300, 3000)
    received = receiving.take(room, 40)
    assert (received.error, received.difference) == ("", "")
    assert ended(sender).error == ""
    assert since(encode, before) == {"clients": 3000, "workers": 0}


@pytest.mark.parametrize("is_whole", [True, False], ids=["send_embedding", "write"])
def test_rows_that_are_refused_for_want_of_memory_are_given_again_although_some_were_granted(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    """P22, P12: the caller was told that no row was taken."""

    def full(*_: object) -> Any:
        raise NodeBusyError("host memory is full")

    it = ByHand(receiving.client, encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    rows = rows_of(encode.geometry, room, 0, TOTAL)
    it.grant(1, 128)
    wait_direct(sender, 128)
    with monkeypatch.context() as patch:
        patch.setattr(sender.stock.kept, "make_room", full)
        for _ in range(2):
            with pytest.raises(NodeBusyError):
                sender.send_embedding(*rows) if is_whole else give(sender)
    if is_whole:
        assert sender.send_embedding(*rows)
    else:
        for first, end in pairwise((0, 100, 128, 300, TOTAL)):
            assert give(sender, first, end)
    it.wait_sent(128)
    it.copy_out(128)
    it.grant(3, TOTAL - 128)
    assert it.finish(TOTAL).difference == ""


# ---- which path


@pytest.fixture(params=["encode", "language"])
def other_path(
    request: pytest.FixtureRequest, own_dir: Path, encode: Station, language: Station
) -> Iterator[tuple[Station, Station]]:
    """A pair of nodes of which one takes no part in the direct path."""
    settings: dict[str, Any] = {"direct": False, "deepstack_layers": 3}
    with station(request.param, own_dir / "n", **settings) as other:
        yield (other, language) if request.param == "encode" else (encode, other)
        encode.wait_idle()
        language.wait_idle()


def test_where_either_node_takes_no_part_the_workers_write(other_path: tuple[Station, Station], room: int) -> None:
    """R28: and the one that refuses says so in its log."""
    encode, language = other_path
    before = written(encode)
    with attach(encode.run_dir) as sending, attach(language.run_dir) as client:
        receiving = Queues(client)
        receiving.add(encode.addr, room)
        sender = open_sender(sending, room, TOTAL)
        assert give(sender)
        assert receiving.take(room, 20).difference == ""
        assert ended(sender).error == ""
        assert library_of(sending).doors is None or language.says("this node takes no direct writes")
    assert since(encode, before) == {"clients": 0, "workers": TOTAL}


def test_what_was_said_of_a_destination_stays_and_a_later_request_goes_another_way(
    encode: Station, language: Station, receiving: Queues, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R28: a node that has refused the client at first, and opens then, in the middle of a request."""
    knock = shm.knock
    refuse = True

    def knocked(*arguments: Any) -> Any:
        if refuse:
            raise EngineError("too many foreign writers")
        return knock(*arguments)

    monkeypatch.setattr(doors_module, "knock", knocked)
    first, second = next(rooms), next(rooms)
    with attach(encode.run_dir) as sending:
        before = written(encode)
        receiving.add(encode.addr, first)
        sender = open_sender(sending, first, 3000)
        assert give(sender, 0, 1000)
        wait_until(lambda: written_by(sender) == WrittenBy.WORKER)
        refuse = False
        wait_doors(sending)
        assert give(sender, 1000, 3000)
        assert receiving.take(first, 20).difference == ""
        assert since(encode, before) == {"clients": 0, "workers": 3000}
        receiving.add(encode.addr, second)
        assert give(open_sender(sending, second, TOTAL))
        assert receiving.take(second, 20).difference == ""
        assert since(encode, before) == {"clients": TOTAL, "workers": 3000}
    encode.wait_idle()


@pytest.mark.parametrize("is_posted", [True, False], ids=["bound", "sent"])
def test_the_first_who_says_how_rows_go_is_heeded_by_both_threads(
    encode: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch, is_posted: bool
) -> None:
    """R28: the door opens between one thread's look and its word; else a client and a worker write the same rows.

    A grant that was posted is bound by the first of them (R81); of one that was only sent, its word is all there is.
    """
    wait_doors(sending)
    if not is_posted:
        monkeypatch.setattr(Neighbours, "look", lambda it: it.by_address.clear())
        library_of(receiving.client).neighbours.look()
    before = written(encode)
    sender = open_sender(sending, room, TOTAL)
    find, direct_way = Doors.find, sender._direct
    assert direct_way is not None
    said: list[WrittenBy] = []

    def looked(self: Doors, *arguments: int) -> Any:
        if not sender._slots.get(sender.slot, Slot.NUM_DESTINATIONS):
            return find(self, *arguments)  # of a request before
        monkeypatch.setattr(Doors, "find", find)
        said.append(direct_way.decide())  # the other thread, which has found the door open
        return WrittenBy.WORKER, None

    monkeypatch.setattr(Doors, "find", looked)
    receiving.add(encode.addr, room)
    wait_until(lambda: said)
    with direct_way._deciding:  # the first thread has said what it found, too
        assert written_by(sender) == WrittenBy.CLIENT, "the word that workers and pollers heed"
        assert direct_way.decide() == WrittenBy.CLIENT
    assert give(sender)
    assert receiving.take(room, 20).difference == ""
    assert said == [WrittenBy.CLIENT]
    assert since(encode, before) == {"clients": TOTAL, "workers": 0}
