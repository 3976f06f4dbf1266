"""What the variable `EMBRIDGE_SGLANG` may say: a JSON object, for SGLang's command line has no place for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec

from embridge.integrations.engine_settings import FetchSettings
from embridge.pipeline.config import default_run_dir

VARIABLE: Final = "EMBRIDGE_SGLANG"


class Options(FetchSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one server."""

    keep_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """How long an embedding may be fetched after it was published: longer than SGLang waits for one."""

    @classmethod
    def from_env(cls) -> Self:
        """From the environment. Raises ConfigError."""
        return cls.from_variable(VARIABLE)

    def directory(self, role: str) -> Path:
        """The run directory of this host's node of a role."""
        return Path(self.run_dir) if self.run_dir else default_run_dir(role)


def is_wanted() -> bool:
    """Whether the variable is set."""
    return bool(os.environ.get(VARIABLE))
