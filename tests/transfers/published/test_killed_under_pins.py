"""An encode node that is killed while an engine's cache has pinned items on its shelf, and has yet to copy them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from support.fetching import shelf_node
from support.nodes import Station
from support.publishing import rows_of_version
from support.remains import alive
from support.waiting import wait_until

from embridge import CacheReader, HeldItem, RequestItems, WantStatus, attach
from embridge.pipeline.client.cache_memory import Bytes
from embridge.pipeline.client.early_cache import EarlyItemCache

pytestmark = pytest.mark.process

ITEM_BYTES = rows_of_version(1).nbytes


class Engine:
    """A scheduler's side of an engine, whose worker is the test."""

    def __init__(self, items: RequestItems, addr: str) -> None:
        self.items, self._addr = items, addr

    def status(self, request: str, keys: str) -> WantStatus:
        answer = self.items.ask(request, dict.fromkeys(keys, self._addr)).status
        self.items.hasten()
        return answer

    def becomes(self, status: WantStatus, request: str, keys: str) -> None:
        wait_until(lambda: self.status(request, keys) == status, 30)

    def held(self, request: str, key: str) -> HeldItem:
        found = self.items.find(key, request)
        assert found is not None
        return found

    def loads(self, request: str, key: str, version: int) -> None:
        rows = CacheReader().load(self.held(request, key).lent.at, "cpu")
        assert torch.equal(rows, rows_of_version(version)), (key, rows[0, 0])


def test_what_was_pinned_is_loaded_and_copied_as_if_its_node_lived(
    language: Station, own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R64, R69, R87, P4, D3: killed in the midst of the first copy, with the others to come; what is not pinned fails
    at once, and the node that takes its place is another one.
    """
    with attach(language.run_dir) as reader:
        with shelf_node(own_dir / "e") as node:
            engine = Engine(RequestItems(lambda: reader, 4 * ITEM_BYTES, encoders=["tcp://127.0.0.1:*"]), node.addr)
            with attach(node.run_dir) as publisher, monkeypatch.context() as patch:
                publisher.publish("a", rows_of_version(1))
                engine.becomes(WantStatus.READY, "one", "a")  # which opens the shelf
                engine.items.end("one")
                patch.setattr(EarlyItemCache, "_copy_next", lambda cache: False)
                for version, key in enumerate("bc", 2):
                    publisher.publish(key, rows_of_version(version))
                engine.becomes(WantStatus.READY, "two", "bc")
                for key in "bc":
                    engine.items.add(key, engine.held("two", key))
                told = engine.items.tell().rows
                assert all(at.pin is not None for at in told.values())
                cache = engine.items._caches.last
                assert isinstance(cache, EarlyItemCache)
                take, pids = cache._take_bytes, list(node.pids().values())

                def killing(size: int) -> Bytes:
                    with contextlib.suppress(ProcessLookupError):
                        node.kill_group()
                    return take(size)

                cache._take_bytes = killing  # before the library thread may copy
            wait_until(lambda: all(engine.held("two", key).lent.at.pin is None for key in "bc"), 30)
            wait_until(lambda: not alive(pids), 10)
            for version, key in enumerate("bc", 2):
                engine.loads("two", key, version)  # the copy
                assert torch.equal(CacheReader().load(told[key], "cpu"), rows_of_version(version))  # under the pin
            port = int(node.addr.rpartition(":")[2])
            engine.becomes(WantStatus.MISSED, "three", "d")
        cache._take_bytes = take
        with shelf_node(own_dir / "e", bootstrap_port=port) as second, attach(second.run_dir) as publisher:
            for key in "bd":
                publisher.publish(key, rows_of_version(9))
            wait_until(lambda: engine.status("four", "d") == WantStatus.READY, 30, second.log)
            engine.loads("four", "d", 9)
            assert engine.status("five", "b") == WantStatus.READY
            engine.loads("five", "b", 2)  # from the cache, whose items are not asked for again
            assert torch.equal(CacheReader().load(told["b"], "cpu"), rows_of_version(2))
            engine.items.has_read(1)
            assert engine.items.take_counts()["load_bytes"] == 2 * ITEM_BYTES
