"""An item cache whose users have what lies on a shelf of this host before it is copied."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.caching import ADDRESS, StubCache
from support.shelves import BLOCK, OneShelf, ShelfReaderOf, content

from embridge import CacheReader, HeldItem, RowsAt, SegmentError
from embridge.allocator._core import Words
from embridge.pipeline.client import cache_memory
from embridge.pipeline.client.early_cache import EarlyItemCache


class Early:
    """A cache of so many blocks, and a reader of a shelf."""

    def __init__(self, shelf: OneShelf, num_blocks: int) -> None:
        self.shelf = shelf
        self.reader: ShelfReaderOf = shelf.reader()
        self.stub = StubCache(num_blocks * BLOCK, shelf=self.reader)
        self.cache = self.stub.cache

    def reach(self, keys: str) -> bool:
        with self.cache._lock:
            return self.cache._have(dict.fromkeys(keys, ADDRESS))

    def has(self, user: int, keys: str) -> bool:
        return self.cache.admit(user, dict.fromkeys(keys, ADDRESS))

    def held(self, user: int, key: str) -> HeldItem:
        return self.cache.held(user)[key]

    def num_pinned(self) -> int:
        return self.shelf.table.counts().pinned


@pytest.fixture
def shelf() -> Iterator[OneShelf]:
    it = OneShelf(16)
    yield it
    it.close()


@pytest.fixture
def early(shelf: OneShelf) -> Iterator[Callable[[int], Early]]:
    made: list[Early] = []

    def make(num_blocks: int) -> Early:
        made.append(Early(shelf, num_blocks))
        return made[-1]

    yield make
    for it in made:
        it.reader.connection.hang_up()


def no_memory(size: int) -> Any:
    raise MemoryError


def loaded(at: RowsAt) -> bytes:
    return CacheReader().load(at, "cpu").numpy().tobytes()


def test_what_lies_on_a_shelf_is_there_at_once_and_is_copied_behind(
    shelf: OneShelf, early: Callable[[int], Early]
) -> None:
    """R65, R70: who was told where it lies keeps it there."""
    it = early(2)
    shelf.publish("a")
    shelf.publish("b", 2)
    assert it.has(1, "ab")
    assert it.stub.fetches == []
    assert it.cache.get(1, "a").where == "in place"
    told = [it.held(1, key).lent for key in "ab"]
    assert [loaded(lent.at) for lent in told] == [content("a", 1, BLOCK), content("b", 2, BLOCK)]
    with pytest.raises(ValueError, match="load them"):
        CacheReader().rows(told[0].at)
    it.stub.turn()
    it.stub.turn()
    assert it.num_pinned() == 2
    now = [it.held(1, key).lent for key in "ab"]
    assert all(lent.at.pin is None for lent in now)
    assert [loaded(lent.at) for lent in (*now, *told)] == [content("a", 1, BLOCK), content("b", 2, BLOCK)] * 2
    assert [lent.nbytes for lent in (*now, *told)] == [BLOCK] * 4
    del told
    assert it.num_pinned() == 0
    counts = it.cache.counts()
    assert (counts.misses, counts.hits, counts.shared, counts.bytes) == (2, 0, 0, 2 * BLOCK)
    assert it.has(2, "a")
    assert it.cache.counts().hits == 1


def test_an_item_smaller_than_a_page_counts_as_one_wherever_it_lies(
    shelf: OneShelf, early: Callable[[int], Early]
) -> None:
    """P12."""
    it, page = early(1), 4096
    for key in "ab":
        shelf.publish(key, num_bytes=100)
    assert it.has(1, "ab")
    assert it.cache.counts().bytes == 2 * page
    it.stub.turn()
    it.stub.turn()
    assert it.held(1, "b").lent.at.pin is None
    assert it.cache.counts().bytes == 2 * page
    it.cache.end(1)
    it.cache.forget("a")
    assert it.cache.counts().bytes == page
    shelf.publish("c", num_bytes=100)
    assert it.has(2, "c")
    it.cache.end(2)
    it.cache.forget("c")  # before it was copied
    assert it.cache.counts().bytes == page


def test_what_is_not_on_the_shelf_or_has_no_memory_is_fetched(shelf: OneShelf, early: Callable[[int], Early]) -> None:
    it = early(1)
    assert not it.reach("a")
    shelf.publish("a")
    shelf.publish("b")
    shelf.publish("c", num_bytes=2 * BLOCK)
    assert not it.reach("ab")
    assert not it.reach("c")
    assert not it.cache.admit(1, {"a": "nowhere"})
    assert not it.cache.admit(1, {"a" * 300: ADDRESS})
    assert it.has(1, "a")
    assert not it.reach("b")  # the first user has all of the memory
    it.cache.end(1)
    assert it.has(2, "b")
    assert it.cache.counts().evictions == 3  # of what nobody wanted then
    assert it.cache.counts().bytes == BLOCK


def test_nobody_overtakes_a_user_that_waits_for_memory(shelf: OneShelf, early: Callable[[int], Early]) -> None:
    """R66."""
    it = early(2)
    shelf.publish("a")
    assert not it.stub.is_ready(1, "x")
    assert not it.reach("a")
    assert it.stub.come("x", BLOCK)
    assert not it.reach("ay")
    assert it.reach("a")


def test_a_copy_for_which_there_is_no_memory_is_tried_again(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = early(2)
    shelf.publish("a")
    shelf.publish("b")

    with monkeypatch.context() as patch:
        patch.setattr(it.cache, "_take_bytes", no_memory)
        assert it.has(1, "a")
        assert it.has(2, "b")
        it.stub.turn()
        it.stub.turn()
        assert it.num_pinned() == 2
        it.cache.end(2)
        it.stub.turn()
        it.stub.turn()
        assert (it.num_pinned(), it.cache.counts().bytes) == (1, BLOCK)  # of "b" there is nobody to keep it for
        assert it.cache.counts().evictions == 1
    it.stub.turn()
    it.stub.turn()
    assert it.num_pinned() == 0
    assert it.stub.value(1, "a") == content("a", 1, 1)[0]


def test_an_item_at_whose_rows_nobody_looks_moves_with_them(shelf: OneShelf, early: Callable[[int], Early]) -> None:
    """R62, R63: whoever keeps it does not pin it on the shelf."""
    it = early(2)
    shelf.publish("a")
    shelf.publish("b")
    assert it.has(1, "ab")
    kept, seen = it.cache.get(1, "a"), it.cache.get(1, "b")
    view = seen.rows
    it.stub.turn()
    it.stub.turn()
    it.cache.end(1)
    assert (kept.where, seen.where, it.num_pinned()) == ("host", "host", 1)
    assert kept.rows.numpy().tobytes() == content("a", 1, BLOCK)
    del view
    assert it.num_pinned() == 0


def test_a_copy_that_fails_otherwise_leaves_nothing_pinned_nor_counted(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = early(1)
    shelf.publish("a")
    assert it.has(1, "a")
    it.cache.end(1)

    def fails(size: int) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(it.cache, "_take_bytes", fails)
        with pytest.raises(ZeroDivisionError):
            it.stub.turn()
    it.stub.turn()
    assert it.num_pinned() == 0
    it.cache.forget("a")
    assert it.cache.counts().bytes == 0


def test_a_forked_child_reaches_nothing_and_waits_for_no_lock_of_its_parent_s(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that the child has not may have had it."""
    it = early(1)
    shelf.publish("a")
    monkeypatch.setattr(it.cache._attachment, "is_forked", True)
    monkeypatch.setattr(it.cache, "_lock", None)
    assert not it.has(1, "a")


