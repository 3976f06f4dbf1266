"""Metric families, and the text in which Prometheus reads them, in its own format or in OpenMetrics.

A family's name ends with its unit, in base units; a counter's samples end with `_total`. Names and labels are constants
of this package, so only a label's value has to be escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

UNITS: Final = ("seconds", "bytes")
PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Family(NamedTuple):
    """A metric: its name without the `_total` of a counter, one sentence of help, and its labels.

    `role` is the one that alone has it, "" where both have.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    role: Literal["", "encode", "language"] = ""

    @property
    def unit(self) -> str:
        """The base unit with which the name ends; empty for a count."""
        return next((unit for unit in UNITS if self.name.endswith(f"_{unit}")), "")

    @property
    def full_name(self) -> str:
        """The name as a query has it; a histogram's has `_bucket`, `_sum` or `_count` behind it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


class Histogram(NamedTuple):
    """How many lie at or below each bound and above the one before, those above all bounds last; and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


Samples = Mapping[tuple[str, ...], float | Histogram]
"""The values of one family, by the values of its labels."""


def content_type(accept: str) -> str:
    """The format that a client gets which says that it takes these: OpenMetrics where it names that."""
    return OPEN_METRICS if "application/openmetrics-text" in accept else PLAIN


def exposition(families: Iterable[tuple[Family, Samples]], content_type: str = PLAIN) -> bytes:
    """The text of these families, each with its samples."""
    is_open = content_type == OPEN_METRICS
    lines: list[str] = []
    for family, samples in families:
        named = family.name if is_open else family.full_name
        lines.append(f"# HELP {named} {_escaped(family.help)}")
        lines.append(f"# TYPE {named} {family.kind}")
        if is_open and family.unit:
            lines.append(f"# UNIT {named} {family.unit}")
        for values, sample in samples.items():
            labels = [f'{name}="{_escaped(value)}"' for name, value in zip(family.labels, values, strict=True)]
            if isinstance(sample, Histogram):
                lines += _histogram(family.name, labels, sample)
            else:
                lines.append(_sample(family.full_name, labels, sample))
    if is_open:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, labels: list[str], it: Histogram) -> Iterator[str]:
    below = 0
    for bound, count in zip((*it.bounds, None), it.counts, strict=True):
        below += count
        le = "+Inf" if bound is None else repr(float(bound))
        yield _sample(f"{name}_bucket", [*labels, f'le="{le}"'], below)
    yield _sample(f"{name}_sum", labels, it.sum)
    yield _sample(f"{name}_count", labels, below)


def _sample(name: str, labels: list[str], value: float) -> str:
    return f"{name}{{{','.join(labels)}}} {value!r}" if labels else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
