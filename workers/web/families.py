"""The metrics of a node: names, kinds, labels and help, with what each is read from. The one list of them.

`/metrics`, `docs/metrics.md` and the tests go by it. Everything is read from the control segment, when it is asked
for. No label names a request, a peer or a client: their values would grow without end. `instance`, which Prometheus
adds, tells nodes apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from embridge.allocator._core import Words
from embridge.allocator.claims import HELD, state_of
from embridge.allocator.ends import TIME_BOUNDS_NS, Times
from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.records import (
    MAX_WRITERS,
    RING_HEAD,
    RING_REFUSED,
    RING_TAIL,
    WRITER_WORDS,
    DiscoveryState,
    Lane,
    NodeState,
    Peer,
    PeerState,
    Process,
    SegmentHeader,
    Writer,
)
from embridge.allocator.status import Phase
from embridge.workers.exposition import Family, Histogram, Samples
from embridge.workers.health import failing_processes, silent_processes
from embridge.workers.timing import NS
from embridge.workers.version import version
from embridge.workers.web.scene import Scene

_BOUNDS_S: Final = tuple(bound / NS for bound in TIME_BOUNDS_NS)


class Metered(NamedTuple):
    """A family, and what reads its samples from a node."""

    family: Family
    read: Callable[[Scene], Samples]


def _one(value: float) -> Samples:
    return {(): value}


def _by(values: Iterable[tuple[str, float]]) -> Samples:
    return {(label,): value for label, value in values}


def _histogram(times: Times) -> Histogram:
    return Histogram(_BOUNDS_S, times.counts, times.sum_ns / NS)


# ---- what takes more than a line


def _health(scene: Scene) -> Samples:
    control = scene.control
    silent = silent_processes(control, scene.now_ns, scene.timing.health_s)
    return _one(int(control.state == NodeState.READY and not silent and not failing_processes(control)))


def _requests(scene: Scene) -> Samples:
    found: dict[tuple[str, ...], float | Histogram] = {("succeeded", "none"): scene.ended.succeeded}
    for code, count in scene.ended.failed.items():
        found["failed", code.name.lower()] = count
    return found


def _in_flight(scene: Scene) -> Samples:
    """Slots that are not released, by whichever side (R78)."""
    phases = scene.open_slots.phases()
    return _by((_stage(phase), phases[phase]) for phase in Phase)


def _stage(phase: Phase) -> str:
    return {Phase.WaitingForInput: "waiting_for_input"}.get(phase, phase.name.lower())


def _claims(scene: Scene) -> Samples:
    words = scene.claim_words
    states = Counter(map(state_of, filter(None, words.load_many(0, len(words)))))  # 0: a slot that had none yet
    return _by((state.name.lower(), states[state]) for state in sorted(HELD))


def _waiting(scene: Scene) -> Samples:
    found = dict.fromkeys((target for (_, target), _ in scene.rings), 0)
    for (_, target), words in scene.rings:
        found[target] += max(0, words.load(RING_TAIL) - words.load(RING_HEAD))
    return _by(found.items())


def _full(scene: Scene) -> Samples:
    rings = [words.load(RING_REFUSED) for (source, _), words in scene.rings if source.startswith("lane")]
    return _by([("clients", sum(rings)), ("node", scene.control.metrics.total(Metric.RINGS_FULL))])


def _peers(scene: Scene) -> Samples:
    peers, silent_s = scene.control.peers, scene.timing.peer_timeout_s / 2
    silent = sum(age > silent_s for age in scene.peers.values())
    dead = sum(peers.get(peer, Peer.STATE) == PeerState.DEAD for peer in range(peers.num_peers))
    return _by([("alive", len(scene.peers) - silent), ("silent", silent), ("dead", dead)])


def _writers(scene: Scene) -> Samples:
    at = scene.control.layout.writers
    words = Words(scene.control.mapping, at, MAX_WRITERS * WRITER_WORDS).load_many(0, MAX_WRITERS * WRITER_WORDS)
    of = zip(words[Writer.NODE_ID :: WRITER_WORDS], words[Writer.HAS_CLAIMS :: WRITER_WORDS], strict=True)
    kinds = Counter(bool(has_claims) for node_id, has_claims in of if node_id)
    return _by([("client", kinds[True]), ("worker", kinds[False])])


def _discovery(scene: Scene) -> Samples:
    record = scene.control.routes.discovery() if scene.control.has_discovery else None
    state = DiscoveryState.STARTING if record is None else record.state
    return _by((it.name.lower(), int(scene.control.has_discovery and it == state)) for it in DiscoveryState)


def _processes(scene: Scene, read: Callable[[str], float]) -> Samples:
    return _by((name, read(name)) for name in scene.control.processes.names)


def _process_word(word: Process) -> Callable[[Scene], Samples]:
    return lambda it: _processes(it, lambda name: it.control.processes.get(name, word))


def _lane_sum(word: Lane) -> Callable[[Scene], Samples]:
    return lambda it: _one(sum(it.control.lanes.get(lane, word) for lane in it.attached))


def _total(metric: Metric) -> Callable[[Scene], Samples]:
    return lambda it: _one(it.control.metrics.total(metric))


def _rows(metric: Metric, *of: str) -> Callable[[Scene], Samples]:
    """A sample for each process whose name begins so."""

    def read(scene: Scene) -> Samples:
        rows = scene.control.metrics
        return _by((name, rows.get(i, metric)) for i, name in enumerate(rows.names) if name.startswith(of))

    return read


def _header(word: SegmentHeader) -> Callable[[Scene], Samples]:
    return lambda it: _one(it.control.header.load(word))


_WIRE: Final = ("bootstrap", "poller", "worker", "registrar")

NODE: Final[tuple[Metered, ...]] = (
    # the node
    Metered(Family("embridge_build_info", "gauge", "1, with the version and the role.", ("version", "role")),
            lambda it: {(version(), it.control.role.name.lower()): 1}),
    Metered(Family("embridge_healthy", "gauge", "1: the node is READY and every process of it beats."), _health),
    Metered(Family("embridge_node_state", "gauge", "1 for the state that the node is in.", ("state",)),
            lambda it: _by((state.name.lower(), int(it.control.state == state)) for state in NodeState)),
    Metered(Family("embridge_uptime_seconds", "gauge", "Since the node was launched."),
            lambda it: _one(it.age_s(it.control.header.load(SegmentHeader.STARTED_NS)))),
    Metered(Family("embridge_process_heartbeat_age_seconds", "gauge", "Since the last beat of a process.",
                   ("process",)),
            lambda it: _processes(it, lambda name: it.age_s(it.control.processes.get(name, Process.BEAT_NS)))),
    Metered(Family("embridge_process_restarts", "counter", "Deaths of a process that were followed by a restart.",
                   ("process",)), _process_word(Process.NUM_RESTARTS)),
    Metered(Family("embridge_process_silences", "counter", "Kills of a process because it did not beat.",
                   ("process",)), _process_word(Process.NUM_SILENT)),
    Metered(Family("embridge_process_failing", "gauge", "1: the process cannot be kept alive.", ("process",)),
            lambda it: _processes(it, lambda name: int(name in it.control.failing()))),
    Metered(Family("embridge_errors", "counter", "Exceptions that have ended one item and no process.", ("process",)),
            _rows(Metric.ERRORS, *_WIRE)),
    # requests
    Metered(Family("embridge_requests", "counter", "Requests that have ended, by the code of their failure.",
                   ("outcome", "reason")), _requests),
    Metered(Family("embridge_requests_in_flight", "gauge", "Requests whose slots are not released, by their phase.",
                   ("phase",)), _in_flight),
    Metered(Family("embridge_request_slots", "gauge", "Requests that may be open at one time."),
            lambda it: _one(it.control.limits.num_slots)),
    Metered(Family("embridge_requests_waiting", "gauge", "Requests that wait for a slot."),
            _lane_sum(Lane.NUM_WAITING)),
    Metered(Family("embridge_request_duration_seconds", "histogram", "From opening a request to its success."),
            lambda it: {(): _histogram(it.ended.whole)}),
    Metered(Family("embridge_request_stage_seconds", "histogram", "How long a request that succeeded was in a phase.",
                   ("phase",)),
            lambda it: {(_stage(phase),): _histogram(it.ended.stages[phase])
                        for phase in Phase if not phase.is_terminal}),
    Metered(Family("embridge_deliveries", "counter", "Successes, each destination by itself, by the way of the rows.",
                   ("path",)),
            lambda it: _by((path.name.lower(), of.requests) for path, of in it.ended.delivered.items())),
    Metered(Family("embridge_delivered_tokens", "counter", "Tokens of these.", ("path",)),
            lambda it: _by((path.name.lower(), of.tokens) for path, of in it.ended.delivered.items())),
    Metered(Family("embridge_delivered_bytes", "counter", "Bytes of their rows.", ("path",)),
            lambda it: _by((path.name.lower(), of.tokens * it.control.geometry.token_bytes)
                           for path, of in it.ended.delivered.items())),
    Metered(Family("embridge_rounds", "counter", "Grants that carried blocks to requests that succeeded.",
                   role="language"), lambda it: _one(it.ended.rounds)),
    Metered(Family("embridge_requests_corrupt", "counter", "Requests whose rows were not those that were sent.",
                   role="language"), _total(Metric.CORRUPT)),
    # rows on their way
    Metered(Family("embridge_writes", "counter", "Attempts that were done.", ("writer",), "encode"),
            _rows(Metric.WRITES, "worker", "clients")),
    Metered(Family("embridge_writes_failed", "counter", "Attempts that ended other than done.", ("writer",), "encode"),
            _rows(Metric.WRITES_FAILED, "worker")),
    Metered(Family("embridge_written_tokens", "counter", "Tokens that were written.", ("writer",), "encode"),
            _rows(Metric.TOKENS_WRITTEN, "worker", "clients")),
    Metered(Family("embridge_written_bytes", "counter", "Bytes that were written.", ("writer",), "encode"),
            _rows(Metric.BYTES_WRITTEN, "worker", "clients")),
    Metered(Family("embridge_sessions", "counter", "Sessions of engines that have begun.", role="language"),
            _total(Metric.SESSIONS)),
    Metered(Family("embridge_fences", "counter", "Fences asked for, to end a quarantine.", role="language"),
            _total(Metric.FENCES)),
    # memory
    Metered(Family("embridge_blocks", "gauge", "Blocks of the pool, by their state.", ("state",)),
            lambda it: _by(it.control.blocks.counts()._asdict().items())),
    Metered(Family("embridge_block_waiters", "gauge", "Clients that wait for a block."),
            lambda it: _one(len(it.control.blocks.waiters()))),
    Metered(Family("embridge_payload_bytes", "gauge", "Shared memory of the pool."),
            _header(SegmentHeader.PAYLOAD_BYTES)),
    Metered(Family("embridge_claims_held", "gauge", "Claims that direct writers hold.", ("state",), "language"),
            _claims),
    Metered(Family("embridge_lent_blocks", "gauge", "Blocks that are lent to schedulers.", role="language"),
            _lane_sum(Lane.NUM_LENT)),
    Metered(Family("embridge_unsent_bytes", "gauge", "Host memory of encoders with rows that wait to be sent.",
                   role="encode"), _lane_sum(Lane.UNSENT_BYTES)),
    Metered(Family("embridge_unsent_limit_bytes", "gauge", "The most that there may be of that.", role="encode"),
            _header(SegmentHeader.UNSENT_MAX_BYTES)),
    # clients, rings, messages
    Metered(Family("embridge_clients", "gauge", "Clients that have joined."), lambda it: _one(len(it.attached))),
    Metered(Family("embridge_client_heartbeat_age_max_seconds", "gauge", "Of all clients, the longest since a beat."),
            lambda it: _one(max([it.age_s(it.control.lanes.get(lane, Lane.BEAT_NS)) for lane in it.attached],
                                default=0.0))),
    Metered(Family("embridge_ring_waiting", "gauge", "Records in the rings to a process.", ("to",)), _waiting),
    Metered(Family("embridge_ring_records", "counter", "Records that a process has taken.", ("process",)),
            _rows(Metric.RECORDS, *_WIRE)),
    Metered(Family("embridge_ring_full", "counter", "Kicks that had to wait for room in a ring.", ("by",)), _full),
    Metered(Family("embridge_messages_received", "counter", "Messages that came.", ("process",)),
            _rows(Metric.MESSAGES_IN, *_WIRE)),
    Metered(Family("embridge_messages_sent", "counter", "Messages that left.", ("process",)),
            _rows(Metric.MESSAGES_OUT, *_WIRE)),
    Metered(Family("embridge_messages_resent", "counter", "Grants and aborts that were sent again.", role="language"),
            _total(Metric.RESENT)),
    Metered(Family("embridge_messages_refused", "counter", "Messages that had no business here."),
            _total(Metric.MESSAGES_REFUSED)),
    Metered(Family("embridge_messages_stale", "counter", "Messages of an older incarnation."),
            _total(Metric.MESSAGES_STALE)),
    Metered(Family("embridge_messages_forged", "counter", "Messages in the name of a node that has another key."),
            _total(Metric.MESSAGES_FORGED)),
    Metered(Family("embridge_connections_refused", "counter", "Connections of strangers, whose key is not listed."),
            _total(Metric.CONNECTIONS_REFUSED)),
    Metered(Family("embridge_snapshots", "counter", "All requests in flight told anew to a peer.", role="encode"),
            _total(Metric.SNAPSHOTS)),
    # other nodes
    Metered(Family("embridge_peers", "gauge", "Other nodes; silent: for half of `peer_timeout_s`.", ("state",)),
            _peers),
    Metered(Family("embridge_peer_heartbeat_age_max_seconds", "gauge", "Of all living peers, the longest silence."),
            lambda it: _one(max(it.peers.values(), default=0.0))),
    Metered(Family("embridge_foreign_writers", "gauge", "Processes of other nodes that have the payload mapped.",
                   ("kind",)), _writers),
    Metered(Family("embridge_discovery_state", "gauge", "1 for how the registrar fares; 0 everywhere: there is none.",
                   ("state",)), _discovery),
    Metered(Family("embridge_routes", "gauge", "Nodes of the other role that discovery tells of."),
            lambda it: _one(len(it.control.routes.routes()) if it.control.has_discovery else 0)),
    # published items
    Metered(Family("embridge_items", "gauge", "Items that are published.", role="encode"),
            lambda it: _one(it.control.shelf.ready()[0] if it.control.has_shelf else 0)),
    Metered(Family("embridge_items_bytes", "gauge", "Bytes of their rows.", role="encode"),
            lambda it: _one(it.control.shelf.ready()[1] if it.control.has_shelf else 0)),
    Metered(Family("embridge_shelf_bytes", "gauge", "Shared memory for published items.", role="encode"),
            lambda it: _one(it.control.limits.shelf_bytes)),
    Metered(Family("embridge_items_published", "counter", "Items that clients have published.", role="encode"),
            _total(Metric.PUBLISHED)),
    Metered(Family("embridge_items_dropped", "counter", "Publications that found no room.", role="encode"),
            _total(Metric.PUBLISH_DROPPED)),
    Metered(Family("embridge_items_evicted", "counter", "Items that were taken away for others.", role="encode"),
            _total(Metric.ITEMS_EVICTED)),
    Metered(Family("embridge_items_fetched", "counter", "Items that clients have fetched.", ("how",), "language"),
            lambda it: _by([("in_place", it.control.metrics.total(Metric.FETCHED_IN_PLACE)),
                            ("copied", it.control.metrics.total(Metric.FETCHED_COPIES))])),
    Metered(Family("embridge_items_not_published", "counter", "Fetches of what is not published.", role="language"),
            _total(Metric.NOT_PUBLISHED)),
    Metered(Family("embridge_item_cache_hits", "counter", "Items that were in the cache when they were wanted.",
                   role="language"), _total(Metric.CACHE_HITS)),
    Metered(Family("embridge_item_cache_misses", "counter", "Items that had to be fetched then.", role="language"),
            _total(Metric.CACHE_MISSES)),
    Metered(Family("embridge_item_cache_evictions", "counter", "Items that have left the cache for others.",
                   role="language"), _total(Metric.CACHE_EVICTIONS)),
    Metered(Family("embridge_item_notices_sent", "counter", "Changes of what is published that followers were told.",
                   role="encode"), _total(Metric.NOTICES_SENT)),
    Metered(Family("embridge_item_inventories_sent", "counter", "All that is published, told to a follower at once.",
                   role="encode"), _total(Metric.INVENTORIES_SENT)),
    Metered(Family("embridge_item_notice_gaps", "counter", "Times that what was missed of notices was asked for.",
                   role="language"), _total(Metric.NOTICE_GAPS)),
)  # fmt: skip
"""Every metric of a node, in the order in which it is shown."""


def families(scene: Scene) -> Iterable[tuple[Family, Samples]]:
    """Those that a node of this role has, with their samples now."""
    role = Role(scene.control.role).name.lower()
    return ((it.family, it.read(scene)) for it in NODE if it.family.role in ("", role))
