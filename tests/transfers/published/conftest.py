"""What tests of published items share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fetching import shelf_node
from support.nodes import Station

from embridge import Client, attach


@pytest.fixture(scope="module")
def shelved(shared_dir: Path, request: pytest.FixtureRequest) -> Iterator[Station]:
    """An encode node with a shelf of 2 MiB, one for each file."""
    with shelf_node(shared_dir / request.module.__name__.removeprefix("test_")) as it:
        yield it


@pytest.fixture
def publisher(shelved: Station) -> Iterator[Client]:
    """A client of that node, whose shelf is empty before and after."""
    with attach(shelved.run_dir) as it:
        it.shelf.clear()
        yield it
        it.shelf.clear()
