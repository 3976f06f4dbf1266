"""Lines over two logarithmic axes, as an SVG file that is written by hand: a legend, and a panel for each question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
PANEL_WIDTH, PANEL_HEIGHT = 460, 320
LEFT, TOP, GAP, LEGEND_ROW = 60, 50, 70, 18
COLOURS = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
STYLES = {  # those that are looked for first; the others get a colour each
    "ours": 'stroke="#d62728" stroke-width="3"',
    "floor": 'stroke="#000000" stroke-width="1.5" stroke-dasharray="6 4"',
}
DASHES = ("", ' stroke-dasharray="2 3"', ' stroke-dasharray="9 3"')


@dataclass(frozen=True, slots=True)
class Panel:
    """What is measured, and a line for each name; all values are above 0."""

    heading: str
    series: dict[str, list[Point]]


class Axis:
    """A logarithmic axis from a power of ten to a power of ten, over so many pixels."""

    def __init__(self, values: Sequence[float], pixels: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self._pixels = pixels

    def at(self, value: float) -> float:
        return (math.log10(value) - self.low) / (self.high - self.low) * self._pixels

    def ticks(self) -> list[float]:
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]


def draw(title: str, across: str, panels: Sequence[Panel], styles: dict[str, str]) -> str:
    """`across` is what the horizontal axes are; `styles` says which names are `ours` and which a `floor`."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    looks = _looks(names, styles)
    width = LEFT + len(panels) * (PANEL_WIDTH + GAP)
    below = TOP + PANEL_HEIGHT + 50
    height = below + LEGEND_ROW * math.ceil(len(names) / 2) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, across, LEFT + number * (PANEL_WIDTH + GAP), looks)
    for number, name in enumerate(names):
        x, y = LEFT + number % 2 * (PANEL_WIDTH + GAP), below + number // 2 * LEGEND_ROW
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 30}" y2="{y}" {looks[name]}/>')
        parts.append(f'<text x="{x + 38}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _looks(names: Sequence[str], styles: dict[str, str]) -> dict[str, str]:
    looks: dict[str, str] = {}
    peers = same = 0
    for name in names:
        if name in styles:
            same = sum(styles.get(other) == styles[name] for other in looks)
            dash = DASHES[same % len(DASHES)] if styles[name] == "ours" else ""
            looks[name] = STYLES[styles[name]].replace("1.5", f"{1.5 + 0.7 * same:.1f}") + dash
        else:
            looks[name] = f'stroke="{COLOURS[peers % len(COLOURS)]}" stroke-width="1.5"'
            peers += 1
    return looks


def _panel(panel: Panel, across: str, left: float, looks: dict[str, str]) -> list[str]:
    points = [point for line in panel.series.values() for point in line]
    heading = f'<text x="{left}" y="{TOP - 10}" font-weight="bold">{escape(panel.heading)}</text>'
    frame = (
        f'<rect x="{left}" y="{TOP}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#888888"/>'
    )
    parts = [heading, frame]
    if not points:
        return parts
    bottom = TOP + PANEL_HEIGHT
    x_axis = Axis([x for x, _ in points], PANEL_WIDTH)
    y_axis = Axis([y for _, y in points], PANEL_HEIGHT)
    for tick in x_axis.ticks():
        x = left + x_axis.at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g} {escape(across)}</text>')
    for tick in y_axis.ticks():
        y = bottom - y_axis.at(tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + PANEL_WIDTH}" y2="{y:.1f}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.12g}</text>')
    for name, line in panel.series.items():
        path = " ".join(f"{left + x_axis.at(x):.1f},{bottom - y_axis.at(y):.1f}" for x, y in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" {looks[name]}/>')
        for x, y in line:
            colour = looks[name].split('"')[1]
            parts.append(
                f'<circle cx="{left + x_axis.at(x):.1f}" cy="{bottom - y_axis.at(y):.1f}" r="2.5" fill="{colour}"/>'
            )
    return parts
