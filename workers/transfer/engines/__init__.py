"""The ways rows travel: one file an engine, behind the protocol in `base`, and which of them a node offers."""

from __future__ import annotations

import logging

from embridge.allocator._core import Mapping
from embridge.allocator.records import Engine
from embridge.workers.transfer.engines import mooncake
from embridge.workers.transfer.engines.base import TransferEngine
from embridge.workers.transfer.engines.mooncake import MooncakeEngine, MooncakeSettings
from embridge.workers.transfer.engines.shm import ShmEngine

log = logging.getLogger(__name__)

ENGINES = ("auto", *(engine.name.lower() for engine in Engine))


def engines_for(name: str, host: str) -> tuple[Engine, ...]:
    """What a node with this setting, bound to this host, offers. `auto` is shared memory, and Mooncake where others can come."""
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is unknown; use one of {', '.join(ENGINES)}")
    if name != "auto":
        return (Engine[name.upper()],)
    if mooncake.is_loopback(host):
        return (Engine.SHM,)
    why = mooncake.why_unavailable()
    if why:
        log.warning("this node serves peers on its own host only: %s", why)
        return (Engine.SHM,)
    return (Engine.SHM, Engine.MOONCAKE)


def make_engines(
    offered: tuple[Engine, ...], payload: Mapping, node_id: int, incarnation: int, host: str, settings: MooncakeSettings
) -> dict[Engine, TransferEngine]:
    """The engines of one transfer worker of an encode node."""
    engines: dict[Engine, TransferEngine] = {}
    if Engine.SHM in offered:
        engines[Engine.SHM] = ShmEngine(payload, node_id, incarnation)
    if Engine.MOONCAKE in offered:
        engines[Engine.MOONCAKE] = MooncakeEngine(payload, host, settings)
    return engines
