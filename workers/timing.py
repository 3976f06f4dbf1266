"""The times a node keeps, each with its reason. All clocks are monotonic; a jump of the wall clock changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embridge.allocator.settings import check, setting

NS = 1_000_000_000


def _time(default: float, help: str, why: str, *, may_be_zero: bool = False, is_flag: bool = False) -> Any:
    """Seconds, more than 0 and less than a million."""
    at_least, above = (0, None) if may_be_zero else (None, 0)
    return setting(default, help, ge=at_least, gt=above, lt=1e6, is_flag=is_flag, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds, all of them."""

    request_timeout_s: float = _time(
        120.0,
        "From opening a request to its end, whatever it waits for; then it is Failed.",
        "no transfer that moves takes so long, and who waits is told within two minutes",
        is_flag=True,
    )
    peer_timeout_s: float = _time(
        5.0, "Silence of a peer that is taken for death.", "a throttled container is silent for one second"
    )
    connect_timeout_s: float = _time(
        5.0, "How long a first registration with an encode node may take.", "the node may be starting up"
    )
    heartbeat_s: float = _time(
        0.1,
        "How often a peer with requests in flight hears of this node.",
        "a lost message is repaired within one or two of these",
    )
    idle_heartbeat_s: float = _time(
        1.0, "How often a peer with no requests in flight hears of this node.", "five fit into `peer_timeout_s`"
    )
    resend_s: float = _time(
        0.2,
        "A grant or an abort that the encode side has not answered is sent again after this, then twice "
        "as long, to 2 s.",
        "an answer comes within two heartbeats, or not at all",
    )
    fence_wait_s: float = _time(
        1.0,
        "When somebody waits for a block: how long another stays in quarantine before a fence.",
        "a fence takes about as long to restart the worker, and an abort is mostly acknowledged sooner",
    )
    fence_after_s: float = _time(
        5.0,
        "When nobody waits: how long a block stays in quarantine before a fence.",
        "a fence breaks off what other peers are sending, so it is not done lightly",
    )
    beat_s: float = _time(
        0.25, "A process's own sign of life in shared memory, also when idle.", "eight fit into `health_s`"
    )
    silent_after_s: float = _time(
        10.0,
        "A process of the node that has not beaten for this long is killed and started again.",
        "a throttled one may be silent for a second",
    )
    client_silent_after_s: float = _time(
        60.0,
        "A client whose library thread has taken no turn for this long is killed (0: never).",
        "a module that it loads may keep the GIL",
        may_be_zero=True,
    )
    retry_s: float = _time(
        10.0,
        "A process that cannot be kept alive is tried again this often; when it has then held for as "
        "long, the node is healthy again.",
        "each attempt costs a start, and what kills a process at its start mostly lasts",
    )
    scan_s: float = _time(
        1.0,
        "Every slot is looked at this often for what has changed, whatever the kicks said.",
        "a kick that was lost costs no more than that",
    )
    health_s: float = _time(
        2.0,
        "A process that has not beaten for this long is told to discovery as unhealthy.",
        "a busy machine may delay several beats",
    )
    discovery_interval_s: float = _time(
        1.0, "Between two reports to the discovery server, while it answers.", "five fit into `discovery_ttl_s`"
    )
    discovery_ttl_s: float = _time(
        5.0,
        "A node that has not reported for this long is not routed to any more; also the longest pause after failures.",
        "it is `peer_timeout_s`, so routers and peers miss a node at the same time",
    )
    discovery_timeout_s: float = _time(
        2.0, "For one request to the discovery server.", "a server that lives answers within milliseconds"
    )
    ready_timeout_s: float = _time(
        30.0, "From the start of a node to READY of all its processes.", "a busy machine takes seconds to start six"
    )
    drain_timeout_s: float = _time(
        30.0,
        "After SIGTERM, for the accepted requests to end.",
        "requests take milliseconds to seconds, and service managers wait for some time longer",
        is_flag=True,
    )
    stop_timeout_s: float = _time(
        5.0, "For a process to stop before it is killed.", "each ends within milliseconds, unless a library holds it"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.silent_after_s < 2 * self.beat_s:
            raise ValueError(
                f"silent_after_s: {self.silent_after_s:g} s < 2 x beat_s ({self.beat_s:g} s); "
                "one late beat must kill nobody"
            )
        if self.discovery_ttl_s < 2 * self.discovery_interval_s:
            raise ValueError(
                f"discovery_ttl_s: {self.discovery_ttl_s:g} s < 2 x discovery_interval_s "
                f"({self.discovery_interval_s:g} s); "
                "one late report must not end a registration"
            )
