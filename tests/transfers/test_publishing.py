"""Publishing on an encode node's shelf: what becomes of it, what stays, and what a dead publisher leaves."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import publishing
from support.agents import Agent, running
from support.nodes import LIMITS, Station, station
from support.publishing import rows_of_version
from support.waiting import wait_until

from embridge import Client, LaunchError, NodeGoneError, attach, launch
from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.allocator.records import NodeState, SegmentHeader
from embridge.allocator.shelf import DTYPE_BYTES, ShelfCounts
from embridge.pipeline.cli import main
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.publishing import PublishStatus, WhyDropped
from embridge.pipeline.config import PipelineConfig
from embridge.pipeline.inspection.node_status import node_status

pytestmark = pytest.mark.process

NUM_BLOCKS = 32
READY, ALREADY, FILLING, DROPPED = PublishStatus


@pytest.fixture(scope="module")
def shelved(shared_dir: Path) -> Iterator[Station]:
    """An encode node with a shelf of 2 MiB."""
    limits = replace(LIMITS, shelf_bytes=NUM_BLOCKS * SHELF_BLOCK_BYTES)
    with station("encode", shared_dir / "shelved", limits=limits) as it:
        yield it


@pytest.fixture
def client(shelved: Station) -> Iterator[Client]:
    with attach(shelved.run_dir) as it:
        it.shelf.clear()
        yield it
        it.shelf.clear()
        assert is_empty(it.shelf.counts())


@pytest.fixture
def agent(shelved: Station) -> Iterator[Agent]:
    with running("publisher") as it:
        it.call(publishing.join, shelved.run_dir)
        yield it


def is_empty(counts: ShelfCounts) -> bool:
    return not (counts.items or counts.filling or counts.retired)


# ---- what becomes of it


def test_what_is_published_is_there_and_can_be_replaced_and_taken_away(client: Client) -> None:
    """R47, P22: the rows are the caller's again."""
    rows = rows_of_version(1)
    first = client.publish("cat", rows)
    rows.fill_(99.0)
    assert first.status == READY
    assert client.publish("cat", rows) == (ALREADY, first.generation, WhyDropped.NOTHING, 0)
    second = client.publish("cat", rows_of_version(2), replace=True)
    assert second.status == READY
    assert client.shelf.contains("cat") == second.generation > first.generation
    (item,) = client.shelf.published()
    assert item == (b"cat", second.generation, 3, 40_000, "float32", 480_000)
    assert client.shelf.counts().bytes == 480_000
    assert client.shelf.unpublish("cat") == 1
    assert client.shelf.contains("cat") == 0
    assert client.shelf.published() == []


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_rows_of_any_dtype_and_shape(client: Client, dtype: str) -> None:
    kind = getattr(torch, dtype)
    rows = torch.arange(2 * 3 * 5).reshape(2, 3, 5).to(kind)
    assert client.publish(b"\xff\0", rows).status == READY
    (item,) = client.shelf.published()
    assert (item.key, item.rows, item.width, item.dtype) == (b"\xff\0", 2, 15, dtype)
    with client.shelf.publishing("there", 2, 15, dtype) as it:
        assert it.rows.dtype == kind


def test_arrays_and_rows_that_are_no_run_of_memory(client: Client) -> None:
    assert client.publish("a", np.ones((3, 4), np.int64)[:, ::2]).status == READY
    assert client.publish("b", torch.ones(4, 6).t()).status == READY
    shapes = {(item.rows, item.width, item.dtype) for item in client.shelf.published()}
    assert shapes == {(3, 2, "int64"), (6, 4, "float32")}


def test_arrays_that_are_read_only_or_lie_in_another_order(client: Client) -> None:
    """P22: torch itself takes none of them, or warns."""
    fixed = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    fixed.flags.writeable = False
    shelf = library_of(client).attachment.shelf
    assert shelf is not None
    there = torch.frombuffer(shelf, dtype=torch.float32)
    for rows in (fixed, fixed[::-1].copy()[::-1], fixed.astype(">f4")):
        there.zero_()
        with warnings.catch_warnings(action="error"):
            assert client.publish("cat", rows, replace=True).status == READY
        assert there[there != 0].tolist() == list(range(1, 13))


