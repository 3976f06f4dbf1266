"""Turns an OSError of a launch into a LaunchError that names the step that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from embridge.allocator.errors import LaunchError

LIMITS_REMEDY: Final = "check `ulimit -n` and `ulimit -u`"


@contextlib.contextmanager
def naming(what: str, remedy: str) -> Iterator[None]:
    """Turn an OSError of this block into a LaunchError that names what failed."""
    try:
        yield
    except OSError as error:
        raise LaunchError(f"{what}: {error.strerror or error}; {remedy}") from error
