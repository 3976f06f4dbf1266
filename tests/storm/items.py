"""Published items in a storm: encoders publish, schedulers fetch, in place and as from another host, and check every
byte; some are given up, some that fail on their way are retried, and some are looked at once more later.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import torch

from embridge import Client, Fetch, FetchError, Item
from embridge.allocator.errors import NodeGoneError
from embridge.pipeline.client.shelf_doors import Elsewhere, ShelfDoor, ShelfDoors
from storm.history import Recorder

SHELF_BYTES: Final = 1 << 20
KEYS: Final = 12  # with their sizes some more than the shelf holds
PUBLISH_S: Final = 0.03  # from one publication to the next, of each encoder
FETCH_S: Final = 0.01  # from one fetch to the next, of each scheduler, at least
IN_FLIGHT: Final = 3  # fetches of each scheduler
KEEP_S: Final = 0.3
GIVEN_UP: Final = 1 / 12
FAR: Final = 1 / 2  # of the looks at a door that is open
RARE: Final = ("NotPublished", "Busy", "GenerationGone")
"""Errors that may always be: the item was evicted, or there was no slot."""


def rows_of(key: int, version: int) -> torch.Tensor:
    """(rows, width) that say what they are, of a size that the key decides: 64 bytes to 512 KiB."""
    size = 16 << (key * 13 // (KEYS - 1))
    rows = torch.arange(size, dtype=torch.int32) * 31 + version
    rows[0], rows[1] = key, version
    return rows.view(-1, 16)


def difference(item: Item, key: int) -> str:
    """What is wrong with an item; empty if nothing is."""
    rows = item.rows
    found, version = int(rows.flatten()[0]), int(rows.flatten()[1])
    if found != key:
        return f"item {key}: it has the rows of {found}"
    wanted = rows_of(key, version)
    if rows.shape != wanted.shape or not torch.equal(rows, wanted):
        return f"item {key}: not all of its rows are of version {version}"
    return ""


class Publishing:
    """What an encoder publishes."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._rng = random.Random(name)
        self._versions = itertools.count(self._rng.randrange(1 << 20))
        self._next = 0.0
        self._first = list(range(KEYS))  # each of them soon

    def step(self, now: float) -> None:
        if now < self._next:
            return
        self._next = now + PUBLISH_S
        key = self._first.pop() if self._first else self._rng.randrange(KEYS)
        with contextlib.suppress(NodeGoneError):
            self._client.publish(f"{key}", rows_of(key, next(self._versions)), replace=self._rng.random() < 0.7)


@dataclass(slots=True)
class Fetching:
    """A fetch that is under way."""

    number: int
    key: int
    addr: str
    fetch: Fetch
    abort_at: float | None


class Fetches:
    """What a scheduler fetches, from the addresses at which encode nodes are or were."""

    _numbers = itertools.count(1)

    def __init__(self, client: Client, name: str, deadline_s: float, note: Recorder) -> None:
        self._client, self._name, self._note, self._deadline_s = client, name, note, deadline_s
        self._rng = random.Random(name)
        self._under_way: list[Fetching] = []
        self._kept: deque[tuple[float, int, Item]] = deque()
        self._addr = ""
        self._next = 0.0
        some_are_far(self._rng)

    def met(self, addr: str) -> None:
        """An encode node is at this address now."""
        self._addr = addr

    def __len__(self) -> int:
        return len(self._under_way)

    def step(self, now: float) -> None:
        for it in list(self._under_way):
            if it.abort_at is not None and now >= it.abort_at:
                it.fetch.abort()
            if it.fetch.poll():
                self._under_way.remove(it)
                self._end(it, now)
        while self._kept and self._kept[0][0] <= now:
            _, key, item = self._kept.popleft()
            if wrong := difference(item, key):
                self._note("fetched", number=0, client=self._name, where=item.where, error="", difference=wrong)
        if now >= self._next and self._addr and len(self._under_way) < IN_FLIGHT and not self._client.node_gone:
            self._next = now + FETCH_S
            self._begin(now)

    def _begin(self, now: float) -> None:
        key = self._rng.randrange(KEYS)
        with contextlib.suppress(NodeGoneError):
            fetch = self._client.fetch(f"{key}", self._addr, deadline_s=self._deadline_s)
            self._enter(now, key, self._addr, fetch)

    def _enter(self, now: float, key: int, addr: str, fetch: Fetch) -> None:
        abort_at = now + self._rng.random() / 20 if self._rng.random() < GIVEN_UP else None
        it = Fetching(next(self._numbers), key, addr, fetch, abort_at)
        self._note("fetch", number=it.number, client=self._name, key=key, addr=addr, deadline_s=self._deadline_s)
        self._under_way.append(it)

    def _end(self, it: Fetching, now: float) -> None:
        error, fields = it.fetch.exception(), dict[str, Any](where="", error="", reason="", difference="")
        if error is None:
            item = it.fetch.result()
            fields |= {"where": item.where, "difference": difference(item, it.key)}
            if it.number % 3 == 0:
                self._kept.append((now + KEEP_S, it.key, item))
        else:
            fields |= self._failed(it, error, now)
        self._note("fetched", number=it.number, client=self._name, **fields)

    def _failed(self, it: Fetching, error: FetchError, now: float) -> dict[str, Any]:
        given_up = it.abort_at is not None and "was given up" in error.reason
        kept = it.fetch.kept_bytes
        if kept and not self._client.node_gone:
            with contextlib.suppress(NodeGoneError):
                self._enter(now, it.key, it.addr, it.fetch.retry(deadline_s=self._deadline_s))
        return {"error": "given up" if given_up else type(error).__name__, "reason": error.reason, "kept": kept}


def some_are_far(rng: random.Random) -> None:
    """In this process, some looks at a door that is open find that its node is on another host."""
    find = ShelfDoors.find
    if getattr(find, "is_some", False):
        return

    def find_some(doors: ShelfDoors, address: str) -> ShelfDoor | Elsewhere | str | None:
        found = find(doors, address)
        return Elsewhere.FAR if isinstance(found, ShelfDoor) and rng.random() < FAR else found

    find_some.is_some = True  # type: ignore[attr-defined]
    ShelfDoors.find = find_some  # type: ignore[assignment, method-assign]
