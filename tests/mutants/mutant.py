"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken promise."""

    name: str
    breaks: str  # the labels of docs/invariants.md
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def is_native(self) -> bool:
        """Whether the core must be built anew."""
        return self.file.endswith((".c", ".h"))
