"""One call for one request (`receive`), its coroutines, and joining a node that is not up yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.encoding import give, open_sender
from support.nodes import Station, station
from support.rows import DELTA, arrived, difference
from support.waiting import wait_until

from embridge import (
    Arrival,
    AttachError,
    Client,
    EmbeddingRequest,
    PreallocQueue,
    TransferAborted,
    TransferQueue,
    attach,
    follow,
    receive,
)

pytestmark = pytest.mark.process


@pytest.fixture
def scheduling(language: Station) -> Iterator[Client]:
    with attach(language.run_dir) as client:
        yield client
    language.wait_idle()


def is_right(client: Client, arrival: Arrival, total: int) -> bool:
    result = arrival.result()
    rows = arrived(result)
    return len(rows.fill_ids) == total and not difference(client.geometry, arrival.request.room, 0, rows)


@pytest.mark.parametrize("total", [100, 1500])
def test_one_call_brings_the_rows_of_a_room(
    encode: Station, sending: Client, scheduling: Client, room: int, total: int
) -> None:
    """P8, B1: at once, or through fewer blocks than it has."""
    with receive(scheduling, encode.addr, room) as arrival:
        assert not arrival.wait(0.01)
        with pytest.raises(ValueError, match="has not ended"):
            arrival.result()
        sender = open_sender(sending, room, total)
        give(sender)
        assert arrival.wait(30)
        assert arrival.exception() is None
        assert arrival.result().mrope_position_delta == DELTA
        assert is_right(scheduling, arrival, total)
    with pytest.raises(ValueError, match="released"):
        arrival.result()


def test_a_failure_is_raised_and_who_releases_what_is_on_its_way_gives_it_up(
    encode: Station, sending: Client, scheduling: Client, rooms: Iterator[int]
) -> None:
    """P8, D6: nothing of either is left, which the fixtures see to."""
    aborted, released = (receive(scheduling, encode.addr, next(rooms)) for _ in range(2))
    aborted.abort("enough")
    assert aborted.wait(20)
    assert isinstance(aborted.exception(), TransferAborted)
    with pytest.raises(TransferAborted, match="enough"):
        aborted.result()
    sender = open_sender(sending, released.request.room, 100)
    released.release()
    released.release()
    wait_until(lambda: sender.poll().is_terminal)
    wait_until(lambda: released.poll())
    with pytest.raises(ValueError, match="negative"):
        aborted.wait(-1)


def test_coroutines_await_rows_and_the_end_of_those_who_send_them(
    encode: Station, sending: Client, scheduling: Client, rooms: Iterator[int]
) -> None:
    """Each gets its own; an abandoned one disturbs none; nothing wakes up while nobody waits."""
    totals = {next(rooms): total for total in (10, 700, 1500, 30, 100)}

    async def one(room: int, total: int) -> bool:
        with receive(scheduling, encode.addr, room) as arrival:
            await arrival
            return is_right(scheduling, arrival, total)

    async def send(room: int, total: int) -> None:
        await asyncio.sleep(0.01)
        sender = open_sender(sending, room, total)
        give(sender)
        await sender.until_done()
        assert sender.done

    async def all_of_them() -> list[bool]:
        never = receive(scheduling, encode.addr, next(rooms))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await never
        never.release()
        receiving = [asyncio.create_task(one(*each)) for each in totals.items()]
        await asyncio.gather(*(send(*each) for each in totals.items()))
        return await asyncio.gather(*receiving)

    assert asyncio.run(all_of_them()) == [True] * len(totals)
    assert asyncio.run(one_more(encode, sending, scheduling, next(rooms)))  # another loop


async def one_more(encode: Station, sending: Client, scheduling: Client, room: int) -> bool:
    arrival = receive(scheduling, encode.addr, room)
    sender = open_sender(sending, room, 50)
    sender.abort("no rows")
    with pytest.raises(TransferAborted):
        await sender.until_done()
    with pytest.raises(TransferAborted):
        await arrival
    return True


def test_what_is_awaited_leaves_the_caller_his_own_reader_of_the_descriptor(
    encode: Station, sending: Client, scheduling: Client, rooms: Iterator[int]
) -> None:
    """P8: a loop as the guide has it, beside coroutines that wait; neither takes what would wake the other."""
    queue = TransferQueue(scheduling)
    prealloc = PreallocQueue(scheduling, queue)

    async def serve(queued: set[int], risen: asyncio.Event) -> list[EmbeddingRequest]:
        finished: list[EmbeddingRequest] = []
        while len(finished) < len(queued):
            risen.clear()
            scheduling.poll()
            finished += queue.pop_transferred()[0]
            if len(finished) < len(queued):
                await (risen.wait() if scheduling.arm() else asyncio.sleep(0))
        return finished

    async def received(room: int) -> bool:
        with receive(scheduling, encode.addr, room) as arrival:
            await arrival
            return is_right(scheduling, arrival, 300)

    async def both() -> None:
        loop, risen = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(scheduling.fileno(), risen.set)
        for _ in range(20):
            queued, awaited = {next(rooms) for _ in range(3)}, [next(rooms) for _ in range(3)]
            for room in queued:
                prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=encode.addr))
            tasks = [asyncio.create_task(received(room)) for room in awaited]
            serving = asyncio.create_task(serve(queued, risen))
            for mine, other in zip(queued, awaited, strict=True):
                for room in (mine, other):
                    give(open_sender(sending, room, 300))
                    await asyncio.sleep(0)
            async with asyncio.timeout(20):
                assert all(await asyncio.gather(*tasks))
                finished = await serving
            assert {request.room for request in finished} == queued
            for request in finished:
                request.release()
        assert loop.remove_reader(scheduling.fileno())

    asyncio.run(both())


def test_a_loop_that_was_closed_in_the_midst_of_a_wait_holds_up_no_other(
    encode: Station, sending: Client, scheduling: Client, room: int
) -> None:
    arrival, loop = receive(scheduling, encode.addr, room), asyncio.new_event_loop()
    try:
        waiting = loop.create_task(arrival._arrivals.until_done(arrival))
        loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        loop.close()

    async def received() -> bool:
        async with asyncio.timeout(20):
            await arrival
        return is_right(scheduling, arrival, 50)

    give(open_sender(sending, room, 50))
    assert asyncio.run(received())
    arrival.release()
    assert not waiting.done()


def test_coroutines_that_wait_hear_that_their_client_has_closed(encode: Station, language: Station, room: int) -> None:
    client = attach(language.run_dir)

    async def wait() -> None:
        arrival = receive(client, encode.addr, room)
        asyncio.get_running_loop().call_later(0.05, client.close)
        await asyncio.wait_for(arrival, 20)

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(wait())


@pytest.mark.parametrize("awaits", [False, True])
def test_who_waits_does_not_spin_for_a_receiver_that_is_driven_by_hand(
    encode: Station, scheduling: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch, awaits: bool
) -> None:
    """Its rises are `Client.poll`'s to tell of, which nobody calls meanwhile."""
    by_hand = scheduling.receiver(encode.addr, next(rooms))
    by_hand.abort("enough")
    wait_until(lambda: by_hand.poll().is_terminal)
    arrival, looks = receive(scheduling, encode.addr, next(rooms)), []
    look = arrival._arrivals.look

    def noted() -> None:
        looks.append(1)
        look()

    async def wait() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(arrival, 0.3)

    monkeypatch.setattr(arrival._arrivals, "look", noted)
    if awaits:
        asyncio.run(wait())
    else:
        assert not arrival.wait(0.3)
    assert 1 <= len(looks) <= 320
    arrival.release()
    by_hand.clear()


