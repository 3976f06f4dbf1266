"""What tests of clients share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.nodes import Station
from support.scheduling import Queues
from support.unharmed import Bench

from embridge import attach


@pytest.fixture(scope="module")
def bench(encode: Station, language: Station, _rooms: Iterator[int]) -> Iterator[Bench]:
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        bench = Bench(encode, language, sending, Queues(receiving), _rooms)
        for _ in range(encode.control.limits.num_workers):  # one for each: what they make on first use is there
            bench.good_request()
        bench.settle()
        yield bench
