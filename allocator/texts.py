"""Packs texts into fields of a fixed size: long ones are cut at a whole character, short ones end with a zero."""

from __future__ import annotations


def cut(text: str, size_bytes: int) -> bytes:
    """The text in UTF-8, cut to as many whole characters as `size_bytes` hold."""
    return text.encode(errors="replace")[:size_bytes].decode(errors="ignore").encode()


def packed(text: str, size_bytes: int) -> bytes:
    """The text in exactly `size_bytes` bytes."""
    return cut(text, size_bytes).ljust(size_bytes, b"\0")


def unpacked(raw: bytes) -> str:
    """The text that `packed` has put into these bytes."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")