def test_rows_are_no_one_s_whose_pin_was_taken_away_meanwhile(shelf: OneShelf, early: Callable[[int], Early]) -> None:
    """R87: the process that has pinned them has died; what took their place may be in the copy."""
    it = early(1)
    shelf.publish("a")
    assert it.has(1, "a")
    at = it.held(1, "a").lent.at
    assert loaded(at) == content("a", 1, BLOCK)
    shelf.table.core.bury_reader(it.reader.number)  # what the launcher does first
    with pytest.raises(SegmentError, match="another item's"):
        loaded(at)


def test_rows_are_no_one_s_whose_ledger_is_another_reader_s_by_now(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R87, R41: who pins stores its word, and looks then; so for a moment a retired item's generation may stand there.
    """
    it, copy = early(1), cache_memory._loaded
    shelf.publish("a")
    assert it.has(1, "a")
    at = it.held(1, "a").lent.at
    pin = at.pin
    assert pin is not None
    word = Words(shelf.control.mapping, pin.offset, 1)

    def slow_copy(*asked: Any) -> Any:
        shelf.table.remove_reader(it.reader.number)  # it was killed,
        assert shelf.table.add_reader((8, 1), 2) == it.reader.number  # and another comes, which finds the item
        assert shelf.publish("b", num_bytes=16 * BLOCK)  # whose item makes room for this one
        rows = copy(*asked)
        word.store(0, pin.generation)  # and pins it too late, but has yet to look
        return rows

    monkeypatch.setattr(cache_memory, "_loaded", slow_copy)
    with pytest.raises(SegmentError, match="another item's"):
        loaded(at)


def test_a_client_that_leaves_pins_nothing_but_what_a_step_reads(
    shelf: OneShelf, early: Callable[[int], Early]
) -> None:
    """R62, R70: what others keep is copied first; nobody would do that later, however long they keep it."""
    it = early(3)
    for key in "abc":
        shelf.publish(key)
    assert it.has(1, "ac")
    assert it.has(2, "b")
    held, told, given = it.held(1, "a"), it.held(1, "c").lent, it.cache.get(2, "b")
    it.cache._close()
    assert loaded(told.at) == content("c", 1, BLOCK)
    assert (it.num_pinned(), held.lent.at.pin) == (2, None)
    assert loaded(held.lent.at) == content("a", 1, BLOCK)
    del told
    assert it.num_pinned() == 1
    given.move_out()  # a door looks after what it has lent for as long as its client is there
    assert (it.num_pinned(), given.where) == (0, "host")


def test_what_a_client_keeps_without_memory_for_it_stays_where_it_is(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = early(1)
    shelf.publish("a")
    assert it.has(1, "a")
    held = it.held(1, "a")
    with monkeypatch.context() as patch:
        patch.setattr(it.cache, "_take_bytes", no_memory)
        it.cache._close()
    assert loaded(held.lent.at) == content("a", 1, BLOCK)
    del held
    assert it.num_pinned() == 0


def test_what_somebody_keeps_of_an_item_that_was_evicted_is_copied_or_moves_when_its_node_is_short(
    shelf: OneShelf, early: Callable[[int], Early]
) -> None:
    """R62, P21: the cache has let go of it before it was copied; no user is there any more."""
    it = early(3)
    for key in "abc":
        shelf.publish(key)
    assert it.has(1, "abc")
    held, given, seen = it.held(1, "a"), it.cache.get(1, "b"), it.cache.get(1, "c")
    view = seen.rows
    it.cache.end(1)
    for key in "abc":
        it.cache.forget(key)
    assert it.cache.counts().bytes == BLOCK  # of what is lent to others; `given` is its caller's own
    it.stub.turn()
    assert (held.lent.at.pin, held.item.where, it.num_pinned()) == (None, "host", 2)
    for lent in list(it.stub.door.lent):
        lent.move_out()  # as its door has it do
    assert (given.where, seen.where, it.num_pinned()) == ("host", "in place", 1)
    assert given.rows.numpy().tobytes() == content("b", 1, BLOCK)
    assert loaded(held.lent.at) == content("a", 1, BLOCK)
    del held, view
    seen.release()
    it.stub.settle()
    assert (it.cache.counts().bytes, it.num_pinned()) == (0, 0)


def test_an_item_that_is_given_while_its_rows_move_moves_with_them(
    shelf: OneShelf, early: Callable[[int], Early], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = early(1)
    shelf.publish("a")
    assert it.has(1, "a")
    monkeypatch.setattr(it.stub.door, "lend", lambda item: it.stub.turn())  # the library thread copies just then
    assert it.held(1, "a").item.where == "host"
    assert it.num_pinned() == 0


def test_a_turn_may_come_while_the_cache_is_being_made(shelf: OneShelf) -> None:
    """D4: from `add_turn` on the library thread takes turns, whatever its maker has yet to do."""
    turns: list[bool] = []

    def add_turn(turn: Callable[[], bool], _: Callable[[], None]) -> None:
        turns.append(turn())

    library, fetching = StubCache(BLOCK).library, cast(Any, SimpleNamespace())
    library.add_turn = add_turn
    EarlyItemCache(library, fetching, BLOCK, 0.0)
    assert turns == [False]


@pytest.mark.parametrize("seed", range(8))
def test_bytes_are_counted_right_whatever_comes_between(
    shelf: OneShelf, early: Callable[[int], Early], seed: int
) -> None:
    """R65, R69, P12: any interleaving of users, copies and evictions; nobody reads another's rows."""
    rng, it = random.Random(seed), early(6)
    sizes, users = {key: rng.randint(1, 3) * BLOCK for key in "abcdefg"}, dict[int, str]()
    for user in range(200):
        what = rng.random()
        if what < 0.3 and users:
            one = rng.choice(list(users))
            assert all(it.stub.value(one, key) == content(key, 1, 1)[0] for key in users.pop(one))
            it.cache.end(one)
        elif what < 0.4:
            it.cache.forget(rng.choice("abcdefg"))
        elif what < 0.6:
            it.stub.turn()
        else:
            keys = "".join(rng.sample("abcdefg", rng.randint(1, 2)))
            for key in keys:
                shelf.publish(key, num_bytes=sizes[key], replaces=False)
            if it.has(user, keys):
                users[user] = keys
        assert it.cache.counts().bytes <= 6 * BLOCK
    for user in users:
        it.cache.end(user)
    for key in "abcdefg":
        it.cache.forget(key)
    it.stub.settle()
    assert (it.cache.counts().bytes, it.num_pinned()) == (0, 0)
