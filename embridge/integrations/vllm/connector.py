"""`EmbridgeConnector`: what vLLM 0.33 calls. One in the process of the scheduler, one in each worker.

A producer publishes each encoder output on its encode node, under its identifier; a consumer's scheduler has the item
cache (`consumer.py`), in memory that its workers map, so that all ranks read one copy. vLLM's base class says when
which method is called, and by whom.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorRole
from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver, collect_ec_item_metadata
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from embridge import CacheReader, ConfigError
from embridge.integrations.engine_shelf import EngineShelf
from embridge.integrations.membership import Membership
from embridge.integrations.vllm.consumer import ADDRESS, Consumer, Settings
from embridge.integrations.vllm.stats import Done, LoadsAndSaves, PromMetrics, Stats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ECConnectorOutput
    from vllm.v1.request import Request


class EmbridgeConnector(ECConnectorBase):
    """Raises ConfigError, AttachError, LaunchError, SegmentError when it is made: the engine does not start then."""

    def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
        super().__init__(vllm_config, role)
        transfer, parallel = vllm_config.ec_transfer_config, vllm_config.parallel_config
        assert transfer is not None
        if parallel.nnodes > 1:
            raise ConfigError(f"nnodes: {parallel.nnodes} > 1; run all workers of an engine on its scheduler's host")
        self._settings = Settings.of(transfer.ec_connector_extra_config, "ec_connector_extra_config")
        several = f"-dp{parallel.data_parallel_index}" if parallel.data_parallel_size > 1 else ""
        self._engine = f"{transfer.engine_id}{several}"
        self._members: list[Membership] = []
        self._shelf: EngineShelf | None = None
        self._consumer: Consumer | None = None
        self._counts: Counter[str] = Counter()
        self._step = 0  # of a worker: whose loads are over
        self._asked = ""  # the request that is being scheduled
        self._reader = CacheReader()
        self._resolver = PlaceholderMetadataResolver(vllm_config.model_config)
        is_scheduler = role == ECConnectorRole.SCHEDULER
        try:
            if self.is_producer and (is_scheduler or parallel.rank == 0):
                self._shelf = EngineShelf(self._member("encode", launch=not is_scheduler))
            if self.is_consumer and is_scheduler:
                member, model = self._member("language", launch=True), vllm_config.model_config
                self._consumer = Consumer(self._settings, member, model, self._shelf, self._counts)
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
        self._asked = request.request_id  # of which `has_cache_item` asks next
        return self._consumer is None or self._consumer.is_available(request, num_computed_tokens)

    def has_cache_item(self, identifier: str) -> bool:
        return self._consumer is not None and self._consumer.find(self._asked, identifier) is not None

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        if self._consumer is not None:
            self._consumer.load(request.request_id, request.mm_features[index].identifier)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> LoadsAndSaves:
        told = LoadsAndSaves()
        if self._consumer is not None:
            told.loads = self._consumer.items.tell()
        if self._shelf is not None:
            named = {it.identifier for new in scheduler_output.scheduled_new_reqs for it in new.mm_features}
            told.saves = tuple(it for it in named if not self._shelf.has(self._settings.key(it)))
        return told

    def update_connector_output(self, connector_output: ECConnectorOutput) -> None:
        done = connector_output.ec_connector_worker_meta
        if isinstance(done, Done):
            if self._consumer is not None:
                self._consumer.items.has_read(done.step)
            self._counts.update(done.counts)

    def request_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        if self._consumer is not None:
            self._consumer.end(request)
        if self._shelf is None or not request.mm_features:
            return False, None
        items: dict[str, dict[str, Any]] = collect_ec_item_metadata(request.mm_features, self._resolver)
        for identifier, entry in items.items():
            if self._shelf.has(self._settings.key(identifier)):
                entry[ADDRESS] = self._shelf.address()
        return False, items

    def take_unavailable_requests(self) -> set[str]:
        return self._consumer.take_unavailable() if self._consumer is not None else set()

    def get_ec_connector_stats(self) -> Stats | None:
        if self._consumer is not None:
            self._counts.update(self._consumer.items.take_counts())
        if self.role == ECConnectorRole.WORKER or not self._counts:  # a worker's go with what it tells of each step
            return None
        told = Stats(data=dict(+self._counts))
        self._counts.clear()
        return told

    # ---- a worker's process

    def start_save_caches(self, *, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        for identifier in self._told().saves:
            if identifier in encoder_cache:
                self.save_caches(encoder_cache, identifier)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        if self._shelf is not None:
            with gpu_sync_allowed():
                self._shelf.publish(self._settings.key(mm_hash), encoder_cache[mm_hash])

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        told = self._told().loads
        for identifier, at in told.rows.items():
            if identifier not in encoder_cache:
                with gpu_sync_allowed():
                    encoder_cache[identifier] = self._reader.load(at, current_platform.device_type)
        if told.is_owed:
            self._step = told.step

    def build_connector_worker_meta(self) -> Done | None:
        counts = self._shelf.counts if self._shelf is not None else Counter[str]()
        done = Done(self._step, Counter(counts)) if self._step or counts else None
        counts.clear()
        self._step = 0
        return done

    def _told(self) -> LoadsAndSaves:
        told = self._get_connector_metadata()
        assert isinstance(told, LoadsAndSaves)
        return told

    # ---- the process that serves metrics

    @classmethod
    def build_ec_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=dict(data or {}))  # which is added to: several loggers have the same

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> PromMetrics:
        return PromMetrics(*args)
