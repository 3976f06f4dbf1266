"""Figures as people read them: three digits and a unit, in ASCII, for any terminal."""

from __future__ import annotations

from typing import Final

_DECIMAL: Final = ("", "k", "M", "G", "T", "P")


def count(value: float | None) -> str:
    """`0`, `3.5`, `417`, `12.3k`; whole numbers as they are up to five digits."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 100_000:
        return str(int(value))
    return _scaled(value, "")


def size(num_bytes: float | None) -> str:
    """`0 B`, `417 kB`, `3.1 GB`; powers of ten."""
    return "-" if num_bytes is None else _scaled(num_bytes, " ") + "B"


def rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{count(per_s)}/s"


def size_rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def duration(seconds: float | None) -> str:
    """`417us`, `12ms`, `1.23s`, `48s`, `2m13s`, `3h05m`, `12d04h`."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        us = seconds * 1e6
        return f"{us:.0f}us" if us < 999.5 else f"{_three(seconds * 1e3)}ms"
    if seconds < 59.5:
        return f"{_three(seconds)}s" if seconds < 9.995 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def share_bar(share: float, width: int) -> str:
    """`[####......]`, `width` characters with its brackets; anything above nothing shows."""
    inner = max(1, width - 2)
    filled = min(inner, max(int(share > 0), round(share * inner)))
    return f"[{'#' * filled}{'.' * (inner - filled)}]"


def _scaled(value: float, between: str) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(_DECIMAL) - 1:
        value /= 1000
        step += 1
    return f"{_three(value)}{between}{_DECIMAL[step]}"


def _three(value: float) -> str:
    """Three digits, without zeros at the end."""
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
