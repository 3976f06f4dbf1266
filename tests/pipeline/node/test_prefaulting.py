"""Pages are touched and locked after READY, in the background: nobody waits for it, and it ends with its node."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.nodes import config_of, start_node
from support.remains import alive
from support.waiting import wait_until

from embridge import Node, attach
from embridge.allocator._core import Mapping, Words
from embridge.allocator.records import SegmentHeader
from embridge.allocator.segment import create_segment, map_segment
from embridge.pipeline.inspection.node_status import node_status
from embridge.pipeline.node.prefaulting import SLICE_BYTES, Prefaulting

SLICES = 3
SIZE = (SLICES - 1) * SLICE_BYTES + 8192  # the last slice is a small one

# ---- alone


class Payload:
    """A payload, the words of a header, and who touches the one and tells in the other."""

    def __init__(self) -> None:
        self.segment, words = create_segment("payload", SIZE), create_segment("control", 4096)
        self.mapping = map_segment(self.segment.fd, SIZE)
        self.header = Words(map_segment(words.fd, 4096), 0, 64)
        words.close()
        self.prefaulting = Prefaulting(self.mapping, self.segment.fd, self.header)

    @property
    def touched(self) -> int:
        return self.header.load(SegmentHeader.TOUCHED_BYTES)

    @property
    def locked(self) -> int:
        return self.header.load(SegmentHeader.LOCKED)

    def pages(self) -> dict[str, int]:
        """What the kernel says of the mapping, in KiB."""
        text = Path("/proc/self/smaps").read_text()
        mine = text[text.index(f"\n{self.mapping.address:x}-") + 1 :]
        rows = re.findall(r"^(Rss|Locked):\s+(\d+) kB", mine, re.MULTILINE)[:2]
        return {name: int(kib) for name, kib in rows}


@pytest.fixture
def payload() -> Iterator[Payload]:
    it = Payload()
    try:
        yield it
    finally:
        it.prefaulting.end()
        it.segment.close()


def background() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "embridge-prefault"]


def test_all_pages_are_touched_and_no_byte_is_changed(payload: Payload) -> None:
    view = memoryview(payload.mapping)
    view[4096:4100] = b"rows"
    view[SIZE - 4 :] = b"last"
    payload.prefaulting.begin()
    wait_until(lambda: payload.touched == SIZE)
    payload.prefaulting.end()
    assert (bytes(view[4096:4100]), bytes(view[SIZE - 4 :])) == (b"rows", b"last")
    assert payload.locked == 0
    assert not background()


def test_what_is_to_be_locked_is_locked_as_it_is_touched(
    payload: Payload, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """First no page is there that could be locked; then a slice at a time is."""
    caplog.set_level("INFO")
    payload.prefaulting.lock()
    if payload.locked != 1:
        pytest.skip("this process may not lock so much")
    assert payload.pages() == {"Rss": 0, "Locked": 0}
    seen: list[dict[str, int]] = []
    take = payload.prefaulting._take

    def taken(offset: int, size: int) -> None:
        take(offset, size)
        seen.append(payload.pages())

    monkeypatch.setattr(payload.prefaulting, "_take", taken)
    payload.prefaulting.begin()
    wait_until(lambda: payload.touched == SIZE)
    payload.prefaulting.end()
    kib = [min((n + 1) * SLICE_BYTES, SIZE) >> 10 for n in range(SLICES)]
    assert seen == [{"Rss": k, "Locked": k} for k in kib]
    assert f"payload of {SIZE} bytes touched and locked" in caplog.text


def test_it_ends_after_the_slice_that_is_under_way(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: no thread is left, and nothing is touched any more."""
    begun, ending = threading.Event(), payload.prefaulting._ending
    taken: list[int] = []

    def take(offset: int, size: int) -> None:
        taken.append(offset)
        begun.set()
        assert ending.wait(20)

    monkeypatch.setattr(payload.prefaulting, "_take", take)
    payload.prefaulting.begin()
    assert begun.wait(20)
    payload.prefaulting.end()
    assert taken == [0]
    assert not background()


class Failing:
    """A payload of which the second slice cannot be had."""

    def __init__(self, real: Mapping) -> None:
        self.size = real.size

    def lock(self, offset: int, size: int) -> int:
        return 0

    def populate(self, offset: int, size: int) -> None:
        if offset:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_page_that_cannot_be_locked_is_said_and_nothing_else_happens(
    payload: Payload, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    failing = Prefaulting(Failing(payload.mapping), payload.segment.fd, payload.header)  # type: ignore[arg-type]
    failing.lock()
    failing.begin()
    wait_until(lambda: payload.locked >> 8 == errno.ENOMEM)
    failing.end()
    assert payload.touched == SLICE_BYTES
    assert f"payload touched up to {SLICE_BYTES} of {SIZE} bytes: Cannot allocate memory" in caplog.text
    assert "payload not locked: Cannot allocate memory; raise `ulimit -l` (memlock)" in caplog.text


# ---- a node

HOLD = """
import os, threading
def hold(*_):
    threading.Event().wait()
os.sched_setscheduler = hold  # the first that the thread in the background calls, and nobody else
"""


@contextmanager
def node(run_dir: Path) -> Iterator[Node]:
    """A node whose payload is to be locked."""
    config = dataclasses.replace(config_of("encode", run_dir, num_blocks=100), lock_memory=True)
    with start_node(config, run_dir.with_suffix(".log")) as it:
        yield it


@pytest.fixture
def held(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are launched from now on do not get on in the background."""
    folder = own_dir / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOLD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


@pytest.mark.process
def test_ready_waits_neither_for_touching_nor_for_locking(own_dir: Path, held: None) -> None:
    """P13: what the limits say to locking is known all the same. P9: the node ends as any other."""
    with node(own_dir / "n") as it:
        seen = node_status(it.run_dir)
        size = seen["payload_bytes"] >> 20
        assert seen["touched"] == f"0 of {size} MiB"
        assert seen["memory"].startswith((f"being locked: 0 of {size} MiB", "not locked: "))
        attach(it.run_dir).close()
        pids = [process["pid"] for process in seen["processes"]]
        assert it.stop() == 0
    assert not alive(pids)
    assert "Traceback" not in (own_dir / "n.log").read_text()


@pytest.mark.process
def test_a_launcher_that_is_killed_in_the_middle_leaves_nothing_and_the_next_node_begins_anew(
    own_dir: Path, held: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9, P10: what was locked goes with it."""
    with node(own_dir / "n") as it:
        pids = list(pids_of(it).values())
        os.kill(it.pid, signal.SIGKILL)
        wait_until(lambda: not alive(pids), what=lambda: f"gone: {alive(pids)}")
    monkeypatch.undo()
    with node(own_dir / "n") as it:
        wait_until(lambda: is_done(it), what=lambda: node_status(it.run_dir))
        assert it.stop() == 0
    assert re.search(r"payload of \d+ bytes touched( and locked)?\n", (own_dir / "n.log").read_text())


def pids_of(it: Node) -> dict[str, int]:
    return {process["name"]: process["pid"] for process in node_status(it.run_dir)["processes"]}


def is_done(it: Node) -> bool:
    seen = node_status(it.run_dir)
    size = seen["payload_bytes"] >> 20
    return seen["touched"] == f"{size} of {size} MiB" and not seen["memory"].startswith("being")
