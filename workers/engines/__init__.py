"""The ways rows travel: one file an engine, behind the protocol in `base`, and the choice of one by name."""

from __future__ import annotations

from embridge.allocator._core import Mapping
from embridge.workers.engines.base import TransferEngine
from embridge.workers.engines.shm import ShmEngine

ENGINES = ("auto", "shm")


def make_engine(name: str, payload: Mapping, node_id: int, incarnation: int) -> TransferEngine:
    """The engine of one transfer worker; `auto` is the best for where the peer is, which on one host is `shm`."""
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is unknown; use one of {', '.join(ENGINES)}")
    return ShmEngine(payload, node_id, incarnation)
