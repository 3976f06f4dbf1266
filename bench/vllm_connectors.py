"""How soon has another instance of vLLM an encoder output, and what does it cost the model's thread, by our connector
and by those that vLLM brings?

The job: one process, an encoder instance's worker, gives an encoder output to its connector (`save_caches`) and tells
the other one of it. That one, a language instance's scheduler and worker, has the request, asks its connector until the
item is loadable, has it loaded (`start_load_caches`), and copies the rows to where the model would read them. The
connectors are made by vLLM's factory from its configuration; there is no engine and no model. `ECExampleConnector`
keeps files, here on the tmpfs of /dev/shm; each is removed when it was loaded, which it never does itself. They take
turns.

    .ci/vllm --bench [--quick]      # where `make vllm` has installed vLLM
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _harness import Benchmark, Figures, Missing, percentile, quantiles

SPAWN = multiprocessing.get_context("forkserver")
WIDTH = 1024  # bfloat16
SIZES = {"1 MB": (512, 60), "9 MB": (4480, 24), "42 MB": (20480, 10)}  # rows, and how many in a round
STEP_S = 0.0002  # of an engine that has nothing to schedule
LATER_STEPS = 30  # of each request, in which its scheduler asks again
OURS, FILES, CPU = "embridge", "ECExampleConnector, files on /dev/shm", "ECCPUConnector"
NODE = {"geometry": {"hidden_size": 64, "num_blocks": 8}}
NO_CPU = "needs vLLM's compiled operators and a device's streams"
WATCHDOG_S = 60.0


def settings(name: str, role: str, folder: Path) -> dict[str, Any]:
    """The fields of vLLM's `ECTransferConfig`."""
    if name == OURS:
        own = {"shelf_bytes": 1 << 29} if role == "ec_producer" else {"cache_bytes": 1 << 29}
        kind, extra = "EmbridgeConnector", {"launch": True, "node": NODE, "encoders": ["tcp://127.0.0.1:*"], **own}
    else:
        kind, extra = "ECExampleConnector", {"shared_storage_path": str(folder / "files")}
    return {"ec_connector": kind, "ec_role": role, "engine_id": role, "ec_connector_extra_config": extra}


def connector(name: str, role: str, folder: Path, *, is_scheduler: bool) -> Any:
    from runners import EngineSpec, config_of
    from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorRole
    from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory

    config = config_of(EngineSpec(model=str(folder / "model"), transfer=settings(name, role, folder)))
    kind = ECConnectorRole.SCHEDULER if is_scheduler else ECConnectorRole.WORKER
    return ECConnectorFactory.create_connector(config, kind)


def rows_of(count: int) -> torch.Tensor:
    return torch.arange(count * WIDTH, dtype=torch.int32).remainder(251).bfloat16().view(count, WIDTH)


def produce(name: str, folder: Path, jobs: Connection, consumer: Connection) -> None:
    """An encoder instance's worker."""
    it = connector(name, "ec_producer", folder, is_scheduler=False)
    address = it._shelf.address() if name == OURS else ""
    rows = {count: rows_of(count) for count, _ in SIZES.values()}
    jobs.send(None)
    while (job := jobs.recv()) is not None:
        key, count = job
        cache = {key: rows[count].clone()}  # as the model has just made it
        begun_ns = time.monotonic_ns()
        it.save_caches(cache, key)
        saved_ns = time.monotonic_ns()
        consumer.send(({key: {"address": address}}, begun_ns, saved_ns))
    it.shutdown()


@dataclass
class Times:
    """Of one item, in ns."""

    save: int = 0
    loadable: int = 0  # since the beginning of the save; so are the next two
    load: int = 0  # how long the load itself took
    usable: int = 0
    ensure: list[int] = field(default_factory=list)


def consume(name: str, folder: Path, results: Connection, producer: Connection) -> None:
    """A language instance: its scheduler's connector and its worker's, as one process has both."""
    from engines import Ask, request_of
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.outputs import ECConnectorOutput

    init_none_hash(sha256)
    scheduler = connector(name, "ec_consumer", folder, is_scheduler=True)
    worker = connector(name, "ec_consumer", folder, is_scheduler=False)
    embeds = torch.zeros(max(count for count, _ in SIZES.values()), WIDTH).bfloat16()
    expected = {count: rows_of(count) for count, _ in SIZES.values()}
    cache: dict[str, torch.Tensor] = {}
    nothing = SimpleNamespace(scheduled_new_reqs=[])
    results.send(None)
    with contextlib.suppress(EOFError):
        while True:
            key, count = results.recv()
            # before the item is made: the engine hashes the tokens of a prompt, 6 ms for 20 000 of them
            request = request_of(Ask(name=key, items=((key, 0, count),), prompt=count + 8))
            results.send(None)
            request.ec_transfer_params, begun_ns, saved_ns = producer.recv()
            it = Times(save=saved_ns - begun_ns)
            while True:
                before_ns = time.monotonic_ns()
                is_available = scheduler.ensure_cache_available(request, 0)
                it.ensure.append(time.monotonic_ns() - before_ns)
                if is_available and scheduler.has_cache_item(key):
                    break
                scheduler.build_connector_meta(nothing)
                time.sleep(STEP_S)
            it.loadable = time.monotonic_ns() - begun_ns
            scheduler.update_state_after_alloc(request, 0)
            worker.bind_connector_metadata(scheduler.build_connector_meta(nothing))
            before_ns = time.monotonic_ns()
            worker.start_load_caches(cache)
            it.load = time.monotonic_ns() - before_ns
            embeds[:count].copy_(cache[key])
            it.usable = time.monotonic_ns() - begun_ns
            if (meta := worker.build_connector_worker_meta()) is not None:
                scheduler.update_connector_output(ECConnectorOutput(ec_connector_worker_meta=meta))
            for step in range(LATER_STEPS):
                before_ns = time.monotonic_ns()
                assert scheduler.ensure_cache_available(request, count + 8 + step)
                it.ensure.append(time.monotonic_ns() - before_ns)
            scheduler.request_finished(request)
            assert torch.equal(cache.pop(key), expected[count])
            results.send(it)
    for made in (worker, scheduler):
        made.shutdown()


