"""Readers of published items that leave, stop or die, and nodes that die under them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import fetching
from support.agents import Agent, running
from support.fetching import fetched, is_all, shelf_node
from support.nodes import Station
from support.publishing import rows_of_version
from support.waiting import wait_until

from embridge import Client, FetchFailed, NotPublished, PublishStatus, attach

pytestmark = pytest.mark.process


@pytest.fixture
def agent(language: Station) -> Iterator[Agent]:
    with running("reader") as it:
        it.call(fetching.join, language.run_dir)
        yield it


def test_views_outlive_their_client_and_keep_their_place(
    shelved: Station, publisher: Client, language: Station
) -> None:
    """R63: the node knows of them until the last one goes."""
    publisher.publish("cat", rows_of_version(1))
    with attach(language.run_dir) as leaving:
        rows = fetched(leaving, "cat", shelved.addr).rows
        waits = leaving.fetch("never", shelved.addr, wait_s=60)
    with pytest.raises(FetchFailed, match="closed"):
        waits.result()
    with pytest.raises(RuntimeError, match="closed"):
        leaving.fetch("cat", shelved.addr)
    for number in range(6):
        publisher.publish(f"{number}", rows_of_version(9))
    assert is_all(rows, 1.0)
    assert publisher.shelf.counts().readers == 1
    del rows
    wait_until(lambda: not publisher.shelf.counts().readers, 10.0, shelved.log)
    assert publisher.shelf.counts().pinned == 0


def test_the_pins_of_a_reader_that_is_killed_go_with_it(shelved: Station, publisher: Client, agent: Agent) -> None:
    """R42, P3; of a "dead reader of a shelf": its items may be evicted then, and not before."""
    for number in range(3):
        publisher.publish(f"{number}", rows_of_version(number))
        assert agent.call(fetching.fetch, f"{number}", shelved.addr) == number
    assert publisher.shelf.counts().pinned == 3
    agent.kill(signal.SIGSTOP)
    assert [publisher.publish(f"new {n}", rows_of_version(8)).evicted for n in range(3)] == [0, 1, 1]
    assert [bool(publisher.shelf.contains(f"{n}")) for n in range(3)] == [True] * 3
    agent.kill()
    wait_until(lambda: not publisher.shelf.counts().pinned, 10.0, shelved.log)
    for number in range(4):
        assert publisher.publish(f"newer {number}", rows_of_version(9)).status == PublishStatus.READY


@pytest.mark.parametrize("has_left", [False, True])
def test_a_child_of_a_reader_takes_no_pins_away(
    shelved: Station, publisher: Client, language: Station, has_left: bool
) -> None:
    """R60, R63: also of views whose client has left; and it keeps no connection open that the parent closes."""
    publisher.publish("cat", rows_of_version(4))
    reader = attach(language.run_dir)
    views = [fetched(reader, "cat", shelved.addr).rows]
    if has_left:
        reader.close()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        views.clear()
        theirs.send(b"cleared")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    assert ours.recv(7) == b"cleared"
    for number in range(6):
        publisher.publish(f"{number}", rows_of_version(9))
    assert publisher.shelf.counts().pinned == 1
    assert is_all(views[0], 4.0)
    views.clear()
    assert publisher.shelf.counts().pinned == 0
    reader.close()
    wait_until(lambda: not publisher.shelf.counts().readers, 10.0, shelved.log)
    ours.close()
    assert os.waitpid(pid, 0)[1] == 0


def test_views_of_a_dead_node_stay_and_its_successor_is_found(language: Station, own_dir: Path) -> None:
    """R64, D3: nothing of the old one is published any more; what is read of it stays as it was."""
    with ExitStack() as stack:
        reader = stack.enter_context(attach(language.run_dir))
        with shelf_node(own_dir / "e") as first:
            with attach(first.run_dir) as publisher:
                publisher.publish("cat", rows_of_version(1))
                rows = fetched(reader, "cat", first.addr).rows
                port = int(first.addr.rpartition(":")[2])
            first.kill_group()
        with shelf_node(own_dir / "e", bootstrap_port=port) as second, attach(second.run_dir) as publisher:
            assert second.addr == first.addr
            publisher.publish("cat", rows_of_version(2))
            wait_until(lambda: _finds(reader, second.addr), 30.0, second.log)
            assert float(fetched(reader, "cat", second.addr).rows[0, 0]) == 2.0
            assert is_all(rows, 1.0)


def test_nobody_keeps_the_shelf_of_a_dead_node_without_looking_at_it(language: Station, own_dir: Path) -> None:
    """R64, P23: the node that takes its place may need the room. A view keeps it, until it goes."""
    with attach(language.run_dir) as reader, attach(language.run_dir) as other:
        with shelf_node(own_dir / "e") as it:
            with attach(it.run_dir) as publisher:
                publisher.publish("cat", rows_of_version(1))
            rows = fetched(reader, "cat", it.addr).rows
            fetched(other, "cat", it.addr).release()
            shelf = _inode_at(rows.data_ptr())
            assert _times_read(shelf) == 2
            it.kill_group()
        wait_until(lambda: _times_read(shelf) == 1, 10.0, lambda: "one has a view, and the other has none")
        assert is_all(rows, 1.0)
        del rows
        wait_until(lambda: not _times_read(shelf), 10.0, lambda: "nobody has a view")


def _maps() -> list[tuple[int, str, str]]:
    """(first address, access, inode) of what this process has mapped."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return [(int(at.partition("-")[0], 16), access, inode) for at, access, _, _, inode, *_ in lines]


def _inode_at(address: int) -> str:
    return max(it for it in _maps() if it[0] <= address)[2]


def _times_read(inode: str) -> int:
    """How often this process has mapped a file to read it."""
    return sum(access == "r--s" and it == inode for _, access, it in _maps())


def _finds(reader: Client, addr: str) -> bool:
    fetch = reader.fetch("cat", addr)
    return fetch.wait(20) and fetch.exception() is None


def test_readers_and_publishers_all_at_once(shelved: Station, publisher: Client, language: Station) -> None:
    """P6, R84: rows of one version, and never an older one after a newer one."""
    stop, faults, found = threading.Event(), list[object](), [0, 0]

    def publish(number: int) -> None:
        with attach(shelved.run_dir) as mine:
            version = 0
            while not stop.is_set():
                version += 1
                mine.publish("cat", rows_of_version(version * 10 + number), replace=True)

    def read(reader: int) -> None:
        with attach(language.run_dir) as mine:
            last = 0
            while not stop.is_set():
                try:
                    item = fetched(mine, "cat", shelved.addr)
                except NotPublished:
                    continue
                if item.rows.min() != item.rows.max() or item.generation < last:
                    faults.append(item.generation)
                last = item.generation
                found[reader] += 1

    publisher.publish("cat", rows_of_version(1))
    threads = [threading.Thread(target=publish, args=(number,)) for number in range(2)]
    threads += [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(found) >= 200, 60.0, lambda: f"they have read {found}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    wait_until(lambda: not publisher.shelf.counts().readers, 10.0, shelved.log)
