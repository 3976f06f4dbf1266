"""What an agent does as one who reads published items: functions for `Agent.call`."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from embridge import Item, attach


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


def look(state: SimpleNamespace) -> list[float]:
    """What stands in the items that are kept, from their first to their last element."""
    return [value for item in state.items for value in (first_of(item), float(item.rows[-1, -1]))]


def leave(state: SimpleNamespace) -> None:
    state.client.close()


def forget(state: SimpleNamespace) -> None:
    state.items.clear()


def in_a_child(state: SimpleNamespace) -> int:
    """Fork a child that lets go of all items and ends; returns its exit status."""
    pid = os.fork()
    if not pid:
        state.items.clear()
        os._exit(0)
    return os.waitpid(pid, 0)[1]
