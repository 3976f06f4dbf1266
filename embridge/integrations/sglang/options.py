"""What the variable `EMBRIDGE_SGLANG` may say: a JSON object, for SGLang's command line has no place for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embridge import ConfigError
from embridge.integrations.options import allowed_nodes, check_names, check_values, json_variable
from embridge.pipeline.config import GIB, default_run_dir

VARIABLE: Final = "EMBRIDGE_SGLANG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of one server. Raises ConfigError: a name or a value is wrong."""

    run_dir: str = ""
    """Of the node of this host. Default: of this user and role."""
    encoders: tuple[str, ...] = ()
    """Encode nodes from which a scheduler fetches: tcp://ip:port, or tcp://ip:* for every one of a host. Where it is
    empty, those are allowed of which discovery has told the node."""
    cache_bytes: int = 4 * GIB
    """Host memory of a scheduler for embeddings that wait for their requests."""
    keep_s: float = 300.0
    """How long an embedding may be fetched after it was published: longer than SGLang waits for one."""

    def __post_init__(self) -> None:
        check_values(self, VARIABLE, cache_bytes=1)
        if self.keep_s <= 0:
            raise ConfigError(f"{VARIABLE}: keep_s: {self.keep_s} s must be positive")
        object.__setattr__(self, "encoders", allowed_nodes(self.encoders, VARIABLE))

    @classmethod
    def from_env(cls) -> Options:
        """From the environment; defaults where the variable is not set."""
        given = json_variable(VARIABLE)
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise ConfigError(f"{VARIABLE}: {given!r} is no JSON object; {{}} has every option's default")
        check_names(cls, given, VARIABLE)
        return cls(**given)

    def directory(self, role: str) -> Path:
        """The run directory of this host's node of a role."""
        return Path(self.run_dir) if self.run_dir else default_run_dir(role)


def is_wanted() -> bool:
    """Whether the variable is set."""
    try:
        return json_variable(VARIABLE) is not None
    except ConfigError:
        return True  # which is said when it is read
