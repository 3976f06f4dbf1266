"""Chooses an encode node by load, from the route table in shared memory, for callers that have no router.

A report is up to a second old. A scheduler that picks a hundred times within that second would send all hundred
requests to the node that was idle at its beginning. So a request that this client has just sent to a node counts there
until a report can show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from embridge.allocator.errors import NoRouteError
from embridge.allocator.records import NodeState
from embridge.allocator.routes import RouteReader, RouteRecord
from embridge.workers.timing import NS

SHOWN_AFTER_NS: Final = NS  # from a pick until the encoder has opened the room, and a report has counted it
FORGOTTEN_AFTER_NS: Final = 5 * NS  # if no report comes, what was sent this long ago is probably done
TOGETHER_NS: Final = NS // 20  # picks this close are kept as one


@dataclass(slots=True)
class _Sent:
    """The requests that this client has sent to one node and that no report shows yet: (when, tokens, requests).

    It also knows when the node was picked last.
    """

    picks: list[tuple[int, int, int]] = field(default_factory=list)
    last_pick: int = 0

    def add(self, now_ns: int, tokens: int) -> None:
        if self.picks and now_ns - self.picks[-1][0] < TOGETHER_NS:
            when_ns, before, requests = self.picks[-1]
            self.picks[-1] = (when_ns, before + tokens, requests + 1)
        else:
            self.picks.append((now_ns, tokens, 1))

    def forget(self, reported_ns: int, now_ns: int) -> None:
        shown_ns = max(reported_ns - SHOWN_AFTER_NS, now_ns - FORGOTTEN_AFTER_NS)
        self.picks = [pick for pick in self.picks if pick[0] > shown_ns]


class RoutePicker:
    """One client's view of the encode nodes. It reads words of shared memory only (D10)."""

    def __init__(self, reader: RouteReader, clock: Callable[[], int]) -> None:
        self._reader = reader
        self._clock = clock
        self._sent: dict[tuple[int, int], _Sent] = {}  # (node, incarnation)
        self._num_picks = 0

    def nodes(self) -> list[RouteRecord]:
        """Every encode node that discovery has told of, whatever its state."""
        return self._reader.routes()

    def pick(self, tokens: int, other_than: str = "") -> RouteRecord:
        """The node with the least to do, of those that are READY and healthy.

        Among equals it is the one that was picked longest ago. The node at the address `other_than` is not picked.

        Raises:
            NoRouteError: there is no such node; the text says which nodes there are.
        """
        nodes, now = self.nodes(), self._clock()
        usable = [
            node
            for node in nodes
            if node.state == NodeState.READY and node.healthy and node.bootstrap_addr != other_than
        ]
        if not usable:
            but = f" and other than {other_than}" if other_than else ""
            raise NoRouteError(
                f"encode nodes: none of {len(nodes)} is READY and healthy{but}{_listed(nodes)}{self._why()}"
            )
        keys = {(node.node_id, node.incarnation) for node in nodes}
        self._sent = {key: sent for key, sent in self._sent.items() if key in keys}
        best = min(usable, key=lambda node: self._load(node, now))
        sent = self._sent.setdefault((best.node_id, best.incarnation), _Sent())
        sent.add(now, tokens)
        self._num_picks += 1
        sent.last_pick = self._num_picks
        return best

    def _load(self, node: RouteRecord, now_ns: int) -> tuple[int, int, int]:
        sent = self._sent.get((node.node_id, node.incarnation))
        if sent is None:
            return node.outstanding_tokens, node.outstanding_requests, 0
        sent.forget(node.reported_ns, now_ns)
        tokens, requests = (sum(pick[i] for pick in sent.picks) for i in (1, 2))
        return node.outstanding_tokens + tokens, node.outstanding_requests + requests, sent.last_pick

    def _why(self) -> str:
        record = self._reader.discovery()
        if record is None:
            return ""
        return (
            f"; discovery: {record.reason}" if record.reason else f"; discovery is {record.state.name} at {record.url}"
        )


def _listed(nodes: list[RouteRecord]) -> str:
    said = [f"{node} is {node.unhealthy or node.state.name}" for node in nodes[:4]]
    return f": {'; '.join(said)}" if said else ""
