"""The phases of a request as far as models tell them apart, and what no word may do (P5, D12)."""

from __future__ import annotations

from typing import Final, Protocol

OPEN: Final = 0
SUCCESS: Final = 3
FAILED: Final = 4


class Word(Protocol):
    """Whatever has a phase and a watermark."""

    @property
    def phase(self) -> int: ...

    @property
    def sent(self) -> int: ...


def fell(name: str, old: Word, new: Word) -> str | None:
    """The fault, where a word has decreased, or a terminal phase has changed."""
    if (new.phase, new.sent) < (old.phase, old.sent) or (old.phase and new.phase != old.phase):
        return f"word: {name} fell from {old.phase, old.sent} to {new.phase, new.sent}"
    return None
