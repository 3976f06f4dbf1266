"""What a handler of the HTTP port is given to look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from embridge.allocator.control import Control
from embridge.allocator.routes import RouteReader
from embridge.workers.inspection.open_slots import OpenSlots
from embridge.workers.timing import Timing
from embridge.workers.web.scene import Scene


class View:
    """What an answer is made from: the node's control segment, mapped read-only, and its times."""

    def __init__(self, control: Control, timing: Timing, clock: Callable[[], int]) -> None:
        """`clock` gives monotonic ns."""
        self.control = control
        self.timing = timing
        self.clock = clock
        self._scene = Scene(control, timing)

    def scene(self) -> Scene:
        """The node as it is now; the one that was given before is of no use any more."""
        return self._scene.at(self.clock())

    @property
    def open_slots(self) -> OpenSlots:
        return self._scene.open_slots

    @cached_property
    def routes(self) -> RouteReader | None:
        """The reader of the routes, which decodes again only what has changed; None without discovery."""
        return self.control.routes if self.control.has_discovery else None
