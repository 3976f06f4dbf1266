"""What the connector counts, for vLLM's log and its Prometheus metrics; and what its two sides tell each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Self

import prometheus_client
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorMetadata, ECConnectorWorkerMetadata
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorPromMetrics, ECConnectorStats

from embridge import StepLoads

COUNTS: Final = {
    "published": "Encoder outputs that were published.",
    "not_published": "Encoder outputs that could not be published: the shelf is full of what is read, or gone.",
    "loads": "Items that were loaded instead of being encoded.",
    "load_bytes": "Bytes of those.",
    "missed": "Items that could not be fetched.",
    "refused": "Items that were refused: an address that is not allowed, or rows that do not fit the model.",
    "unavailable": "Requests that were ended because an item of theirs could not be had.",
    "hits": "Items that were in host memory when a request first asked for them.",
    "shared": "Items that were on their way then, for another request.",
    "misses": "Items that had to be fetched.",
    "evictions": "Items that made room for others in host memory.",
}


NOTHING: Final = StepLoads(0, {}, is_owed=False)


@dataclass
class LoadsAndSaves(ECConnectorMetadata):
    """What the scheduler tells the workers of one step."""

    loads: StepLoads = NOTHING
    saves: tuple[str, ...] = ()
    """Items that are not published, and may be in the encoder cache from before."""


@dataclass
class Done(ECConnectorWorkerMetadata):
    """What the workers tell the scheduler: the step of which all loads are over, and what they have counted."""

    step: int
    counts: Counter[str]

    def aggregate(self, other: ECConnectorWorkerMetadata) -> Done:
        assert isinstance(other, Done)
        return Done(min(self.step, other.step), self.counts + other.counts)


class Stats(ECConnectorStats):
    """Counts since the last look; `data` is {name: number}."""

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: ECConnectorStats) -> Self:
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class PromMetrics(ECConnectorPromMetrics):
    """A counter `vllm:embridge_<name>_total` of each count, for each engine."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        made = {
            name: self._counter_cls(name=f"vllm:embridge_{name}", documentation=text, labelnames=self._labelnames)
            for name, text in COUNTS.items()
        }
        self._counters: dict[int, dict[str, prometheus_client.Counter]] = {
            engine: {name: counter.labels(*labels) for name, counter in made.items()}
            for engine, labels in self.per_engine_labelvalues.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            self._counters[engine_idx][name].inc(count)
