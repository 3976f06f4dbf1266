"""A worker of vLLM, as far as encoder outputs are concerned: its connector, in the wrapper of either model runner."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    ECTransferConfig,
    ModelConfig,
    MultiModalConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.distributed.ec_transfer import ec_transfer_state, ensure_ec_transfer_initialized, get_ec_transfer
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.plugins import load_general_plugins
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput, make_empty_encoder_model_runner_output
from vllm.v1.worker.ec_connector_model_runner_mixin import ECConnectorModelRunnerMixin
from vllm.v1.worker.gpu.ec_connector import ActiveECConnector

HIDDEN = 64
BLOCK = 16
EOS = 2
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine of the test's. `transfer`: the fields of `ECTransferConfig`."""

    model: str
    transfer: dict[str, Any]
    runner: str = "v1"
    num_ranks: int = 1
    num_blocks: int = 1000
    cache_embeds: int = 1000
    max_batched_tokens: int = 2048
    prefix_caching: bool = False
    width: int = HIDDEN


def model_folder(path: Path) -> str:
    """A model of which only the shape is known."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(MODEL))
    return str(path)


def rows_of(identifier: str, rows: int, width: int) -> torch.Tensor:
    """What the encoder would have made of an image."""
    seed = int.from_bytes(identifier.encode()[-6:], "little")
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def config_of(spec: EngineSpec, rank: int = 0) -> VllmConfig:
    load_general_plugins()
    model = ModelConfig(model=spec.model, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=4096)
    if spec.transfer["ec_role"] == "ec_producer":
        model.multimodal_config = MultiModalConfig()
    scheduler = SchedulerConfig(
        max_num_seqs=64,
        max_num_batched_tokens=spec.max_batched_tokens,
        max_model_len=4096,
        enable_chunked_prefill=True,
        async_scheduling=False,
        is_encoder_decoder=False,
        watermark=0.0,
    )
    config = VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=spec.prefix_caching),
        parallel_config=ParallelConfig(),
        ec_transfer_config=ECTransferConfig(**spec.transfer),
    )
    config.parallel_config.rank = rank
    return config


class Worker:
    """One rank: the part of a model runner that has to do with encoder outputs."""

    def __init__(self, spec: EngineSpec, rank: int) -> None:
        config = config_of(spec, rank)
        ensure_ec_transfer_initialized(config)
        self.spec = spec
        self.encoder_cache: dict[str, torch.Tensor] = {}
        self.features: dict[str, list[MultiModalFeatureSpec]] = {}
        self.prompts: dict[str, int] = {}
        self.v2 = ActiveECConnector(config, self.encoder_cache) if spec.runner == "v2" else None

    def execute(self, told: SchedulerOutput) -> ModelRunnerOutput:
        for identifier in told.free_encoder_mm_hashes:
            self.encoder_cache.pop(identifier, None)
        work: list[tuple[str, int, int]] = []  # request, computed before, tokens that it has
        for new in told.scheduled_new_reqs:
            self.features[new.req_id], self.prompts[new.req_id] = new.mm_features, len(new.prompt_token_ids or ())
            work.append((new.req_id, new.num_computed_tokens, len(new.prefill_token_ids or new.prompt_token_ids or ())))
        cached = told.scheduled_cached_reqs
        for name, computed, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            work.append((name, computed, self.prompts[name] + outputs))
        is_consumer = get_ec_transfer().is_consumer
        if self.v2 is not None:
            with self.v2.maybe_get_output(told) as ec_output:
                self._encode(told)
                self._gather(told, work if is_consumer else [])
        elif not told.total_num_scheduled_tokens:
            ec_output = None
        else:
            with ECConnectorModelRunnerMixin.maybe_get_ec_connector_output(
                told, encoder_cache=self.encoder_cache
            ) as ec_output:
                self._encode(told)
                self._gather(told, work if is_consumer else [])
        if not is_consumer:
            empty = make_empty_encoder_model_runner_output(told)
            return empty if self.v2 is None else ModelRunnerOutput.with_ec_conn_output(empty, ec_output)
        names = list(told.num_scheduled_tokens)
        place = {name: (computed, total) for name, computed, total in work}
        sampled = [[EOS + 1] if told.num_scheduled_tokens[it] + place[it][0] >= place[it][1] else [] for it in names]
        output = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: k for k, name in enumerate(names)}, sampled_token_ids=sampled
        )
        return ModelRunnerOutput.with_ec_conn_output(output, ec_output)

    def _encode(self, told: SchedulerOutput) -> None:
        for name, indices in told.scheduled_encoder_inputs.items():
            for index in indices:
                it = self.features[name][index]
                rows = rows_of(it.identifier, it.mm_position.length, self.spec.width)
                self.encoder_cache[it.identifier] = rows
                if self.v2 is None:
                    ECConnectorModelRunnerMixin.maybe_save_ec_to_connector(self.encoder_cache, it.identifier)

    def _gather(self, told: SchedulerOutput, work: list[tuple[str, int, int]]) -> None:
        for name, computed, _ in work:
            end = computed + told.num_scheduled_tokens[name]
            for it in self.features[name]:
                place = it.mm_position
                if place.offset < end and place.offset + place.length > computed:
                    rows = self.encoder_cache[it.identifier]
                    assert torch.equal(rows, rows_of(it.identifier, place.length, self.spec.width)), it.identifier


def serve(make: Callable[[], Any], start: Connection, calls: Connection, work: Callable[[Any, Any], Any]) -> None:
    """What a process runs: it makes something, says on `start` how that went, and works with it until it is told None,
    or nobody is there to tell it anything.
    """
    try:
        made = make()
    except Exception as error:
        start.send(_said(error))
        return
    start.send(None)
    with contextlib.suppress(EOFError):
        while (call := calls.recv()) is not None:
            try:
                answer = True, work(made, call)
            except Exception as error:
                answer = False, _said(error)
            calls.send(answer)


def answer_of(process: Connection) -> Any:
    """What one that serves has answered. Raises RuntimeError: it has failed."""
    is_well, answer = process.recv()
    if not is_well:
        raise RuntimeError(answer)
    return answer


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def serve_worker(spec: EngineSpec, rank: int, scheduler: Connection, test: Connection) -> None:
    """What a worker's process runs."""
    serve(lambda: Worker(spec, rank), test, scheduler, Worker.execute)
    ec_transfer_state.ensure_ec_transfer_shutdown()
