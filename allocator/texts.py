"""Packs texts, each of one line, into fields of a fixed size: long ones are cut at a whole character, short ones end
with a zero.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """The text with what is no printable character written as an escape: others may have written it, and a log has a
    line a record, and a terminal obeys.
    """
    return text if text.isprintable() else "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


def cut(text: str, size_bytes: int) -> bytes:
    """The text as one line in UTF-8, cut to as many whole characters as `size_bytes` hold."""
    return one_line(text).encode(errors="replace")[:size_bytes].decode(errors="ignore").encode()


def packed(text: str, size_bytes: int) -> bytes:
    """The text in exactly `size_bytes` bytes."""
    return cut(text, size_bytes).ljust(size_bytes, b"\0")


def unpacked(raw: bytes) -> str:
    """The text that `packed` has put into these bytes."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")
