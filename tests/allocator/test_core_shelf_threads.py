"""`Shelf` and `ShelfReader` in threads, which change places between any two calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.shelves import BLOCK, OneShelf, content, key
from support.waiting import wait_until

from embridge.allocator.shelf import Answer


@pytest.fixture
def shelf() -> Iterator[OneShelf]:
    it = OneShelf(8)
    yield it
    it.close()


def _publish_until(shelf: OneShelf, lane: int, stop: threading.Event, faults: list[str]) -> None:
    table = shelf.attach().shelf.core
    version = 0
    while not stop.is_set():
        version += 1
        name = "abcd"[(version * 7 + lane) % 4]
        size = (1 + (version + lane) % 3) * BLOCK
        answer, entry, generation, first, *_ = table.begin(
            *key(name), lane, size // BLOCK, size, version % 5, 1, 11, 0, version, version % 3 > 0
        )
        if answer == Answer.BEGUN:
            shelf.write(name, version % 5, first, size)
            if not table.show(entry, generation, lane):
                faults.append("an entry was taken from a living publisher")
        if version % 50 == 0:
            table.clear()


def _read_until(shelf: OneShelf, reader: int, stop: threading.Event, faults: list[str], found: list[int]) -> None:
    it, last = shelf.reader(), dict.fromkeys("abcd", 0)
    while not stop.is_set():
        for name in "abcd":
            pin = it.pin(name)
            if pin is None:
                continue
            rows = memoryview(pin)
            if rows != content(name, pin.rows, len(rows)) or pin.number < last[name]:
                faults.append(f"reader {reader}: torn or older rows of {name}")
            last[name] = pin.number
            found[reader] += 1


def test_publishers_and_readers_at_once(shelf: OneShelf) -> None:
    """P6, R39 to R49, R84: in threads, which change places between any two calls."""
    stop, faults, found = threading.Event(), list[str](), [0, 0]
    threads = [threading.Thread(target=_publish_until, args=(shelf, lane, stop, faults)) for lane in (1, 2)]
    threads += [threading.Thread(target=_read_until, args=(shelf, n, stop, faults, found)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(found) >= 400, 60.0, lambda: f"they have read {found}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    shelf.core.clear()
    shelf.core.sweep()
    counts = shelf.table.counts()
    assert (counts.items, counts.filling, counts.retired) == (0, 0, 0)
