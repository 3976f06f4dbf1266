"""What an agent does as one who publishes: functions for `Agent.call`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from embridge import attach
from embridge.pipeline.client.publishing import Published, PublishStatus, WhyDropped
from support.shelves import ShelfStep


def rows_of_version(version: int, num_rows: int = 3, width: int = 40_000) -> torch.Tensor:
    """Rows whose numbers say which version they are of: 480 kB, eight blocks of a shelf."""
    return torch.full((num_rows, width), float(version))


def join(state: SimpleNamespace, run_dir: Path) -> int:
    """Attach; returns the lane."""
    state.client = attach(run_dir)
    return int(state.client.lane)


def publish(state: SimpleNamespace, key: str, version: int, *, replace: bool = True) -> Published:
    published: Published = state.client.publish(key, rows_of_version(version), replace=replace)
    return published


def begin(state: SimpleNamespace, key: str) -> None:
    """Begin a publication that this process does not end."""
    state.open = contextlib.ExitStack()
    it = state.open.enter_context(state.client.shelf.publishing(key, 3, 40_000, "float32", replace=True))
    it.rows[:1] = 7.0


def die_at(state: SimpleNamespace, nth: int) -> None:
    """Have this process killed before the n-th change that a publication makes."""
    left = [nth]

    def before(step: int) -> None:
        ShelfStep(step)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    state.client.shelf._table.core.watch(before)


def publish_for(state: SimpleNamespace, seconds: float, lane: int) -> list[str]:
    """Publish five keys again and again, in items of one to eight blocks; returns what was wrong."""
    faults, until, version = [], time.monotonic() + seconds, 0
    while time.monotonic() < until:
        version += 1
        key, width = "abcde"[(version * 3 + lane) % 5], 5_000 * (1 + (version + lane) % 8)
        result = state.client.publish(key, rows_of_version(version % 1000, 3, width), replace=version % 4 > 0)
        if result.status == PublishStatus.DROPPED and result.why != WhyDropped.NO_ROOM:
            faults.append(f"{key}: {result}")
        if version % 97 == 0:
            state.client.shelf.unpublish(key)
        if version % 397 == 0:
            state.client.shelf.clear()
    return faults
