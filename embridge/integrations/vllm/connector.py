"""`EmbridgeConnector`: what vLLM 0.33 calls. One in the process of the scheduler, one in each worker.

A producer publishes each encoder output on its encode node, under its identifier; a consumer's scheduler has the item
cache (`consumer.py`), in memory that its workers map, so that all ranks read one copy. vLLM's base class says when
which method is called, and by whom.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver, collect_ec_item_metadata
from vllm.platforms import current_platform

from embridge import ConfigError
from embridge.integrations.membership import Membership
from embridge.integrations.vllm.consumer import ADDRESS, Consumer, Held
from embridge.integrations.vllm.producer import Producer
from embridge.integrations.vllm.settings import Settings
from embridge.integrations.vllm.stats import Done, LoadsAndSaves, PromMetrics, Stats
from embridge.pipeline.client.cache_memory import CacheView, MemoryName

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ECConnectorOutput
    from vllm.v1.request import Request

class EmbridgeConnector(ECConnectorBase):
    """Raises ConfigError, AttachError, LaunchError when it is made: the engine does not start then."""

    def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
        super().__init__(vllm_config, role)
        transfer, parallel = vllm_config.ec_transfer_config, vllm_config.parallel_config
        assert transfer is not None
        if parallel.nnodes > 1:
            raise ConfigError(f"nnodes: {parallel.nnodes} > 1; run all workers of an engine on its scheduler's host")
        self._settings = Settings.of(transfer.ec_connector_extra_config)
        several = f"-dp{parallel.data_parallel_index}" if parallel.data_parallel_size > 1 else ""
        self._engine = f"{transfer.engine_id}{several}"
        self._members: list[Membership] = []
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._counts: Counter[str] = Counter()
        self._step = 0  # the last that was made up, or whose loads are over
        self._loads: dict[str, Held] = {}  # of the step that is being made up
        self._read: dict[int, list[Held]] = {}  # by steps whose loads are not known to be over
        self._views: dict[MemoryName, CacheView] = {}
        self._resolver = PlaceholderMetadataResolver(vllm_config.model_config)
        is_scheduler = role == ECConnectorRole.SCHEDULER
        try:
            if self.is_producer and (is_scheduler or parallel.rank == 0):
                self._producer = Producer(self._settings, self._member("encode", launch=not is_scheduler))
            if self.is_consumer and is_scheduler:
                member = self._member("language", launch=True)
                self._consumer = Consumer(self._settings, member, vllm_config.model_config, self._producer)
        except BaseException:
            self.shutdown()
            raise

    def _member(self, role: str, *, launch: bool) -> Membership:
        """Of the engine's node, which the first that needs it launches: workers are made before the scheduler."""
        run_dir = self._settings.directory(role, self._engine, is_both=self.is_producer and self.is_consumer)
        self._members.append(Membership(run_dir, self._settings.config(role, run_dir) if launch else None))
        return self._members[-1]

    def shutdown(self) -> None:
        while self._members:
            self._members.pop().close()

    # ---- the scheduler's process

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        return self._consumer is None or self._consumer.is_available(request, num_computed_tokens)

    def has_cache_item(self, identifier: str) -> bool:
        return self._consumer is not None and self._consumer.find(identifier) is not None

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        identifier = request.mm_features[index].identifier
        if self._consumer is not None and (held := self._consumer.find(identifier)) is not None:
            self._loads[identifier] = held

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> LoadsAndSaves:
        self._step += 1
        if self._consumer is not None:
            self._consumer.end_step()
        loads, self._loads = self._loads, {}
        if loads:
            self._read[self._step] = list(loads.values())
        saves: tuple[str, ...] = ()
        if self._producer is not None:
            named = {it.identifier for new in scheduler_output.scheduled_new_reqs for it in new.mm_features}
            saves = tuple(identifier for identifier in named if not self._producer.has(identifier))
        return LoadsAndSaves(self._step, {identifier: held.at for identifier, held in loads.items()}, saves)

    def update_connector_output(self, connector_output: ECConnectorOutput) -> None:
        done = connector_output.ec_connector_worker_meta
        if isinstance(done, Done):
            for step in [step for step in self._read if step <= done.step]:
                held = self._read.pop(step)
                self._counts.update(loads=len(held), load_bytes=sum(it.item.copied().bytes.nbytes for it in held))
            self._counts.update(done.counts)

    def request_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        if self._consumer is not None:
            self._consumer.end(request)
        if self._producer is None or not request.mm_features:
            return False, None
        items: dict[str, dict[str, Any]] = collect_ec_item_metadata(request.mm_features, self._resolver)
        for identifier, entry in items.items():
            if self._producer.has(identifier):
                entry[ADDRESS] = self._producer.address
        return False, items

    def take_unavailable_requests(self) -> set[str]:
        return self._consumer.take_unavailable() if self._consumer is not None else set()

    # ---- a worker's process

    def start_save_caches(self, *, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        for identifier in self._told().saves:
            if identifier in encoder_cache:
                self.save_caches(encoder_cache, identifier)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        if self._producer is not None:
            self._producer.publish(mm_hash, encoder_cache[mm_hash])

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        told = self._told()
        for identifier, at in told.loads.items():
            if identifier not in encoder_cache:
                view = self._views.get(at.memory) or self._views.setdefault(at.memory, CacheView(at.memory))
                encoder_cache[identifier] = view.rows(at).to(current_platform.device_type, copy=True)
        if told.loads:
            self._step = told.step

    def build_connector_worker_meta(self) -> Done | None:
        counts = self._producer.take_counts() if self._producer is not None else Counter()
        step, self._step = self._step, 0
        return Done(step, counts) if step or counts else None

    def _told(self) -> LoadsAndSaves:
        told: ECConnectorMetadata = self._get_connector_metadata()
        assert isinstance(told, LoadsAndSaves)
        return told

    # ---- statistics

    def get_ec_connector_stats(self) -> Stats | None:
        if self.role == ECConnectorRole.WORKER:  # they go with what the workers tell of each step
            return None
        counts, self._counts = self._counts, Counter()
        if self._consumer is not None:
            counts += self._consumer.take_counts()
        return Stats(data={name: count for name, count in counts.items() if count}) if counts else None

    @classmethod
    def build_ec_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> PromMetrics:
        return PromMetrics(*args)
