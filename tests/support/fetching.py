"""What an agent does as one who reads published items: functions for `Agent.call`."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

from embridge import Item, NotPublished, attach


def join(state: SimpleNamespace, run_dir: Path) -> None:
    state.client = attach(run_dir)
    state.items = []


def fetch(state: SimpleNamespace, key: str, addr: str) -> float:
    """Fetch an item, and keep it; returns what its first row says."""
    fetch = state.client.fetch(key, addr)
    fetch.wait(20)
    state.items.append(fetch.result())
    return first_of(state.items[-1])


def first_of(item: Item) -> float:
    return float(item.rows[0, 0])


def read_for(state: SimpleNamespace, seconds: float, addr: str) -> tuple[int, list[str]]:
    """Fetch five keys again and again, and look at all of their rows; how many there were, and what was wrong."""
    faults, found, until = [], 0, time.monotonic() + seconds
    last = dict.fromkeys("abcde", 0)
    while time.monotonic() < until:
        for key, least in last.items():
            fetch = state.client.fetch(key, addr)
            fetch.wait(20)
            if isinstance(fetch.exception(), NotPublished):
                continue
            with fetch.result() as item:
                found += 1
                last[key] = item.generation
                if item.generation < least:
                    faults.append(f"{key}: generation {item.generation} after {least}")
                if item.rows.min() != item.rows.max():
                    faults.append(f"{key}: generation {item.generation} is torn")
    return found, faults
