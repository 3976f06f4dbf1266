"""What tests of engines share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.fetching import NUM_BLOCKS
from support.nodes import LIMITS, Station

from embridge.allocator.geometry import SHELF_BLOCK_BYTES


@pytest.fixture(scope="session")
def shelved(stations: Callable[..., Station]) -> Station:
    """An encode node with 16 blocks of 128 tokens, and a shelf of 2 MiB."""
    limits = replace(LIMITS, shelf_bytes=NUM_BLOCKS * SHELF_BLOCK_BYTES)
    return stations("encode", "for-engines", "shm", num_blocks=16, limits=limits)
