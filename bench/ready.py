"""How long until a node is READY, beside a bare `posix_fallocate` of as much shared memory as its pool has?

A node reserves its pool before it is READY; everything else that makes the pool fast (touching its pages, locking them)
comes after. So the goal is that of the reservation and one second. Round by round stand beside each other: the
reservation alone; `launch` of an encode node with a pool of that size; the first `attach` to it, which only maps; and
how long the node then takes, in the background, to touch and lock the pool.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from _harness import Benchmark, Figures, Missing, Results

from embridge import Geometry, PipelineConfig, attach, launch
from embridge.allocator.layout import PayloadLayout
from embridge.allocator.segment import create_segment, shared_memory_space
from embridge.pipeline.inspection.node_status import node_status

MIB = 1 << 20
SIZES = (256, 8192)  # MiB
SPARE = 512 * MIB
MOST_S = 300.0  # for touching and locking

bench = Benchmark(__file__, __doc__, rounds=5, quick_rounds=2)


def geometry_of(mib: int) -> Geometry:
    """Of rows as they are by default, in as many blocks as that much memory holds."""
    one = Geometry()
    return Geometry(num_blocks=mib * MIB // (one.block_size * one.token_bytes))


def with_priority() -> tuple[str, ...]:
    """Words of a command that gives the node, which is a session of its own, the priority that the case has."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return ("sh", "-c", f'echo {nice} > /proc/self/autogroup; exec "$@"', "sh") if nice else ()


def need_room(size: int) -> None:
    """Raises: Missing, where /dev/shm or the machine's memory has no room for a pool of `size` bytes."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    if min(shared_memory_space().free, available) < size + SPARE:
        raise Missing(f"/dev/shm has no room for {size // MIB} MiB")


def reserve(mib: int) -> Figures:
    """Reserve as much as the pool of the node has, and nothing more."""
    size = PayloadLayout.of(geometry_of(mib)).size
    need_room(size)
    begun = time.monotonic()
    segment = create_segment("bench", size)
    took = time.monotonic() - begun
    segment.close()
    return {"ready": 1e3 * took}


def start(mib: int) -> Figures:
    """Launch a node, attach to it, and wait until its pool is as it is to be."""
    geometry = geometry_of(mib)
    need_room(PayloadLayout.of(geometry).size)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        begun = time.monotonic()
        config = PipelineConfig(role="encode", run_dir=Path(root, "e"), geometry=geometry)
        with launch(config, within=with_priority()) as node:
            ready = time.monotonic()
            with attach(node.run_dir):
                attached = time.monotonic()
            figures = {"ready": 1e3 * (ready - begun), "attach": 1e3 * (attached - ready)}
            while not is_touched(node.run_dir) and time.monotonic() < ready + MOST_S:
                time.sleep(0.1)
            figures["touched"] = time.monotonic() - ready
            stopping = time.monotonic()
        return figures | {"stop": 1e3 * (time.monotonic() - stopping)}


def is_touched(run_dir: Path) -> bool:
    touched, _, size = str(node_status(run_dir)["touched"]).removesuffix(" MiB").split()
    return touched == size


def added(results: Results, mib: int) -> float | None:
    """What a start took beyond the reservation of the same round, ms: the median of the rounds."""
    nodes, floors = (results.rounds(f"{what} {mib} MiB", "ready") for what in ("a node of", "floor:"))
    pairs = zip(nodes, floors, strict=False)
    differences = [node - floor for node, floor in pairs]
    return statistics.median(differences) if differences else None


def main() -> None:
    cases = {}
    for mib in SIZES:
        cases[f"floor: {mib} MiB"] = partial(reserve, mib)
        cases[f"a node of {mib} MiB"] = partial(start, mib)
    results = bench.interleave(cases)
    columns = {
        "ready": "READY, or reserved, ms",
        "attach": "attach, ms",
        "touched": "touched and locked, s",
        "stop": "stop, ms",
    }
    bench.show("from launch to READY", results, columns)
    for mib in SIZES:
        bench.at_most(f"{mib} MiB: READY, beyond the reservation", added(results, mib), 1000, "ms")
    bench.finish()


if __name__ == "__main__":
    main()
