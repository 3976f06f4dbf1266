"""What is published, followed between two whole nodes under a seed: whatever the network, the scheduling and the deaths
of processes do, who follows knows in the end what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.simulation import LIMITS, World
from support.simulation.scenario import FAULTS

from embridge import NoticeKind
from embridge.allocator.geometry import SHELF_BLOCK_BYTES, Geometry, Role
from embridge.pipeline.client.subscriptions import ItemNotice, Subscription
from embridge.workers.timing import NS

GEOMETRY = Geometry(hidden_size=16, block_size=4, num_blocks=6)
KEYS = "abcdef"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What roles say about the deaths that are made here is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Followed:
    """An encode node with a shelf that is short, a language node, and a client of each."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.rng
        limits = replace(LIMITS, shelf_bytes=4 * SHELF_BLOCK_BYTES)
        self.encode = world.node("encode", Role.ENCODE, GEOMETRY, node_id=1, limits=limits)
        language = world.node("language", Role.LANGUAGE, GEOMETRY, node_id=2)
        for node in (self.encode, language):
            node.new_client()
        self.publisher, self.reader = self.encode.clients[0], language.clients[0]
        self.followed: list[Subscription] = []
        self.heard: list[ItemNotice] = []
        self.num_due = 20
        self.reader.call(self._follow)
        for _ in range(self.num_due):
            world.after(self.rng.random() * 4, "", self._change)

    def _follow(self) -> None:
        self.followed.append(self.reader.client.subscribe(self.encode.own_addresses.bootstrap_addr))

    def _change(self) -> None:
        self.num_due -= 1
        key = self.rng.choice(KEYS)
        self.publisher.call(lambda: self._change_now(key))

    def _change_now(self, key: str) -> None:
        shelf = self.publisher.client.shelf
        if (drawn := self.rng.random()) < 0.1:
            shelf.clear()
        elif drawn < 0.3:
            shelf.unpublish(key)
        else:
            shelf.publish(key, torch.zeros(1, 8), replace=drawn < 0.7, ttl_s=None)

    def truth(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for it in self.encode.control.shelf.published():
            found[it.key] = max(found.get(it.key, 0), it.number)
        return found

    def is_known(self) -> bool:
        if self.num_due or not self.followed or self.world.now_ns < self.world.started_ns + 4 * NS:
            return False
        self.heard += self.followed[0].poll()
        return self.followed[0].is_whole and self.followed[0].keys() == self.truth()

    def replayed(self) -> dict[bytes, int]:
        """What somebody knows who has read the notices alone."""
        known: set[tuple[bytes, int]] = set()
        for kind, key, generation, _ in self.heard:
            if kind == NoticeKind.RESYNC:
                known.clear()
            elif kind == NoticeKind.PUBLISHED:
                known.add((key, generation))
            else:
                known.discard((key, generation))
        return {key: max(number for of, number in known if of == key) for key, _ in known}


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("seed", range(6))
def test_who_follows_knows_in_the_end_what_is_there(faults: str, seed: int) -> None:
    """R72 to R76, P11."""
    world = World(seed, faults=FAULTS[faults])
    try:
        it = Followed(world)
        world.run(it.is_known, limit_s=60)
        it.heard += it.followed[0].poll()
        assert it.replayed() == it.truth()
    finally:
        world.close()
