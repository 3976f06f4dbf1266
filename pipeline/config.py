"""Configuration: flags go over the environment, this over a TOML file, this over defaults. Errors name the bad value.

No other module reads the environment for settings of embridge.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from embridge.allocator.geometry import MAX_BLOCKS, Geometry, Limits, Role
from embridge.allocator.settings import Setting, check, no_table, setting, settings_of
from embridge.pipeline import unknown_variables
from embridge.pipeline.misplaced_settings import tells_where, unknown_setting
from embridge.pipeline.urls import check_discovery_url
from embridge.workers.log_lines import FORMATS
from embridge.workers.timing import Timing
from embridge.workers.transfer import engines
from embridge.workers.web.address import web_address
from embridge.workers.web.hosts import listed_hosts

GIB: Final = 1 << 30
DEFAULT_ROUTES: Final = 128  # nodes of the other role, where discovery is set and `max_routes` is not
MAX_UNSENT_BYTES: Final = 1 << 62  # the sum of it and of one more request fits into a word of 64 bits
ROLES: Final = {"encode": Role.ENCODE, "language": Role.LANGUAGE}


class ConfigError(ValueError):
    """A configuration value that cannot be used; the text names it, where it came from, and what is allowed."""


def default_run_dir(role: str) -> Path:
    """`$XDG_RUNTIME_DIR/embridge-<role>`, or a folder of this user under the temporary directory."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(base) if base else Path(tempfile.gettempdir()) / f"embridge-{os.getuid()}"
    return root / f"embridge-{role}"


