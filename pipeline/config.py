"""Configuration: flags over environment over a TOML file over defaults; a bad value is an error that names it.

The environment is read here and nowhere else; `node/launcher_start.py` sets a variable of numpy's.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from embridge.allocator.geometry import MAX_BLOCKS, Geometry, Limits, Role
from embridge.workers.timing import Timing
from embridge.workers.transfer.engines import choices
from embridge.workers.transfer.engines.mooncake import MooncakeSettings

GIB: Final = 1 << 30
DEFAULT_ROUTES: Final = 128  # nodes of the other role, where discovery is set and `max_routes` is not
MAX_URL_CHARS: Final = 120
MAX_UNSENT_BYTES: Final = 1 << 62  # a sum of it and of one more request fits into a word
ROLES: Final = {"encode": Role.ENCODE, "language": Role.LANGUAGE}


class ConfigError(ValueError):
    """A configuration value that cannot be used; the text names it, where it came from, and what is allowed."""


def default_run_dir(role: str) -> Path:
    """`$XDG_RUNTIME_DIR/embridge-<role>`, or a folder of this user under the temporary directory."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(base) if base else Path(tempfile.gettempdir()) / f"embridge-{os.getuid()}"
    return root / f"embridge-{role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """One node. Sizes in blocks and tokens, times in `timing`.

    `engine`: "auto" takes shared memory to peers on this host and Mooncake to others; "shm" or "mooncake" forces one.

    `host` is the one address this node binds. With `key_file` (its secret key) and `allow_file` (the keys of the others) control
    messages are encrypted and both ends proved; without, they are plain, and it must be a loopback address. Both files are read at
    launch.
    With `verify`, rows are summed (CRC-32C) before they are sent and checked on receipt, and a request with rows that are not those that
    were sent fails on both sides. Two nodes must both have it, or neither.
    `discovery` is the URL of the discovery server ("": none); `discovery_token_file` holds the token that it expects.
    `default_allocate_tokens` is what a request is granted before its length is known (the documents' 8192).
    `host_buffer_bytes` bounds the language side's tensors of received requests.
    `unsent_max_bytes` bounds, for all clients of an encode node together, the copies of rows that were given and found no block: a quarter
    of what a language node holds, for an encoder that is a few requests ahead.
    `max_restarts`: how often one process may be started within a minute; the node is unhealthy beyond it, until that process holds again.
    """

    role: str = "language"
    run_dir: Path | None = None
    host: str = "127.0.0.1"
    bootstrap_port: int = 0
    poller_port: int = 0
    key_file: Path | None = None
    allow_file: Path | None = None
    engine: str = "auto"
    mooncake: MooncakeSettings = field(default_factory=MooncakeSettings)
    discovery: str = ""
    discovery_token_file: Path | None = None
    geometry: Geometry = field(default_factory=Geometry)
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)
    default_allocate_tokens: int = 8192
    host_buffer_bytes: int = 4 * GIB
    unsent_max_bytes: int = GIB
    max_restarts: int = 30
    verify: bool = False
    lock_memory: bool = True
    log_level: str = "WARNING"

    def __post_init__(self) -> None:
        for item in fields(self):
            value, kind = getattr(self, item.name), _KINDS[str(item.type)]
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConfigError(f"{item.name}: {value!r} is no {item.type}")
        if self.role not in ROLES:
            raise ConfigError(f"role: {self.role!r} is unknown; use one of {', '.join(ROLES)}")
        if self.engine not in choices():
            raise ConfigError(f"engine: {self.engine!r} is unknown; use one of {', '.join(choices())}")
        if self.run_dir is None:
            object.__setattr__(self, "run_dir", default_run_dir(self.role))
        object.__setattr__(self, "run_dir", Path(self.run_dir or "").absolute())
        self._check_paths()
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError as error:
            raise ConfigError(f"host: {self.host!r} is no IP address; give the one address that this node binds") from error
        if (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
            raise ConfigError(f"host: {self.host} stands for all interfaces; give the one address at which the other nodes reach this one")
        self._check_keys(is_loopback=address.is_loopback)
        for name in ("bootstrap_port", "poller_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside 0 to 65535 (0: any free port)")
        for name in ("default_allocate_tokens", "host_buffer_bytes", "unsent_max_bytes", "max_restarts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} < 1")
        if self.unsent_max_bytes > MAX_UNSENT_BYTES:
            raise ConfigError(f"unsent_max_bytes: {self.unsent_max_bytes} > {MAX_UNSENT_BYTES} bytes")
        self._check_discovery()
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ConfigError(f"log_level: {self.log_level!r} is unknown; use DEBUG, INFO, WARNING or ERROR")

    def _check_paths(self) -> None:
        """They go to the launcher, and to other nodes, as text."""
        for name in ("run_dir", "key_file", "allow_file", "discovery_token_file"):
            value = getattr(self, name)
            raw = os.fsencode(value) if value is not None else b""
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                raise ConfigError(f"{name}: {raw!r} is no UTF-8 text; choose another path") from error
            if b"\0" in raw:
                raise ConfigError(f"{name}: {raw!r} holds a NUL character; choose another path")

    def _check_keys(self, *, is_loopback: bool) -> None:
        for name, other in (("key_file", "allow_file"), ("allow_file", "key_file")):
            value = getattr(self, name)
            if value is None:
                continue
            object.__setattr__(self, name, Path(value).expanduser().absolute())
            if getattr(self, other) is None:
                raise ConfigError(f"{name}: it is set and {other} is not; a node has both or neither (see `embridge keys --help`)")
        if self.key_file is None and not is_loopback:
            raise ConfigError(
                f"host: {self.host} is no loopback address, and without keys control messages are plain; make a key with "
                "`embridge keys new`, list the keys of the other nodes, and give key_file and allow_file (--key-file, --allow-file)"
            )

    def _check_discovery(self) -> None:
        if self.discovery_token_file is not None:
            object.__setattr__(self, "discovery_token_file", Path(self.discovery_token_file).absolute())
        if not self.discovery:
            if self.limits.max_routes:
                raise ConfigError(f"max_routes: {self.limits.max_routes} without discovery; set discovery, or leave max_routes 0")
            return
        host = _host_of(self.discovery)
        if len(self.discovery) > MAX_URL_CHARS or host is None:
            raise ConfigError(f"discovery: {self.discovery!r} is not of the form http://host:port")
        if not _is_loopback(host) and self.discovery_token_file is None:
            raise ConfigError(
                f"discovery: {host} is not a loopback address; a server there expects a token: set discovery_token_file"
            )
        if not self.limits.max_routes:
            object.__setattr__(self, "limits", replace(self.limits, max_routes=DEFAULT_ROUTES))

    @property
    def directory(self) -> Path:
        """The run directory, never None."""
        assert self.run_dir is not None
        return self.run_dir

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **over: Any) -> PipelineConfig:
        """Defaults, then the environment, then `over` (nested groups as dataclasses, or as dicts of their fields)."""
        return cls._of(_environment(os.environ if environ is None else environ), over)

    @classmethod
    def from_toml(cls, path: str | Path, environ: Mapping[str, str] | None = None, **over: Any) -> PipelineConfig:
        """Defaults, then a TOML file, then the environment, then `over`.

        Raises:
            ConfigError: the file cannot be read, or a key or value in it is wrong.
        """
        try:
            with open(path, "rb") as file:
                table = tomllib.load(file)
        except (OSError, ValueError) as error:  # tomllib's own, and UnicodeDecodeError, are ValueErrors
            raise ConfigError(f"{path}: {error}") from error
        return cls._of(table, _environment(os.environ if environ is None else environ), over)

    @classmethod
    def _of(cls, *layers: Mapping[str, Any]) -> PipelineConfig:
        values: dict[str, Any] = {}
        pool_tokens = None
        for layer in layers:
            pool_tokens = layer.get(_POOL_TOKENS, pool_tokens)
            for key, value in layer.items():
                if key == "geometry" and (not isinstance(value, Mapping) or "num_blocks" in value):
                    pool_tokens = None
                if key == _POOL_TOKENS:
                    continue
                if key in _GROUPS and isinstance(value, Mapping):
                    base = values.get(key, _GROUPS[key]())
                    values[key] = _replace(base, value, key)
                elif key in {f.name for f in fields(cls)}:
                    values[key] = value
                else:
                    raise ConfigError(f"{key}: unknown setting; known: {', '.join(f.name for f in fields(cls))}")
        if pool_tokens is not None:
            values["geometry"] = _with_pool(values.get("geometry", Geometry()), pool_tokens)
        return cls(**values)


_KINDS: Final[dict[str, Any]] = {
    **{kind.__name__: kind for kind in (str, int, bool, Geometry, Limits, Timing, MooncakeSettings)},
    "Path | None": str | Path | None,
}
_GROUPS: Final[dict[str, Any]] = {"geometry": Geometry, "limits": Limits, "timing": Timing, "mooncake": MooncakeSettings}

_POOL_TOKENS: Final = "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE"  # becomes `num_blocks` once the block size is known

# The documents' names first; EMBRIDGE_* covers every field, groups by their field's name.
_DOCUMENTED: Final = {
    "SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE": ("", "default_allocate_tokens"),
    "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE": ("", "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE"),
    "SGLANG_EMBEDDING_CACHE_BLOCK_SIZE": ("geometry", "block_size"),
}


def _replace(base: Any, values: Mapping[str, Any], group: str) -> Any:
    known = {f.name for f in fields(base)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{group}.{key}: unknown setting; known: {', '.join(sorted(known))}")
    try:
        return replace(base, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{group}.{error}") from error


def _host_of(url: str) -> str | None:
    """The host of `http(s)://host:port`, without path, query or user; None for anything else."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.port and parts.path in ("", "/")
    except ValueError:
        return None
    is_ours = plain and not (parts.query or parts.fragment or parts.username or parts.password) and url.isascii() and url.isprintable()
    return parts.hostname if is_ours else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the environment holds; `SGLANG_EMBEDDING_CACHE_BUFFER_SIZE` is the pool in tokens."""
    result: dict[str, Any] = {}
    places: dict[str, tuple[str, str]] = dict(_DOCUMENTED)
    for item in fields(PipelineConfig):
        if item.name not in _GROUPS:
            places[f"EMBRIDGE_{item.name.upper()}"] = ("", item.name)
    for group, cls in _GROUPS.items():
        prefix = "MOONCAKE_" if group == "mooncake" else ""
        for item in fields(cls):
            places[f"EMBRIDGE_{prefix}{item.name.upper()}"] = (group, item.name)
    for name, (group, key) in places.items():
        if name not in environ:
            continue
        if key == _POOL_TOKENS:
            result[key] = _parse(name, environ[name], int)
            continue
        owner = _GROUPS[group] if group else PipelineConfig
        kind = _kind(owner, key)
        target = result.setdefault(group, {}) if group else result
        target[key] = _parse(name, environ[name], kind)
    if "num_blocks" in result.get("geometry", {}):
        result.pop(_POOL_TOKENS, None)
    return result


def _with_pool(geometry: Geometry, tokens: int) -> Geometry:
    try:
        if tokens < geometry.block_size:
            raise ValueError(f"num_blocks: {tokens // geometry.block_size} is outside 1 to {MAX_BLOCKS}")
        return replace(geometry, num_blocks=tokens // geometry.block_size)
    except ValueError as error:
        raise ConfigError(f"{_POOL_TOKENS}: {tokens} tokens in blocks of {geometry.block_size}: {error}") from error


def _kind(owner: Any, key: str) -> type:
    text = str({f.name: f.type for f in fields(owner)}[key])
    return {"int": int, "float": float, "bool": bool}.get(text, str)


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{name}: {text!r} is no {kind.__name__}") from error
