"""Engines of real processes: vLLM's Scheduler in one, its runners' connector wrappers in a worker for each rank.

What is missing of an engine is the model: an encoder output is computed from its identifier, and every row that a step
would gather is compared with it. A test steps an engine by hand, or lets it run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from runners import BLOCK, EOS, EngineSpec, answer_of, config_of, serve, serve_worker
from vllm.distributed.ec_transfer.ec_connector.utils import ECOutputAggregator
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

LIMIT_S = 60.0
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `items`: (identifier, offset, length) of each."""

    name: str
    items: tuple[tuple[str, int, int], ...] = ()
    prompt: int = 32
    max_tokens: int = 1
    params: Any = None
    has_data: bool = True


def request_of(ask: Ask) -> Request:
    """As vLLM's scheduler has it."""
    sampling = SamplingParams(ignore_eos=True, max_tokens=ask.max_tokens, extra_args={"ec_transfer_params": ask.params})
    sampling.update_from_generation_config({}, EOS)
    features = [
        MultiModalFeatureSpec(
            data=MultiModalKwargsItem.dummy() if ask.has_data else None,
            mm_position=PlaceholderRange(offset=offset, length=length),
            identifier=identifier,
            modality="image",
        )
        for identifier, offset, length in ask.items
    ]
    return Request(
        request_id=ask.name,
        prompt_token_ids=[sum(ask.name.encode()) % 100] * ask.prompt,
        sampling_params=sampling,
        pooling_params=None,
        mm_features=features or None,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


@dataclass
class Step:
    """What one step of an engine has done."""

    scheduled: dict[str, int] = field(default_factory=dict)
    encoded: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    ended: dict[str, tuple[str, Any]] = field(default_factory=dict)  # why, and its ec_transfer_params
    stats: dict[str, int] = field(default_factory=dict)
    free_blocks: int = 0
    ensure_ns: list[int] = field(default_factory=list)


class Engine:
    """The process of the scheduler, with connections to its workers."""

    def __init__(self, spec: EngineSpec, workers: list[Connection]) -> None:
        config = config_of(spec)
        config.cache_config.num_gpu_blocks = spec.num_blocks
        register_all_kvcache_specs(config)
        attention = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kv = KVCacheConfig(
            num_blocks=spec.num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)]
        )
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kv,
            block_size=BLOCK,
            log_stats=True,
            structured_output_manager=StructuredOutputManager(config),
        )
        self.scheduler.use_v2_model_runner = spec.runner == "v2"
        self.scheduler.max_num_encoder_input_tokens = spec.cache_embeds
        self.scheduler.encoder_cache_manager = EncoderCacheManager(spec.cache_embeds)
        self.workers, self.aggregator = workers, ECOutputAggregator()
        self.ensure_ns: list[int] = []
        connector = self.scheduler.ec_connector
        ensure = connector.ensure_cache_available

        def timed(request: Request, computed: int) -> bool:
            begun = time.perf_counter_ns()
            answer: bool = ensure(request, computed)
            self.ensure_ns.append(time.perf_counter_ns() - begun)
            return answer

        connector.ensure_cache_available = timed

    def add(self, ask: Ask) -> None:
        self.scheduler.add_request(request_of(ask))

    def step(self, *, between: str = "", is_told: bool = True) -> Step:
        """One step; `between`: a request that is aborted while the workers are at it, if it is scheduled. Where it is
        not told, the connector hears nothing from its workers.
        """
        told = self.scheduler.schedule()
        for worker in self.workers:
            worker.send(told)
        step = Step(scheduled=dict(told.num_scheduled_tokens), loads=sorted(told.ec_connector_metadata.loads.rows))
        for name, indices in told.scheduled_encoder_inputs.items():
            step.encoded += [self.scheduler.requests[name].mm_features[k].identifier for k in indices]
        if between in told.num_scheduled_tokens:
            self.scheduler.finish_requests(between, RequestStatus.FINISHED_ABORTED)
        answers = [answer_of(worker) for worker in self.workers]
        for answer in answers:
            if not is_told and answer.ec_connector_output is not None:
                answer.ec_connector_output.ec_connector_worker_meta = None
        found = self.scheduler.update_from_output(told, self.aggregator.aggregate(answers))
        step.preempted = sorted(told.preempted_req_ids or ())
        for outputs in found.values():
            for it in outputs.outputs:
                if it.finish_reason is not None:
                    step.ended[it.request_id] = (str(it.finish_reason), it.ec_transfer_params)
            if outputs.scheduler_stats is not None and outputs.scheduler_stats.ec_connector_stats:
                step.stats = dict(outputs.scheduler_stats.ec_connector_stats)
        step.free_blocks = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        step.ensure_ns, self.ensure_ns = self.ensure_ns, []
        return step

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def preempt_all(self) -> None:
        self.scheduler.reset_prefix_cache(reset_running_requests=True)

    def read_bytes(self) -> int:
        """Bytes of the item cache that are taken."""
        consumer = self.scheduler.ec_connector._consumer
        return consumer._caches.last.counts().bytes if consumer is not None else 0

    def kept_steps(self) -> list[int]:
        """The steps of which loads are kept for workers."""
        return list(self.scheduler.ec_connector._consumer._loads)

    def evict(self, identifier: str) -> None:
        """Take an item from the shelf of this engine."""
        connector = self.scheduler.ec_connector
        assert connector._shelf._member.look().shelf.unpublish(connector._key(identifier))

    def shutdown(self) -> None:
        self.scheduler.shutdown()
        for worker in self.workers:
            worker.send(None)