@tells_where(lambda: groups())
@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """The settings of one node: sizes in blocks and tokens, times in `timing`. `docs/settings.md` lists every setting.

    `engine_settings` holds, by an engine's name, the settings of each engine that has some, such as `MooncakeSettings`;
    an engine that is not named has its defaults. A TOML file, the environment, `from_env` and `from_toml` take an
    engine's settings as a group like the others: `from_env(mooncake={"protocol": "rdma"})`.
    """

    role: str = setting("", "Which side of the transfer.", choices=lambda: tuple(ROLES), is_flag=True, is_required=True)
    run_dir: Path | None = setting(
        None, "Folder of the run socket; one a node. Default: a folder of this user and of the role.", is_flag=True,
        why="clients of the same user look there when they are not told",
    )  # fmt: skip
    host: str = setting(
        "127.0.0.1", "The one address that the node binds; other than loopback needs keys.", is_flag=True,
        why="nothing of a node is reached from elsewhere unless somebody says so",
    )  # fmt: skip
    bootstrap_port: int = setting(
        0, "Port of init, resume and announce; 0: any free one.", ge=0, le=65535, is_flag=True,
        why="nodes of one host never ask for the same",
    )  # fmt: skip
    poller_port: int = setting(
        0, "Port of status and heartbeats; 0: any free one.", ge=0, le=65535, is_flag=True,
        why="nodes of one host never ask for the same",
    )  # fmt: skip
    key_file: Path | None = setting(
        None, "Secret key of the node, read at launch; with it control messages are encrypted and both ends proved. "
        "See `embridge keys`.", is_flag=True, why="a loopback address needs no keys",
    )  # fmt: skip
    allow_file: Path | None = setting(
        None, "Public keys of the other nodes, one line each. A node has both files or neither.", is_flag=True,
        why="a loopback address needs no keys",
    )  # fmt: skip
    engine: str = setting(
        "auto", engines.how_rows_travel, choices=engines.choices, is_flag=True, why="it reaches every peer"
    )
    engine_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)  # by the name of the engine
    metrics_addr: str = setting(
        "127.0.0.1:0", "Address and port where the node serves HTTP: /metrics for Prometheus. Port 0: any free one, so "
        "that any number of nodes may share a host; `embridge status` shows it. \"off\": none.", is_flag=True,
        why="who runs on this host may look, and nodes never ask for the same port",
    )  # fmt: skip
    web_hosts: str = setting(
        "", "Names, with commas between, by which that port shows its status page, beside localhost and IP addresses.",
        why="else a stranger's page, in the browser of somebody here, could make its own name lead to the node",
    )  # fmt: skip
    discovery: str = setting(
        "", "URL of `embridge discovery`, http://host:port, or of an etcd, etcd://host:port[,host:port][/prefix]; "
        "default: none.", is_flag=True, why="a request may name its encode node itself",
    )  # fmt: skip
    discovery_token_file: Path | None = setting(
        None, "File, mode 0600, of the token it expects; of an etcd user:password.", is_flag=True,
        why="a server on loopback expects none")  # fmt: skip
    discovery_ca_file: Path | None = setting(
        None, "File (PEM) of the authorities by which its certificate is checked, for https:// and etcds://.",
        is_flag=True, why="the system's are asked then",
    )  # fmt: skip
    geometry: Geometry = field(default_factory=Geometry)
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)
    default_allocate_tokens: int = setting(
        8192, "Tokens that are granted to a request before its length is known.", ge=1, is_flag=True,
        why="it is SGLang's, and most requests need one round then",
    )  # fmt: skip
    host_buffer_bytes: int = setting(
        4 * GIB, "Limit of a language node's received tensors in host memory.", ge=1, is_flag=True,
        why="it holds 70 requests of 8192 tokens of 7 KiB",
    )  # fmt: skip
    unsent_max_bytes: int = setting(
        GIB, "Limit, for all clients of an encode node together, of rows in host memory that wait to be sent.",
        ge=1, le=MAX_UNSENT_BYTES, is_flag=True, why="it holds 18 requests of 8192 tokens of 7 KiB",
    )  # fmt: skip
    max_restarts: int = setting(
        30, "How often one process may be started within a minute; beyond it the node is unhealthy, until that process "
        "holds again.", ge=1, why="a death every two seconds is lived through; one that comes at every start is told",
    )  # fmt: skip
    verify: bool = setting(
        False, "Sum rows (CRC-32C) before they are sent and check them on receipt; the nodes of both roles, or none.",
        is_flag=True, why="it costs every byte two more passes",
    )  # fmt: skip
    direct: bool = setting(
        True, "On one host, let encoders write straight into the blocks of language nodes, if both nodes have it so; "
        "false: rows go through the transfer workers.", is_flag=True, why="rows are copied once then, not twice",
    )  # fmt: skip
    lock_memory: bool = setting(
        True, "Lock the pool in memory (mlock).", is_flag=True, why="a page that was swapped out stalls a transfer"
    )
    log_level: str = setting(
        "INFO", "What the node's processes log: INFO the start and what happens to the node, WARNING failed requests "
        "and what is mended, DEBUG every step of a request.",
        choices=lambda: ("DEBUG", "INFO", "WARNING", "ERROR"), is_flag=True,
        why="it has what happens to a node, and nothing for each request",
    )  # fmt: skip
    log_format: str = setting(
        "text", "Lines for people, or JSON, an object a line.", choices=lambda: FORMATS, is_flag=True,
        why="people read a log first",
    )  # fmt: skip
    source: str = field(default="", compare=False)  # no setting: where the values came from, for the log

    def __post_init__(self) -> None:
        try:
            check(self)
            has_web = int(web_address(self.metrics_addr) is not None)
            listed_hosts(self.web_hosts)
            check_discovery_url(self.discovery, self.discovery_token_file, self.discovery_ca_file)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for name, group in GROUPS.items():
            if not isinstance(getattr(self, name), group):
                raise ConfigError(no_table(name, getattr(self, name), group))
        object.__setattr__(self, "limits", replace(self.limits, has_web=has_web))
        object.__setattr__(self, "engine_settings", _engine_settings(self.engine_settings))
        object.__setattr__(self, "run_dir", Path(self.run_dir or default_run_dir(self.role)).absolute())
        self._check_paths()
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError as error:
            why = f"host: {self.host!r} is no IP address; give the one address that this node binds"
            raise ConfigError(why) from error
        if (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
            raise ConfigError(
                f"host: {self.host} stands for all interfaces; give the one address at which other nodes reach this one"
            )
        self._check_keys(is_loopback=address.is_loopback)
        self._check_discovery()
        if not self.role:
            raise ConfigError(
                f"role: which side is this node? say {' or '.join(ROLES)}: --role, EMBRIDGE_ROLE, or `role` in the file"
            )

    def _check_paths(self) -> None:
        """Refuse paths that are no UTF-8 text: they go to the launcher, and to other nodes, as text."""
        for name in ("run_dir", "key_file", "allow_file", "discovery_token_file", "discovery_ca_file"):
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
                raise ConfigError(
                    f"{name}: it is set and {other} is not; a node has both or neither (see `embridge keys --help`)"
                )
        if self.key_file is None and not is_loopback:
            raise ConfigError(
                f"host: {self.host} is no loopback address, and without keys control messages are plain; "
                "make a key with `embridge keys new`, list the keys of the other nodes, "
                "and give key_file and allow_file (--key-file, --allow-file)"
            )

    def _check_discovery(self) -> None:
        for name in ("discovery_token_file", "discovery_ca_file"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(value).absolute())
        if not self.discovery:
            if self.limits.max_routes:
                raise ConfigError(
                    f"limits.max_routes: {self.limits.max_routes} without discovery; set discovery, or leave it 0"
                )
            return
        if not self.limits.max_routes:
            object.__setattr__(self, "limits", replace(self.limits, max_routes=DEFAULT_ROUTES))

    @property
    def directory(self) -> Path:
        """The run directory, never None."""
        assert self.run_dir is not None
        return self.run_dir

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **over: Any) -> PipelineConfig:
        """The configuration from defaults, then the environment, then `over`.

        A group in `over` is its dataclass, or a dict of some of its fields.

        Raises:
            ConfigError: a name or a value is wrong; the text names it, and where it came from.
        """
        return cls.of_layers(environment(environ), Layer(over))

    @classmethod
    def from_toml(cls, path: str | Path, environ: Mapping[str, str] | None = None, **over: Any) -> PipelineConfig:
        """The configuration from defaults, then a TOML file, then the environment, then `over`.

        Raises:
            ConfigError: the file cannot be read, or a key or value in it is wrong.
        """
        return cls.of_layers(toml_file(path), environment(environ), Layer(over))

    @classmethod
    def of_layers(cls, *layers: Layer) -> PipelineConfig:
        """The configuration from these layers over the defaults; later layers go over earlier ones.

        Raises:
            ConfigError: a key or a value is wrong; the text names it, and where it came from.
        """
        values: dict[str, Any] = {}
        origins = origins_of(*layers)
        pool_tokens = None
        for layer in layers:
            pool_tokens = layer.values.get(POOL_TOKENS, pool_tokens)
            for key, value in layer.values.items():
                if key == "geometry" and (not isinstance(value, Mapping) or "num_blocks" in value):
                    pool_tokens = None
                if key == POOL_TOKENS:
                    continue
                try:
                    values[key] = _laid_over(values, key, value)
                except ConfigError as error:
                    raise _with_origin(error, origins) from error
        try:
            if pool_tokens is not None:
                values["geometry"] = _with_pool(values.get("geometry", Geometry()), pool_tokens)
            of_engines = {name: values.pop(name) for name in _engine_groups() if name in values}
            return cls(**values, engine_settings=of_engines, source=_source(origins))
        except ConfigError as error:
            raise _with_origin(error, origins) from error


