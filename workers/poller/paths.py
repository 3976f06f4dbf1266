"""How the rows of a request that has succeeded have travelled, by the words that its writers leave."""

from __future__ import annotations

from embridge.allocator.ends import Path
from embridge.allocator.geometry import Role
from embridge.allocator.records import Destination, Slot, WrittenBy
from embridge.workers.role import RoleContext


def paths_of(ctx: RoleContext, slot: int) -> list[Path]:
    """The path to each destination of a request; on the language side that to this node alone."""
    if ctx.control.role == Role.LANGUAGE:
        return [_path_here(ctx, slot)]
    get, may_write = ctx.control.destinations.get, ctx.slots.get(slot, Slot.MAY_WRITE)
    return [
        Path.DIRECT
        if may_write and get(slot, d, Destination.WRITTEN_BY) == WrittenBy.CLIENT
        else _path_by_worker(ctx, get(slot, d, Destination.PEER) - 1)
        for d in range(max(1, ctx.slots.get(slot, Slot.NUM_DESTINATIONS)))
    ]


def _path_here(ctx: RoleContext, slot: int) -> Path:
    """Who writes directly tells the length in the claim. A retry begins with it: its path may be told wrong."""
    if not ctx.slots.get(slot, Slot.SESSION) and ctx.control.claims.length(slot):
        return Path.DIRECT
    return _path_by_worker(ctx, ctx.slots.get(slot, Slot.PEER) - 1)


def _path_by_worker(ctx: RoleContext, peer: int) -> Path:
    engine = ctx.engine_of(peer) if peer >= 0 else None
    return Path.SHM if engine is None or engine.is_local else Path.NETWORK
