"""`node_status()`: a node seen from outside, for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embridge.pipeline.inspection.observe import observe


def node_status(run_dir: str | Path) -> dict[str, Any]:
    """What a node looks like from outside: identity, processes, blocks, lanes, peers, counters, requests in flight.

    Raises:
        AttachError: no node runs in that run directory, or it cannot be reached.
    """
    return observe(Path(run_dir))