GROUPS: Final[dict[str, Any]] = {"geometry": Geometry, "limits": Limits, "timing": Timing}
"""The groups of the node itself; `groups` has those of its engines, too."""
POOL_TOKENS: Final = "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE"  # becomes `num_blocks` once the block size is known
DOCUMENTED: Final = {
    "default_allocate_tokens": "SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE",
    "geometry.block_size": "SGLANG_EMBEDDING_CACHE_BLOCK_SIZE",
}
"""The variables of the documents, by the setting that they stand for; EMBRIDGE_* goes over them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place. `origins` has, by name, where a value came from; the others came from `origin`."""

    values: Mapping[str, Any]
    origin: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin_of(self, name: str) -> str:
        return self.origins.get(name, self.origin)


def origins_of(*layers: Layer) -> dict[str, str]:
    """Where each setting that these layers have comes from, by its full name (`limits.num_slots`)."""
    origins: dict[str, str] = {}
    known = groups()
    for layer in layers:
        for key, value in layer.values.items():
            is_table = key in known and isinstance(value, Mapping)
            names = [f"{key}.{name}" for name in value] if is_table else [key]
            if key == POOL_TOKENS:
                names = ["geometry.num_blocks"]
            origins |= {name: POOL_TOKENS if key == POOL_TOKENS else layer.origin_of(name) for name in names}
    return origins


def _engine_groups() -> dict[str, Any]:
    return {it.name: it.settings_class for it in engines.ENGINES if it.settings_class is not None}


def groups() -> dict[str, Any]:
    """The class of each group of settings, by its name: first the node's own, then those of its engines."""
    return GROUPS | _engine_groups()


def all_settings() -> Iterator[tuple[str, Setting]]:
    """Every setting, with its group's name ("": of the node itself)."""
    for group, kind in {"": PipelineConfig, **groups()}.items():
        for it in settings_of(kind).values():
            yield group, it


def long_name(group: str, name: str) -> str:
    """A setting's name where its group is not named beside it; that of an engine's setting begins with the engine's."""
    return f"{group}_{name}".replace("-", "_") if group in _engine_groups() else name


def variable_of(group: str, name: str) -> str:
    """The variable of the environment that sets this setting of this group."""
    return f"EMBRIDGE_{long_name(group, name)}".upper()


