"""B5: everything that makes a transfer runnable does so by itself. Here nothing is found by looking again later.

The nodes of these tests never scan their slots, send no heartbeat and repeat no message within the length of a test,
and their clients' library threads wake for nothing but their bell.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from threading import Thread

import pytest
from support.direct import wait_direct
from support.encoding import ended, give, open_sender, wait_doors
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator._core import Words
from embridge.allocator.records import Slot
from embridge.pipeline.client import callers_view as view_module
from embridge.pipeline.client import library as library_module
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process

NEVER_S = 1000.0


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    timing: Settings = dict.fromkeys(
        ("heartbeat_s", "idle_heartbeat_s", "resend_s", "beat_s", "scan_s", "peer_timeout_s", "request_timeout_s"),
        NEVER_S,
    )
    timing["silent_after_s"] = 3 * NEVER_S
    timing["stop_timeout_s"] = 0.5  # who sleeps that long does not hear that it should stop
    with (
        run_dirs() as path,
        station("encode", path / "e", num_blocks=4, **timing) as encode,
        station("language", path / "l", num_blocks=4, default_allocate_tokens=256, **timing) as language,
    ):
        yield encode, language


@pytest.fixture
def clients(pair: tuple[Station, Station], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Queues]]:
    for module in (view_module, library_module):
        monkeypatch.setattr(module, "SLOW_LOOK_NS", int(NEVER_S * 1e9))
    monkeypatch.setattr(library_module, "LIBRARY_WAIT_S", NEVER_S)
    with attach(pair[0].run_dir) as sending, attach(pair[1].run_dir) as client:
        yield sending, Queues(client)
        for node in pair:
            node.wait_idle(10)


@pytest.mark.parametrize("encoder_first", [True, False], ids=["the encoder comes first", "the scheduler comes first"])
@pytest.mark.parametrize("total", [100, 256, 512, 2000, 10_000])
def test_every_round_is_started_by_the_grant_that_allows_it(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int], total: int, encoder_first: bool
) -> None:
    """B5: a resume makes the transfer runnable in the same step; so do rows that come, and blocks that come free."""
    sending, queues = clients
    room = next(rooms)
    if encoder_first:
        sender = open_sender(sending, room, total)
        assert give(sender)
        queues.add(pair[0].addr, room)
    else:
        request = queues.add(pair[0].addr, room)
        wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens)
        sender = open_sender(sending, room, total)
        assert give(sender)
    assert queues.take(room, 10).difference == ""
    assert ended(sender, 10).error == ""


def test_who_drives_a_receiver_by_hand_is_woken_by_rows_that_were_written_directly(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """B5: whoever writes wakes the library thread alone, and that the caller."""
    sending, queues = clients
    room, client = next(rooms), queues.client
    receiver, sender = client.receiver(pair[0].addr, room), open_sender(sending, room, 100)
    wait_until(lambda: receiver.handshake_done, 10)
    receiver.init(receiver.allocate(1))
    wait_until(lambda: sender.poll().name == receiver.poll().name == "WaitingForInput", 10)
    wait_doors(sending)
    while not client.arm():
        client.poll()
    assert give(sender)
    assert select.select([client.fileno()], [], [], 10)[0]
    assert client.poll() == [receiver]
    assert receiver.poll().name == "Success"
    receiver.clear()


def is_asleep(client: Client) -> bool:
    """Whether the caller sleeps on the futex of his bell."""
    control = library_of(client).attachment.control
    bell = Words(control.mapping, control.layout.doorbell(f"lane{client.lane}"), 1)
    return bell.load(0) >> 32 & 3 == 1


def test_who_writes_the_last_rows_wakes_a_caller_who_sleeps_and_nobody_else(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """P8: one wake-up, of the thread that goes on. The library thread is rung where the caller is awake."""
    sending, queues = clients
    room, client = next(rooms), queues.client
    attachment = library_of(client).attachment
    request = queues.add(pair[0].addr, room)
    sender = open_sender(sending, room, 100)
    wait_doors(sending)
    wait_direct(sender, 100)
    rung: list[int] = []

    def write() -> None:
        wait_until(lambda: is_asleep(client), 10)
        rung.append(attachment.library_bell.sequence())
        assert give(sender)

    writer = Thread(target=write)
    writer.start()
    while request.receiver is None or request.receiver.poll().name != "Success":
        client.poll()
        client.wait(10)
    finished = queues.transfer.pop_transferred()[0]
    rung.append(attachment.library_bell.sequence())
    writer.join()
    assert finished == [request]
    assert rung[0] == rung[1]
    request.release()


def test_a_caller_who_was_woken_and_may_not_go_on_himself_has_the_library_thread_do_it(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """P8: with ranks, rows are copied to where all of them see them."""
    sending, room = clients[0], next(rooms)
    with attach(pair[1].run_dir, num_ranks=2) as client:
        queues = Queues(client)
        queues.add(pair[0].addr, room)
        sender = open_sender(sending, room, 100)
        wait_doors(sending)
        wait_direct(sender, 100)

        def write() -> None:
            wait_until(lambda: is_asleep(client), 10)
            assert give(sender)

        writer = Thread(target=write)
        writer.start()
        for _ in range(10):
            client.wait(1)
            client.poll()
            queues.step()
            if queues.done:
                break
        writer.join()
        assert list(queues.done) == [room]
        queues.done[room].release()


def test_rows_that_are_written_one_block_at_a_time_are_each_sent_at_once(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """B5: `write` wakes whom it concerns."""
    sending, queues = clients
    room = next(rooms)
    request = queues.add(pair[0].addr, room)
    sender = open_sender(sending, room, 1000)
    for first in range(0, 1000, 100):
        give(sender, first, first + 100)
        wait_until(lambda: request.transferred_tokens == first + 100, 10, lambda: request.receiver)  # noqa: B023
    assert queues.take(room, 10).difference == ""


def test_rows_are_sent_though_the_library_thread_comes_between_the_steps_of_a_write(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: it must not find rows before the word that the worker goes by says that they are ready, and tell the worker
    too early.
    """
    sending, queues = clients
    room = next(rooms)
    request = queues.add(pair[0].addr, room)
    sender = open_sender(sending, room, 200)  # the first grant of 256 tokens is all it gets
    wait_until(lambda: request.receiver is not None and sender.poll().name == "WaitingForInput", 10)
    turns: list[int] = []
    library, caller = library_of(sending), threading.get_ident()
    service, slots = sender.service, library.slots

    def serve() -> None:
        service()
        turns.append(1)

    class Interrupted:
        """The slots, with a turn of the library thread before every store of the caller's."""

        def __getattr__(self, name: str) -> object:
            return getattr(slots, name)

        def set(self, slot: int, field: Slot, value: int) -> None:
            if threading.get_ident() == caller:
                before = len(turns)
                library.wake(sender)
                wait_until(lambda: len(turns) > before, 10)
            slots.set(slot, field, value)

    monkeypatch.setattr(sender, "service", serve)
    monkeypatch.setattr(library, "slots", Interrupted())
    assert give(sender)
    assert queues.take(room, 10).difference == ""
    assert ended(sender, 10).error == ""


