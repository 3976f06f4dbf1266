"""Draws the segments from their layout: for the docstring of `layout`; and, with sizes, `embridge doctor --layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import (
    CONTROL_TABLES,
    HUGE_PAGE_BYTES,
    PAGE_BYTES,
    PAYLOAD_POOLS,
    ControlLayout,
    PayloadLayout,
)

_LIMITS: Final = Limits(max_routes=1, shelf_bytes=1)  # with these and `_GEOMETRY` nothing is empty in both roles
_GEOMETRY: Final = Geometry(num_blocks=1, deepstack_layers=1)
_ALIGNMENTS: Final = {HUGE_PAGE_BYTES: "2 MiB", PAGE_BYTES: "a page"}


class Span(NamedTuple):
    """A table or a pool in its segment. `size` includes the padding behind it; it is 0 if there is no such table."""

    name: str
    offset: int
    size: int
    what: str


def control_spans(layout: ControlLayout) -> list[Span]:
    """The tables, in their order."""
    return _spans(layout, CONTROL_TABLES)


def payload_spans(layout: PayloadLayout) -> list[Span]:
    """The pools, in their order."""
    return _spans(layout, {name: pool.what for name, pool in PAYLOAD_POOLS.items()})


def _spans(layout: ControlLayout | PayloadLayout, names: dict[str, str]) -> list[Span]:
    offsets = [getattr(layout, name) for name in names]
    ends = [*offsets[1:], layout.size]
    return [
        Span(name, offset, end - offset, what)
        for (name, what), offset, end in zip(names.items(), offsets, ends, strict=True)
    ]


def drawing() -> str:
    """Draw both segments: what lies where, which role has it, and what it is for."""
    roles: dict[str, list[str]] = {name: [] for name in CONTROL_TABLES}
    for role in Role:
        for span in control_spans(ControlLayout.of(role, _GEOMETRY, _LIMITS)):
            if span.size:
                roles[span.name].append(role.name.lower())
    tables = [
        (name, "" if len(roles[name]) == len(Role) else ", ".join(roles[name]), what)
        for name, what in CONTROL_TABLES.items()
    ]
    pools = [
        (span.name, _ALIGNMENTS[PAYLOAD_POOLS[span.name].alignment], span.what)
        for span in payload_spans(PayloadLayout.of(_GEOMETRY))
    ]
    return "\n".join(
        (
            *_box("control segment, with the role that alone has a table", tables),
            "",
            *_box("payload segment, with what each pool begins on", pools),
        )
    )


def sizes(role: Role, geometry: Geometry, limits: Limits) -> str:
    """Draw both segments of one node, with offsets and sizes in bytes."""
    control, payload = ControlLayout.of(role, geometry, limits), PayloadLayout.of(geometry)
    boxes = []
    for title, size, spans in (
        ("control", control.size, control_spans(control)),
        ("payload", payload.size, payload_spans(payload)),
    ):
        rows = [(span.name, f"{span.offset:>12}", f"{span.size:>12}") for span in spans if span.size]
        boxes += _box(f"{title} segment of the {role.name.lower()} node, {size} bytes: offsets and sizes", rows)
    return "\n".join(boxes)


def _box(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    edge = "-" * (len(lines[0]) + 2)
    return [title, f"+{edge}+", *(f"| {line} |" for line in lines), f"+{edge}+"]
