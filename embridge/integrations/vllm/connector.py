"""`EmbridgeConnector`: what vLLM 0.33 calls. One in the process of the scheduler, one in each worker.

A producer publishes each encoder output on its encode node, under its identifier; a consumer's scheduler has the item
cache (`Consumer`), in memory that its workers map, so that all ranks read one copy. vLLM's base class says when which
method is called, and by whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorRole
from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver, collect_ec_item_metadata
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from embridge import ConfigError
from embridge.integrations.engine_settings import EngineSettings, naming_encoders
from embridge.integrations.engine_shelf import EngineShelf
from embridge.integrations.membership import EngineNodes
from embridge.integrations.vllm.stats import Done, LoadsAndSaves, PromMetrics, Stats
from embridge.pipeline.client.engine_requests import ADDRESS, EngineRequests, Need, told_address
from embridge.pipeline.client.step_reader import StepReader

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ECConnectorOutput
    from vllm.v1.request import Request

SOURCE: Final = "ec_connector_extra_config"


class Consumer(EngineRequests):
    """What vLLM's requests say of their items; the library says which may be scheduled. Scheduler's thread only."""

    def __init__(
        self, settings: EngineSettings, nodes: EngineNodes, model: ModelConfig, own: EngineShelf | None
    ) -> None:
        """Raises as `EngineNodes.join`; ConfigError also where nothing says from where items may come; SegmentError."""
        self._key, self._encodes = settings.key, settings.on_missing == "encode"
        self._fields = PlaceholderMetadataResolver(model).fields_for
        member = nodes.join("language", launches=True)
        with naming_encoders(SOURCE):
            super().__init__(
                member.look,
                settings.cache_bytes,
                width=model.get_inputs_embeds_size(),
                dtype=str(model.dtype).removeprefix("torch."),
                wait_s=settings.wait_s,
                encoders=settings.encoders,
                own=own,
                may_make=self._may_encode,
            )

    def is_available(self, request: Request, computed: int) -> bool:
        """Whether all items of a request beyond `computed` tokens are here, or are to be encoded here."""
        state = len(request.mm_features), request.num_preemptions
        return self.admit(request.request_id, self._needs(request, computed), computed, state)

    def _needs(self, request: Request, computed: int) -> Iterator[Need]:
        for it in request.mm_features:
            at = it.mm_position
            if at.offset + at.length > computed:
                rows = at.length if at.is_embed is None else at.get_num_embeds()
                yield Need(self._key(it.identifier), rows, told_address(request.ec_transfer_params, it.identifier), it)

    def _may_encode(self, need: Need) -> bool:
        """Whether a request brought the media of an item, and not only what an encoder instance has told of them."""
        if not self._encodes or need.media.data is None:
            return False
        told_ahead = self._fields(need.media.modality)
        return any(it.data is not None for field, it in need.media.data.items() if field not in told_ahead)


class EmbridgeConnector(ECConnectorBase):
    """Raises ConfigError, AttachError, LaunchError, SegmentError when it is made: the engine does not start then."""

    def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
        super().__init__(vllm_config, role)
        transfer, parallel = vllm_config.ec_transfer_config, vllm_config.parallel_config
        assert transfer is not None
        if parallel.nnodes > 1:
            raise ConfigError(f"nnodes: {parallel.nnodes} > 1; run all workers of an engine on its scheduler's host")
        settings = EngineSettings.of(transfer.ec_connector_extra_config, SOURCE)
        several = f"-dp{parallel.data_parallel_index}" if parallel.data_parallel_size > 1 else ""
        is_both, is_scheduler = self.is_producer and self.is_consumer, role == ECConnectorRole.SCHEDULER
        self._nodes = EngineNodes(settings, f"{transfer.engine_id}{several}", is_both=is_both)
        self._key = settings.key
        self._shelf: EngineShelf | None = None
        self._consumer: Consumer | None = None
        self._counts: Counter[str] = Counter()
        self._asked = ""  # the request that is being scheduled
        self._reader = StepReader()
        self._resolver = PlaceholderMetadataResolver(vllm_config.model_config)
        try:  # workers are made before the scheduler: so the first of them launches the encode node
            if self.is_producer and (is_scheduler or parallel.rank == 0):
                self._shelf = EngineShelf(self._nodes.join("encode", launches=not is_scheduler))
            if self.is_consumer and is_scheduler:
                self._consumer = Consumer(settings, self._nodes, vllm_config.model_config, self._shelf)
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        self._nodes.close()

    # ---- the scheduler's process

    def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
        self._asked = request.request_id  # of which `has_cache_item` asks next
        return self._consumer is None or self._consumer.is_available(request, num_computed_tokens)

    def has_cache_item(self, identifier: str) -> bool:
        return self._consumer is not None and self._consumer.find(self._key(identifier), self._asked) is not None

    def update_state_after_alloc(self, request: Request, index: int) -> None:
        identifier = request.mm_features[index].identifier
        if self._consumer is not None and (held := self._consumer.find(self._key(identifier), request.request_id)):
            self._consumer.add(identifier, held)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> LoadsAndSaves:
        told = LoadsAndSaves()
        if self._consumer is not None:
            told.loads = self._consumer.tell()
        if self._shelf is not None:
            named = {it.identifier for new in scheduler_output.scheduled_new_reqs for it in new.mm_features}
            told.saves = tuple(it for it in named if not self._shelf.has(self._key(it)))
        return told

    def update_connector_output(self, connector_output: ECConnectorOutput) -> None:
        done = connector_output.ec_connector_worker_meta
        if isinstance(done, Done):
            if self._consumer is not None:
                self._consumer.has_read(done.step)
            self._counts.update(done.counts)

    def request_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        if self._consumer is not None:
            self._consumer.end(request.request_id)
        if self._shelf is None or not request.mm_features:
            return False, None
        items: dict[str, dict[str, Any]] = collect_ec_item_metadata(request.mm_features, self._resolver)
        for identifier, entry in items.items():
            if address := self._shelf.address_of(self._key(identifier)):
                entry[ADDRESS] = address
        return False, items

    def take_unavailable_requests(self) -> set[str]:
        return self._consumer.take_unavailable() if self._consumer is not None else set()

    def get_ec_connector_stats(self) -> Stats | None:
        if self._consumer is not None:
            self._counts.update(self._consumer.take_counts())
        if self.role == ECConnectorRole.WORKER or not self._counts:  # a worker's go with what it tells of each step
            return None
        counts, self._counts = self._counts, Counter()
        return Stats(data=dict(+counts))

    # ---- a worker's process

    def start_save_caches(self, *, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        for identifier in self._told().saves:
            if identifier in encoder_cache:
                self.save_caches(encoder_cache, identifier)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        if self._shelf is not None:
            with gpu_sync_allowed():
                self._shelf.publish(self._key(mm_hash), encoder_cache[mm_hash])

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        with gpu_sync_allowed():
            self._reader.load_step(self._told().loads, encoder_cache, current_platform.device_type)

    def build_connector_worker_meta(self) -> Done | None:
        step, counts = self._reader.take_done(), self._shelf.take_counts() if self._shelf is not None else Counter()
        return Done(step, counts) if step or counts else None

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
