"""What a process of a node is told when it is born, and how it reports its state.

A process of a node goes STARTING -> READY -> STOPPED.
"""

from __future__ import annotations

import gc
import select
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embridge.allocator.control import Control
from embridge.allocator.records import Process
from embridge.allocator.segment import Descriptor
from embridge.workers.keys import KeyPair
from embridge.workers.role import Addresses
from embridge.workers.timing import Timing

STARTING: Final = 1
READY: Final = 2
STOPPED: Final = 3

RENEWED: Final = 75
"""Exit status of a process that ended to begin again at once (`role.Renew`)."""


@dataclass(kw_only=True)
class ProcessSpec:
    """What a process of a node is told when it is born. It has these descriptors, and none else of the launcher's.

    `engines` are names of engines, and `engine_settings` has the settings of each by its name. `stop` is set when the
    process is told to end.
    """

    name: str
    control: Descriptor
    control_bytes: int
    payload: Descriptor
    payload_bytes: int
    shelf: Descriptor | None = None
    event_fds: dict[str, Descriptor]
    death: Descriptor
    listen: Descriptor | None
    bind_addr: str
    addresses: Addresses
    timing: Timing
    launcher_pid: int
    role: str = ""
    node: str = ""  # its id, as lines of the log have it
    log_level: str = "INFO"
    log_format: str = "text"
    engines: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    engine_settings: Mapping[str, object] = field(default_factory=dict)
    keys: KeyPair | None = None
    allow_file: Path | None = None
    discovery: str = ""
    discovery_token_file: str = ""
    discovery_ca_file: str = ""
    web_hosts: str = ""
    stop: bool = field(default=False, init=False)


def begin(spec: ProcessSpec, control: Control) -> None:
    """Set the state READY.

    From now on garbage collection leaves out the objects of the imported modules, which live as long as the process: a
    look at them takes 10 ms and more.
    """
    gc.freeze()
    control.processes.set(spec.name, Process.STATE, READY)


def is_launcher_gone(spec: ProcessSpec) -> bool:
    """Whether the other end of the death pipe is closed."""
    readable, _, _ = select.select([spec.death.fd], [], [], 0)
    return bool(readable)
