"""What a node's HTTP port answers: a table from paths to functions.

To add a path, write a function from (`View`, `Asked`) to `Answer` in a module of this folder, and give it a line in
`ROUTES`. It only looks: the segment is mapped read-only here, so what it does wrong changes nothing of the node.

The paths of `BY_ANY_NAME` have counts and states alone, of no single request, process or peer, and are asked by
programs that know a node by whatever name they were told. The others want a name that is the node's own (`hosts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from embridge.workers.status_page import status_page
from embridge.workers.web.hosts import strange_name
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


BY_ANY_NAME: Final = frozenset({"/metrics", "/livez", "/readyz"})


def routes(view: View, listed: Collection[str] = ()) -> dict[str, Handler]:
    """The routes of one node, which is also known by the `listed` names."""
    own = {path: partial(function, view) for path, function in ROUTES.items()}
    return {path: it if path in BY_ANY_NAME else partial(_by_own_name, it, listed) for path, it in own.items()}


def _by_own_name(handler: Handler, listed: Collection[str], asked: Asked) -> Answer:
    if name := strange_name(asked.headers.get("host", ""), listed):
        why = f"this node does not answer to the name {name!r}: ask it by its IP address, or list the name in web_hosts"
        return Answer(f"{why}\n".encode(), status=403)
    return handler(asked)
