"""How the rows of a request travel, by the words that its writers leave."""

from __future__ import annotations

from collections.abc import Callable

from embridge.allocator.control import Control
from embridge.allocator.ends import Path
from embridge.allocator.geometry import Role
from embridge.allocator.plain_enums import Destination, Slot, WrittenBy
from embridge.workers.engine_kind import EngineKind

EngineOf = Callable[[int], EngineKind | None]
"""The engine through which rows travel to or from a peer, by its index."""


def paths_of(control: Control, engine_of: EngineOf, slot: int) -> list[Path]:
    """The path to each destination of a request that has succeeded; on the language side that to this node alone."""
    if control.role == Role.LANGUAGE:
        return [_path_here(control, engine_of, slot)]
    get, may_write = control.destinations.get, control.slots.get(slot, Slot.MAY_WRITE)
    return [
        Path.DIRECT
        if may_write and get(slot, d, Destination.WRITTEN_BY) == WrittenBy.CLIENT
        else _path_by_worker(engine_of, get(slot, d, Destination.PEER) - 1)
        for d in range(max(1, control.slots.get(slot, Slot.NUM_DESTINATIONS)))
    ]


def _path_here(control: Control, engine_of: EngineOf, slot: int) -> Path:
    """Who writes directly tells the length in the claim. A retry begins with it: its path may be told wrong."""
    if not control.slots.get(slot, Slot.SESSION) and control.claims.length(slot):
        return Path.DIRECT
    return _path_by_worker(engine_of, control.slots.get(slot, Slot.PEER) - 1)


def _path_by_worker(engine_of: EngineOf, peer: int) -> Path:
    engine = engine_of(peer) if peer >= 0 else None
    return Path.SHM if engine is None or engine.is_local else Path.NETWORK