def flags_of(group: str, it: Setting) -> list[str]:
    """The flags of `embridge launch` that set this setting of this group; a truth value has one for each value."""
    name = long_name(group, it.name).replace("_", "-")
    return [f"--{name}", f"--no-{name}"][: 1 + (it.kind is bool)] if it.is_flag else []


def toml_file(path: str | Path) -> Layer:
    """The settings that a file holds. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return Layer(tomllib.load(file), str(path))
    except (OSError, ValueError) as error:  # tomllib's own, and UnicodeDecodeError, are ValueErrors
        raise ConfigError(f"{path}: {error}") from error


def environment(environ: Mapping[str, str] | None = None) -> Layer:
    """The settings that the environment holds; `SGLANG_EMBEDDING_CACHE_BUFFER_SIZE` is the pool in tokens.

    Raises:
        ConfigError: a text stands for no value of its setting.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    known = [variable_of(group, it.name) for group, it in all_settings()]
    unknown_variables.warn(environ, known)
    if POOL_TOKENS in environ:
        values[POOL_TOKENS] = _parsed(POOL_TOKENS, environ[POOL_TOKENS], "a whole number", int)
    for group, it in all_settings():
        full = f"{group}.{it.name}" if group else it.name
        for variable in (DOCUMENTED.get(full, ""), variable_of(group, it.name)):
            if variable in environ:
                target = values.setdefault(group, {}) if group else values
                target[it.name] = _parsed(variable, environ[variable], it.expected, it.from_text)
                origins[full] = variable
    if "num_blocks" in values.get("geometry", {}):
        values.pop(POOL_TOKENS, None)
    return Layer(values, origins=origins)


def _parsed(variable: str, text: str, expected: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{variable}: expected {expected}, got {text!r}") from error


def _laid_over(values: Mapping[str, Any], key: str, value: Any) -> Any:
    """A value of a setting, or a group with some of its settings replaced."""
    group = groups().get(key)
    if group is not None and isinstance(value, Mapping):
        return _replaced(key, group, values.get(key, group()), value)
    names = [it.name for it in fields(PipelineConfig) if it.name not in ("engine_settings", "source")]
    if key not in (known := [*names, *_engine_groups()]):
        raise ConfigError(unknown_setting("", key, known, {"": PipelineConfig, **groups()}))
    return value


def _replaced(key: str, group: Any, base: Any, given: Mapping[str, Any]) -> Any:
    """The group of this name and class with some of its settings replaced."""
    known = settings_of(group)
    for name in given:
        if name not in known:
            raise ConfigError(unknown_setting(key, name, sorted(known), {"": PipelineConfig, **groups()}))
    try:
        return replace(base, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.{error}") from error


def _engine_settings(given: object) -> dict[str, Any]:
    """The settings of every engine that has some, by name, from those that were given.

    The settings of an engine may come as its settings class or as a mapping of names to values, which is what the
    launcher, who reads the configuration as text, has.

    Raises:
        ConfigError: an engine has no settings, or a setting or its value is wrong.
    """
    known = _engine_groups()
    if not isinstance(given, Mapping):
        raise ConfigError(f"engine_settings: {given!r} is no mapping of engines to their settings")
    for name in given:
        if name not in known:
            raise ConfigError(f"engine_settings: {name!r} has no settings; known: {', '.join(known)}")
    found = {}
    for name, group in known.items():
        value = given.get(name, {})
        found[name] = _replaced(name, group, group(), value) if isinstance(value, Mapping) else value
        if not isinstance(found[name], group):
            raise ConfigError(no_table(name, value, group))
    return found


def _source(origins: Mapping[str, str]) -> str:
    """Where settings came from, each place once: a file, variables, flags; never a value."""
    places = list(dict.fromkeys(origin or "arguments" for origin in origins.values()))
    return ", ".join(places) or "defaults"


def _with_origin(error: ConfigError, origins: Mapping[str, str]) -> ConfigError:
    """The error with the origin of the setting that its text begins with, where that origin is known."""
    origin = origins.get(str(error).partition(":")[0])
    return ConfigError(f"{error} (from {origin})") if origin else error


def _with_pool(geometry: Geometry, tokens: int) -> Geometry:
    try:
        if tokens < geometry.block_size:
            raise ValueError(f"num_blocks: {tokens // geometry.block_size} is outside 1 to {MAX_BLOCKS}")
        return replace(geometry, num_blocks=tokens // geometry.block_size)
    except ValueError as error:
        raise ConfigError(f"{POOL_TOKENS}: {tokens} tokens in blocks of {geometry.block_size}: {error}") from error
