"""P13: a control segment whose header is damaged, or of another version, is refused with one clear error before an
offset is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping
from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import NodeState, SegmentHeader
from embridge.allocator.segment import create_segment, map_segment

GEOMETRY = Geometry(hidden_size=8, num_blocks=4, deepstack_layers=1)
LIMITS = Limits(
    num_slots=64,
    max_clients=2,
    num_workers=1,
    window_blocks=64,
    max_peers=4,
    max_peer_slots=64,
    ring_records=64,
    max_routes=2,
)
HIGHEST = (1 << 64) - 1
NUM_WORDS = 64

DESCRIBES = {
    **{word.name: int(word) for word in (SegmentHeader.MAGIC, SegmentHeader.VERSION)},
    **{word.name: int(word) for word in (SegmentHeader.CONTROL_BYTES, SegmentHeader.PAYLOAD_BYTES)},
    **{word.name: int(word) for word in (SegmentHeader.ROLE, SegmentHeader.NODE_STATE)},
    **{field.name: SegmentHeader.GEOMETRY + i for i, field in enumerate(fields(Geometry))},
    **{field.name: SegmentHeader.LIMITS + i for i, field in enumerate(fields(Limits))},
}
"""The words on which the meaning of the others depends, by name."""


@pytest.fixture(params=[Role.ENCODE, Role.LANGUAGE])
def mapping(request: pytest.FixtureRequest) -> Iterator[Mapping]:
    size = ControlLayout.of(request.param, GEOMETRY, LIMITS).size
    segment = create_segment("control", size)
    try:
        made = map_segment(segment.fd, size)
        format_control(made, request.param, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
        yield made
    finally:
        segment.close()


def with_word(mapping: Mapping, word: int, value: int) -> str:
    """Open the segment with one word of its header changed. The error, or nothing if it was opened."""
    header = Control(mapping).header
    before = header.load(word)
    header.store(word, value)
    try:
        opened = Control(mapping)
        assert opened.layout.size <= mapping.size
        assert opened.state in NodeState
        for name in lay.doorbell_names(opened.limits):
            opened.bell(name)
    except SegmentError as error:
        return str(error)
    finally:
        header.store(word, before)
    return ""


@pytest.mark.parametrize("name", DESCRIBES)
def test_a_word_that_describes_the_segment_is_checked(mapping: Mapping, name: str) -> None:
    """The error says what it is about, in one line, and what to do or what was expected."""
    said = with_word(mapping, DESCRIBES[name], HIGHEST)
    assert said.startswith("control segment: ")
    assert "\n" not in said


@pytest.mark.parametrize("name", ["MAGIC", "VERSION", "PAYLOAD_BYTES"])
def test_a_word_that_is_one_off_is_another_version(mapping: Mapping, name: str) -> None:
    value = Control(mapping).header.load(DESCRIBES[name])
    assert with_word(mapping, DESCRIBES[name], value + 1)
    assert with_word(mapping, DESCRIBES[name], value - 1)


@pytest.mark.parametrize("what", ["zero", "one more", "one bit", "sign", "all bits"])
def test_whatever_stands_in_a_word_of_the_header_opening_it_ends_in_a_segment_error_or_within_the_segment(
    mapping: Mapping, what: str
) -> None:
    """P16: no other exception, and nothing outside of the mapping is touched."""
    for word in range(NUM_WORDS):
        value = Control(mapping).header.load(word)
        changed = {
            "zero": 0,
            "one more": value + 1 & HIGHEST,
            "one bit": value ^ 1 << 33,
            "sign": 1 << 63,
            "all bits": HIGHEST,
        }[what]
        with_word(mapping, word, changed)
    assert with_word(mapping, SegmentHeader.NODE_ID, 1) == ""