@pytest.mark.parametrize(
    ("key", "rows", "why"),
    [
        ("k" * 257, torch.ones(1, 1), "257 bytes is outside 1 to 256"),
        ("", torch.ones(1, 1), "0 bytes is outside"),
        (7, torch.ones(1, 1), "neither str nor bytes"),
        ("\udc80", torch.ones(1, 1), "is no text"),
        ("k", torch.ones(0, 4), "has no rows"),
        ("k", torch.tensor(1.0), "has no rows"),
        ("k", torch.ones(1, 1, dtype=torch.complex64), "dtype: 'complex64' is unknown"),
        ("k", np.array([["a"]]), "dtype: 'str32' is unknown"),
        ("k", torch.ones(2, 2, device="meta"), "rows: a meta tensor, which has no data"),
        ("k", torch.ones(2, 2).to_sparse(), "rows: a tensor of layout torch.sparse_coo"),
        ("k", torch.nested.nested_tensor([torch.ones(2, 2)] * 2, layout=torch.jagged), "rows: a nested tensor"),
        ("k", [[1.0]], "list is neither a tensor nor an array"),
    ],
)
def test_what_cannot_be_published_is_refused(client: Client, key: Any, rows: Any, why: str) -> None:
    """D9."""
    with pytest.raises(ValueError, match=why):
        client.publish(key, rows)
    with pytest.raises(ValueError, match="ttl_s"):
        client.publish("k", torch.ones(1, 1), ttl_s=0)


