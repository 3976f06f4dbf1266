"""SGLang's own encoder and receivers in processes of their own: functions for `Agent.call`. What is missing is the
model: the test gives the embeddings, and reads what each rank would hand to it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from embridge.pipeline.client.fetching import LOOK_AT_DOORS_NS
from embridge.workers.timing import NS
from support.engines import define_operators
from support.waiting import wait_until

BACKEND = "zmq_to_scheduler"
ENCODER = "sglang.srt.disaggregation.encoder"


class Ended(NamedTuple):
    """How a request left the list of those that wait, on one rank."""

    rows: dict[str, torch.Tensor]  # by modality
    error: str
    code: int
    waited_s: float


def rows_of_part(seed: int, tokens: int, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator).bfloat16()


def _begin(state: SimpleNamespace, **fields: Any) -> Any:
    """SGLang's plugins, as each of its processes loads them, and a configuration."""
    context = importlib.import_module("sglang.srt.runtime_context").get_context()
    state.override = context.override_server_args(encoder_transfer_backend=BACKEND, **fields)
    args = state.override.install()
    importlib.import_module("sglang.srt.plugins").load_plugins()
    return args


def _may_import(options: str) -> None:
    os.environ.update(EMBRIDGE_SGLANG=options, HF_HUB_OFFLINE="1")
    define_operators()


# ---- an encoder


def begin_encoder(state: SimpleNamespace, options: str) -> str:
    """An `MMEncoder` without a model behind SGLang's own HTTP server; its address."""
    _may_import(options)
    server = importlib.import_module(f"{ENCODER}.server")
    _init_lightly(server.MMEncoder)
    _begin(state)
    http: Any = importlib.import_module(f"{ENCODER}.http_server")
    uvicorn = importlib.import_module("uvicorn")
    state.loop = asyncio.new_event_loop()
    begun = threading.Event()

    async def main() -> None:
        state.encoder = http.encoder = server.MMEncoder()
        config = uvicorn.Config(http.app, host="127.0.0.1", port=0, log_level="error")
        state.server = uvicorn.Server(config)
        asyncio.get_running_loop().call_later(0.1, begun.set)
        await state.server.serve()

    threading.Thread(target=state.loop.run_until_complete, args=(main(),), daemon=True).start()
    assert begun.wait(30)
    wait_until(lambda: state.server.started)
    port = state.server.servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


def _init_lightly(kind: Any) -> None:
    """What `MMEncoder.__init__` makes, but for the model. SGLang's hooks are put over it."""
    zmq = importlib.import_module("zmq.asyncio")
    server = importlib.import_module(f"{ENCODER}.server")

    def init(self: Any, rank: int = 0, backend: str = BACKEND) -> None:
        self.rank, self.transfer_backend = rank, backend
        self.context, self.send_timeout = zmq.Context(), 5.0
        self.scheduler_send_sockets, self.scheduler_send_locks = {}, {}
        self.req_states, self.abandoned_req_ids = {}, set()
        self.delivery = server.ZmqDelivery(self, cleanup_receive_state=True)

    kind.__init__ = init


def delivers(state: SimpleNamespace) -> str:
    return f"{type(state.encoder.delivery).__module__}.{type(state.encoder.delivery).__name__}"


def refuses(state: SimpleNamespace, backend: str) -> str:
    """What making an encoder with another backend raises; and that of another rank is left as it is."""
    server = importlib.import_module(f"{ENCODER}.server")
    assert type(server.MMEncoder(rank=1).delivery) is server.ZmqDelivery
    try:
        server.MMEncoder(backend=backend)
    except ValueError as error:
        return str(error)
    return ""


def encode(state: SimpleNamespace, rid: str, part: int, num_parts: int, seed: int, tokens: int) -> str:
    """Encode one part of a request, and send it to all ranks, as SGLang's HTTP server does; why it could not."""
    receiver, server = (importlib.import_module(f"{ENCODER}.{name}") for name in ("receiver", "server"))
    name = receiver.create_part_req_id(rid, part)

    async def run() -> None:
        encoder = state.encoder
        held = encoder._acquire_encode_ref(name)
        async with server.encode_state_condition:
            server.encode_state_condition.notify_all()
        rows, modality = rows_of_part(seed, tokens), receiver.Modality.IMAGE
        grid = torch.tensor([[1, tokens, 4]])
        encoder._stage_embedding(receiver.EmbeddingData(name, num_parts, part, grid, modality, rows))
        await encoder._release_encode_ref(held)
        await encoder.send_with_url(name)
        assert name not in encoder.req_states

    try:
        asyncio.run_coroutine_threadsafe(run(), state.loop).result(30)
    except Exception as error:
        return str(error)
    return ""


