"""Looking on at the direct writes of this process, step by step.

Doors are noted as they open, so this is imported before the first of them does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from embridge.allocator.records import Slot
from embridge.pipeline.client.doors import Door
from support.direct_steps import DirectStep

_doors: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_before: Callable[[int, DirectStep, int, int, int], object] | None = None


def watch(before: Callable[[int, DirectStep, int, int, int], object] | None) -> None:
    """Have `before` called before each step of every write of this process, through doors that will open, too: with the
    room, the step and its numbers. None: nobody looks on.
    """
    global _before
    _before = before
    for door in list(_doors):
        _watch(door)


def _watch(door: Any) -> None:
    before, slots = _before, door.slots_of_client
    if before is None:
        door.rows.watch(None)
    else:
        door.rows.watch(
            lambda step, slot, *numbers: before(slots.get(slot, Slot.ROOM), DirectStep(step), *numbers)
        )


def _note_every_door() -> None:
    make = Door.__init__

    def noted(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        self.slots_of_client = arguments[-1].control.slots
        _doors.add(self)
        _watch(self)

    Door.__init__ = noted  # type: ignore[assignment,method-assign]


_note_every_door()
