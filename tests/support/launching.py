"""Nodes that are launched by a process of their own, in which something is unusual before it launches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embridge.allocator.control import Control
from embridge.allocator.records import Process
from embridge.pipeline.node.launch_messages import encode_config
from support.nodes import config_of
from support.opening import open_control
from support.remains import alive
from support.waiting import wait_until

SCRIPT = """
import os, sys
config, report, hold = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
{prelude}
from embridge.pipeline.node.launch import launch
from embridge.pipeline.node.launch_messages import decode_config
try:
    with launch(decode_config(config.encode())) as node:
        os.write(report, f"pid {{node.pid}}".encode())
        os.close(report)
        os.read(hold, 1)
except Exception as error:
    os.write(report, f"{{type(error).__name__}}: {{error}}".encode())
"""


def before_pythonpath(folder: Path) -> str:
    """That variable for a process which is to look in this folder first."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


@dataclass(slots=True)
class Launched:
    """A node, and the process that launched it."""

    parent: subprocess.Popen[bytes]
    run_dir: Path
    log_path: Path
    pid: int
    control: Control
    hold: int  # the process that launched it reads a byte here, and then stops it

    def log(self) -> str:
        return self.log_path.read_text()

    def pids(self) -> dict[str, int]:
        """All processes of the node by name."""
        processes = self.control.processes
        return {name: processes.get(name, Process.PID) for name in processes.names}


@contextmanager
def launched_by(
    prelude: str,
    run_dir: Path,
    *,
    executable: str = sys.executable,
    flags: Sequence[str] = ("-P",),
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **settings: Any,
) -> Iterator[Launched]:
    """A node launched by a new interpreter that runs `prelude` first. All is gone afterwards.

    Raises:
        AssertionError: it does not come up; the text is what `launch` raised, and what was said on standard error.
    """
    config = encode_config(config_of("encode", run_dir, **settings)).decode()
    log_path = run_dir.with_suffix(".log")
    told, report = os.pipe()
    held, hold = os.pipe()
    with open(log_path, "wb") as log:
        words = [executable, *flags, "-c", SCRIPT.format(prelude=prelude), config, str(report), str(held)]
        parent = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(report, held), cwd=cwd, env=environ
        )
    os.close(report)
    os.close(held)
    pids: list[int] = []
    try:
        with open(told, "rb") as file:
            said = file.read().decode()
        assert said.startswith("pid "), f"{said}\n{log_path.read_text()}"
        it = Launched(parent, run_dir, log_path, int(said.split()[1]), open_control(run_dir), hold)
        pids = list(it.pids().values())
        yield it
    finally:
        os.close(hold)
        parent.wait(30)
        wait_until(lambda: not alive(pids), 10, lambda: f"node gone: {alive(pids)}")
