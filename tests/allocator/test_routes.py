"""The route table: what is written is read, whole or not at all, whoever is killed where."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.allocator import guarded_records
from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import ROUTE_WORDS, DiscoveryState, NodeState, Route
from embridge.allocator.routes import DiscoveryRecord, RouteReader, RouteRecord, RouteWriter
from embridge.allocator.segment import create_segment, map_segment

LIMITS = Limits(num_slots=64, max_clients=1, ring_records=16, max_peers=1, max_peer_slots=64, max_routes=4)
LAYOUT = ControlLayout.of(Role.LANGUAGE, Geometry(num_blocks=1), LIMITS)


@contextmanager
def segment(size: int) -> Iterator[Mapping]:
    descriptor = create_segment("control", size)
    try:
        yield map_segment(descriptor.fd, size)
    finally:
        descriptor.close()


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    with segment(LAYOUT.size) as it:
        yield it


def route(node: int, number: int = 1, **changes: Any) -> RouteRecord:
    """A route whose every field follows from its numbers."""
    fields: dict[str, Any] = {
        "node_id": node,
        "incarnation": number,
        "state": NodeState.READY,
        "healthy": number % 2 == 0,
        "unhealthy": f"worker{number} silent",
        "bootstrap_addr": f"tcp://127.0.0.1:{1000 + number}",
        "poller_addr": f"tcp://127.0.0.1:{2000 + number}",
        "outstanding_tokens": number,
        "outstanding_requests": number,
        "free_blocks": number,
        "num_blocks": number,
        "reported_ns": number,
    }
    return RouteRecord(**{**fields, **changes})


words = st.sampled_from([0, 1, 2**32, 2**64 - 1])
texts = st.sampled_from(["", "x", "tcp://[::1]:65535", "ü" * 64, "e" * 128])
records = st.builds(
    RouteRecord,
    node_id=st.integers(1, 6),
    incarnation=words,
    state=st.sampled_from([NodeState.READY, NodeState.DRAINING]),
    healthy=st.booleans(),
    unhealthy=texts,
    bootstrap_addr=texts,
    poller_addr=texts,
    outstanding_tokens=words,
    outstanding_requests=words,
    free_blocks=words,
    num_blocks=words,
    reported_ns=words,
)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.tuples(st.lists(records, max_size=6, unique_by=lambda r: r.node_id), st.booleans()), max_size=4)
)
def test_the_table_holds_what_was_put_last_as_far_as_there_is_room(steps: list[tuple[list[RouteRecord], bool]]) -> None:
    """A node that is in it keeps its place before one that is new, and a writer that starts again knows who is in it
    (D3).
    """
    with segment(LAYOUT.size) as mapping:
        writer, reader, held = RouteWriter(mapping, LAYOUT), RouteReader(mapping, LAYOUT), set[int]()
        for routes, restarted in steps:
            if restarted:
                writer = RouteWriter(mapping, LAYOUT)
            left_out = writer.put_all(routes)
            found = {record.node_id: record for record in reader.routes()}
            wanted = {record.node_id: record for record in routes}
            assert found == {node: wanted[node] for node in found}
            assert len(found) == min(len(wanted), LIMITS.max_routes) == len(wanted) - left_out
            assert held & wanted.keys() <= found.keys()
            held = set(found)


def test_a_text_that_is_too_long_is_cut_and_not_half_a_character(mapping: Mapping) -> None:
    RouteWriter(mapping, LAYOUT).put_all([route(1, unhealthy="x" + "ü" * 100)])
    (found,) = RouteReader(mapping, LAYOUT).routes()
    assert found.unhealthy == "x" + "ü" * 63


def test_a_record_in_a_state_that_no_node_has_is_not_a_route(mapping: Mapping) -> None:
    """Words read from shared memory are input."""
    RouteWriter(mapping, LAYOUT).put_all([route(1)])
    np.frombuffer(mapping, np.uint64, ROUTE_WORDS, LAYOUT.routes + ROUTE_WORDS * 8)[Route.STATE] = 99
    assert RouteReader(mapping, LAYOUT).routes() == []


def test_how_the_registrar_fares_is_read_as_it_was_said(mapping: Mapping) -> None:
    record = DiscoveryRecord(DiscoveryState.UNREACHABLE, 5, 6, 7, "http://127.0.0.1:8998", "no answer within 2 s")
    RouteWriter(mapping, LAYOUT).put_discovery(record)
    assert RouteReader(mapping, LAYOUT).discovery() == record


class _Killed(BaseException):
    """Stands for SIGKILL: nothing of the writer runs after it."""


class _MortalWords:
    """Words whose owner is killed instead of its n-th store."""

    left = sys.maxsize

    def __init__(self, *where: Any) -> None:
        self._words = Words(*where)
        self.load = self._words.load

    def store(self, index: int, value: int, /) -> None:
        if _MortalWords.left == 0:
            raise _Killed
        _MortalWords.left -= 1
        self._words.store(index, value)


def test_wherever_the_writer_is_killed_a_reader_sees_the_old_or_the_new_record_or_none(
    mapping: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: before every single store. And the next registrar repairs what it left, so the node can be routed to
    again.
    """
    monkeypatch.setattr(guarded_records, "Words", _MortalWords)
    old, new, stays = route(1, 1), route(1, 2), route(2, 3)
    outcomes = set()
    for stores in range(2 * (ROUTE_WORDS + 1)):
        _MortalWords.left = sys.maxsize
        writer = RouteWriter(mapping, LAYOUT)
        writer.put_all([old, stays])
        reader = RouteReader(mapping, LAYOUT)
        _MortalWords.left = stores
        with pytest.raises(_Killed):
            writer.put_all([new, stays])
        found = {record.node_id: record for record in reader.routes()}
        assert found.get(1) in (old, new, None)
        assert found.get(2) in (stays, None)
        outcomes.add((found.get(1), found.get(2)))
        _MortalWords.left = sys.maxsize
        again = RouteWriter(mapping, LAYOUT)
        assert set(reader.routes()) == {record for record in found.values() if record}
        again.put_all([new, stays])
        assert set(reader.routes()) == {new, stays}
    assert outcomes == {(old, stays), (None, stays), (new, stays), (new, None)}