def test_many_requests_wait_for_each_others_blocks_and_are_woken_by_them(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int]
) -> None:
    """B5, D8: ten requests of 1500 tokens through four blocks on each side."""
    sending, queues = clients
    numbers = [next(rooms) for _ in range(10)]
    for room in numbers:
        queues.add(pair[0].addr, room)
    senders = [open_sender(sending, room, 1500) for room in numbers]
    assert all(give(sender) for sender in senders)
    for room, sender in zip(numbers, senders, strict=True):
        assert queues.take(room, 20).difference == ""
        assert ended(sender, 10).error == ""


@pytest.mark.parametrize("side", ["encoder", "scheduler"])
def test_an_abort_is_told_at_once(
    pair: tuple[Station, Station], clients: tuple[Client, Queues], rooms: Iterator[int], side: str
) -> None:
    """Scenario 6, B5: and its blocks come back without anybody looking for them."""
    sending, queues = clients
    room = next(rooms)
    request = queues.add(pair[0].addr, room)
    sender = open_sender(sending, room, 1500)
    give(sender, 0, 1000)
    wait_until(lambda: request.transferred_tokens == 1000, 10)
    if side == "encoder":
        sender.abort("enough")
    else:
        request.abort("enough")
    assert queues.take(room, 10).reason == ended(sender, 10).reason == "enough"
