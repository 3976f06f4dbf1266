"""What answers at a node's HTTP port are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from embridge.allocator.control import Control
from embridge.workers.timing import Timing


class View(NamedTuple):
    """What an answer is made from: the node's control segment, read-only, its times, and a clock in monotonic ns."""

    control: Control
    timing: Timing
    clock: Callable[[], int]
