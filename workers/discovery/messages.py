"""The messages of registrars and the discovery server, as JSON over HTTP. Every field has a type, a range and a bound.

    PUT    /route                          RouteReport   ->  Accepted
    GET    /route[?role=encode]                          ->  RouteAnswer
    DELETE /route?node_id=..&incarnation=..  Leave       ->  Left

A request with an unknown field is refused, so that a misspelt one is not silently lost; an answer may have more fields
than this version knows, so that the server can be the newer one.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

MAX_BODY_BYTES: Final = 16 << 10
MAX_ANSWER_BYTES: Final = 2 << 20  # 1024 routes of some 700 bytes, and room
MAX_NODES: Final = 1024
MAX_SEQUENCE: Final = 1 << 62
MAX_COUNT: Final = 1 << 53  # integers that every JSON reader keeps

Address = Annotated[
    str,
    Meta(
        max_length=128,
        pattern=r"\Atcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[1-9][0-9]{0,4}\Z",
        description="tcp://host:port",
    ),
]
NodeId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,16}\Z", description="as `embridge status` shows it")]
Incarnation = Annotated[int, Meta(ge=1, lt=MAX_COUNT)]
Count = Annotated[int, Meta(ge=0, lt=MAX_COUNT)]
RoleName = Literal["encode", "language"]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Silent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A process of a node that has not beaten for longer than it may.

    With a `reason` it is a process that cannot be kept alive.
    """

    process: Annotated[str, Meta(min_length=1, max_length=32)]
    silent_s: Seconds
    reason: Annotated[str, Meta(max_length=64)] = ""

    def __str__(self) -> str:
        return f"{self.process} {f'fails: {self.reason}' if self.reason else f'silent {self.silent_s:.1f} s'}"


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is, and how it fares."""

    role: RoleName
    node_id: NodeId
    incarnation: Incarnation
    bootstrap_addr: Address
    poller_addr: Address
    state: Literal["READY", "DRAINING"]
    unhealthy: Annotated[list[Silent], Meta(max_length=64)]
    outstanding_tokens: Count
    outstanding_requests: Count
    free_blocks: Count
    num_blocks: Count

    def __post_init__(self) -> None:
        for name in ("bootstrap_addr", "poller_addr"):
            port = int(getattr(self, name).rpartition(":")[2])
            if port > 65535:
                raise ValueError(f"`{name}`: port {port} > 65535")
        if self.free_blocks > self.num_blocks:
            raise ValueError(f"`free_blocks`: {self.free_blocks} > {self.num_blocks} of `num_blocks`")


class RouteReport(_Node, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node registers, or renews its registration.

    `sequence` orders the reports of one incarnation: it only rises, across restarts of its registrar, too. The
    registration ends `ttl_s` after the last report.
    """

    sequence: Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)]
    ttl_s: Annotated[float, Meta(ge=0.1, le=3600)]


class NodeValue(_Node, frozen=True, kw_only=True):
    """What a node puts into etcd; it may have more fields than this version knows, because nodes are not renewed at
    once. `load` and state are those of the moment; how old they are its reader sees.
    """


class RouteEntry(_Node, frozen=True, kw_only=True):
    """A registered node. `healthy`: every process of it beats, and its last report is `age_s` old and not late."""

    healthy: bool
    age_s: Seconds


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A report was taken: the node was `registered` anew, was `renewed`, or has `replaced` its older incarnation."""

    result: Literal["registered", "renewed", "replaced"]


class RouteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The registered nodes.

    A server that has been up for less than a node's `ttl_s` may not have heard from that node yet.
    """

    routes: Annotated[list[RouteEntry], Meta(max_length=MAX_NODES)]
    server_up_s: Seconds


class RouteFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of GET."""

    role: RoleName | None = None


class Leave(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An incarnation leaves."""

    node_id: NodeId
    incarnation: Incarnation


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a leave. `left`: whether that incarnation was registered."""

    left: bool


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request that did not succeed."""

    error: str
