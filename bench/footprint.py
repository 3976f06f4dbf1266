"""What do idle nodes take of the machine, beside their pools? Shared memory of a node, and its processes' own.

A node of each role is launched as it is by default, and nothing is asked of it. Its segments are counted as the
launcher holds them; a process's own memory is what no other process shares with it, without its segments. The kernel's
page tables for it stand apart.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import psutil
from _harness import Benchmark, Figures, Results

from embridge import Node, PipelineConfig, launch
from embridge.pipeline.inspection.node_status import node_status

SETTLE_S = 3.0
_KIB = re.compile(r"^(?:Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)
_MAPPING = re.compile(r"^(?=[0-9a-f]+-[0-9a-f]+ )", re.MULTILINE)

bench = Benchmark(__file__, __doc__, rounds=1, quick_rounds=1)


def own_mib(pid: int) -> float:
    """Memory that this process alone has; a segment is the node's, whoever has touched it."""
    mappings = _MAPPING.split(Path(f"/proc/{pid}/smaps").read_text())
    return sum(int(kib) for it in mappings if "/embridge-" not in it for kib in _KIB.findall(it)) / 1024


def tables_mib(pid: int) -> float:
    """The kernel's page tables of this process."""
    found = re.search(r"^VmPTE:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def segments_mib(pid: int) -> dict[str, float]:
    """The segments that a launcher holds open, by label."""
    found: dict[str, float] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if named := re.search(r"/embridge-\d+-\d+-\d+-([a-z]+)-", os.readlink(entry)):
            found[named[1]] = found.get(named[1], 0.0) + entry.stat().st_size / (1 << 20)
    return found


def look(node: Node) -> tuple[Figures, dict[str, Figures]]:
    """The node's segments, and each of its processes."""
    processes = {str(it["name"]): int(it["pid"]) for it in node_status(node.run_dir)["processes"]}
    each = {
        name: {
            "own": own_mib(pid),
            "rss": psutil.Process(pid).memory_info().rss / (1 << 20),
            "tables": tables_mib(pid),
        }
        for name, pid in processes.items()
    }
    return segments_mib(node.pid), each


def main() -> None:
    sums, segments = Results(), Results()
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        for role in ("encode", "language"):
            with launch(PipelineConfig(role=role, run_dir=Path(root, role[0]))) as node:
                time.sleep(SETTLE_S)
                held, each = look(node)
            for name, figures in each.items():
                sums.figures[f"{role}: {name}"] = [figures]
            sums.figures[f"{role}: all"] = [{key: sum(it[key] for it in each.values()) for key in ("own", "tables")}]
            others = sum(size for label, size in held.items() if label != "payload")
            segments.figures[role] = [held | {"others": others}]
    bench.show("processes", sums, {"own": "own, MiB", "rss": "resident, MiB", "tables": "page tables, MiB"})
    columns = {"payload": "payload, MiB", "control": "control, MiB", "others": "all but payload, MiB"}
    bench.show("segments", segments, columns)
    for role in ("encode", "language"):
        bench.at_most(f"{role} node: segments but the payload", segments.median(role, "others"), 8, "MiB")
        bench.at_most(f"{role} node: its processes' own memory", sums.median(f"{role}: all", "own"), 80, "MiB")
    bench.finish()


if __name__ == "__main__":
    main()
