"""The line with which a node's log begins: which version runs where, with what, and who has said so."""

from __future__ import annotations

from collections.abc import Sequence

from embridge.allocator.control import Control
from embridge.allocator.records import SegmentHeader
from embridge.pipeline.config import PipelineConfig
from embridge.pipeline.node.launch_messages import Ready
from embridge.pipeline.node.sizing import mib
from embridge.workers.version import version


def start_line(control: Control, config: PipelineConfig, ready: Ready, engines: Sequence[str]) -> str:
    """All of it in one line, as `name=value` where a program may look for it."""
    geometry, limits, size = control.geometry, control.limits, control.header.load
    said = {
        "engines": ",".join(engines),
        "direct": "yes" if config.direct and not config.verify else "no",
        "bootstrap": ready.bootstrap_addr,
        "poller": ready.poller_addr,
        "http": ready.web_addr or "off",
        "discovery": config.discovery or "none",
        "keys": "yes" if config.key_file is not None else "no",
        "pool": f"{geometry.num_blocks}x{geometry.block_size} tokens of {geometry.token_bytes} bytes",
        "payload": mib(size(SegmentHeader.PAYLOAD_BYTES)),
        "control": mib(size(SegmentHeader.CONTROL_BYTES)),
        "shelf": mib(limits.shelf_bytes) if control.has_shelf else "none",
        "slots": limits.num_slots,
        "clients": limits.max_clients,
        "workers": limits.num_workers,
        "run_dir": config.directory,
        "config": config.source or "arguments",
    }
    told = " ".join(f"{name}={_quoted(str(value))}" for name, value in said.items())
    return f"embridge {version()}: {config.role} node {control.node_id:x} is READY: {told}"


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
