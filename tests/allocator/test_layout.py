"""The map of the segments: what a node takes at its default limits, and that the module's own drawing of it is true."""

from __future__ import annotations

import re
import textwrap
from dataclasses import fields, replace

import pytest
from click.testing import CliRunner

from embridge.allocator import layout
from embridge.allocator.drawing import control_spans, drawing, payload_spans
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import (
    CONTROL_TABLES,
    HUGE_PAGE_BYTES,
    PAGE_BYTES,
    PAYLOAD_POOLS,
    ControlLayout,
    PayloadLayout,
)
from embridge.allocator.records import LINE_BYTES
from embridge.pipeline.cli import main

DEFAULT_POOL = Geometry(num_blocks=64)
MIB = 1 << 20
NO_OFFSETS = ("role", "limits", "num_blocks", "own_window", "size")
GEOMETRIES = [
    DEFAULT_POOL,
    Geometry(num_blocks=1, hidden_size=8, block_size=3),
    Geometry(num_blocks=77, hidden_size=1000, block_size=100, deepstack_layers=3, dtype="float32"),
]
LIMITS = [
    Limits(),
    Limits(num_slots=64, max_clients=1, num_workers=1, max_destinations=1, window_blocks=1, max_peers=1, max_routes=3),
]


@pytest.mark.parametrize("role", Role)
def test_all_of_a_node_but_its_payload_fits_into_eight_mebibytes_at_the_default_limits(role: Role) -> None:
    """P12: a container has 64 MB of /dev/shm, and the rows are to have most of it."""
    assert ControlLayout.of(role, DEFAULT_POOL, Limits()).size <= 8 * MIB


@pytest.mark.parametrize(("num_blocks", "window"), [(64, 128), (256, 128), (436, 218), (512, 256), (16_384, 256)])
def test_a_request_may_hold_half_of_a_large_pool_unless_that_is_set(num_blocks: int, window: int) -> None:
    """P12, R35: what fits into the window is not copied on arrival; tables for more than that nobody needs."""
    pool = replace(DEFAULT_POOL, num_blocks=num_blocks)
    layout = ControlLayout.of(Role.LANGUAGE, pool, Limits())
    assert (layout.limits.window_blocks, layout.own_window) == (window, min(window, num_blocks))
    assert ControlLayout.of(Role.LANGUAGE, pool, Limits(window_blocks=7)).limits.window_blocks == 7


def test_every_destination_of_a_request_has_a_share_of_its_window() -> None:
    """P13, R1."""
    with pytest.raises(ValueError, match=r"window_blocks: 3 < max_destinations 4, which share it"):
        Limits(window_blocks=3, max_destinations=4)


# ---- what the module says of itself


NODES = [(role, geometry, limits) for role in Role for geometry in GEOMETRIES for limits in LIMITS]


def test_the_docstring_has_the_drawing_of_the_layout() -> None:
    """What it shows is what there is: print `drawing()` into it when this fails."""
    assert textwrap.indent(drawing(), "    ") in (layout.__doc__ or "")


def test_every_table_and_every_pool_is_drawn() -> None:
    assert list(CONTROL_TABLES) == [f.name for f in fields(ControlLayout) if f.name not in NO_OFFSETS]
    assert list(PAYLOAD_POOLS) == [f.name for f in fields(PayloadLayout) if f.name != "size"]


@pytest.mark.parametrize(("role", "geometry", "limits"), NODES)
def test_tables_lie_one_behind_the_other_as_they_are_drawn(role: Role, geometry: Geometry, limits: Limits) -> None:
    """So a span ends where the next begins, and none is behind the end of its segment."""
    control, payload = ControlLayout.of(role, geometry, limits), PayloadLayout.of(geometry)
    for spans, size in ((control_spans(control), control.size), (payload_spans(payload), payload.size)):
        assert spans[0].offset == 0
        assert all(span.size >= 0 for span in spans), spans
        assert sum(span.size for span in spans) == size


@pytest.mark.parametrize(("role", "geometry", "limits"), NODES)
def test_everything_begins_on_what_the_drawing_says(role: Role, geometry: Geometry, limits: Limits) -> None:
    control, payload = ControlLayout.of(role, geometry, limits), PayloadLayout.of(geometry)
    assert [span.name for span in control_spans(control) if span.offset % LINE_BYTES] == []
    assert control.rings % PAGE_BYTES == 0
    for name, pool in PAYLOAD_POOLS.items():
        assert getattr(payload, name) % pool.alignment == 0


def test_a_pool_that_is_said_to_begin_on_a_page_need_not_begin_on_a_huge_one() -> None:
    """Else the drawing would say less than there is."""
    for name, pool in PAYLOAD_POOLS.items():
        offsets = [getattr(PayloadLayout.of(geometry), name) for geometry in GEOMETRIES]
        assert any(offset % HUGE_PAGE_BYTES for offset in offsets) == (pool.alignment == PAGE_BYTES)


def test_a_table_is_drawn_for_the_role_that_has_it() -> None:
    """By the properties of `Control`, which refuse the other role's."""
    lines = {line.split()[1]: line.split()[2] for line in drawing().splitlines() if line.startswith("|")}
    assert {name: lines[name] for name in ("destinations", "grants", "staging", "tombstones")} == dict.fromkeys(
        ("destinations", "grants", "staging", "tombstones"), "encode"
    )
    assert {name: lines[name] for name in ("windows", "sessions", "ports")} == dict.fromkeys(
        ("windows", "sessions", "ports"), "language"
    )


def test_doctor_draws_both_nodes_with_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBRIDGE_NUM_SLOTS", "128")
    monkeypatch.setenv("EMBRIDGE_NUM_BLOCKS", "3")
    monkeypatch.setenv("EMBRIDGE_METRICS_ADDR", "off")
    done = CliRunner().invoke(main, ["doctor", "--layout"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(drawing())
    for role in Role:
        control = ControlLayout.of(role, Geometry(num_blocks=3), Limits(num_slots=128))
        assert f"control segment of the {role.name.lower()} node, {control.size} bytes" in done.output
        assert re.search(rf"\| rings +{control.rings} ", done.output)
