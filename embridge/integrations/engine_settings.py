"""What the configuration of an engine says of embridge: which nodes it has, how large, and from whom it fetches."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from embridge import ConfigError, PipelineConfig
from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.allocator.records import MAX_KEY_BYTES
from embridge.pipeline.client.allowed_nodes import AllowedNodes
from embridge.pipeline.client.item_cache import MAX_BYTES
from embridge.pipeline.config import GIB, default_run_dir

_PLAIN: Final = re.compile(r"[\w.-]{1,40}", re.ASCII)


@contextlib.contextmanager
def naming_encoders(source: str) -> Iterator[None]:
    """Where nothing says from which nodes items may come, so that a ValueError is raised in here, raise a ConfigError
    that says what to set in `source`.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"{source}: encoders: name the encode nodes from which items may be fetched, as tcp://ip:port; or give the "
            f"node discovery ({error})"
        ) from None


class FetchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an engine that fetches items through a node. Each engine's integration adds its own."""

    run_dir: str = ""
    """Of the node; for an engine that has two, a folder for `encode` and `language`. Default: of this user and role,
    and where it launches its node, of the engine's id."""
    encoders: tuple[str, ...] = ()
    """Encode nodes from which it fetches: tcp://ip:port, or tcp://ip:* for every one of a host. Where it is empty,
    those are allowed of which discovery has told the node."""
    cache_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_BYTES)] = 4 * GIB
    """Host memory for items that were fetched."""

    @classmethod
    def of(cls, options: object, source: str) -> Self:
        """From what stands in `source`. Raises ConfigError: a name or a value is wrong."""
        try:
            found = msgspec.convert(dict(options) if isinstance(options, Mapping) else options, cls)
            AllowedNodes(found.encoders)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
        return found

    @classmethod
    def from_variable(cls, variable: str) -> Self:
        """From a variable of the environment, a JSON object, for engines that have no place for our settings; defaults
        where it is empty or not set. Raises ConfigError.
        """
        try:
            given = msgspec.json.decode(os.environ.get(variable, "") or "{}")
        except ValueError as error:
            raise ConfigError(f"{variable}: it is no JSON: {error}") from None
        return cls.of(given, variable)


class EngineSettings(FetchSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an engine that may launch its nodes."""

    launch: bool = False
    """Start a node with the engine; it ends with it. Else a node runs in `run_dir`."""
    shelf_bytes: Annotated[int, msgspec.Meta(ge=SHELF_BLOCK_BYTES)] = 4 * GIB
    """Of an encode node that is launched."""
    wait_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """How long an item may come that is not published yet."""
    on_missing: Literal["error", "encode"] = "error"
    """What becomes of a request whose item cannot be had: "error", or "encode" where it brought the media."""
    namespace: str = ""
    """Goes before each key: the version of the weights, say."""
    node: dict[str, Any] = {}
    """More settings of a node that is launched, by name, groups as tables: {"bootstrap_port": 8998}."""

    def key(self, name: str) -> str:
        """Under which an item of the engine's is published. A name may be a client's, and of any form."""
        key = self.namespace + name
        if key.isascii() and 0 < len(key) <= MAX_KEY_BYTES:
            return key
        with contextlib.suppress(UnicodeEncodeError):  # it has half of a surrogate pair
            if 0 < len(key.encode()) <= MAX_KEY_BYTES:
                return key
        return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()

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
        node, limits = self.node | {"role": role, "run_dir": run_dir}, self.node.get("limits", {})
        if role == "encode" and isinstance(limits, Mapping):  # what is no table is refused with the rest
            node["limits"] = {"shelf_bytes": self.shelf_bytes, **limits}
        return PipelineConfig.from_env(**node)
