"""The metrics of the discovery server for Prometheus: health and load of each node, and counts of reports."""

from __future__ import annotations

from typing import Final

from embridge.workers.discovery.registry import Registry
from embridge.workers.exposition import Family, Samples, exposition

_NODE: Final = ("role", "node_id", "bootstrap_addr")
FAMILIES: Final = {
    "healthy": Family("embridge_node_healthy", "gauge", "1: every process of the node beats.", _NODE),
    "draining": Family("embridge_node_draining", "gauge", "1: the node takes no new requests.", _NODE),
    "age_s": Family("embridge_node_report_age_seconds", "gauge", "Since the node's last report.", _NODE),
    "outstanding_tokens": Family(
        "embridge_node_outstanding_tokens", "gauge", "Rows that are announced and not sent yet.", _NODE
    ),
    "outstanding_requests": Family("embridge_node_outstanding_requests", "gauge", "Requests in flight.", _NODE),
    "free_blocks": Family("embridge_node_free_blocks", "gauge", "Blocks of the pool that are free.", _NODE),
    "num_blocks": Family("embridge_node_num_blocks", "gauge", "Blocks of the pool.", _NODE),
    "reports": Family(
        "embridge_discovery_reports", "counter", "Reports and leaves, by what became of them.", ("result",)
    ),
    "up": Family("embridge_discovery_up_seconds", "gauge", "Since the server was started."),
}
"""The one list of them: an entry's field by the name of the family, and the server's own last."""
_RESULTS: Final = ("registered", "renewed", "replaced", "left", "expired", "conflict", "malformed", "error")


def metrics(registry: Registry, now_ns: int, content_type: str) -> bytes:
    """The metrics as text in this format (`exposition.content_type`)."""
    entries = registry.entries(now_ns)
    samples: dict[str, Samples] = {
        name: {
            (it.role, it.node_id, it.bootstrap_addr): float(
                it.state == "DRAINING" if name == "draining" else getattr(it, name)
            )
            for it in entries
        }
        for name, family in FAMILIES.items()
        if family.labels == _NODE
    }
    samples["reports"] = {(result,): registry.counts[result] for result in _RESULTS}
    samples["up"] = {(): registry.up_s(now_ns)}
    return exposition(((family, samples[name]) for name, family in FAMILIES.items()), content_type)
