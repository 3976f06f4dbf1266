"""What a handler of the HTTP port is given to look at."""

from __future__ import annotations

from collections.abc import Callable

from embridge.allocator.control import Control
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
