"""`/status.json` of the discovery server: the nodes for the status page, bounded; `/nodes` has all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args

from embridge.workers.discovery.messages import RoleName, RouteEntry
from embridge.workers.discovery.registry import Registry
from embridge.workers.timing import NS
from embridge.workers.version import version

MAX_NODES: Final = 200


def status(registry: Registry, now_ns: int) -> dict[str, Any]:
    """The server and its nodes as plain data: of each role the sums, and `MAX_NODES` nodes, those in trouble first.

    `healthy` is the number of those that are, `READY` those that take new requests.
    """
    entries = registry.entries(now_ns)
    shown = sorted(entries, key=lambda it: (it.healthy, it.state == "READY", it.role, -it.outstanding_tokens))
    return {
        "kind": "discovery",
        "version": version(),
        "at_s": round(now_ns / NS, 3),
        "up_s": round(registry.up_s(now_ns), 1),
        "roles": {role: _sums(it for it in entries if it.role == role) for role in get_args(RoleName)},
        "reports": dict(registry.counts),
        "num_nodes": len(entries),
        "nodes": shown[:MAX_NODES],
    }


def _sums(entries: Iterable[RouteEntry]) -> dict[str, int]:
    nodes = list(entries)
    added = ("outstanding_tokens", "outstanding_requests", "free_blocks", "num_blocks")
    return {
        "nodes": len(nodes),
        "healthy": sum(it.healthy for it in nodes),
        "ready": sum(it.state == "READY" for it in nodes),
        **{name: sum(getattr(it, name) for it in nodes) for name in added},
    }
