"""The node's own reader of its shelf: one that takes the place of one that has died, in the same ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.shelves import OneShelf, key

from embridge.allocator._core import ShelfReader


@pytest.fixture
def shelf() -> Iterator[OneShelf]:
    it = OneShelf(8)
    yield it
    it.close()


def own_reader(shelf: OneShelf) -> ShelfReader:
    return shelf.attach().shelf.own_reader(shelf.rows)


def test_a_new_bootstrap_adopts_the_pins_of_open_requests_and_takes_the_others_away(shelf: OneShelf) -> None:
    """R85, R55: an adopted pin keeps its item as if nobody had died."""
    for text in ("cat", "dog"):
        assert shelf.publish(text)
    dead = own_reader(shelf)
    pins = [dead.pin(*key(text), 1) for text in ("cat", "dog")]
    cat = pins[0]
    assert cat is not None
    at = (cat.entry, cat.generation)
    born = own_reader(shelf)
    adopted = [born.adopt(*at) for _ in range(2)]
    assert [None if it is None else (it.number, it.first, it.bytes) for it in adopted] == [
        (cat.number, cat.first, cat.bytes)
    ] * 2
    born.forget_others()
    shelf.publish("cat", 2)
    shelf.core.unpublish(*key("dog"))
    shelf.core.sweep()
    counts = shelf.table.counts()
    assert (counts.pinned, counts.retired) == (1, 1)
    adopted.pop()
    assert shelf.table.counts().pinned == 1
    adopted.pop()
    assert shelf.table.counts().pinned == 0
    del pins  # of what is dead, here only


def test_nothing_is_adopted_that_is_not_pinned(shelf: OneShelf) -> None:
    """R85: no other generation, and no entry that there is not."""
    assert shelf.publish("cat")
    own = own_reader(shelf)
    pin = own.pin(*key("cat"), 1)
    assert pin is not None
    assert own.adopt(pin.entry, pin.generation + 1) is None
    assert own.adopt((pin.entry + 1) % 16, pin.generation) is None
    assert own.adopt((pin.entry + 1) % 16, 0) is None
    with pytest.raises(IndexError, match="entry 99999 of"):
        own.adopt(99999, 1)
    assert own.num_pins == 1


def test_the_nodes_own_reader_is_none_of_those_that_are_listed(shelf: OneShelf) -> None:
    """R42: the entry in the table of readers is kept for it."""
    own = own_reader(shelf)
    assert shelf.publish("cat")
    pin = own.pin(*key("cat"), 1)
    reader = shelf.reader()
    assert reader.number == 1
    assert shelf.table.counts().readers == 1
    shelf.table.remove_reader(reader.number)
    assert shelf.table.counts().pinned == 1
    assert pin is not None
