"""Fetching items where they lie, by clients of a language node on the host of their encode node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.fetching import fetched, is_all
from support.nodes import Station
from support.publishing import rows_of_version
from support.waiting import wait_until

from embridge import (
    AttachError,
    Client,
    Fetch,
    FetchError,
    FetchFailed,
    FetchTimeout,
    GenerationGone,
    Item,
    NotPublished,
    PublishStatus,
    SegmentError,
    attach,
)
from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.allocator.segment import map_segment
from embridge.allocator.shelf import DTYPE_BYTES
from embridge.pipeline.client.shelf_doors import ShelfDoors
from embridge.pipeline.inspection.observe import requests
from embridge.workers.run_socket import PROTOCOL_VERSION, SOCKET_NAME, ReaderHello, receive_welcome, send_frame

pytestmark = pytest.mark.process


@pytest.fixture
def reader(language: Station) -> Iterator[Client]:
    with attach(language.run_dir) as it:
        yield it


def failed(client: Client, key: str, addr: str, **named: Any) -> FetchError | None:
    fetch = client.fetch(key, addr, **named)
    assert fetch.wait(30)
    return fetch.exception()


# ---- what is read


def test_an_item_is_read_where_it_lies_and_no_process_hears_of_it(
    shelved: Station, publisher: Client, reader: Client, language: Station
) -> None:
    """R41, D10: the second fetch has ended on return; no slot is held."""
    published = publisher.publish("cat", rows_of_version(1))
    item = fetched(reader, "cat", shelved.addr)
    assert (item.key, item.generation, item.shape, item.dtype, item.where) == (
        "cat", published.generation, (3, 40_000), "float32", "in place",
    )  # fmt: skip
    assert torch.equal(item.rows, rows_of_version(1))
    before = [it.control.metrics.all() for it in (shelved, language)]
    with reader.fetch("cat", shelved.addr).result() as again:
        assert again.rows.data_ptr() == item.rows.data_ptr()
    after = [it.control.metrics.all() for it in (shelved, language)]
    changed = {
        (name, counter)
        for old, new in zip(before, after, strict=True)
        for name, row in new.items()
        for counter, value in row.items()
        if value != old[name][counter] and counter in ("records", "fetched_in_place")
    }
    assert changed == {("clients", "fetched_in_place")}
    assert requests(shelved.control, 0) == requests(language.control, 0) == []
    out = torch.empty(120_000)
    item.copy_to(out)
    assert torch.equal(out, rows_of_version(1).flatten())
    for wrong, why in (
        (out[1:], "119999 elements are not the 120000 of the rows"),
        (out.to("meta"), "a meta tensor, which has no data; give one of 120000 elements"),
        (None, "NoneType is no tensor"),
    ):
        with pytest.raises(ValueError, match=f"destination: {why}"):
            item.copy_to(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_rows_of_any_dtype_width_and_key(shelved: Station, publisher: Client, reader: Client, dtype: str) -> None:
    rows = torch.arange(7 * 5).reshape(7, 5).to(getattr(torch, dtype))
    for key in (b"\0\xff", "ключ", "k" * 256):
        assert publisher.publish(key, rows).status == PublishStatus.READY
        fetch = reader.fetch(key, shelved.addr)
        assert fetch.wait(30)
        item = fetch.result()
        assert torch.equal(item.rows.view(torch.uint8), rows.view(torch.uint8))
        assert item.rows.dtype == rows.dtype


def test_a_newer_item_is_read_when_it_is_there_and_the_older_one_stays_for_who_has_it(
    shelved: Station, publisher: Client, reader: Client
) -> None:
    """R47, R63."""
    publisher.publish("cat", rows_of_version(1))
    old = fetched(reader, "cat", shelved.addr)
    view = old.rows[1:]
    publisher.publish("cat", rows_of_version(2), replace=True)
    new = fetched(reader, "cat", shelved.addr)
    assert (float(new.rows[0, 0]), float(old.rows[0, 0])) == (2.0, 1.0)
    old.release()
    old.release()
    with pytest.raises(ValueError, match="was released"):
        _ = old.rows
    for number in range(6):
        publisher.publish(f"{number}", rows_of_version(9))
    assert is_all(view, 1.0)
    assert publisher.shelf.counts().pinned == 2
    del view
    assert publisher.shelf.counts().pinned == 1


def test_items_at_which_nobody_looks_are_copied_out_where_their_node_is_short_of_room(
    shelved: Station, publisher: Client, reader: Client
) -> None:
    """R62, R63: a view keeps its place; the publication that found no room was dropped, and the next one is not."""
    items = []
    for number in range(4):
        publisher.publish(f"{number}", rows_of_version(number))
        items.append(fetched(reader, f"{number}", shelved.addr))
    view = items[0].rows
    assert publisher.publish("more", rows_of_version(7)).status == PublishStatus.DROPPED
    wait_until(lambda: [it.where for it in items[1:]] == ["host"] * 3, 10.0, lambda: [it.where for it in items])
    assert publisher.shelf.counts().pinned == 1
    assert publisher.publish("more", rows_of_version(7)).status == PublishStatus.READY
    assert items[0].where == "in place"
    assert is_all(view, 0.0)
    for number, item in enumerate(items):
        assert is_all(item.rows, float(number))
    items[1].rows.zero_()  # nobody else's
    assert is_all(fetched(reader, "more", shelved.addr).rows, 7.0)


# ---- what is not there


def test_what_is_not_published_is_said_to_be_so_at_once(
    shelved: Station, publisher: Client, reader: Client
) -> None:
    """P24, R46: an unknown key, an evicted one, one that was taken away, one that was cleared."""
    publisher.publish("gone", rows_of_version(1))
    for number in range(4):
        publisher.publish(f"{number}", rows_of_version(number))
    publisher.shelf.unpublish("1")
    for key in ("unknown", "gone", "1"):
        assert isinstance(failed(reader, key, shelved.addr), NotPublished)
    publisher.shelf.clear()
    fetch = reader.fetch("2", shelved.addr)
    assert fetch.is_done
    with pytest.raises(NotPublished, match=r"item '2': it is not published at tcp://"):
        fetch.result()


def test_a_certain_generation_is_that_one_or_none(shelved: Station, publisher: Client, reader: Client) -> None:
    first = publisher.publish("cat", rows_of_version(1)).generation
    assert fetched(reader, "cat", shelved.addr, generation=first).generation == first
    second = publisher.publish("cat", rows_of_version(2), replace=True).generation
    error = failed(reader, "cat", shelved.addr, generation=first)
    assert isinstance(error, GenerationGone)
    assert f"generation {first} is gone; {second} is there" in str(error)
    yet = failed(reader, "cat", shelved.addr, generation=second + 1)
    assert isinstance(yet, NotPublished)
    assert f"generation {second + 1} is not published yet; {second} is at tcp://" in str(yet)
    assert isinstance(failed(reader, "dog", shelved.addr, generation=1), NotPublished)


def test_who_waits_has_it_when_it_comes(shelved: Station, publisher: Client, reader: Client) -> None:
    """P8: and not for longer than that."""
    fetch = reader.fetch("late", shelved.addr, wait_s=30)
    assert not fetch.wait(0.05)
    with pytest.raises(ValueError, match="has not ended"):
        fetch.result()
    called: list[object] = []
    fetch.add_done_callback(called.append)
    publisher.publish("late", rows_of_version(1))
    wait_until(lambda: called, 10.0, lambda: "the library thread notices")
    assert called == [fetch]
    assert float(fetch.result().rows[0, 0]) == 1.0
    assert isinstance(failed(reader, "never", shelved.addr, wait_s=0.05), NotPublished)


def test_a_fetch_can_be_awaited_and_given_up(shelved: Station, publisher: Client, reader: Client) -> None:
    async def both() -> Item:
        fetch = reader.fetch("cat", shelved.addr, wait_s=30)
        publisher.publish("cat", rows_of_version(3))
        return await fetch

    assert float(asyncio.run(both()).rows[0, 0]) == 3.0
    fetch = reader.fetch("never", shelved.addr, wait_s=30)
    fetch.abort()
    with pytest.raises(FetchFailed, match="was given up"):
        fetch.result()
    fetch.abort()


def test_a_callback_may_fetch_and_one_that_fails_stops_nobody(
    shelved: Station, publisher: Client, reader: Client, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.publish("cat", rows_of_version(1))
    fetched(reader, "cat", shelved.addr)
    found: list[float] = []
    fetch = reader.fetch("late", shelved.addr, wait_s=30)
    fetch.add_done_callback(lambda _: found.append(float(reader.fetch("cat", shelved.addr).result().rows[0, 0])))
    fetch.add_done_callback(lambda _: 1 // 0)
    publisher.publish("late", rows_of_version(2))
    wait_until(lambda: found, 10.0, lambda: "it is called")
    assert found == [1.0]
    wait_until(lambda: "a callback of its fetch failed" in caplog.text)


@pytest.mark.timeout(60)
def test_a_signal_handler_may_fetch_in_the_midst_of_a_fetch(
    shelved: Station, publisher: Client, reader: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: nobody waits for what he has himself. Both end."""
    publisher.publish("cat", rows_of_version(1))
    first = reader.fetch("cat", shelved.addr, wait_s=30)
    find, inner, signalled = ShelfDoors.find, list[Fetch](), list[int]()

    def find_and_signal(doors: ShelfDoors, address: str) -> object:
        if not signalled and threading.current_thread() is threading.main_thread():
            signalled.append(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
        return find(doors, address)

    before = signal.signal(signal.SIGUSR1, lambda *_: inner.append(reader.fetch("cat", shelved.addr, wait_s=30)))
    monkeypatch.setattr(ShelfDoors, "find", find_and_signal)
    try:
        outer = reader.fetch("cat", shelved.addr, wait_s=30)
        for fetch in (first, outer, *inner):
            assert fetch.wait(30)
            assert is_all(fetch.result().rows, 1.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(inner) == 1


def test_who_polls_looks_after_one_fetch_however_many_wait(
    shelved: Station, publisher: Client, reader: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who polls n of them in turn would look n * n times."""
    fetches = [reader.fetch(f"{number}", shelved.addr, wait_s=30) for number in range(5)]
    fetching, looked_at = fetches[0]._fetching, list[Fetch]()

    def look(it: Fetch) -> bool:
        if threading.current_thread() is threading.main_thread():
            looked_at.append(it)
        return False

    monkeypatch.setattr(fetching, "_look", look)
    wait_until(lambda: fetches[3].poll() or looked_at, 10.0, lambda: "the library thread has not the turn")
    assert set(looked_at) == {fetches[3]}


def test_who_has_waited_long_looks_more_rarely(
    shelved: Station, publisher: Client, reader: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: nobody rings for what is published, so it is looked for, and others need the core."""
    fetch, looks = reader.fetch("never", shelved.addr, wait_s=30), list[Fetch]()

    def look(it: Fetch) -> bool:
        if threading.current_thread() is threading.main_thread():
            looks.append(it)
        return False

    monkeypatch.setattr(fetch._fetching, "_look", look)
    assert not fetch.wait(0.5)
    assert 1 < len(looks) < 150
    looks.clear()
    assert not fetch.wait(0)
    assert len(looks) == 1


# ---- nodes that are not there, or publish nothing


def test_a_node_that_publishes_nothing_says_so(encode: Station, reader: Client) -> None:
    error = failed(reader, "cat", encode.addr)
    assert isinstance(error, FetchFailed)
    assert "publishes nothing: set shelf_bytes there" in str(error)
    assert isinstance(failed(reader, "cat", encode.addr), FetchFailed)


def test_nobody_waits_for_ever_for_a_node_that_does_not_answer(reader: Client) -> None:
    """P8, D1."""
    error = failed(reader, "cat", "tcp://127.0.0.1:9", deadline_s=0.2)
    assert isinstance(error, FetchTimeout)
    assert "no encode node at tcp://127.0.0.1:9 has let this client in" in str(error)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"addr": "here:1"}, "here:1"),
        ({"addr": "tcp://node-a:1"}, "is no tcp://ip:port"),
        ({"key": "k" * 257}, "257 bytes"),
        ({"generation": -1}, "generation"),
        ({"wait_s": -1}, "wait_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
    ],
)
def test_what_cannot_be_fetched_is_refused(shelved: Station, reader: Client, named: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        reader.fetch(**{"key": "k", "addr": shelved.addr, **named})


def test_an_encoder_fetches_nothing(shelved: Station, publisher: Client) -> None:
    with pytest.raises(ValueError, match="attach to the language node"):
        publisher.fetch("cat", shelved.addr)


def test_a_reader_is_handed_the_rows_to_read_and_no_more(
    shelved: Station, publisher: Client, reader: Client, language: Station
) -> None:
    """D15: by a descriptor that is open for reading alone; and who is not registered is handed nothing."""
    publisher.publish("cat", rows_of_version(1))
    fetched(reader, "cat", shelved.addr)
    node = (language.control.node_id, language.control.incarnation)
    target = shelved.control.incarnation
    with _asked(shelved, ReaderHello(PROTOCOL_VERSION, *node, target)) as sock:
        welcome, fds = receive_welcome(sock)
        try:
            assert welcome.reader >= 0
            assert sorted(fds) == ["control", "shelf to read"]
            with pytest.raises(SegmentError, match="Permission denied"):
                map_segment(fds["shelf to read"], SHELF_BLOCK_BYTES)
        finally:
            for fd in fds.values():
                os.close(fd)
    for hello, why in (
        (ReaderHello(PROTOCOL_VERSION, node[0], node[1] + 7, target), "is not registered here"),
        (ReaderHello(PROTOCOL_VERSION, *node, target + 1), "this is incarnation"),
    ):
        with _asked(shelved, hello) as sock, pytest.raises(AttachError, match=why):
            receive_welcome(sock)


def _asked(node: Station, hello: ReaderHello) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(node.run_dir / SOCKET_NAME))
    send_frame(sock, hello)
    return sock
