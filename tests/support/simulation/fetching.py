"""What whole nodes are given to do with published items: publications, evictions and fetches, drawn by the seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import torch

from embridge.allocator.errors import FetchError, GenerationGone, NotPublished
from embridge.allocator.geometry import SHELF_BLOCK_BYTES, Geometry, Role
from embridge.pipeline.client.client import Client
from embridge.pipeline.client.fetch import Fetch
from embridge.pipeline.client.publishing import PublishStatus
from embridge.workers.timing import NS
from support.simulation.node import SimulatedNode
from support.simulation.processes import ClientActor
from support.simulation.settings import LIMITS
from support.simulation.world import World

GEOMETRY: Final = Geometry(hidden_size=16, block_size=4, num_blocks=6)
KEYS: Final = "abc"
LIMIT_S: Final = 400.0
ROOMY, SHORT = 16, 2  # blocks of a shelf, of which each item takes one
MANY: Final = 25
KINDS: Final = ("none", "evictions", "aborts", "readers", "publishers", "languages", "retries")


class Fetches:
    """An encode node with a shelf, a language node on another host, and their clients; one kind of disturbance."""

    def __init__(self, world: World, kind: str) -> None:
        self.world, self.rng, self.kind = world, world.rng, kind
        blocks = SHORT if kind == "evictions" else ROOMY
        limits = replace(LIMITS, shelf_bytes=blocks * SHELF_BLOCK_BYTES)
        self.encode = world.node("encode", Role.ENCODE, GEOMETRY, node_id=1, limits=limits)
        self.language = world.node("language", Role.LANGUAGE, GEOMETRY, node_id=2)
        self.published: dict[tuple[str, int], int] = {}  # (key, generation) -> version
        self.version = 0
        self.fetches: dict[Fetch, ClientActor] = {}
        self.num_items = self.kept_bytes = 0
        self.given_up: set[Fetch] = set()
        self.publisher, self.reader = self._client(self.encode), self._client(self.language)
        self.num_due = 0
        for key in KEYS:
            self._publish(key)
        for _ in range(self.rng.randint(2, 10)):
            self._at(self._fetch)
        for _ in range(self.rng.randint(0, 8)):
            self._at(self._publish)
        getattr(self, f"_plan_{kind}")()

    def _client(self, node: SimulatedNode) -> ClientActor:
        node.new_client()
        return node.clients[-1]

    def _at(self, call: object, earliest_s: float = 0.0) -> None:
        assert callable(call)
        self.num_due += 1

        def due() -> None:
            self.num_due -= 1
            call()

        self.world.after(earliest_s + self.rng.random(), "", due)

    # ---- what they do

    def _publish(self, key: str = "") -> None:
        key = key or self.rng.choice(KEYS)
        self.version += 1
        version, replaces = self.version, self.rng.random() < 0.7
        self.publisher.call(partial(self._publish_now, key, version, replaces))

    def _publish_now(self, key: str, version: int, replaces: bool) -> None:
        result = self.publisher.client.publish(key, self._rows_of(version), replace=replaces)
        if result.status == PublishStatus.READY:
            self.published[key, result.generation] = version

    def _rows_of(self, version: int) -> torch.Tensor:
        """(rows, width) of a version, whose bytes end somewhere in a row of the nodes' own; where fetches are given up
        and retried, so many that they come in a good number of rounds.
        """
        num_rows, width = version % 5 + 1, 7 * (version % 13) + 3
        num_rows *= MANY if self.kind == "retries" else 1
        return (torch.arange(num_rows * width) * 31 + version).to(torch.int16).view(num_rows, width)

    def _fetch(self) -> None:
        key, reader = self.rng.choice(KEYS), self.reader
        generation = self.rng.choice([0, 0, 0, *(number for name, number in self.published if name == key)])
        reader.call(partial(self._fetch_now, reader, key, generation))

    def _fetch_now(self, reader: ClientActor, key: str, generation: int) -> None:
        client: Client = reader.client
        fetch = client.fetch(key, self.encode.own_addresses.bootstrap_addr, generation=generation)
        self.fetches[fetch] = reader

    # ---- what disturbs them

    def _plan_none(self) -> None:
        pass

    _plan_evictions = _plan_none

    def _plan_aborts(self) -> None:
        for _ in range(4):
            self._at(self._abort)

    def _abort(self) -> None:
        waiting = [fetch for fetch in self.fetches if not fetch.is_done]
        if waiting:
            fetch = self.rng.choice(waiting)
            self.given_up.add(fetch)
            self.fetches[fetch].call_beside(fetch.abort)

    def _plan_retries(self) -> None:
        """A fetch is given up, and another one goes on behind what has come of it (R57)."""
        for _ in range(8):
            self._at(self._retry)

    def _retry(self) -> None:
        waiting = [fetch for fetch in self.fetches if not fetch.is_done]
        if waiting:
            fetch = self.rng.choice(waiting)
            reader = self.fetches[fetch]
            self.given_up.add(fetch)
            reader.call_beside(partial(self._retry_now, fetch, reader))

    def _retry_now(self, fetch: Fetch, reader: ClientActor) -> None:
        fetch.abort()
        if fetch.exception() is not None:
            self.kept_bytes += fetch.kept_bytes
            self.fetches[fetch.retry()] = reader

    def _plan_readers(self) -> None:
        """The client that fetches dies, at any change of shared memory; another takes its seat."""
        self.reader.fuse.left = self.rng.randint(1, 200)
        dies = self.reader
        self.world.after(1.5, "it is dead by now", dies.die)
        self.world.after(3.0, "another reader", self._next_reader)

    def _next_reader(self) -> None:
        self.reader = self._client(self.language)
        for _ in range(3):
            self._at(self._fetch)

    def _plan_publishers(self) -> None:
        """What is published stays when its publisher is dead."""
        self.world.after(self.rng.random(), "the publisher dies", self.publisher.die)

    def _plan_languages(self) -> None:
        """The language node is gone, and comes again."""
        self.world.after(0.2 + self.rng.random(), "the language node is gone", self._lose_language)

    def _lose_language(self) -> None:
        for fetch in [fetch for fetch, reader in self.fetches.items() if reader in self.language.clients]:
            del self.fetches[fetch]
        self.world.close_node(self.language)
        self.language = self.world.node("language", Role.LANGUAGE, GEOMETRY, node_id=2, incarnation=2)
        self._next_reader()

    # ---- how it ends

    def run(self) -> None:
        self.world.run(self._is_over, limit_s=LIMIT_S)
        for fetch, reader in self.fetches.items():
            if not reader.is_dead:
                self._check(fetch)
        self.world.run(self._is_clean, limit_s=LIMIT_S)

    def _is_over(self) -> bool:
        is_done = all(fetch.is_done or reader.is_dead for fetch, reader in self.fetches.items())
        return not self.num_due and is_done and self.world.now_ns > self.world.started_ns + 4 * NS

    def _is_clean(self) -> bool:
        """Nothing is open, and nothing is pinned on the shelf (R53, R55, R56)."""
        lanes, shelf = self.encode.control.lanes, self.encode.control.shelf
        return self.world.is_clean() and not shelf.counts().pinned and not lanes.pages_of(lanes.own_lane)

    def _check(self, fetch: Fetch) -> None:
        """P6: the very bytes of one publication of its key, the one that it names; or an error that may be."""
        error = fetch.exception()
        if error is not None:
            assert self._may_be(fetch, error), f"{fetch.key!r}: {error!r}"
            return
        with fetch.result() as item:
            assert isinstance(item.key, str)
            version = self.published[item.key, item.generation]
            assert torch.equal(item.rows, self._rows_of(version)), f"{item.key}: not version {version}"
            assert fetch.generation in (0, item.generation)
            self.num_items += 1

    def _may_be(self, fetch: Fetch, error: FetchError) -> bool:
        if isinstance(error, GenerationGone):
            return fetch.generation > 0
        if isinstance(error, NotPublished):
            return self.kind == "evictions"
        if self.kind == "languages" and "is lost" in error.reason:  # what went to the node before may have been late
            return True
        return fetch in self.given_up