def test_a_client_with_ranks_receives_through_a_queue(language: Station, encode: Station, room: int) -> None:
    with attach(language.run_dir, num_ranks=2, group="arrivals") as client, pytest.raises(ValueError, match="ranks"):
        receive(client, encode.addr, room)


def test_who_joins_waits_for_a_node_that_is_not_up(tmp_path: Path) -> None:
    """And for one that is started again; a rank also for the first rank, without a deadline."""
    run_dir = tmp_path / "late"
    for wait_s in (0.0, 0.05):
        with pytest.raises(AttachError, match="embridge launch"):
            attach(run_dir, wait_s=wait_s)
    with pytest.raises(ValueError, match="wait_s"):
        attach(run_dir, wait_s=-1)
    joined: list[int] = []

    def lead() -> None:
        with attach(run_dir, wait_s=30, num_ranks=2) as client:
            joined.append(client.lane)
            wait_until(lambda: len(joined) == 2, 30)

    def come_after() -> None:
        with follow(run_dir, rank=1, timeout_s=None) as follower:
            joined.append(follower.num_ranks)

    threads = [threading.Thread(target=it) for it in (lead, come_after)]
    for thread in threads:
        thread.start()
    with station("language", run_dir) as node:
        for thread in threads:
            thread.join(30)
        assert sorted(joined) == [0, 2]
        node.wait_idle()
    with station("language", run_dir), attach(run_dir, wait_s=5) as client:
        assert not client.node_gone
