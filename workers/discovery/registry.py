"""The registered nodes: the discovery server's state, in memory, without I/O; callers hand in the time.

A node is known by its id, and its registration carries the incarnation (D5): a newer incarnation replaces it, the same
one renews it, an older one is refused with the reason. An incarnation that has left, or whose registration has run out,
leaves a mark behind for a while, which bars older incarnations of that node. An incarnation that has run out may itself
return (its host was only slow).

A leave removes the very incarnation that it names, if that is registered, and bars no other: where there is no token,
anybody on the host may send a leave. Reports that may have been made before the leave do not bring that incarnation
back. A report that the node makes a second later does, for then the leave was not the node's own. So a forged leave
hides a node until its next report. Where a forged report, whose sequence is far ahead, came before the forged leave,
the node is hidden for `LEFT_KEPT_S`, after which no report of before a leave can be on its way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from embridge.workers.discovery.messages import MAX_NODES, MAX_SEQUENCE, Leave, RouteEntry, RouteReport, Silent
from embridge.workers.timing import NS

MARK_KEPT_S: Final = 600.0  # longer than any report can be on its way
MAX_MARKS: Final = 4 * MAX_NODES
LATE_REPORT_S: Final = 1.0  # slack in the estimate of the youngest report that may have been made before a leave
LEFT_KEPT_S: Final = 10.0  # how long late reports of what has left are refused: twice a request's deadline
LATE_PART: Final = 0.5  # of its `ttl_s`: a node whose last report is older counts as unhealthy


class RouteConflict(Exception):
    """A report or a leave that comes too late; the text says which later one is known."""


class RegistryFull(Exception):
    """There is no room for one more node."""


@dataclass(slots=True)
class _Registration:
    report: RouteReport
    heard_ns: int

    @property
    def ttl_ns(self) -> int:
        return int(self.report.ttl_s * NS)


class Registry:
    """The registered nodes. `now_ns` is monotonic, and does not go back from call to call."""

    def __init__(self, started_ns: int, max_nodes: int = MAX_NODES) -> None:
        self._started_ns = started_ns
        self._max_nodes = max_nodes
        self._nodes: dict[str, _Registration] = {}
        self._marks: dict[str, tuple[int, int]] = {}  # node id -> (least incarnation that may come, until)
        # (node, incarnation) -> (the last sequence that is late, until)
        self._left: dict[tuple[str, int], tuple[int, int]] = {}
        self.counts: Counter[str] = Counter()

    def up_s(self, now_ns: int) -> float:
        return (now_ns - self._started_ns) / NS

    def put(self, report: RouteReport, now_ns: int) -> str:
        """Register, renew or replace a node. Returns which: "registered", "renewed" or "replaced".

        Raises:
            RouteConflict: a newer incarnation, or a later report, is known already; or this incarnation has left.
            RegistryFull: the number of nodes is at its limit.
        """
        self._expire(now_ns)
        node, held = report.node_id, self._nodes.get(report.node_id)
        least, _ = self._marks.get(node, (0, 0))
        if held is not None and report.incarnation < held.report.incarnation:
            raise RouteConflict(
                f"incarnation: {report.incarnation} of node {node} < {held.report.incarnation}, which is registered; "
                "stop the older node, or give each a run directory of its own"
            )
        if report.incarnation < least:
            raise RouteConflict(
                f"incarnation: {report.incarnation} of node {node} < {least}; it has left, or was replaced"
            )
        late, _ = self._left.get((node, report.incarnation), (-1, 0))
        if report.sequence <= late:
            raise RouteConflict(
                f"incarnation: {report.incarnation} of node {node}: it has left, and this report was made before"
            )
        if held is not None and report.incarnation == held.report.incarnation:
            self._check_renewal(held.report, report)
        if held is None and len(self._nodes) >= self._max_nodes:
            raise RegistryFull(f"nodes: {len(self._nodes)} are registered, and no more than {self._max_nodes} may be")
        self._left.pop((node, report.incarnation), None)
        result = (
            "registered" if held is None else "renewed" if held.report.incarnation == report.incarnation else "replaced"
        )
        self._nodes[node] = _Registration(report, now_ns)
        self.counts[result] += 1
        return result

    def _check_renewal(self, held: RouteReport, report: RouteReport) -> None:
        """Refuse a renewal that changes role or addresses, which one incarnation cannot, or that comes out of order."""
        for name in ("role", "bootstrap_addr", "poller_addr"):
            if getattr(held, name) != getattr(report, name):
                raise RouteConflict(
                    f"{name}: {getattr(report, name)!r} is not {getattr(held, name)!r}, with which incarnation "
                    f"{held.incarnation} of node {held.node_id} is registered; two nodes share one identity file"
                )
        if report.sequence < held.sequence:
            raise RouteConflict(f"sequence: {report.sequence} < {held.sequence}; a later report is here already")

    def leave(self, leave: Leave, now_ns: int) -> bool:
        """Remove this incarnation. True if it was registered.

        Raises:
            RouteConflict: a newer incarnation is registered.
        """
        self._expire(now_ns)
        held = self._nodes.get(leave.node_id)
        if held is not None and leave.incarnation < held.report.incarnation:
            raise RouteConflict(
                f"incarnation: {leave.incarnation} of node {leave.node_id} < "
                f"{held.report.incarnation}, which is registered"
            )
        if held is None or leave.incarnation != held.report.incarnation:  # it never registered, or has left or run out
            self._keep_out(leave, MAX_SEQUENCE, now_ns + int(LEFT_KEPT_S * NS))
            return False
        late = held.report.sequence + now_ns - held.heard_ns + int(LATE_REPORT_S * NS)
        self._keep_out(leave, late, now_ns + int(LEFT_KEPT_S * NS))
        self._mark(leave.node_id, leave.incarnation, now_ns)
        self.counts["left"] += 1
        del self._nodes[leave.node_id]
        return True

    def _keep_out(self, leave: Leave, sequence: int, until_ns: int) -> None:
        if (leave.node_id, leave.incarnation) in self._left:
            return  # a repeated leave does not prolong it
        self._left[leave.node_id, leave.incarnation] = (sequence, until_ns)
        while len(self._left) > MAX_MARKS:
            del self._left[next(iter(self._left))]

    def _mark(self, node_id: str, least: int, now_ns: int) -> None:
        before, _ = self._marks.pop(node_id, (0, 0))
        self._marks[node_id] = (max(before, least), now_ns + int(MARK_KEPT_S * NS))
        while len(self._marks) > MAX_MARKS:
            del self._marks[next(iter(self._marks))]  # the oldest: they are kept in the order in which they run out

    def _expire(self, now_ns: int) -> None:
        gone = [node for node, held in self._nodes.items() if now_ns - held.heard_ns > held.ttl_ns]
        for node in gone:
            self._mark(node, self._nodes.pop(node).report.incarnation, now_ns)
            self.counts["expired"] += 1
        for left in [left for left, (_, until_ns) in self._left.items() if until_ns < now_ns]:
            del self._left[left]
        while self._marks and next(iter(self._marks.values()))[1] < now_ns:
            del self._marks[next(iter(self._marks))]

    def entries(self, now_ns: int, role: str | None = None) -> list[RouteEntry]:
        """The registered nodes, all of them or those of one role, in the order in which they came."""
        self._expire(now_ns)
        return [_entry(held, now_ns) for held in self._nodes.values() if role is None or held.report.role == role]


def _entry(held: _Registration, now_ns: int) -> RouteEntry:
    report, age_s = held.report, round((now_ns - held.heard_ns) / NS, 3)
    silent = list(report.unhealthy)
    if age_s > LATE_PART * report.ttl_s:
        silent.append(Silent("registrar", age_s))
    return RouteEntry(
        role=report.role,
        node_id=report.node_id,
        incarnation=report.incarnation,
        bootstrap_addr=report.bootstrap_addr,
        poller_addr=report.poller_addr,
        state=report.state,
        unhealthy=silent,
        outstanding_tokens=report.outstanding_tokens,
        outstanding_requests=report.outstanding_requests,
        free_blocks=report.free_blocks,
        num_blocks=report.num_blocks,
        healthy=not silent,
        age_s=age_s,
    )
