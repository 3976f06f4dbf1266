"""What `ec_connector_extra_config` may say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from embridge import ConfigError, PipelineConfig
from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.integrations.options import allowed_nodes, check_names, check_values, is_listed
from embridge.pipeline.config import GIB, default_run_dir

MAX_KEY_BYTES: Final = 256
SOURCE: Final = "ec_connector_extra_config"
_PLAIN: Final = re.compile(r"[\w.-]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of one engine. Raises ConfigError: a name or a value is wrong."""

    launch: bool = False
    """Start a node with the engine; it ends with it. Else a node runs in `run_dir`."""
    run_dir: str = ""
    """Of the node; with `ec_both`, a folder for `encode` and `language`. Default: of this user and role, and with
    `launch` of the engine's id."""
    encoders: tuple[str, ...] = ()
    """Encode nodes from which a consumer fetches: tcp://ip:port, or tcp://ip:* for every one of a host. Where it is
    empty, those are allowed of which discovery has told the node."""
    shelf_bytes: int = 4 * GIB
    """Of a node that is launched for a producer."""
    cache_bytes: int = 4 * GIB
    """Host memory of a consumer for items."""
    wait_s: float = 0.0
    """How long an item may come that is not published yet."""
    on_missing: str = "error"
    """What becomes of a request whose item cannot be had: "error", or "encode" where it brought the media."""
    namespace: str = ""
    """Goes before each key: the version of the weights, say."""
    node: Mapping[str, Any] = field(default_factory=dict)
    """More settings of a node that is launched, by name, groups as tables: {"bootstrap_port": 8998}."""

    def __post_init__(self) -> None:
        check_values(self, SOURCE, shelf_bytes=SHELF_BLOCK_BYTES, cache_bytes=1, wait_s=0)
        if self.on_missing not in ("error", "encode"):
            raise ConfigError(f"{SOURCE}: on_missing: {self.on_missing!r} is no error or encode")
        object.__setattr__(self, "encoders", allowed_nodes(self.encoders, SOURCE))

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Settings:
        """From `ec_connector_extra_config`."""
        check_names(cls, extra, SOURCE)
        return cls(**extra)

    def is_listed(self, address: str) -> bool:
        """Whether a numeric address is among `encoders`."""
        return is_listed(address, self.encoders)

    def key(self, identifier: str) -> str:
        """Under which an item of vLLM's is published."""
        key = self.namespace + identifier
        return key if len(key.encode()) <= MAX_KEY_BYTES else hashlib.sha256(key.encode()).hexdigest()

    def directory(self, role: str, engine: str, *, is_both: bool) -> Path:
        """The run directory of the engine's node of a role; `engine` tells the engines of a host apart."""
        if self.run_dir:
            return Path(self.run_dir) / role if is_both else Path(self.run_dir)
        if not self.launch:
            return default_run_dir(role)
        tag = engine if _PLAIN.fullmatch(engine) else hashlib.sha256(engine.encode()).hexdigest()[:32]
        return default_run_dir(f"{role}-{tag}")

    def config(self, role: str, run_dir: Path) -> PipelineConfig | None:
        """Of the node that is to be launched; None: one runs. Raises ConfigError."""
        if not self.launch:
            return None
        shelf = {"shelf_bytes": self.shelf_bytes} if role == "encode" else {}
        node = {**self.node, "limits": {**shelf, **self.node.get("limits", {})}}
        return PipelineConfig.from_env(**node | {"role": role, "run_dir": run_dir})