def test_who_knows_a_route_keeps_it_while_its_record_is_written(
    mapping: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4: a registrar that is not given the core in mid-write, or was killed there, takes no node from schedulers."""
    monkeypatch.setattr(guarded_records, "Words", _MortalWords)
    writer, reader = RouteWriter(mapping, LAYOUT), RouteReader(mapping, LAYOUT)
    writer.put_all([route(1, 1)])
    for stores in range(ROUTE_WORDS):
        assert reader.routes() == [route(1, 1)]
        monkeypatch.setattr(_MortalWords, "left", stores)
        with pytest.raises(_Killed):
            writer.put_all([route(1, 2)])
        assert reader.routes() == [route(1, 1)]
        monkeypatch.setattr(_MortalWords, "left", sys.maxsize)
        writer.put_all([route(1, 1)])
    writer.put_all([])
    assert reader.routes() == []


def test_a_record_that_is_replaced_while_it_is_read_is_read_again(mapping: Mapping) -> None:
    """And so whole."""
    writer, reader = RouteWriter(mapping, LAYOUT), RouteReader(mapping, LAYOUT)
    writer.put_all([route(1, 1)])
    real, numbers = reader._records._words, iter(range(2, 5))

    class Replaced:
        """The words, three times replaced when the middle of a record is read."""

        def load(self, at: int) -> int:
            if at == ROUTE_WORDS + ROUTE_WORDS // 2:
                for number in numbers:
                    writer.put_all([route(1, number)])
                    break
            return real.load(at)

    reader._records._words = Replaced()  # type: ignore[assignment]
    assert reader.routes() == [route(1, 4)]


def test_a_reader_beside_a_busy_writer_never_sees_a_torn_record(mapping: Mapping) -> None:
    """Two threads that are switched every few instructions."""
    writer, reader, stop = RouteWriter(mapping, LAYOUT), RouteReader(mapping, LAYOUT), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            writer.put_all([route(1, number)])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen: set[int] = set()
        while len(seen) < 30:
            for record in reader.routes():
                assert record == route(1, record.incarnation)
                seen.add(record.incarnation)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_node_without_discovery_has_no_table_and_no_registrar() -> None:
    """What is not asked for costs nothing."""
    bare = Limits(num_slots=64, max_clients=1, ring_records=16, max_peers=1, max_peer_slots=64)
    layout = ControlLayout.of(Role.LANGUAGE, Geometry(num_blocks=1), bare)
    assert lay.process_names(LIMITS) == [*lay.process_names(bare), "registrar"]
    with segment(layout.size) as mapping:
        format_control(mapping, Role.LANGUAGE, Geometry(num_blocks=1), bare, node_id=1, incarnation=1, now_ns=1)
        assert not Control(mapping).has_discovery
    assert layout.metrics == layout.routes
