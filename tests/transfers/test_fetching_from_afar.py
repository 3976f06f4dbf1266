"""Fetches between real nodes whose clients may not read in place, as if they were on two hosts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fetching, publishing
from support.agents import running
from support.encoding import give, open_sender
from support.nodes import LIMITS, Station, every_engine, every_engine_in_storms, station
from support.publishing import rows_of_version
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, Fetch, FetchError, FetchFailed, GenerationGone, Item, NotPublished, PublishStatus, attach
from embridge.allocator.shelf import DTYPE_BYTES
from embridge.pipeline.client import shelf_doors

pytestmark = pytest.mark.process

SHELF_BYTES = 48 << 20
LARGE = (1, 6 << 20)  # rows and width of float32: 24 MiB, which come in hundreds of rounds


@pytest.fixture(autouse=True)
def _afar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_doors, "knock", fetching.no_door)


@contextmanager
def pair(path: Path, engine: str, **settings: Any) -> Iterator[tuple[Station, Station]]:
    limits = replace(LIMITS, shelf_bytes=SHELF_BYTES)
    with (
        station("encode", path / "e", limits=limits, engine=engine, deepstack_layers=3, **settings) as encode,
        station("language", path / "l", engine=engine, num_blocks=9, deepstack_layers=3, **settings) as language,
    ):
        yield encode, language


@pytest.fixture(scope="module")
def nodes(shared_dir: Path, engine: str) -> Iterator[tuple[Station, Station]]:
    path = shared_dir / f"afar-{engine}"
    path.mkdir()
    with pair(path, engine) as it:
        yield it


@pytest.fixture
def clients(nodes: tuple[Station, Station]) -> Iterator[tuple[Client, Client]]:
    """A publisher and a reader; afterwards no slot is held, and no item pinned."""
    encode, language = nodes
    with attach(encode.run_dir) as publisher, attach(language.run_dir) as reader:
        publisher.shelf.clear()
        yield publisher, reader
        is_left(encode, language, publisher)


def is_left(encode: Station, language: Station, publisher: Client) -> None:
    """R53, R55, R56: what a fetch has held is given back, however it has ended."""
    wait_until(lambda: not encode.in_flight(), 20.0, lambda: f"{encode.in_flight()}\n{encode.log()}")
    language.wait_idle()
    assert publisher.shelf.counts().pinned == 0
    lanes = encode.control.lanes
    assert lanes.pages_of(lanes.own_lane) == []


def fetched(client: Client, key: str | bytes, addr: str, **named: Any) -> Item:
    fetch = client.fetch(key, addr, **named)
    assert fetch.wait(60)
    return fetch.result()


def failed(client: Client, key: str, addr: str, **named: Any) -> FetchError | None:
    fetch = client.fetch(key, addr, **named)
    assert fetch.wait(60)
    return fetch.exception()


def large(version: int) -> torch.Tensor:
    return torch.full(LARGE, float(version))


def has_begun(encode: Station) -> Callable[[], bool]:
    """Rows of a fetch have been sent, and not all of them."""
    return lambda: any(0 < entry["sent"] < entry["total"] for entry in encode.in_flight())


# ---- what comes


@every_engine
def test_rows_of_any_dtype_width_and_key_come_as_they_were_published(
    nodes: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """R50, R52, P6: in memory of the reader's own; the node's own rows have 64 elements of bfloat16."""
    (publisher, reader), addr = clients, nodes[0].addr
    for number, dtype in enumerate(DTYPE_BYTES):
        rows = torch.arange(7 * (5 + 97 * number)).reshape(7, -1).to(getattr(torch, dtype))
        key = (b"\0\xff", "ключ", "k" * 256)[number % 3]
        published = publisher.publish(key, rows, replace=True)
        item = fetched(reader, key, addr)
        assert (item.generation, item.where, item.dtype) == (published.generation, "host", dtype)
        assert torch.equal(item.rows.view(torch.uint8), rows.view(torch.uint8))
        item.rows.zero_()  # nobody else's
    assert float(fetched(reader, "k" * 256, addr).rows.float().abs().sum()) > 0


@every_engine
def test_what_is_not_published_is_said_to_be_so_at_once(
    nodes: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """P24, R50: an unknown key, an evicted one, another generation; and who waits has it when it comes."""
    (publisher, reader), addr = clients, nodes[0].addr
    generation = publisher.publish("cat", large(1)).generation
    for number in range(2):
        publisher.publish(f"{number}", large(number))
    for key in ("unknown", "cat"):
        assert isinstance(failed(reader, key, addr), NotPublished)
    error = failed(reader, "1", addr, generation=generation)
    assert isinstance(error, GenerationGone)
    assert f"generation {generation} is gone" in str(error)
    late = reader.fetch("late", addr, wait_s=30)
    assert not late.wait(0.3)
    publisher.publish("late", rows_of_version(3))
    assert late.wait(30)
    assert float(late.result().rows[0, 0]) == 3.0


@every_engine
def test_many_fetches_share_a_small_pool(nodes: tuple[Station, Station], clients: tuple[Client, Client]) -> None:
    """R21, R85, P8: forty at once, of four items, through nine blocks; one is given up, one is awaited."""
    (publisher, reader), addr = clients, nodes[0].addr
    for number in range(4):
        publisher.publish(f"{number}", rows_of_version(number))
    fetches: list[Fetch] = [reader.fetch(f"{number % 4}", addr) for number in range(40)]
    fetches[7].abort()
    assert all(fetch.wait(60) for fetch in fetches)
    for number, fetch in enumerate(fetches):
        if number == 7:
            assert isinstance(fetch.exception(), FetchFailed)
        else:
            assert torch.equal(fetch.result().rows, rows_of_version(number % 4))

    async def awaited() -> Item:
        return await reader.fetch("2", addr)

    assert float(asyncio.run(awaited()).rows[0, 0]) == 2.0


@every_engine
def test_an_item_is_whole_though_it_is_replaced_and_its_room_is_wanted_while_it_is_sent(
    nodes: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """R52, R53, P6: what is published meanwhile finds other room, or none."""
    (publisher, reader), encode = clients, nodes[0]
    publisher.publish("cat", large(1))
    fetch = reader.fetch("cat", encode.addr)
    wait_until(has_begun(encode), 20.0, encode.log)
    assert publisher.shelf.counts().pinned == 1
    assert publisher.publish("cat", large(2), replace=True).status == PublishStatus.READY
    assert publisher.publish("dog", large(3)).evicted <= 1
    assert fetch.wait(60)
    rows = fetch.result().rows
    assert float(rows.min()) == float(rows.max()) == 1.0


@every_engine
def test_nothing_is_torn_while_items_are_published_and_evicted(
    nodes: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """P6, R52, R85: two publishers and two readers, all processes."""
    encode, language = nodes
    with running("publisher") as one, running("publisher") as two, running("reader") as reader, running("r2") as other:
        lanes = [agent.call(publishing.join, encode.run_dir) for agent in (one, two)]
        for agent in (reader, other):
            agent.call(fetching.join_from_afar, language.run_dir)
        for agent, lane in zip((one, two), lanes, strict=True):
            agent.start(publishing.publish_for, 0.8, lane)
        for agent in (reader, other):
            agent.start(fetching.read_for, 0.8, encode.addr, 11)
        assert [agent.result() for agent in (one, two)] == [[], []]
        for agent in (reader, other):
            found, faults = agent.result()
            assert faults == []
            assert found > 10


@every_engine
def test_rooms_and_fetches_of_one_client_share_its_nodes_blocks(
    nodes: tuple[Station, Station], clients: tuple[Client, Client], rooms: Iterator[int]
) -> None:
    """P21, R21, R35: each of them ends, also where results stay in their blocks until they are popped."""
    (publisher, reader), addr = clients, nodes[0].addr
    queues = Queues(reader)
    publisher.publish("large", large(1))
    for number in range(4):
        publisher.publish(f"{number}", rows_of_version(number))
    fetches, opened = [reader.fetch("large", addr)], []
    for number in range(12):
        room = next(rooms)
        opened.append(room)
        queues.add(addr, room)
        give(open_sender(publisher, room, 700), 0)
        fetches.append(reader.fetch(f"{number % 4}", addr))
    for room in opened:
        received = queues.take(room, 60)
        assert (received.error, received.difference) == ("", "")
    assert all(fetch.wait(60) for fetch in fetches)
    for number, fetch in enumerate(fetches[1:]):
        assert torch.equal(fetch.result().rows, rows_of_version(number % 4))
    assert float(fetches[0].result().rows.sum()) == LARGE[1]


# ---- the deaths of processes


@every_engine_in_storms
@pytest.mark.parametrize("name", ["bootstrap", "poller", "worker0"])
def test_the_death_of_a_process_of_the_encode_node_fails_no_fetch(
    nodes: tuple[Station, Station], clients: tuple[Client, Client], name: str
) -> None:
    """P11, R55, R85."""
    (publisher, reader), encode = clients, nodes[0]
    publisher.publish("cat", large(4))
    fetch = reader.fetch("cat", encode.addr)
    wait_until(has_begun(encode), 20.0, encode.log)
    os.kill(encode.pid_of(name), signal.SIGKILL)
    assert fetch.wait(60)
    rows = fetch.result().rows
    assert float(rows.min()) == float(rows.max()) == 4.0


@every_engine_in_storms
@pytest.mark.parametrize("name", ["bootstrap", "poller", "worker0"])
def test_the_death_of_a_process_of_the_language_node_fails_no_fetch(
    nodes: tuple[Station, Station], clients: tuple[Client, Client], name: str
) -> None:
    """P11."""
    (publisher, reader), (encode, language) = clients, nodes
    publisher.publish("cat", large(5))
    fetch = reader.fetch("cat", encode.addr)
    wait_until(has_begun(encode), 20.0, encode.log)
    os.kill(language.pid_of(name), signal.SIGKILL)
    assert fetch.wait(60)
    rows = fetch.result().rows
    assert float(rows.min()) == float(rows.max()) == 5.0


@every_engine_in_storms
def test_a_reader_that_is_killed_leaves_no_pin_and_no_slot(
    nodes: tuple[Station, Station], clients: tuple[Client, Client]
) -> None:
    """R53, R56, P4: and so does one that gives up, and one that leaves."""
    (publisher, reader), (encode, language) = clients, nodes
    publisher.publish("cat", large(6))
    with running("reader") as agent:
        agent.call(fetching.join_from_afar, language.run_dir)
        agent.call(fetching.begin, "cat", encode.addr)
        wait_until(has_begun(encode), 20.0, encode.log)
        agent.kill()
        is_left(encode, language, publisher)
    fetch = reader.fetch("cat", encode.addr)
    wait_until(has_begun(encode), 20.0, encode.log)
    fetch.abort()
    is_left(encode, language, publisher)
    with attach(language.run_dir) as leaving:
        left = leaving.fetch("cat", encode.addr)
        wait_until(has_begun(encode), 20.0, encode.log)
    assert isinstance(left.exception(), FetchFailed)
    is_left(encode, language, publisher)
    assert publisher.publish("dog", large(7)).status == PublishStatus.READY


@every_engine_in_storms
def test_the_death_of_a_node_ends_its_fetches_on_the_other(own_dir: Path, engine: str) -> None:
    """R56, P4, D1: the reader hears what to do; the encode node gives back what it held."""
    with pair(own_dir, engine, peer_timeout_s=4.0) as (encode, language):
        with attach(encode.run_dir) as publisher, attach(language.run_dir) as reader:
            publisher.publish("cat", large(8))
            lost = reader.fetch("cat", encode.addr)
            wait_until(has_begun(encode), 20.0, encode.log)
            language.kill_group()
            assert lost.wait(20)
            assert isinstance(lost.exception(), FetchFailed)
            wait_until(lambda: not encode.in_flight(), 20.0, encode.log)
            assert publisher.shelf.counts().pinned == 0
        with (
            station("language", own_dir / "l2", engine=engine, num_blocks=9, deepstack_layers=3) as other,
            attach(encode.run_dir) as publisher,
            attach(other.run_dir) as reader,
        ):
            fetch = reader.fetch("cat", encode.addr)
            wait_until(has_begun(encode), 20.0, encode.log)
            encode.kill_group()
            assert fetch.wait(20)
            error = fetch.exception()
            assert isinstance(error, FetchFailed)
            assert "fetch it from another node, or have it encoded again" in str(error)
            other.wait_idle()


@every_engine_in_storms
def test_rows_are_checked_on_receipt_where_nodes_verify(own_dir: Path, engine: str) -> None:
    """R27."""
    with (
        pair(own_dir, engine, verify=True) as (encode, language),
        attach(encode.run_dir) as publisher,
        attach(language.run_dir) as reader,
    ):
        publisher.publish("cat", rows_of_version(9))
        assert torch.equal(fetched(reader, "cat", encode.addr).rows, rows_of_version(9))
        is_left(encode, language, publisher)
