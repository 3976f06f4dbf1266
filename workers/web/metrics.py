"""`/metrics`: the node's metrics, as Prometheus reads them."""

from __future__ import annotations

from embridge.workers.exposition import content_type, exposition
from embridge.workers.web.families import families
from embridge.workers.web.server import Answer, Asked
from embridge.workers.web.view import View


def metrics(view: View, asked: Asked) -> Answer:
    """All of them, in the format that the asker takes."""
    shown = content_type(asked.headers.get("accept", ""))
    return Answer(exposition(families(view.scene()), shown), shown)
