"""How the rows of a request travel, as far as that is decided by now."""

from __future__ import annotations

from embridge.allocator.control import Control
from embridge.allocator.geometry import Role
from embridge.allocator.records import Destination, Peer, Slot, WrittenBy
from embridge.workers.engine_kind import EngineKind
from embridge.workers.poller.paths import paths_of
from embridge.workers.transfer import engines


def known_paths(control: Control, slot: int, sent: int) -> list[str]:
    """The paths of a request's rows (`direct`, `shm`, `network`), each once; empty while nobody knows.

    `sent`: rows of it that are sent.
    """

    def engine_of(peer: int) -> EngineKind | None:
        return engines.numbered(control.peers.get(peer, Peer.ENGINE))

    get = control.slots.get
    if control.role == Role.LANGUAGE:
        is_known = sent > 0 or control.claims.length(slot) > 0
        return [path.name.lower() for path in paths_of(control, engine_of, slot)] if is_known else []
    count = min(get(slot, Slot.NUM_DESTINATIONS), control.limits.max_destinations)
    found = paths_of(control, engine_of, slot)[:count]
    writers = (control.destinations.get(slot, d, Destination.WRITTEN_BY) for d in range(count))
    decided = (not get(slot, Slot.MAY_WRITE) or writer != WrittenBy.UNDECIDED for writer in writers)
    return list(dict.fromkeys(path.name.lower() for path, is_known in zip(found, decided, strict=False) if is_known))
