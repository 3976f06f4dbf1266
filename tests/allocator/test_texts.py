"""Texts in shared memory: what does not fit is cut at a whole character, and what fits comes back as it was."""

from __future__ import annotations

import pytest

from embridge.allocator.texts import packed, unpacked


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("", ""),
        ("tcp://h", "tcp://h"),
        ("12345678", "12345678"),
        ("123456789", "12345678"),
        ("1234567é", "1234567"),
        ("\udcff", "\\udcff"),
        ("a\nb\x1b[", "a\\nb\\x1b"),
    ],
)
def test_a_text_comes_back_whole_or_cut_at_a_character(text: str, back: str) -> None:
    raw = packed(text, 8)
    assert len(raw) == 8
    assert unpacked(raw) == back
