"""Names by which `ps` and `top` tell a node's processes apart: `embridge: encode poller`, and `eb-enc-poller` in short.

The long one is written over the words with which the process was started, where the kernel shows them from; a longer
text than these is cut. The short one, the name of the main thread, has 15 characters at most.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_SHORT: Final = {"encode": "enc", "language": "lng"}
_ARGUMENTS: Final = slice(47, 49)  # of /proc/self/stat: where they begin and end, counted from the first field


def set_title(role: str, process: str) -> None:
    """Name this process. Where the kernel does not let it, the process keeps the name that it has."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"eb-{_SHORT.get(role, role)}-{process}"[:15])
    with contextlib.suppress(OSError, ValueError):
        # behind the name of the command, which may hold anything, comes the third field
        stat = Path("/proc/self/stat").read_text()
        begin, end = (int(field) for field in ["", "", *stat.rpartition(") ")[2].split()][_ARGUMENTS])
        title = f"embridge: {role} {process}".encode()
        if 0 < begin < end:
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(begin)
                memory.write(title[: end - begin - 1].ljust(end - begin, b"\0"))
