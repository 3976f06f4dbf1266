"""What a node's HTTP port answers: a table from paths to functions.

To add a path, write a function from (`View`, `Asked`) to `Answer` in a module of this folder, and give it a line in
`ROUTES`. It only looks: the segment is mapped read-only here, so what it does wrong changes nothing of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from embridge.workers.status_page import status_page
from embridge.workers.web.metrics import metrics
from embridge.workers.web.probes import live, ready
from embridge.workers.web.server import Answer, Asked, Handler
from embridge.workers.web.status import status
from embridge.workers.web.view import View


def _page(_view: View, _asked: Asked) -> Answer:
    shown = status_page()
    return Answer(shown.body, "text/html; charset=utf-8", headers=shown.headers)


ROUTES: Final[Mapping[str, Callable[[View, Asked], Answer]]] = {
    "/": _page,
    "/status.json": status,
    "/metrics": metrics,
    "/livez": live,
    "/readyz": ready,
}


def routes(view: View) -> dict[str, Handler]:
    """The routes of one node."""
    return {path: partial(function, view) for path, function in ROUTES.items()}
