"""Fetching published items, in a test itself and in an agent: functions for `Agent.call`, from `join` on."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import torch

from embridge import Client, Item, NotPublished, attach
from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.pipeline.client import shelf_doors
from embridge.workers.transfer.engines.base import EngineError
from support.nodes import LIMITS, Station, station

NUM_BLOCKS: Final = 32  # of a shelf node: four items


def shelf_node(path: Path, **settings: Any) -> AbstractContextManager[Station]:
    """An encode node with a shelf of 2 MiB."""
    limits = replace(LIMITS, shelf_bytes=NUM_BLOCKS * SHELF_BLOCK_BYTES)
    return station("encode", path, limits=limits, deepstack_layers=3, **settings)


def fetched(client: Client, key: str, addr: str, **named: Any) -> Item:
    fetch = client.fetch(key, addr, **named)
    assert fetch.wait(30)
    return fetch.result()


def is_all(rows: torch.Tensor, value: float) -> bool:
    return float(rows.min()) == float(rows.max()) == value


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


def read_for(state: SimpleNamespace, seconds: float, addr: str, least: int = 0) -> tuple[int, list[str]]:
    """Fetch five keys again and again, and look at all of their rows; how many there were, and what was wrong.

    It takes so many seconds, and up to 20 more until there were `least`.
    """
    faults, found, until = [], 0, time.monotonic() + seconds
    last = dict.fromkeys("abcde", 0)
    while time.monotonic() < until or (found < least and time.monotonic() < until + 20):
        for key, newest in last.items():
            fetch = state.client.fetch(key, addr)
            fetch.wait(20)
            if isinstance(fetch.exception(), NotPublished):
                continue
            with fetch.result() as item:
                found += 1
                last[key] = item.generation
                if item.generation < newest:
                    faults.append(f"{key}: generation {item.generation} after {newest}")
                if item.rows.min() != item.rows.max():
                    faults.append(f"{key}: generation {item.generation} is torn")
    return found, faults


def no_door(record: object, hello: object) -> NoReturn:
    """In the place of `shelf_doors.knock`: every encode node is on another host."""
    raise EngineError("its node is on another host")


def join_from_afar(state: SimpleNamespace, run_dir: Path) -> None:
    """As `join`, by a process to which no node opens its shelf."""
    vars(shelf_doors)["knock"] = no_door
    join(state, run_dir)


def begin(state: SimpleNamespace, key: str, addr: str) -> None:
    """Begin a fetch, and do not wait for it."""
    state.fetch = state.client.fetch(key, addr)
