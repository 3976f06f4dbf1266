"""What the connector counts, for vLLM's log and its Prometheus metrics; and what its two sides tell each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Self

from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorMetadata, ECConnectorWorkerMetadata
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorPromMetrics, ECConnectorStats

from embridge import StepLoads
from embridge.integrations import engine_shelf
from embridge.pipeline.client import engine_requests
from embridge.pipeline.client.request_items import NO_LOADS

COUNTS: Final = engine_shelf.COUNTS | engine_requests.COUNTS


@dataclass
class LoadsAndSaves(ECConnectorMetadata):
    """What the scheduler tells the workers of one step."""

    loads: StepLoads = NO_LOADS
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
        self.data.update(Counter(self.data) + Counter(other.data))
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
        self._counters: dict[int, dict[str, Any]] = {
            engine: {name: counter.labels(*labels) for name, counter in made.items()}
            for engine, labels in self.per_engine_labelvalues.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            self._counters[engine_idx][name].inc(count)
