"""What a node's HTTP port answers: a table from paths to functions.

To add a path, write a function from (`View`, `Asked`) to `Answer` in a module of this folder, and give it a line in
`ROUTES`. It only looks: the segment is mapped read-only here, so what it does wrong changes nothing of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from embridge.allocator.control import Control
from embridge.workers.timing import Timing
from embridge.workers.web.server import Answer, Asked, Handler


class View(NamedTuple):
    """What an answer is made from: the node's control segment, read-only, its times, and a clock in monotonic ns."""

    control: Control
    timing: Timing
    clock: Callable[[], int]


ROUTES: Final[Mapping[str, Callable[[View, Asked], Answer]]] = {}


def routes(view: View) -> dict[str, Handler]:
    """The routes of one node."""
    return {path: partial(function, view) for path, function in ROUTES.items()}
