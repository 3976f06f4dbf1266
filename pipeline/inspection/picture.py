"""A picture of a node for people: what `embridge top` shows, from two looks at the node, between which it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from embridge.allocator.claims import HELD
from embridge.allocator.geometry import Geometry
from embridge.allocator.status import Phase
from embridge.workers.timing import NS

PEER_SILENT_S: Final = 3.0  # with requests in flight a node sends ten heartbeats a second
_HELD: Final = {state.name for state in HELD}
_OF_OLDEST: Final = ("room", "age_s", "phase", "waits_for", "process", "pid")
_PATHS: Final = ("direct", "shm", "network")


class Sample(NamedTuple):
    """A node's status (`node_status`), and when it was taken (monotonic ns)."""

    at_ns: int
    status: Mapping[str, Any]


def picture(now: Sample, before: Sample | None = None) -> dict[str, Any]:
    """The node as plain data. `before`: an earlier look at it, for the rates; they are None without it, and where the
    node was launched anew since. Bytes are those of rows.
    """
    status = now.status
    requests, blocks = status["requests"], status["blocks"]
    oldest = max(requests, key=lambda request: request["age_s"], default=None)
    phases, paths = Counter(it["phase"] for it in requests), Counter(path for it in requests for path in it["paths"])
    if before is not None and before.status["incarnation"] != status["incarnation"]:
        before = None
    size = sum(blocks.values())
    return {
        **{key: status[key] for key in ("role", "node_id", "state", "health", "up_s")},
        "note": status.get("note", ""),
        "requests": {
            "in_flight": len(requests),
            "phases": {phase.name: phases[phase.name] for phase in Phase},
            "paths": {path: paths[path] for path in _PATHS},
            "waiting_for_a_slot": sum(client["waiting"] for client in status["clients"]),
            "oldest": oldest and {key: oldest[key] for key in _OF_OLDEST},
        },
        "watermarks": {name: sum(it[name] or 0 for it in requests) for name in ("ready", "granted", "sent", "total")},
        "ended": {"succeeded": status["ended"]["succeeded"], "failed": dict(status["ended"]["failed"])},
        "rates": None if before is None else _rates(before, now),
        "pool": {
            **blocks,
            "blocks": size,
            "used": round(1 - blocks["free"] / size, 4) if size else 0.0,
            "lent": sum(client.get("lent_blocks", 0) for client in status["clients"]),
            "unsent_bytes": status.get("unsent_bytes"),
        },
        "claims_held": sum(it.get("claim") in _HELD for it in requests),
        "processes": [_process(it, before, now) for it in status["processes"]],
        "clients": [dict(it) for it in status["clients"]],
        "peers": [_peer(it) for it in status["peers"]],
        "quarantine": list(status["quarantine"]),
        "in_flight": list(requests),
    }


def _peer(it: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: it[key] for key in ("node", "bootstrap_addr", "silent_s")}
    return {**told, "is_silent": it["silent_s"] > PEER_SILENT_S, "direct_writers": len(it["direct_writers"])}


# ---- rates


def _rates(before: Sample, now: Sample) -> dict[str, Any]:
    over_s = max(1, now.at_ns - before.at_ns) / NS
    was, ended = before.status["ended"], now.status["ended"]
    tokens = _a_second(_moved(before.status), _moved(now.status), over_s)

    def of(path: str, what: str) -> float:
        then, since = (it["delivered"].get(path, {}).get(what, 0) for it in (was, ended))
        return _a_second(then, since, over_s)

    token_bytes = _token_bytes(now.status["geometry"])
    return {
        "over_s": round(over_s, 3),
        "requests_per_s": _a_second(was["succeeded"], ended["succeeded"], over_s),
        "failed_per_s": _a_second(sum(was["failed"].values()), sum(ended["failed"].values()), over_s),
        "tokens_per_s": tokens,
        "bytes_per_s": round(tokens * token_bytes, 1),
        "paths": {
            path: {
                "requests_per_s": of(path, "requests"),
                "bytes_per_s": round(of(path, "tokens") * token_bytes, 1),
            }
            for path in _PATHS
        },
    }


def _moved(status: Mapping[str, Any]) -> int:
    """Rows that were sent until now: those of requests that have succeeded, and those of requests on their way.

    One that fails takes what it had sent out of it again.
    """
    delivered = sum(of["tokens"] for of in status["ended"]["delivered"].values())
    return int(delivered + sum(it["sent"] for it in status["requests"] if it["phase"] != Phase.Success.name))


def _token_bytes(geometry: Mapping[str, Any]) -> int:
    return Geometry(**geometry).token_bytes


def _process(it: Mapping[str, Any], before: Sample | None, now: Sample) -> dict[str, Any]:
    """A process of the node; a transfer worker with what it moves."""
    told = {key: it[key] for key in ("name", "pid", "silent_s", "restarts", "trouble")}
    if it["name"].startswith("worker"):
        for what, metric in (("writes_per_s", "writes"), ("bytes_per_s", "bytes_written")):
            told[what] = None if before is None else _counted(it["name"], metric, before, now)
    return told


def _counted(process: str, metric: str, before: Sample, now: Sample) -> float:
    over_s = max(1, now.at_ns - before.at_ns) / NS
    was, since = (it.status["metrics"].get(process, {}).get(metric, 0) for it in (before, now))
    return _a_second(was, since, over_s)


def _a_second(before: float, now: float, over_s: float) -> float:
    return round(max(0.0, now - before) / over_s, 2)


# ---- which requests, in which order

ORDERS: Final = ("age", "waiting", "room", "phase", "sent", "total")
"""By what requests may be sorted: what an operator looks for first stands first."""
_KEYS: Final = {"age": "age_s", "waiting": "for_s", "room": "room", "sent": "sent", "total": "total"}
_SMALLEST_FIRST: Final = ("room", "phase")
_SEARCHED: Final = ("room", "phase", "waits_for", "why", "reason", "line")


def chosen(
    requests: Iterable[Mapping[str, Any]], *, order: str = "age", is_reversed: bool = False, words: str = ""
) -> list[Mapping[str, Any]]:
    """The requests that have each of these words somewhere (room, phase, path, who is waited for, why), in order."""
    found = [it for it in requests if all(word in _text_of(it) for word in words.lower().split())]
    found.sort(key=lambda it: it["room"])
    down = (order not in _SMALLEST_FIRST) != is_reversed
    key = (lambda it: Phase[it["phase"]]) if order == "phase" else (lambda it: it[_KEYS[order]] or 0)
    found.sort(key=key, reverse=down)
    return found


def _text_of(request: Mapping[str, Any]) -> str:
    return " ".join([*(str(request[key]) for key in _SEARCHED), *request["paths"]]).lower()
