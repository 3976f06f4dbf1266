"""What do two idle nodes cost? CPU time of all processes of an encode and a language node with a client each, nothing
in flight.

The goal is under 1 % of one core for a node: processes sleep on futexes and eventfds, and wake for heartbeats and signs
of life only. With --discovery each node has a registrar besides, which reports to a discovery server every second; the
server is counted apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from embridge import EmbeddingRequest, Geometry, Node, PipelineConfig, PreallocQueue, TransferQueue, attach, launch


def cpu_seconds(node: Node) -> dict[int, float]:
    """CPU time of each process of a node, by pid."""
    launcher = psutil.Process(node.pid)
    return {p.pid: sum(p.cpu_times()[:2]) for p in [launcher, *launcher.children(recursive=True)]}


@contextmanager
def discovery(wanted: bool) -> Iterator[tuple[str, int]]:
    """The URL and the pid of a discovery server, where one is wanted."""
    if not wanted:
        yield "", 0
        return
    command = [sys.executable, "-m", "embridge.pipeline.cli", "discovery", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split("discovery=")[1].split()[0], server.pid
        finally:
            server.terminate()


def own_seconds(pid: int) -> float:
    """CPU time of one process; 0 for none."""
    return sum(psutil.Process(pid).cpu_times()[:2]) if pid else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch")
    parser.add_argument("--quick", action="store_true", help="watch for 5 s only")
    parser.add_argument(
        "--discovery", action="store_true", help="with a discovery server, and a registrar in each node"
    )
    options = parser.parse_args()
    options.seconds = 5.0 if options.quick else options.seconds
    geometry = Geometry(hidden_size=64, num_blocks=16)
    with tempfile.TemporaryDirectory(prefix="eb-") as root, discovery(options.discovery) as (url, server):
        encode = PipelineConfig(role="encode", run_dir=Path(root, "e"), geometry=geometry, discovery=url)
        language = PipelineConfig(role="language", run_dir=Path(root, "l"), geometry=geometry, discovery=url)
        with (
            launch(encode) as source,
            launch(language) as target,
            attach(source.run_dir) as encoder,
            attach(target.run_dir) as scheduler,
        ):
            transfer = TransferQueue(scheduler)
            PreallocQueue(scheduler, transfer).add(EmbeddingRequest(room=1, bootstrap_addr=source.bootstrap_addr))
            sender = encoder.sender(1, 10)
            ids, positions = torch.zeros(10, dtype=torch.int32), torch.zeros(10, 3, dtype=torch.int32)
            sender.send_embedding(torch.zeros(10, 64).bfloat16(), ids, positions)
            while not transfer.pop_transferred()[0]:  # the nodes know each other, as in production
                time.sleep(0.01)
            time.sleep(2.0)
            nodes = {"encode": source, "language": target}
            before = {name: cpu_seconds(node) for name, node in nodes.items()}
            own, served = time.process_time(), own_seconds(server)
            time.sleep(options.seconds)
            own, served = time.process_time() - own, own_seconds(server) - served
            after = {name: cpu_seconds(node) for name, node in nodes.items()}
    shares = {
        name: sum(after[name][pid] - before[name][pid] for pid in before[name]) / options.seconds for name in nodes
    }
    result = {f"{name}_node_percent_of_a_core": round(100 * share, 2) for name, share in shares.items()}
    result["two_clients_percent_of_a_core"] = round(100 * own / options.seconds, 2)
    if options.discovery:
        result["discovery_server_percent_of_a_core"] = round(100 * served / options.seconds, 2)
    result["seconds"] = options.seconds
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