def serve_engine(spec: EngineSpec, workers: list[Connection], test: Connection) -> None:
    """What a scheduler's process runs: a method of `Engine` at a time, as the test names it."""
    init_none_hash(sha256)
    serve(lambda: Engine(spec, workers), test, test, lambda it, call: getattr(it, call[0])(*call[1], **call[2]))


class Running:
    """An engine of processes of its own, seen from the test."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.processes: list[Any] = []
        pipes = [CONTEXT.Pipe() for _ in range(spec.num_ranks)]
        starts = []
        for rank, (_, end) in enumerate(pipes):
            here, there = CONTEXT.Pipe()
            self._start(serve_worker, spec, rank, end, there)
            starts.append(here)
        for start in starts:  # as in vLLM, where the scheduler is made when all workers are
            self._await(start)
        self.test, there = CONTEXT.Pipe()
        self._start(serve_engine, spec, [end for end, _ in pipes], there)
        for pair in pipes:
            for end in pair:
                end.close()
        self._await(self.test)

    def _start(self, function: Any, *args: Any) -> None:
        process = CONTEXT.Process(target=function, args=args)
        process.start()
        self.processes.append(process)
        args[-1].close()

    def _await(self, start: Connection) -> None:
        if not wait([start], LIMIT_S):
            self.kill()
            raise AssertionError("a process of the engine does not start")
        try:
            said = start.recv()
        except EOFError:
            said = "a process of the engine has ended"
        if said is not None:
            self.kill()
            raise RuntimeError(said)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.test.send((method, args, kwargs))
        if not wait([self.test], LIMIT_S):
            raise AssertionError(f"{method}: no answer")
        return answer_of(self.test)

    def add(self, ask: Ask) -> None:
        self.call("add", ask)

    def step(self, **kwargs: Any) -> Step:
        step: Step = self.call("step", **kwargs)
        return step

    def run(self, *asks: Ask, until: int | None = None) -> list[Step]:
        """Add requests, and step until as many have ended."""
        for ask in asks:
            self.add(ask)
        left = len(asks) if until is None else until
        steps: list[Step] = []
        deadline = time.monotonic() + LIMIT_S
        while left > 0:
            assert time.monotonic() < deadline, steps[-3:]
            steps.append(self.step())
            left -= len(steps[-1].ended)
            if not steps[-1].scheduled:
                time.sleep(0.001)
        return steps

    def kill(self) -> None:
        """As if its container were gone."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join(LIMIT_S)

    def stop(self) -> None:
        if self.processes[-1].is_alive():
            self.call("shutdown")
            self.test.send(None)
        for process in self.processes:
            process.join(LIMIT_S)
            assert process.exitcode is not None, "a process of the engine does not end"


@contextlib.contextmanager
def running(spec: EngineSpec) -> Iterator[Running]:
    """An engine, which has ended afterwards."""
    engine = Running(spec)
    try:
        yield engine
        engine.stop()
    finally:
        engine.kill()


def encoded(steps: list[Step]) -> list[str]:
    return [identifier for step in steps for identifier in step.encoded]


def loaded(steps: list[Step]) -> list[str]:
    return [identifier for step in steps for identifier in step.loads]


def ended(steps: list[Step]) -> dict[str, tuple[str, Any]]:
    return {name: how for step in steps for name, how in step.ended.items()}


def counted(steps: list[Step], name: str) -> int:
    return sum(step.stats.get(name, 0) for step in steps)
