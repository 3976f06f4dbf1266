"""The engines: one file each, behind the protocols in `base`. Importing them loads no engine's library.

An engine is known by its line in `ENGINES`, and nowhere else: settings, registrations, roles and what looks at a node
ask there.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping

from embridge.allocator import _core
from embridge.workers.transfer.engines import mooncake, shm
from embridge.workers.transfer.engines.base import Engine, TransferEngine

log = logging.getLogger(__name__)

ENGINES: tuple[Engine, ...] = (
    shm.SHARED_MEMORY,
    mooncake.MOONCAKE,
)
"""In order of preference: the first that both nodes offer, and that reaches the peer, is taken."""

AUTO = "auto"
LOG_PATTERN = "worker*.*.log*"
"""The pattern of the files that `log_name` names, and of those before them."""


def choices() -> tuple[str, ...]:
    """The values of the setting `engine`."""
    return (AUTO, *(engine.name for engine in ENGINES))


def how_rows_travel() -> str:
    """The help of the setting `engine`."""
    local, far = ([it.title for it in ENGINES if it.is_automatic and it.is_local is here] for here in (True, False))
    return f"How rows travel; {AUTO}: {' or '.join(local)} to peers on this host, {' or '.join(far)} to others."


def named(names: Iterable[str]) -> tuple[Engine, ...]:
    """The engines with these names, in order of preference."""
    wanted = set(names)
    return tuple(engine for engine in ENGINES if engine.name in wanted)


def numbered(number: int) -> Engine | None:
    """The engine that the peer table means by this number; None for 0, which is none."""
    return next((engine for engine in ENGINES if engine.number == number), None)


def has_sessions(number: int) -> bool:
    """Whether rows travel to or from a peer with this number under sessions; False for 0."""
    engine = numbered(number)
    return engine is not None and engine.has_sessions


def log_name(process: str, names: Iterable[str]) -> str:
    """The file, in the run directory, of what the libraries of these engines write on standard error."""
    return f"{process}.{'+'.join(names)}.log"


def engines_for(name: str, host: str) -> tuple[Engine, ...]:
    """The engines that a node with this setting, bound to this host, offers.

    `auto` is every local engine, and, unless other hosts cannot come, the first other one that this machine can run: a
    transfer worker has one session at a time, and so a node one engine with sessions.

    Raises:
        ValueError: there is no such setting.
    """
    if name not in choices():
        raise ValueError(f"engine: {name!r} is unknown; use one of {', '.join(choices())}")
    if name != AUTO:
        return named([name])
    usable = [engine for engine in ENGINES if engine.is_local and engine.is_automatic]
    if ipaddress.ip_address(host).is_loopback:
        return tuple(usable)
    whys = {engine: engine.why_unavailable() for engine in ENGINES if engine.is_automatic and not engine.is_local}
    far = [engine for engine, why in whys.items() if not why]
    if not far:
        log.warning("this node serves peers on its own host only: %s", "; ".join(whys.values()))
    return (*usable, *far[:1])


def make_writers(
    offered: Iterable[Engine],
    payload: _core.Mapping,
    shelf: _core.Mapping | None,
    *,
    node_id: int,
    incarnation: int,
    host: str,
    settings: Mapping[str, object],
) -> dict[int, TransferEngine]:
    """The engines of one transfer worker of an encode node, by number. `settings`: by name."""
    return {
        engine.number: engine.make_writer(
            payload, shelf, node_id=node_id, incarnation=incarnation, host=host, settings=settings.get(engine.name)
        )
        for engine in offered
    }
