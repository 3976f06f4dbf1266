"""The route table: the nodes of the other role that discovery knows, and how the registrar itself fares.

The registrar alone writes it. Any client reads it, at any time, without a lock and without holding the writer up
(`GuardedRecords`). A registrar that is killed leaves a record that is not readable until the next one has written it;
that one starts by freeing such records.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from embridge.allocator._core import Mapping
from embridge.allocator.guarded_records import GuardedRecords, put_text, text_of
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    DISCOVERY_REASON,
    DISCOVERY_REASON_BYTES,
    DISCOVERY_URL,
    ROUTE_BOOTSTRAP,
    ROUTE_POLLER,
    ROUTE_TEXT_BYTES,
    ROUTE_UNHEALTHY,
    ROUTE_WORDS,
    Discovery,
    DiscoveryState,
    Guarded,
    NodeState,
    Route,
)


class RouteRecord(NamedTuple):
    """One node of the other role, as discovery told last. `reported_ns` is in this host's monotonic clock."""

    node_id: int
    incarnation: int
    state: NodeState
    healthy: bool
    unhealthy: str
    bootstrap_addr: str
    poller_addr: str
    outstanding_tokens: int
    outstanding_requests: int
    free_blocks: int
    num_blocks: int
    reported_ns: int

    def __str__(self) -> str:
        return f"node {self.node_id:x} at {self.bootstrap_addr}"


class DiscoveryRecord(NamedTuple):
    """How the registrar fares: `reason` says why it is not REGISTERED, `since_ns` since when it is in this state."""

    state: DiscoveryState
    since_ns: int
    heard_ns: int
    num_failures: int
    url: str
    reason: str


class RouteWriter:
    """The registrar's end; one process at a time. Opening it frees the records that a killed one left half written."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._records = GuardedRecords(mapping, layout.routes, 1 + layout.limits.max_routes, ROUTE_WORDS)
        self._slots: dict[int, int] = {}  # node id -> record
        for index in range(1, self._records.count):
            words = self._records.read(index)
            if words is None:
                self._records.write(index, [0] * ROUTE_WORDS)
            elif words[Route.STATE]:
                self._slots[words[Route.NODE_ID]] = index

    def put_all(self, routes: Iterable[RouteRecord]) -> int:
        """Have the table hold these nodes and no others; a node keeps its place. Returns how many found no room."""
        wanted = {route.node_id: route for route in routes}
        for node_id in self._slots.keys() - wanted.keys():
            self._records.write(self._slots.pop(node_id), [0] * ROUTE_WORDS)
        used = set(self._slots.values())
        free = [index for index in range(self._records.count - 1, 0, -1) if index not in used]
        num_left_out = 0
        for node_id, route in wanted.items():
            if node_id not in self._slots:
                if not free:
                    num_left_out += 1
                    continue
                self._slots[node_id] = free.pop()
            self._records.write(self._slots[node_id], _words_of(route))
        return num_left_out

    def put_discovery(self, record: DiscoveryRecord) -> None:
        """Say how the registrar fares."""
        words = [0] * ROUTE_WORDS
        words[Discovery.STATE] = record.state
        words[Discovery.SINCE_NS] = record.since_ns
        words[Discovery.HEARD_NS] = record.heard_ns
        words[Discovery.NUM_FAILURES] = record.num_failures
        put_text(words, DISCOVERY_URL, ROUTE_TEXT_BYTES, record.url)
        put_text(words, DISCOVERY_REASON, DISCOVERY_REASON_BYTES, record.reason)
        self._records.write(0, words)


class RouteReader:
    """Any process's end.

    Each record that it returns was whole at one moment. The writer sees nothing of a reader.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._records = GuardedRecords(mapping, layout.routes, 1 + layout.limits.max_routes, ROUTE_WORDS)
        self._known: dict[int, tuple[int, RouteRecord | None]] = {}  # record -> (generation, what it held)

    def routes(self) -> list[RouteRecord]:
        """The nodes that discovery has told of.

        A node that has moved may have two records; the later report counts.
        """
        found: dict[int, RouteRecord] = {}
        for index in range(1, self._records.count):
            route = self._route(index)
            if route is not None:
                before = found.get(route.node_id)
                if before is None or (before.incarnation, before.reported_ns) < (route.incarnation, route.reported_ns):
                    found[route.node_id] = route
        return list(found.values())

    def _route(self, index: int) -> RouteRecord | None:
        known = self._known.get(index)
        if known is not None and known[0] == self._records.generation(index):
            return known[1]
        words = self._records.read(index)
        if words is None:  # a killed registrar left it, or it is being written whenever we look
            return known[1] if known is not None else None
        route = _route_of(words)
        self._known[index] = (words[Guarded.GENERATION], route)
        return route

    def discovery(self) -> DiscoveryRecord | None:
        """How the registrar fares; None while it writes that, or if it was killed when it did."""
        words = self._records.read(0)
        if words is None:
            return None
        state = words[Discovery.STATE]
        return DiscoveryRecord(
            state=DiscoveryState(state) if state in DiscoveryState._value2member_map_ else DiscoveryState.STARTING,
            since_ns=words[Discovery.SINCE_NS],
            heard_ns=words[Discovery.HEARD_NS],
            num_failures=words[Discovery.NUM_FAILURES],
            url=text_of(words, DISCOVERY_URL, ROUTE_TEXT_BYTES),
            reason=text_of(words, DISCOVERY_REASON, DISCOVERY_REASON_BYTES),
        )


def _words_of(route: RouteRecord) -> list[int]:
    words = [0] * ROUTE_WORDS
    words[Route.STATE] = route.state
    words[Route.NODE_ID] = route.node_id
    words[Route.INCARNATION] = route.incarnation
    words[Route.HEALTHY] = route.healthy
    words[Route.OUTSTANDING_TOKENS] = route.outstanding_tokens
    words[Route.OUTSTANDING_REQUESTS] = route.outstanding_requests
    words[Route.FREE_BLOCKS] = route.free_blocks
    words[Route.NUM_BLOCKS] = route.num_blocks
    words[Route.REPORTED_NS] = max(0, route.reported_ns)
    put_text(words, ROUTE_BOOTSTRAP, ROUTE_TEXT_BYTES, route.bootstrap_addr)
    put_text(words, ROUTE_UNHEALTHY, ROUTE_TEXT_BYTES, route.unhealthy)
    put_text(words, ROUTE_POLLER, ROUTE_TEXT_BYTES, route.poller_addr)
    return words


def _route_of(words: list[int]) -> RouteRecord | None:
    """The node of a record; None if the record is free, or holds a state that no node is in."""
    state = words[Route.STATE]
    if not state or state not in NodeState._value2member_map_:
        return None
    return RouteRecord(
        node_id=words[Route.NODE_ID],
        incarnation=words[Route.INCARNATION],
        state=NodeState(state),
        healthy=bool(words[Route.HEALTHY]),
        unhealthy=text_of(words, ROUTE_UNHEALTHY, ROUTE_TEXT_BYTES),
        bootstrap_addr=text_of(words, ROUTE_BOOTSTRAP, ROUTE_TEXT_BYTES),
        poller_addr=text_of(words, ROUTE_POLLER, ROUTE_TEXT_BYTES),
        outstanding_tokens=words[Route.OUTSTANDING_TOKENS],
        outstanding_requests=words[Route.OUTSTANDING_REQUESTS],
        free_blocks=words[Route.FREE_BLOCKS],
        num_blocks=words[Route.NUM_BLOCKS],
        reported_ns=words[Route.REPORTED_NS],
    )
