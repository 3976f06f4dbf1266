"""The log of the ranks, as it lies in memory: what is packed is what is read, and what is damaged is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.allocator._core import Mapping, Words
from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import Geometry
from embridge.allocator.ranklog import (
    MAX_REASON_BYTES,
    Item,
    RankLog,
    RankLogLayout,
    RankState,
    format_log,
    pack_batch,
    unpack_batch,
)
from embridge.allocator.records import RECORD_BYTES

WORD = st.integers(0, (1 << 64) - 1)
FINISHED = st.builds(Item, room=WORD, ticket=WORD, entry=WORD, offset=WORD, capacity_tokens=WORD, total_tokens=WORD)
REASON = st.text(st.characters(exclude_categories=("C", "Z")), max_size=100)  # on one line, as every text there
FAILED = st.builds(Item, room=WORD, ticket=WORD, code=st.integers(1, 99), reason=REASON, total_tokens=WORD)
LAYOUT = RankLogLayout(num_ranks=3, num_entries=4, ring_records=8)


@pytest.fixture
def mapping() -> Mapping:
    return mapped(LAYOUT.size)


def mapped(size: int) -> Mapping:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    try:
        return Mapping(fd, size)
    finally:
        os.close(fd)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(FINISHED | FAILED, min_size=1, max_size=5), min_size=1, max_size=4))
def test_batches_are_read_as_they_were_packed_and_never_in_parts(batches: list[list[Item]]) -> None:
    """B8: a reader that sees fewer records than a batch has sees none of it."""
    records = b"".join(pack_batch(batch) for batch in batches)
    for batch in batches:
        items, count = unpack_batch(records)
        assert items == batch
        assert count == sum(item.num_records for item in batch)
        for short in range(count):
            assert unpack_batch(records[: short * RECORD_BYTES]) == ([], 0)
        records = records[count * RECORD_BYTES :]
    assert not records


def test_a_long_reason_is_cut_between_two_characters() -> None:
    """P12: whatever a peer gives as its reason, a record is bounded."""
    item = Item(room=1, ticket=0, code=2, reason="a" + "é" * MAX_REASON_BYTES)
    (read,), count = unpack_batch(pack_batch([item]))
    assert count == item.num_records == 1 + MAX_REASON_BYTES // RECORD_BYTES
    assert item.reason.startswith(read.reason)
    assert len(read.reason) == MAX_REASON_BYTES // 2


def test_ranks_release_by_ticket_and_the_dead_have_released_everything(mapping: Mapping) -> None:
    """D14, D6: a release of an entry's last use says nothing about this one; nor does one rank's about another's."""
    format_log(mapping, LAYOUT, Geometry(num_blocks=64), 4096, 7)
    log = RankLog(mapping)
    before = log.releases()
    log.release(1, 3, ticket=5)
    assert log.releases() != before
    assert log.has_released(1, 3, 5)
    assert not log.has_released(1, 3, 6)
    assert not log.has_released(2, 3, 5)
    assert not log.has_released(1, 2, 1)
    before = log.releases()
    log.join(2, 99)
    assert (log.state(2), log.pid(2)) == (RankState.JOINED, 99)
    log.leave(2)
    assert log.has_released(2, 3, 6)
    assert log.releases() != before
    log.join(2, 100)
    assert log.state(2) == RankState.LEFT


def test_the_end_and_a_cut_wake_whoever_sleeps(mapping: Mapping) -> None:
    """P8: nobody sleeps through the end."""
    format_log(mapping, LAYOUT, Geometry(num_blocks=64), 4096, 7)
    log = RankLog(mapping)
    seen = [log.bell(rank).sequence() for rank in (1, 2)]
    log.cut(2)
    assert (log.is_cut(1), log.is_cut(2)) == (False, True)
    assert [log.bell(rank).sequence() - seen[rank - 1] for rank in (1, 2)] == [0, 1]
    log.end()
    assert log.leader_is_gone
    assert [log.bell(rank).sequence() - seen[rank - 1] for rank in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (0, 1, "magic 0x1 is not"),
        (1, 1, "num_ranks: 1 is outside 2 to 32"),
        (2, 0, "num_entries: 0 is outside"),
        (3, 1 << 20, "bytes that its header describes"),
        (17, 0, "block_size: 0 is outside"),
    ],
)
def test_a_log_that_is_none_is_refused(mapping: Mapping, word: int, value: int, message: str) -> None:
    """P13: what another version, or nobody, wrote is one clear error."""
    format_log(mapping, LAYOUT, Geometry(num_blocks=64), 4096, 7)
    Words(mapping, 0, 32).store(word, value)
    with pytest.raises(SegmentError, match=message):
        RankLog(mapping)


def test_a_segment_too_short_for_a_header_is_refused() -> None:
    """P13."""
    with pytest.raises(SegmentError, match="4095 bytes < 4096 bytes of its header"):
        RankLog(mapped(4095))
