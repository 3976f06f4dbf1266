"""A process dies between any two changes of shared memory: its view of the segment counts them, and raises before the
last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embridge.allocator._core import Mapping
from embridge.allocator.control import Control
from embridge.allocator.geometry import Role


class Killed(BaseException):
    """A process dies here."""


@dataclass
class Fuse:
    """Kills its process before the n-th change of shared memory from now (0: never). What is dead changes nothing.

    `pause` is called before each change: others may go on meanwhile.
    """

    left: int = 0
    is_blown: bool = False
    pause: Callable[[], None] | None = None

    def burn(self) -> None:
        if self.pause is not None and not self.is_blown:
            self.pause()
        if self.left:
            self.left -= 1
            self.is_blown |= not self.left
        if self.is_blown:
            raise Killed

    def guard(self, target: Any, *names: str) -> None:
        """Burn at every call of these methods."""
        for name in names:
            method = getattr(target, name)

            def guarded(*args: Any, _method: Callable[..., Any] = method, **options: Any) -> Any:
                self.burn()
                return _method(*args, **options)

            setattr(target, name, guarded)


class Guarded:
    """A native object (which takes no attributes) with some of its methods behind a fuse."""

    def __init__(self, target: Any, fuse: Fuse, *names: str) -> None:
        for name in dir(target):
            if not name.startswith("_"):
                setattr(self, name, getattr(target, name))
        fuse.guard(self, *names)


class FusedControl(Control):
    """A process's view of its control segment: every change it makes may be its last."""

    def __init__(self, mapping: Mapping, fuse: Fuse) -> None:
        super().__init__(mapping)
        self._fuse = fuse
        if self.role == Role.LANGUAGE:
            self.poster.watch(lambda _step: fuse.burn())  # first, for it takes native objects
        fuse.guard(self.slots, "set", "raise_to", "claim_failure", "set_reason", "tell", "release_untold", "join")
        fuse.guard(self.peers, "put", "bury", "raise_tombstone")
        fuse.guard(self.lanes, "lease_page", "return_page", "free")
        self.status: Any = Guarded(self.status, fuse, "advance", "open", "open_record", "mark")
        self.blocks.cells = Guarded(  # type: ignore[assignment]
            self.blocks.cells,
            fuse,
            "acquire",
            "expose",
            "release",
            "quarantine",
            "reclaim",
            "end_quarantine",
            "end_exposure",
        )

    @cached_property
    def destinations(self) -> Any:
        table = super().destinations
        self._fuse.guard(table, "set", "raise_to", "settle", "set_grant")
        return table

    @cached_property
    def fetches(self) -> Any:
        table = super().fetches
        self._fuse.guard(table, "ask", "ask_nothing", "answer", "hold")
        return table

    @property
    def staging(self) -> Any:
        table = super().staging
        self._fuse.guard(table, "replace")
        return table

    @cached_property
    def claims(self) -> Any:
        table = super().claims
        self._fuse.guard(table, "offer", "revoke")
        return table

    @cached_property
    def posts(self) -> Any:
        table = super().posts
        self._fuse.guard(table, "take_off_grant", "show_told")
        return table

    @property
    def windows(self) -> Any:
        table = super().windows
        self._fuse.guard(table, "set")
        return table

    def sender(self, source: str, target: str) -> Any:
        sender = super().sender(source, target)
        self._fuse.guard(sender, "send")
        return sender