class Pair:
    """Both processes of one connector."""

    def __init__(self, name: str, folder: Path) -> None:
        here, there = SPAWN.Pipe(duplex=False)
        self._jobs, jobs = SPAWN.Pipe()
        self._results, results = SPAWN.Pipe()
        self._files = folder / "files" if name == FILES else None
        self._number = 0
        self._processes = [
            SPAWN.Process(target=produce, args=(name, folder, jobs, there), daemon=False),
            SPAWN.Process(target=consume, args=(name, folder, results, here), daemon=False),
        ]
        for process in self._processes:
            process.start()
        for end in (here, there, jobs, results):
            end.close()
        for pipe in (self._jobs, self._results):
            _answer(pipe)

    def carry(self, count: int) -> Times:
        key = f"{os.getpid():x}-{self._number}"
        self._number += 1
        self._results.send((key, count))
        _answer(self._results)
        self._jobs.send((key, count))
        times: Times = _answer(self._results)
        if self._files is not None:
            shutil.rmtree(self._files / key)
        return times

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._jobs.send(None)
        self._results.close()
        for process in self._processes:
            process.join(WATCHDOG_S)


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(WATCHDOG_S):
        raise RuntimeError("a connector does not answer")
    return pipe.recv()


def figures(taken: list[Times]) -> Figures:
    loadable, usable = (quantiles([getattr(it, name) for it in taken]) for name in ("loadable", "usable"))
    return {
        "loadable p50": loadable["p50"] / 1e3,
        "loadable p99": loadable["p99"] / 1e3,
        "save": percentile([it.save for it in taken], 50) / 1e6,
        "load": percentile([it.load for it in taken], 50) / 1e6,
        "usable p50": usable["p50"] / 1e3,
        "usable p99": usable["p99"] / 1e3,
        "ensure p99": percentile([ns for it in taken for ns in it.ensure], 99) / 1e3,
        "deciding p99": percentile([ns for it in taken for ns in it.ensure[:-LATER_STEPS]], 99) / 1e3,
    }


def not_here() -> Figures:
    raise Missing(NO_CPU)


@contextlib.contextmanager
def pairs() -> Iterator[dict[str, Pair]]:
    from runners import model_folder

    with tempfile.TemporaryDirectory(prefix="eb-", dir="/dev/shm") as root, contextlib.ExitStack() as stack:
        os.environ["XDG_RUNTIME_DIR"] = root
        (Path(root) / "files").mkdir()
        model_folder(Path(root) / "model")
        made = {}
        for name in (OURS, FILES):
            made[name] = Pair(name, Path(root))
            stack.callback(made[name].close)
        yield made


METRICS = {
    "loadable p50": "save to loadable, p50, ms",
    "loadable p99": "p99, ms",
    "save": "in save_caches, ms",
    "load": "in start_load_caches, ms",
    "usable p50": "save to usable, p50, ms",
    "usable p99": "p99, ms ",
    "ensure p99": "ensure_cache_available, p99, µs",
    "deciding p99": "where it decides, p99, µs",
}


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=6)
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed here; `.ci/vllm --bench` runs this where it is")
        return
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/vllm"))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], str(Path(__file__).parent)])
    with pairs() as made:
        for pair in made.values():  # until all memory has been used once
            for _ in range(28):
                pair.carry(SIZES["42 MB"][0])
        for size, (count, samples) in SIZES.items():
            cases = {
                name: lambda pair=pair, count=count, samples=samples: figures(
                    [pair.carry(count) for _ in range(bench.scaled(samples))]
                )
                for name, pair in made.items()
            }
            results = bench.interleave({**cases, CPU: not_here})
            bench.show(size, results, METRICS, floor=FILES, by="usable p50")
            for metric, what in (("loadable p50", "loadable"), ("usable p50", "usable")):
                bench.at_least(f"{size}: {what} sooner than files, p50", results.ratio(metric, FILES, OURS), 3.0)
            bench.at_most(f"{size}: ensure_cache_available, p99", results.median(OURS, "ensure p99"), 20.0, "µs")
    bench.finish()


if __name__ == "__main__":
    main()
