"""What does embridge cost the scheduler's thread while embeddings arrive?

100 requests of 9 MB each (1250 tokens of hidden size 3584, bf16) travel from an encoder process to this one. Meanwhile
this process plays the scheduler: step after step it calls `client.poll()` and `transfer.pop_transferred()`, as an
engine's loop would, and then sleeps in place of a forward pass (a scheduler waits for its GPU without the GIL). Timed
is only the two calls. Beside it, in the same run: the same step with nothing in flight, and what one request's copy
would cost on this thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch

from embridge import EmbeddingRequest, Geometry, PipelineConfig, PreallocQueue, TransferQueue, attach, launch

HIDDEN, BLOCK = 3584, 128


def encoder(run_dir: str, num_requests: int, tokens: int, barrier: object) -> None:
    embeddings = torch.randn(tokens, HIDDEN).bfloat16()
    ids = torch.arange(tokens, dtype=torch.int32)
    positions = torch.zeros(tokens, 3, dtype=torch.int32)
    with attach(run_dir) as client:
        barrier.wait()  # type: ignore[attr-defined]
        senders = []
        for room in range(1, num_requests + 1):
            sender = client.sender(room, tokens)
            sender.send_embedding(embeddings, ids, positions, borrow=True)  # they never change
            senders.append(sender)
        while any(sender.poll() < 3 for sender in senders):
            time.sleep(0.01)


def step(client: object, transfer: TransferQueue) -> tuple[int, list[EmbeddingRequest]]:
    begun = time.perf_counter_ns()
    client.poll()  # type: ignore[attr-defined]
    finished, failed = transfer.pop_transferred()
    took = time.perf_counter_ns() - begun
    assert not failed, failed[0].failure
    return took, finished


def figures(samples_ns: list[int]) -> dict[str, float]:
    ordered = sorted(samples_ns)
    return {
        "steps": len(ordered),
        "p50_us": round(statistics.median(ordered) / 1e3, 2),
        "p99_us": round(ordered[int(len(ordered) * 0.99)] / 1e3, 2),
        "max_us": round(ordered[-1] / 1e3, 1),
        "mean_us": round(statistics.fmean(ordered) / 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1250)
    parser.add_argument("--blocks", type=int, default=128, help="blocks a side")
    parser.add_argument("--forward-ms", type=float, default=1.0, help="sleep in place of a forward pass")
    parser.add_argument("--quick", action="store_true", help="20 requests only")
    options = parser.parse_args()
    options.requests = 20 if options.quick else options.requests
    geometry = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=options.blocks)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        encode = PipelineConfig(role="encode", run_dir=Path(root, "e"), geometry=geometry, lock_memory=False)
        language = PipelineConfig(role="language", run_dir=Path(root, "l"), geometry=geometry, lock_memory=False)
        with launch(encode) as source, launch(language) as target, attach(target.run_dir) as client:
            transfer = TransferQueue(client)
            prealloc = PreallocQueue(client, transfer)
            idle = []
            for _ in range(500):
                idle.append(step(client, transfer)[0])
                time.sleep(options.forward_ms / 1e3)
            context = multiprocessing.get_context("spawn")
            barrier = context.Barrier(2)
            child = context.Process(
                target=encoder, args=(str(source.run_dir), options.requests, options.tokens, barrier)
            )
            child.start()
            barrier.wait()
            begun = time.perf_counter()
            for room in range(1, options.requests + 1):
                prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=source.bootstrap_addr))
            busy: list[int] = []
            done = 0
            while done < options.requests:
                took, finished = step(client, transfer)
                busy.append(took)
                for request in finished:
                    done += 1
                    request.release()
                time.sleep(options.forward_ms / 1e3)
            wall_s = time.perf_counter() - begun
            child.join()
    chunk = torch.randn(options.tokens, HIDDEN).bfloat16()
    copies, kept = [], []
    for _ in range(10):
        begun_ns = time.perf_counter_ns()
        kept.append(chunk.clone())  # kept, as a scheduler would: each goes into fresh memory
        copies.append(time.perf_counter_ns() - begun_ns)
    size = options.requests * options.tokens * geometry.token_bytes
    result = {
        "requests": options.requests,
        "mb_each": round(options.tokens * geometry.token_bytes / 1e6, 2),
        "wall_s": round(wall_s, 2),
        "gb_per_s": round(size / wall_s / 1e9, 2),
        "step_idle": figures(idle),
        "step_arriving": figures(busy),
        "share_of_scheduler_thread": round(sum(busy) / 1e9 / wall_s, 4),
        "clone_of_one_request_us": round(statistics.median(copies) / 1e3, 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
