"""A cache of items over fetches that a test ends, one step after the other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet, ref

import numpy as np

from embridge import FetchError, FetchFailed, ItemCache
from embridge.allocator.fetches import ItemShape
from embridge.allocator.shelf import code_of
from embridge.pipeline.client.cache_memory import Bytes, fresh_memory
from embridge.pipeline.client.early_cache import EarlyItemCache
from embridge.pipeline.client.far_fetch import CopiedRows
from embridge.pipeline.client.shelf_doors import Reached, Recalled
from embridge.workers.timing import NS
from support.shelves import ShelfReaderOf

ADDRESS = "tcp://127.0.0.1:9"


class StubItem:
    """What a fetch has brought: as many bytes as the test says, all of one value."""

    def __init__(self, size: int, value: int) -> None:
        self._rows: CopiedRows | None = CopiedRows(ItemShape(1, 1, size, code_of("uint8"), size))
        self._rows.bytes[:] = value

    def copied(self, take: Callable[[int], Bytes] = fresh_memory) -> CopiedRows:
        """As of an item that is read in place."""
        assert self._rows is not None
        there = self._rows
        rows = CopiedRows(ItemShape(there.number, there.rows, there.width, there.dtype, len(there.bytes)), take)
        rows.bytes[:] = there.bytes
        return rows

    def __enter__(self) -> StubItem:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows = None


class StubFetch:
    """A fetch that asks for memory, comes, or fails when the test says so."""

    def __init__(self, key: str, address: str, admit: Callable[[int], bool]) -> None:
        self.key, self.address = key, address
        self.is_admitted = self.is_over = False
        self._admit = admit
        self._error: FetchError | None = None
        self._item: StubItem | None = None
        self._callbacks: list[Callable[[StubFetch], object]] = []

    def ask(self, size: int) -> bool:
        """Whether it has memory now."""
        assert not self.is_admitted
        self.is_admitted = self._admit(size)
        return self.is_admitted

    def come(self, size: int, value: int) -> None:
        assert self.is_admitted
        self._item = StubItem(size, value)
        self._end()

    def fail(self, error: FetchError) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        assert not self.is_over
        self.is_over = True
        for callback in self._callbacks:
            callback(self)

    def abort(self) -> None:
        if not self.is_over:
            self.fail(FetchFailed(self.key, "its fetch was given up"))

    def add_done_callback(self, callback: Callable[[StubFetch], object]) -> None:
        self._callbacks.append(callback)

    def exception(self) -> FetchError | None:
        return self._error

    def result(self) -> StubItem:
        assert self._item is not None
        return self._item


class StubDoor:
    """What looks after items that are read in place."""

    def __init__(self) -> None:
        self.lent: WeakSet[Recalled] = WeakSet()

    def lend(self, item: Recalled) -> None:
        self.lent.add(item)


class StubCache:
    """An `ItemCache` whose library thread is the test."""

    def __init__(self, max_bytes: int, *, shared: bool = False, shelf: ShelfReaderOf | None = None) -> None:
        """`shelf`: what it may read in place; then it is an early one."""
        self.now_ns = NS
        self.fetches: list[StubFetch] = []
        self.num_rung = 0
        turns: list[Callable[[], bool]] = []
        attachment = SimpleNamespace(
            check_attached=self._check,
            check_not_forked=self._check,
            is_closed=False,
            is_forked=False,
            request_timeout_s=10.0,
            clock=lambda: self.now_ns,
            user_bell=SimpleNamespace(ring=self._ring),
            control=SimpleNamespace(metrics=SimpleNamespace(count_for_client=lambda metric, count=1: None)),
        )
        self._attachment = attachment
        library: Any = SimpleNamespace(
            attachment=attachment, wake=self._wake, add_turn=lambda turn, end: turns.append(turn)
        )
        self.library, self._shelf = library, shelf
        self.door = StubDoor()
        fetching: Any = SimpleNamespace(fetch=self._fetch, reach=self._reach)
        self._is_awake = False
        self.cache = (
            EarlyItemCache(library, fetching, max_bytes, 0.0)
            if shelf is not None
            else ItemCache(library, fetching, max_bytes, 0.0, shared=shared)
        )
        [self._turn] = turns

    def fork(self) -> None:
        """From now on it is the copy in a forked child."""
        self._attachment.is_forked = True

    def _check(self) -> None:
        if self._attachment.is_forked:
            raise RuntimeError("a forked child")

    def _reach(self, key: str, address: str) -> Reached | None:
        assert self._shelf is not None
        try:
            pin = self._shelf.pin(key)
        except ValueError:  # it is no key
            return None
        return Reached(pin, self._shelf.part.where, ref(self.door)) if pin is not None else None

    def _ring(self) -> None:
        self.num_rung += 1

    def _wake(self) -> None:
        self._is_awake = True

    def _fetch(
        self, key: str, address: str, *, wait_s: float, admit: Callable[[int], bool], take: Callable[[int], Bytes]
    ) -> StubFetch:
        fetch = StubFetch(key, address, admit)
        self.fetches.append(fetch)
        return fetch

    def turn(self) -> None:
        """The library thread takes one turn."""
        self._is_awake = False
        assert not self._turn()

    def settle(self) -> None:
        """The library thread takes turns for as long as somebody wakes it."""
        for _ in range(100):
            if not self._is_awake:
                return
            self.turn()
        raise AssertionError("the cache does not settle")

    def under_way(self) -> list[StubFetch]:
        self.settle()
        return [fetch for fetch in self.fetches if not fetch.is_over]

    def fetch_of(self, key: str) -> StubFetch:
        [fetch] = [fetch for fetch in self.under_way() if fetch.key == key]
        return fetch

    def come(self, key: str, size: int, value: int | None = None) -> bool:
        """The fetch of a key asks for memory, and brings the item if it has it."""
        fetch = self.fetch_of(key)
        if not fetch.ask(size):
            return False
        fetch.come(size, ord(key) if value is None else value)
        self.settle()
        return True

    def is_ready(self, user: int, keys: str) -> bool:
        """As its engine asks, in each of its steps."""
        is_ready = self.cache.want(user, dict.fromkeys(keys, ADDRESS)).is_ready
        self.settle()
        return is_ready

    def value(self, user: int, key: str) -> int:
        """What the user reads."""
        read = np.frombuffer(self.cache.get(user, key).copied().bytes, np.uint8)
        assert read.min() == read.max()
        return int(read[0])
