"""Opening a node without a seat, and so that what stands there can be changed;
`embridge.pipeline.inspection.open_readonly` only looks.
"""

from __future__ import annotations

import os
from pathlib import Path

from embridge.allocator.control import Control
from embridge.allocator.segment import map_segment
from embridge.pipeline.join import JOIN_TIMEOUT_S, knock
from embridge.workers import run_socket


def open_control(run_dir: Path) -> Control:
    """Map a node's control segment.

    Raises:
        AttachError, SegmentError: no node answers there, or its segment is not of this version.
    """
    sock, welcome, fds = knock(run_dir, run_socket.Observe(run_socket.PROTOCOL_VERSION), JOIN_TIMEOUT_S)
    sock.close()
    try:
        return Control(map_segment(fds["control"], welcome.control_bytes))
    finally:
        for fd in fds.values():
            os.close(fd)
