"""The metrics of the discovery server for Prometheus: health and load of each node, and counts of reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from embridge.workers.discovery.registry import Registry

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_LABELS: Final = ("role", "node_id", "bootstrap_addr", "state")
_GAUGES: Final = {
    "outstanding_tokens": "Rows that are announced and not sent yet.",
    "outstanding_requests": "Requests in flight.",
    "free_blocks": "Blocks of the pool that are free.",
    "num_blocks": "Blocks of the pool.",
}
_RESULTS: Final = ("registered", "renewed", "replaced", "left", "expired", "conflict", "malformed", "error")


class _Collector:
    """The registry at one moment, as metric families."""

    def __init__(self, registry: Registry, now_ns: int) -> None:
        self._registry = registry
        self._now_ns = now_ns

    def collect(self) -> Iterator[Metric]:
        entries = self._registry.entries(self._now_ns)
        healthy = GaugeMetricFamily("embridge_node_healthy", "1: every process of the node beats.", labels=_LABELS)
        age = GaugeMetricFamily("embridge_node_report_age_seconds", "Since the node's last report.", labels=_LABELS)
        loads = {
            name: GaugeMetricFamily(f"embridge_node_{name}", text, labels=_LABELS) for name, text in _GAUGES.items()
        }
        for entry in entries:
            labels = [entry.role, entry.node_id, entry.bootstrap_addr, entry.state]
            healthy.add_metric(labels, float(entry.healthy))
            age.add_metric(labels, entry.age_s)
            for name, family in loads.items():
                family.add_metric(labels, float(getattr(entry, name)))
        yield from (healthy, age, *loads.values())
        results = CounterMetricFamily(
            "embridge_discovery_reports", "Reports and leaves, by what became of them.", labels=["result"]
        )
        for result in _RESULTS:
            results.add_metric([result], float(self._registry.counts[result]))
        yield results
        up = GaugeMetricFamily("embridge_discovery_up_seconds", "Since the server was started.")
        up.add_metric([], self._registry.up_s(self._now_ns))
        yield up


def exposition(registry: Registry, now_ns: int) -> bytes:
    """The metrics in Prometheus's text format; nothing of prometheus_client's default registry is among them."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Collector(registry, now_ns))
    return generate_latest(collectors)
