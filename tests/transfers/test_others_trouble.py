"""Nobody's trouble is everybody's: beside each trouble that one of a node's users may have, a steady load goes on.

A slow name is in `tests/transfers/test_addresses.py`, a peer that floods a node in `tests/hostile/test_strangers.py`, a
log that nobody reads also in `test_full_stderr.py`. A scheduler that spins is not among them: its rows still go through
a thread of its own process. How much slower others get is measured by `bench/trouble.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.carrying import joined
from support.nodes import Settings, Station, station
from support.pipes import full_pipe
from support.remains import run_dirs
from support.troubles import TROUBLES, carry

pytestmark = pytest.mark.process

COUNT = 60


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    """Two nodes of 64 blocks, with a default as large as the pool, that speak into a pipe which nobody reads."""
    settings: Settings = {
        "engine": "shm",
        "num_blocks": 64,
        "block_size": 16,
        "connect_timeout_s": 3.0,
        "client_silent_after_s": 0.0,
    }
    with (
        run_dirs() as path,
        full_pipe() as pipe,
        station("encode", path / "e", stderr=pipe.write, **settings) as encode,
        station("language", path / "l", stderr=pipe.write, default_allocate_tokens=1024, **settings) as language,
    ):
        yield encode, language


@pytest.mark.parametrize("name", TROUBLES)
def test_beside_the_trouble_of_one_all_others_arrive(
    pair: tuple[Station, Station], rooms: Iterator[int], name: str
) -> None:
    """P21: in the same client, the same nodes and the same pool, no other request fails while the trouble lasts."""
    encode, language = pair
    with joined(encode, language) as (sending, queues):
        carry(encode, sending, queues, rooms, COUNT)
        with TROUBLES[name](encode, queues, rooms):
            carry(encode, sending, queues, rooms, COUNT)
        carry(encode, sending, queues, rooms, COUNT)
