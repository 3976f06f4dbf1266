"""What tests that run real processes have in common: nodes, processes that attach to them, rows that can be
recomputed.

`support.Queues` is loaded when it is first used, so that `conftest.py` imports no torch: a process that only deals
tests out needs none, and it takes seconds.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.scheduling import Queues

__all__ = ["Queues"]

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy and torch: their threads would spin on cores that other tests need

if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module("support.scheduling").Queues