def kill_before_telling(state: SimpleNamespace, group: int) -> None:
    """The next part is published, and its node killed; all are told when who has mapped its shelf has let go of it."""
    published = state.encoder.delivery.published
    publish = published.publish

    async def publish_and_kill(rows: torch.Tensor) -> Any:
        published.publish = publish
        told = await publish(rows)
        os.killpg(group, signal.SIGKILL)
        await asyncio.sleep(3 * LOOK_AT_DOORS_NS / NS)  # nobody tells this process when another has done so
        return told

    published.publish = publish_and_kill


def leave(state: SimpleNamespace) -> None:
    state.server.should_exit = True
    state.encoder.delivery.published.close()


# ---- a rank of a scheduler


def begin_rank(state: SimpleNamespace, options: str, rank: int, num_ranks: int, meet_at: str) -> str:
    """A receiver, as SGLang's scheduler makes it; the name of its class."""
    _may_import(options)
    args = _begin(state, language_only=True, tp_size=num_ranks)
    distributed = importlib.import_module("sglang.srt.distributed.parallel_state")
    parallel = importlib.import_module("sglang.srt.runtime_context").get_parallel()
    parallel.override_permanently(
        tp_size=num_ranks, pp_size=1, tp_rank=rank, pp_rank=0, attn_tp_size=num_ranks, attn_tp_rank=rank,
        attn_cp_size=1, attn_cp_rank=0, attn_dp_size=1, attn_dp_rank=0, attn_dcp_size=1, moe_ep_size=1, moe_dp_size=1,
        moe_tp_size=num_ranks,
    )  # fmt: skip
    distributed.init_distributed_environment(num_ranks, rank, meet_at, rank, "gloo")
    distributed.initialize_model_parallel(backend="gloo")
    receiver = importlib.import_module(f"{ENCODER}.receiver")
    state.receiver = receiver.create_mm_receiver(args, scheduler=SimpleNamespace(), transport_mode="http")
    state.receiver.mm_processor = SimpleNamespace(prefer_tokenized_input=False, get_validated_mm_data=_processed)
    state.receiver.create_req = lambda request: request  # what is aborted goes back to the test
    return f"{type(state.receiver).__module__}.{type(state.receiver).__name__}"


def _processed(prompt: Any, rows: dict[Any, torch.Tensor], **meta: Any) -> Any:
    return SimpleNamespace(input_ids=[1, 2, 3], rows={kind.name: it for kind, it in rows.items()}, meta=meta)


def receive(
    state: SimpleNamespace, rid: str, url: str, num_parts: int, *, abort: bool = False, timeout_s: float = 30.0
) -> Ended:
    """Turns of a scheduler until a request has left the list of those that wait."""
    io, receiver = (importlib.import_module(name) for name in ("sglang.srt.managers.io_struct", f"{ENCODER}.receiver"))
    sampling = importlib.import_module("sglang.srt.sampling.sampling_params").SamplingParams()
    request = io.TokenizedGenerateReqInput(
        rid=rid, input_text="", input_ids=None, input_embeds=None, mm_inputs=None, token_type_ids=None,
        sampling_params=sampling, return_logprob=False, logprob_start_len=0, top_logprobs_num=0,
        token_ids_logprob=None, stream=False,
    )  # fmt: skip
    request.need_wait_for_mm_inputs = True
    request.encoder_urls = [url] * num_parts
    request.num_items_assigned = {receiver.Modality.IMAGE: [1] * num_parts}
    begun, came = time.monotonic(), [request]
    while True:
        ready, aborted = state.receiver.process_waiting_requests(came)
        waited_s, came = time.monotonic() - begun, []
        for done in ready:
            assert state.receiver.waiting_list == []
            return Ended(done.mm_inputs.rows, "", 0, waited_s)
        for _, error, code in aborted:
            return Ended({}, str(error), int(code), waited_s)
        if abort and waited_s > 0.2:
            state.receiver.abort_waiting_requests(SimpleNamespace(abort_all=True, rid=""))
        assert waited_s < timeout_s, "it still waits"
        time.sleep(0.001)


def is_forgotten(state: SimpleNamespace) -> bool:
    """Whether nothing of any request is kept."""
    parts = state.receiver._parts
    caches = parts._caches
    counts = caches.last.counts() if caches is not None and caches.last is not None else None
    return not (parts._wanted or parts._placed or parts._news) and (counts is None or counts.admitted == 0)


def end_rank(state: SimpleNamespace) -> None:
    state.receiver._parts.close()
    distributed = importlib.import_module("sglang.srt.distributed.parallel_state")
    distributed.destroy_model_parallel()
    distributed.destroy_distributed_environment()


def exchanges_s(state: SimpleNamespace, count: int) -> float:
    """Seconds of one turn's telling, of so many, with nothing to tell."""
    parts, begun = state.receiver._parts, time.perf_counter()
    for _ in range(count):
        parts.exchange()
    return (time.perf_counter() - begun) / count
