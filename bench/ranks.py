"""How long after rank 0 popped a request does the last of the other ranks have it?

Requests of 9 MB (1250 tokens of hidden size 3584, bf16) arrive one after the other at rank 0, this process; three more
processes follow it, each asleep on its `fileno()` as an idle scheduler is. Timed: from before rank 0's
`pop_transferred` until the last follower has the tensors, and what that call costs rank 0. Beside it, in the same run:
the floor, three processes asleep in a read of a pipe, a byte written to each; and what the copies would cost that no
follower makes.

What bounds it: rank 0 wakes one follower after the other, a system call each, and then each has to be given a core. No
byte of a request moves, so its size does not matter. With fewer cores than ranks, the last follower also waits for the
others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from embridge import (
    Client,
    EmbeddingRequest,
    Geometry,
    PipelineConfig,
    PreallocQueue,
    TransferQueue,
    attach,
    follow,
    launch,
)

HIDDEN, BLOCK = 3584, 128


def follower(run_dir: str, rank: int, num_requests: int, pipe: Connection, results: Connection) -> None:
    """Stamp every request of rank 0's, and then every byte of a pipe."""
    torch.set_num_threads(1)
    stamps, floor = [], []
    with follow(run_dir, rank=rank) as ranks:
        while len(stamps) < num_requests:
            finished, failed = ranks.pop_transferred()
            now = time.monotonic_ns()
            assert not failed, failed[0].failure
            for request in finished:
                assert request.result is not None
                stamps.append(now)
                request.release()
            if not finished and ranks.arm():
                select.select([ranks.fileno()], [], [], 1.0)
        results.send(None)
        for _ in range(num_requests):
            os.read(pipe.fileno(), 1)
            floor.append(time.monotonic_ns())
    results.send((stamps, floor))


def figures(samples_ns: list[int]) -> dict[str, float]:
    ordered = sorted(samples_ns)
    return {
        "n": len(ordered),
        "p50_us": round(statistics.median(ordered) / 1e3, 1),
        "p99_us": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] / 1e3, 1),
        "max_us": round(ordered[-1] / 1e3, 1),
    }


def measure(
    client: Client,
    encoder: Client,
    addr: str,
    num: int,
    tokens: int,
    pipes: list[Connection],
    results: list[Connection],
) -> dict[str, object]:
    """One request after the other, popped as soon as it is there; then the bytes in the pipes."""
    transfer = TransferQueue(client)
    prealloc = PreallocQueue(client, transfer)
    embeddings = torch.randn(tokens, HIDDEN).bfloat16()
    ids, positions = torch.arange(tokens, dtype=torch.int32), torch.zeros(tokens, 3, dtype=torch.int32)
    begun, pops, writes = [], [], []
    for room in range(1, num + 1):
        prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=addr))
        encoder.sender(room, tokens).send_embedding(embeddings, ids, positions)
        finished: list[EmbeddingRequest] = []
        while not finished:
            time.sleep(0.0005)
            client.poll()
            before = time.monotonic_ns()
            finished, failed = transfer.pop_transferred()
            after = time.monotonic_ns()
            assert not failed, failed[0].failure
        begun.append(before)
        pops.append(after - before)
        finished[0].release()
    for result in results:
        result.recv()
    for _ in range(num):
        time.sleep(0.001)
        writes.append(time.monotonic_ns())
        for pipe in pipes:
            os.write(pipe.fileno(), b"\0")
    taken = [result.recv() for result in results]
    copies, warm = [], torch.empty_like(embeddings)
    for _ in range(10):
        before = time.monotonic_ns()
        warm.copy_(embeddings)
        copies.append(time.monotonic_ns() - before)
    return {
        "rank0_pop_to_last_follower": figures([max(stamps[i] for stamps, _ in taken) - begun[i] for i in range(num)]),
        "floor_a_pipe_each": figures([max(stamps[i] for _, stamps in taken) - writes[i] for i in range(num)]),
        "rank0_pop_transferred": figures(pops),
        "one_warm_copy_us": round(statistics.median(copies) / 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--followers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1250)
    parser.add_argument("--quick", action="store_true", help="50 requests only")
    options = parser.parse_args()
    num, ranks = 50 if options.quick else options.requests, range(1, options.followers + 1)
    geometry = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=32)
    context = multiprocessing.get_context("spawn")
    pipes, results = ([context.Pipe(duplex=False) for _ in ranks] for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        encode = PipelineConfig(role="encode", run_dir=Path(root, "e"), geometry=geometry, lock_memory=False)
        language = PipelineConfig(
            role="language", run_dir=Path(root, "l"), geometry=geometry, lock_memory=False, host_buffer_bytes=256 << 20
        )
        with (
            launch(encode) as source,
            launch(language) as target,
            attach(source.run_dir) as encoder,
            attach(target.run_dir, num_ranks=len(ranks) + 1) as client,
        ):
            children = [
                context.Process(
                    target=follower, args=(str(target.run_dir), rank, num, pipes[rank - 1][0], results[rank - 1][1])
                )
                for rank in ranks
            ]
            for child in children:
                child.start()
            assert client.ranks is not None
            while "awaited" in client.ranks.states().values():
                time.sleep(0.01)
            ends = [end for _, end in pipes], [end for end, _ in results]
            measured = measure(client, encoder, source.bootstrap_addr, num, options.tokens, *ends)
            for child in children:
                child.join()
    result = {
        "followers": len(ranks),
        "cores": len(os.sched_getaffinity(0)),
        "mb_each": round(options.tokens * geometry.token_bytes / 1e6, 2),
        **measured,
        "bounded_by": "a wake-up (system call) for each follower, and a core for each to run on; no byte of a request "
        "is copied",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
