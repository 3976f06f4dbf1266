"""Ends a process's part in a node: its memory is freed, and whoever still asks is told why there is no answer.

What a process has mapped is free when it leaves, not when the last object that knew of it happens to be collected: a
node with a large pool can then be launched again at once. Only what somebody still looks at stays, until the last such
tensor or array is gone.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from embridge.allocator._core import Mapping

log = logging.getLogger(__name__)


class Refused:
    """Stands in the place of what led into shared memory: whatever is asked of it is a RuntimeError that says why."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        object.__setattr__(self, "_why", why)

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(self._why)

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(self._why)


def refuse(owner: object, why: str, names: tuple[str, ...]) -> None:
    """Replace those of these attributes that `owner` has by a `Refused` with this reason."""
    held: dict[str, Any] = vars(owner)
    refused = Refused(why)
    for name in names:
        if name in held:
            held[name] = refused


def let_go(mapping: Mapping, what: str, whose: str) -> None:
    """Free what is mapped; as long as somebody looks at it, it stays, and this says so."""
    num_views = mapping.close()
    if num_views:
        log.warning(
            "%s: %d bytes of its %s stay in use until the last tensor or array over them is gone (%d are left)",
            *(whose, mapping.size, what, num_views),
        )
