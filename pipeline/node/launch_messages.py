"""The two messages of a launch: the configuration goes to the launcher, and `Ready` comes back."""

from __future__ import annotations

from pathlib import Path

import msgspec

from embridge.pipeline.config import PipelineConfig


class Ready(msgspec.Struct, frozen=True):
    """What the launcher writes when all its processes are READY, or cannot be: then `error` is set."""

    pid: int = 0
    incarnation: int = 0
    bootstrap_addr: str = ""
    poller_addr: str = ""
    web_addr: str = ""
    error: str = ""


def encode_config(config: PipelineConfig) -> bytes:
    """The configuration as one line.

    The launcher knows the end of a line even where a process that was forked meanwhile keeps the pipe open.
    """
    return msgspec.json.encode(config, enc_hook=str) + b"\n"


def decode_config(data: bytes) -> PipelineConfig:
    """The configuration that `encode_config` wrote."""

    def path(kind: type, value: object) -> object:
        return Path(str(value)) if issubclass(kind, Path) else value

    return msgspec.json.decode(data, type=PipelineConfig, dec_hook=path)
