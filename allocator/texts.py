"""Packs texts into fields of a fixed size: long ones are cut at a whole character, short ones end with a zero."""

from __future__ import annotations


def cut(text: str, size_bytes: int) -> bytes:
    """As many whole characters of the text, as UTF-8, as that many bytes hold."""
    return text.encode(errors="replace")[:size_bytes].decode(errors="ignore").encode()


def packed(text: str, size_bytes: int) -> bytes:
    """The text in exactly that many bytes."""
    return cut(text, size_bytes).ljust(size_bytes, b"\0")


def unpacked(raw: bytes) -> str:
    """The text that `packed` has made these bytes of."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")
