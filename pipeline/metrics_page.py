"""Writes the page of metrics from the families themselves.

    python -m embridge.pipeline.metrics_page > docs/metrics.md
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from embridge.allocator.ends import TIME_BOUNDS_NS
from embridge.workers.discovery import metrics as discovery
from embridge.workers.exposition import Family
from embridge.workers.timing import NS
from embridge.workers.web.families import NODE

WIDTH: Final = 120
_HEAD: Final = """# Metrics

This page is generated: `make metrics` writes it from the families in the code, and a test compares the two.

Every node serves its metrics over HTTP, from a process of its own that only looks at shared memory. When that process
dies, requests go on, and it is started again at the same port. The port is any free one of the loopback address, so
that nodes on one host do not meet; `embridge status` shows it, and so does the line READY. For Prometheus give each
node a port of its own: `--metrics-addr 127.0.0.1:9464`, or the address of an interface (there is neither a password nor
encryption: leave it to networks that you trust). `--metrics-addr off` leaves the process out. The same port shows a
[status page](deploying.md#the-status-page) for people.

```yaml
scrape_configs:
  - job_name: embridge
    static_configs:
      - targets: ["127.0.0.1:9464", "127.0.0.1:9465"]
```

`deploy/alerts.yml` has alerts, with a line each on what to do, and goes by the job name `embridge` above;
`deploy/grafana.json` is a dashboard for Grafana. Units are base units. Counters begin at 0 with each launch of the
node. No label names a request, a peer or a client. Prometheus's own format and OpenMetrics are served, by what is asked
for.

Any name of the node answers `/metrics`; it has counts alone. What watching costs (`python bench/watching.py`): at idle
0.2 % of a core with a scrape each 15 s and a page open; beside 10 000 requests in flight a scrape takes 9 ms on an
encode node and 14 ms on a language node (p99: 13 and 17). What it takes of the throughput was less than what rounds of
one run on a shared machine differ by.

[Discovery](discovery.md) has metrics of its own, below. Single requests are traced by [spans](#spans).
"""
_SPANS: Final = """
## Spans

With `pip install 'embridge[opentelemetry]'` each request becomes a span of
[OpenTelemetry](https://opentelemetry.io/docs/languages/python/), made from the times at which it entered its phases,
with a span for each phase within it. Exporter, sampling and resource are those of your tracer provider. Call `record`
where you take a request that has ended: the scheduler after `pop_transferred`, the encoder after its sender has ended.

```python
from opentelemetry import trace

from embridge.integrations.opentelemetry import RequestSpans

spans = RequestSpans(trace.get_tracer_provider())
for request in (*finished, *failed):
    spans.record(request)
```

`record(request, context=...)` puts the span under one of yours. Until you call it tracing costs nothing; the call takes
some 50 us.
"""


def page() -> str:
    """The text of the page."""
    of_node = [it.family for it in NODE]
    bounds = ", ".join(f"{bound / NS:g}" for bound in TIME_BOUNDS_NS)
    return "\n".join(
        [
            _HEAD,
            "## Of a node\n",
            _entries(of_node),
            f"\n{textwrap.fill(f'Buckets of histograms, in seconds: {bounds}.', WIDTH)}\n",
            "## Of the discovery server\n",
            _entries(discovery.FAMILIES.values()),
            _SPANS,
        ]
    )


def _entries(families: Iterable[Family]) -> str:
    return "\n".join(_entry(it) for it in families)


def _entry(it: Family) -> str:
    facts: list[str] = [it.kind]
    if it.labels:
        facts.append(f"by {', '.join(f'`{label}`' for label in it.labels)}")
    if it.role:
        facts.append(f"{it.role} nodes only")
    return textwrap.fill(
        f"- **`{it.full_name}`** ({'; '.join(facts)}): {it.help}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    print(page(), end="")