def test_the_least_recently_published_go_and_nothing_waits_or_raises(client: Client) -> None:
    """P12, R49: four items of eight blocks fit."""
    results = [client.publish(f"{number}", rows_of_version(number)) for number in range(6)]
    assert [it.status for it in results] == [READY] * 6
    assert [it.evicted for it in results] == [0, 0, 0, 0, 1, 1]
    assert [bool(client.shelf.contains(f"{number}")) for number in range(6)] == [False] * 2 + [True] * 4
    large = client.publish("large", torch.ones(NUM_BLOCKS + 1, SHELF_BLOCK_BYTES // 4))
    assert (large.status, large.why, large.evicted) == (DROPPED, WhyDropped.TOO_LARGE, 0)
    assert client.shelf.counts().items == 4


def test_a_replacing_publication_that_is_too_large_leaves_no_older_one(client: Client) -> None:
    """R47."""
    client.publish("cat", rows_of_version(1))
    large = torch.ones(NUM_BLOCKS + 1, SHELF_BLOCK_BYTES // 4)
    assert client.publish("cat", large, replace=True).why == WhyDropped.TOO_LARGE
    assert client.shelf.contains("cat") == 0


def test_what_has_been_cleared_does_not_come_back(client: Client) -> None:
    """R48: neither what was there, nor what is being made."""
    client.publish("old", rows_of_version(1))
    with client.shelf.publishing("making", 1, 1, "int8") as it:
        floor = client.shelf.clear()
    assert it.result.status == READY
    assert (client.shelf.contains("old"), client.shelf.contains("making")) == (0, 0)
    assert client.publish("old", rows_of_version(2)).generation > floor


def test_an_item_with_an_end_is_seen_until_then(client: Client) -> None:
    client.publish("brief", rows_of_version(1), ttl_s=0.05)
    wait_until(lambda: not client.shelf.contains("brief"), 10.0, lambda: "it has an end")
    assert client.publish("brief", rows_of_version(2)).status == READY


# ---- rows that are made in place


def test_rows_that_are_made_in_place_are_shown_at_the_end_of_the_block(client: Client) -> None:
    """R40."""
    with client.shelf.publishing("cat", 3, 4, "float32") as it:
        with pytest.raises(ValueError, match="no result before the end"):
            _ = it.result
        it.rows.fill_(1.0)
        assert client.shelf.contains("cat") == 0
        assert client.publish("cat", rows_of_version(1)).status == FILLING
    assert it.result.generation == client.shelf.contains("cat")
    with client.shelf.publishing("cat", 3, 4, "float32") as it:
        assert it.result.status == ALREADY
        it.rows.fill_(2.0)


def test_rows_whose_making_fails_leave_nothing(client: Client) -> None:
    """R49; and a replacing one retires the older one all the same (R47)."""
    client.publish("cat", rows_of_version(1))

    def make() -> None:
        with client.shelf.publishing("cat", 3, 4, "float32", replace=True):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make()
    assert client.shelf.contains("cat") == 0
    assert is_empty(client.shelf.counts())


def test_a_client_that_leaves_while_it_makes_rows_writes_to_nobodys_memory(shelved: Station, client: Client) -> None:
    """R45, P7: the views are its own from then on, and the room is another's."""
    leaving = attach(shelved.run_dir)
    making = leaving.shelf.publishing("cat", 3, 40_000, "float32")
    it = making.__enter__()
    leaving.close()
    wait_until(lambda: not client.shelf.counts().filling, 10.0, lambda: f"{client.shelf.counts()}")
    for number in range(4):
        client.publish(f"{number}", rows_of_version(number))
    it.rows.fill_(5.0)
    shelf = library_of(client).attachment.shelf
    assert shelf is not None
    assert not (torch.frombuffer(shelf, dtype=torch.float32) == 5.0).any()
    with pytest.raises(RuntimeError, match="closed"):
        making.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="closed"):
        leaving.publish("cat", rows_of_version(1))


def test_a_node_that_goes_while_a_publication_begins_is_said_to_be_gone(
    shelved: Station, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: its memory may have been let go of by the library thread since the look at it."""
    with attach(shelved.run_dir) as mine:
        attachment, table = library_of(mine).attachment, mine.shelf._table
        core = table.core

        def begin(*given: Any) -> Any:
            answer = core.begin(*given)
            attachment.node_gone = True
            assert attachment.shelf is not None
            attachment.shelf.discard()
            return answer

        monkeypatch.setitem(vars(table), "core", SimpleNamespace(begin=begin, drop=core.drop, show=core.show))
        with pytest.raises(NodeGoneError, match="is gone"):
            mine.publish("cat", rows_of_version(1))
        attachment.node_gone = False
    wait_until(lambda: not client.shelf.counts().filling, 10.0, lambda: f"{client.shelf.counts()}")


# ---- who dies


@pytest.mark.parametrize("nth", [0, 1, 2, 3, 10, 11, 12, 13, 14, 15])
def test_a_publisher_that_is_killed_leaves_its_item_or_nothing(
    shelved: Station, client: Client, agent: Agent, nth: int
) -> None:
    """P1, R44, R45, of a "dead encoder client": its entry and its blocks are another's within the time of a burial."""
    lane = agent.call(publishing.join, shelved.run_dir)
    agent.call(publishing.publish, "old", 1)
    agent.call(publishing.die_at, nth)
    agent.start(publishing.publish, "old", 2)
    agent.process.join(30)
    wait_until(lambda: lane not in shelved.dead_lanes() and not client.shelf.counts().filling, 10.0, shelved.log)
    for number in range(4):
        assert client.publish(f"{number}", rows_of_version(number)).status == READY
    assert client.shelf.counts().bytes == 4 * 480_000


def test_a_publisher_that_stands_still_keeps_one_item_and_stops_nobody(client: Client, agent: Agent) -> None:
    """R49, P21."""
    agent.call(publishing.begin, "cat")
    results = [client.publish(f"{number}", rows_of_version(number)) for number in range(6)]
    assert [it.status for it in results] == [READY] * 6
    assert client.shelf.counts().filling_bytes == 480_000
    assert client.publish("cat", rows_of_version(1)).status == FILLING
    assert client.publish("cat", rows_of_version(1), replace=True).status == READY
    agent.kill()
    wait_until(lambda: not client.shelf.counts().filling, 10.0, lambda: f"{client.shelf.counts()}")


def test_several_publish_at_once(client: Client, shelved: Station) -> None:
    """P6, R47: of one key the newest is there, once."""
    faults: list[object] = []

    def publish(number: int) -> None:
        with attach(shelved.run_dir) as mine:
            for turn in range(20):
                result = mine.publish("cat", rows_of_version(turn), replace=True)
                if result.status != READY and result.why != WhyDropped.NO_ROOM:
                    faults.append(result)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert client.shelf.counts().items == 1


def test_status_shows_what_lies_on_the_shelf(client: Client, shelved: Station) -> None:
    """It is looked at read-only."""
    client.publish("cat", rows_of_version(1))
    status = node_status(shelved.run_dir)
    assert (status["shelf"]["items"], status["shelf"]["bytes"]) == (1, 480_000)
    assert status["shelf"]["size_bytes"] == NUM_BLOCKS * SHELF_BLOCK_BYTES
    assert status["metrics"]["clients"]["published"] >= 1
    done = CliRunner().invoke(main, ["status", "--run-dir", str(shelved.run_dir)])
    assert "480000" in done.output


# ---- nodes without


def test_a_node_without_a_shelf_says_how_to_have_one(encode: Station, language: Station) -> None:
    """P13."""
    for it in (encode, language):
        with attach(it.run_dir) as client:
            with pytest.raises(ValueError, match="has none; launch an encode node with --shelf-bytes"):
                client.publish("cat", rows_of_version(1))
            with pytest.raises(ValueError, match="has none"):
                _ = client.shelf


def test_a_shelf_that_does_not_fit_is_said_at_the_start(own_dir: Path) -> None:
    """P13."""
    limits = replace(LIMITS, shelf_bytes=1 << 40)
    with pytest.raises(LaunchError, match=r"\+ 1048576.0 MiB shelf .*or shelf_bytes \(--shelf-bytes\)"):
        launch(PipelineConfig(role="encode", run_dir=own_dir / "e", limits=limits))


def test_a_node_that_drains_publishes_nothing_more(own_dir: Path) -> None:
    """P18; and what would replace an older item takes that away (R47)."""
    limits = replace(LIMITS, shelf_bytes=1 << 20)
    with station("encode", own_dir / "e", limits=limits) as it, attach(it.run_dir) as client:
        assert client.publish("cat", rows_of_version(1)).status == READY
        it.control.header.store(SegmentHeader.NODE_STATE, NodeState.DRAINING)
        assert client.publish("dog", rows_of_version(1)) == (DROPPED, 0, WhyDropped.DRAINING, 0)
        assert client.shelf.contains("cat")
        client.publish("cat", rows_of_version(2), replace=True)
        assert not client.shelf.contains("cat")
