"""An item cache over real nodes: where items are read in place, and where they come as requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from support.fetching import no_door
from support.nodes import Station
from support.publishing import rows_of_version
from support.waiting import wait_until

from embridge import (
    CacheReader,
    Client,
    ItemCache,
    NotPublished,
    PublishStatus,
    RequestItems,
    WantStatus,
    attach,
)
from embridge.pipeline.client import shelf_doors
from embridge.pipeline.client.early_cache import EarlyItemCache

pytestmark = pytest.mark.process

ITEM_BYTES = rows_of_version(1).nbytes


@pytest.fixture(params=["in place", "from afar"])
def reader(language: Station, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    if request.param == "from afar":
        monkeypatch.setattr(shelf_doors, "knock", no_door)
    with attach(language.run_dir) as it:
        yield it


def has_all(cache: ItemCache, user: str, keys: str, addr: str) -> None:
    wait_until(lambda: cache.want(user, dict.fromkeys(keys, addr)).is_ready, 30)


def test_items_come_into_memory_of_this_process_and_their_node_may_evict_them(
    shelved: Station, publisher: Client, reader: Client
) -> None:
    """R65, R69, P5: nothing stays pinned, and what was admitted is there when its node has it no more."""
    for version, key in enumerate("abc", 1):
        publisher.publish(key, rows_of_version(version))
    cache = reader.item_cache(3 * ITEM_BYTES)
    has_all(cache, "one", "ab", shelved.addr)
    has_all(cache, "two", "bc", shelved.addr)
    wait_until(lambda: publisher.shelf.counts().pinned == 0)
    publisher.shelf.clear()
    for user, key, version in (("one", "a", 1), ("one", "b", 2), ("two", "b", 2), ("two", "c", 3)):
        item = cache.get(user, key)
        assert (item.where, item.shape, item.dtype) == ("host", (3, 40_000), "float32")
        assert torch.equal(item.rows, rows_of_version(version))
    assert cache.get("one", "b").rows.data_ptr() == cache.get("two", "b").rows.data_ptr()
    counts = cache.counts()
    assert (counts.items, counts.bytes, counts.misses, counts.shared + counts.hits) == (3, 3 * ITEM_BYTES, 3, 1)
    cache.end("one")
    answer = cache.want("three", {"d": shelved.addr})
    wait_until(lambda: cache.want("three", {"d": shelved.addr}).status == WantStatus.MISSED)
    assert answer.status == WantStatus.NOT_YET
    assert cache.want("one again", dict.fromkeys("ab", shelved.addr)).is_ready


def test_a_sleeping_engine_is_woken_when_a_user_has_all_its_items_or_is_told_of_a_miss(
    shelved: Station, publisher: Client, reader: Client
) -> None:
    """P8: and a user whose items wait for memory is admitted as soon as that is free."""
    for version, key in enumerate("abc", 1):
        publisher.publish(key, rows_of_version(version))
    cache = reader.item_cache(2 * ITEM_BYTES)
    for user, keys in (("one", "ab"), ("two", "bc")):
        begun = time.monotonic()
        while not cache.want(user, dict.fromkeys(keys, shelved.addr)).is_ready:
            reader.wait(20)
            reader.poll()
            assert time.monotonic() - begun < 15, cache.counts()
        if user == "one":
            assert not cache.want("two", dict.fromkeys("bc", shelved.addr)).is_ready
            cache.end("one")
    answer = cache.want("three", {"never": shelved.addr})
    while answer.status == WantStatus.NOT_YET:
        reader.wait(20)
        reader.poll()
        answer = cache.want("three", {"never": shelved.addr})
    assert [type(error) for error in answer.errors.values()] == [NotPublished]
    assert cache.counts().waiting == 1


def test_an_item_that_is_published_late_is_waited_for(shelved: Station, publisher: Client, reader: Client) -> None:
    cache = reader.item_cache(2 * ITEM_BYTES, wait_s=30)
    assert not cache.want("one", {"l": shelved.addr}).is_ready
    publisher.publish("l", rows_of_version(7))
    has_all(cache, "one", "l", shelved.addr)
    assert torch.equal(cache.get("one", "l").rows, rows_of_version(7))


def test_a_client_that_leaves_ends_its_cache_and_views_stay(
    shelved: Station, publisher: Client, language: Station
) -> None:
    with attach(language.run_dir) as reader:
        publisher.publish("a", rows_of_version(1))
        cache = reader.item_cache(2 * ITEM_BYTES)
        has_all(cache, "one", "a", shelved.addr)
        rows = cache.get("one", "a").rows
        cache.want("two", {"b": "tcp://127.0.0.1:1"})
    assert torch.equal(rows, rows_of_version(1))
    with pytest.raises(RuntimeError):
        cache.want("one", {"a": shelved.addr})
    with pytest.raises(ValueError, match="does not have it"):
        cache.get("one", "a")
    cache.end("one")
    assert cache.counts().items == 0
    assert publisher.shelf.counts().pinned == 0


def test_a_cache_is_a_language_node_s(publisher: Client, language: Station) -> None:
    with pytest.raises(ValueError, match="language"):
        publisher.item_cache(100)
    with attach(language.run_dir) as reader, pytest.raises(ValueError, match="wait_s"):
        reader.item_cache(100, wait_s=-1)


def test_a_request_has_what_lies_on_a_shelf_of_this_host_at_once_and_workers_load_it_there(
    shelved: Station, publisher: Client, language: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R64, R69, R70: it stays, whatever its node does, until it was read, or copied."""
    with attach(language.run_dir) as reader:
        items = RequestItems(lambda: reader, 3 * ITEM_BYTES, encoders=["tcp://127.0.0.1:*"])

        def is_ready(request: str) -> bool:
            is_here = items.ask(request, {"a": shelved.addr}).is_ready
            items.hasten()
            return is_here

        publisher.publish("a", rows_of_version(1))
        wait_until(lambda: is_ready("one"), 30)  # which opens the shelf
        with monkeypatch.context() as patch:
            patch.setattr(EarlyItemCache, "_copy_next", lambda cache: False)
            publisher.publish("b", rows_of_version(2))
            assert items.ask("two", {"b": shelved.addr}).is_ready
            held = items.find("b", "two")
            assert held is not None
            items.add("b", held)
            told = items.tell()
            assert told.rows["b"].pin is not None
            items.end("two")
            del held
            publisher.shelf.clear()
            assert publisher.publish("c", rows_of_version(3)).status == PublishStatus.READY
            assert torch.equal(CacheReader().load(told.rows["b"], "cpu"), rows_of_version(2))
        items.has_read(told.step)
        assert items.take_counts()["load_bytes"] == ITEM_BYTES
        wait_until(lambda: publisher.shelf.counts().pinned == 0)
        assert items.ask("three", {"b": shelved.addr}).is_ready  # from memory of the cache
        held = items.find("b", "three")
        assert held is not None
        assert torch.equal(CacheReader().load(held.lent.at, "cpu"), rows_of_version(2))
