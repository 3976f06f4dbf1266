"""`Shelf` and `ShelfReader`: what is published, found, pinned and evicted, who may come between, and who may die."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest
from support.shelves import BLOCK, OneShelf, ShelfStep, content, key

from embridge.allocator import records
from embridge.allocator._core import ITEM_WORDS, SHELF_WAYS
from embridge.allocator.geometry import SHELF_WAYS as WAYS
from embridge.allocator.shelf import Answer


@pytest.fixture
def shelf() -> Iterator[OneShelf]:
    it = OneShelf(8)
    yield it
    it.close()


class Killed(Exception):
    pass


def kill_at(nth: int, step: ShelfStep | None = None) -> Callable[[int], None]:
    """Have the caller die before its n-th change (of that kind)."""
    left = [nth]

    def before(at: int) -> None:
        if step is None or at == step:
            if left[0] == 0:
                raise Killed
            left[0] -= 1

    return before


def is_empty(shelf: OneShelf) -> bool:
    """Whether no entry and no block belongs to anybody."""
    shelf.core.sweep()
    counts = shelf.table.counts()
    return (counts.items, counts.filling, counts.retired) == (0, 0, 0) and free_blocks(shelf) == 8


def free_blocks(shelf: OneShelf) -> int:
    held = shelf.control.layout.held
    return memoryview(shelf.control.mapping)[held : held + 64].cast("Q").tolist().count(0)


def test_the_core_counts_as_the_records_do() -> None:
    assert (records.ITEM_WORDS, WAYS) == (ITEM_WORDS, SHELF_WAYS)


def test_what_is_published_is_found_with_its_rows(shelf: OneShelf) -> None:
    """R40, R41."""
    reader = shelf.reader()
    assert reader.pin("cat") is None
    number = shelf.publish("cat", 1, BLOCK + 5)
    pin = reader.pin("cat")
    assert pin is not None
    assert (pin.number, pin.rows, pin.width, pin.dtype) == (number, 1, BLOCK + 5, 11)
    assert bytes(pin) == content("cat", 1, BLOCK + 5)
    assert memoryview(pin).readonly
    assert reader.pin("dog") is None


def test_an_equal_publication_finds_it_there_and_a_replacing_one_replaces_it(shelf: OneShelf) -> None:
    """R47, R84: the newest counts, and the older one is gone when the publication has returned."""
    reader, first = shelf.reader(), shelf.publish("cat", 1)
    assert shelf.begin("cat")[0] == Answer.ALREADY
    second = shelf.publish("cat", 2)
    assert second > first
    pin = reader.pin("cat")
    assert pin is not None
    assert bytes(pin) == content("cat", 2, BLOCK)
    assert (shelf.table.counts().items, shelf.table.counts().retired) == (1, 0)


def test_a_key_that_another_fills_is_not_filled_twice_unless_it_replaces(shelf: OneShelf) -> None:
    answer, entry, generation, _ = shelf.begin("cat", lane=1)
    assert answer == Answer.BEGUN
    assert shelf.begin("cat", lane=2)[0] == Answer.OTHERS
    assert shelf.begin("cat", lane=2, replaces=True)[0] == Answer.BEGUN
    assert shelf.core.show(entry, generation, 1)


def test_an_item_that_is_shown_later_is_newer_though_it_began_earlier(shelf: OneShelf) -> None:
    """R84: also where the one that was shown first has been evicted meanwhile."""
    reader = shelf.reader()
    _, entry, generation, first = shelf.begin("cat", lane=1, replaces=True)
    seen = shelf.publish("cat", 2, lane=2)
    assert shelf.core.unpublish(*key("cat")) == 1
    shelf.write("cat", 1, first, BLOCK)
    number = shelf.core.show(entry, generation, 1)
    pin = reader.pin("cat")
    assert pin is not None
    assert pin.number == number > seen


def test_who_retires_completes_what_is_being_shown_first(shelf: OneShelf) -> None:
    """R84: its publisher stands still behind its number, which is not set any more."""
    _, entry, generation, first = shelf.begin("cat", lane=1, replaces=True)
    shelf.write("cat", 1, first, BLOCK)
    newer: list[int] = []

    def meanwhile(step: int) -> None:
        if step == ShelfStep.NUMBER and not newer:
            newer.append(shelf.publish("cat", 2, lane=2))

    other = shelf.attach().shelf.core
    other.watch(meanwhile)
    number = other.show(entry, generation, 1)
    assert number > newer[0]  # the second publisher has set it when it looked for older ones
    assert shelf.find("cat") in (number, newer[0])
    pin = shelf.reader().pin("cat")
    assert pin is not None
    assert pin.number == max(number, newer[0])
    assert shelf.table.counts().items == 1


def test_an_item_is_evicted_by_its_last_use_and_a_pinned_one_never(shelf: OneShelf) -> None:
    """R43, P12: least recently used first."""
    reader = shelf.reader()
    for name in "abcdefgh":
        shelf.publish(name)
    held, touched = reader.pin("a"), reader.pin("b")
    del touched
    shelf.publish("i")
    shelf.publish("j")
    assert [name for name in "abcdefghij" if shelf.find(name)] == list("abefghij")
    assert held is not None
    for name in "klmnopqrst":
        shelf.publish(name)
    assert shelf.find("a")
    assert bytes(held) == content("a", 1, BLOCK)
    assert sum(bool(shelf.find(name)) for name in "klmnopqrst") == 7


@pytest.mark.parametrize("size", [1, 2])
def test_who_evicts_the_newer_of_two_items_takes_the_older_one_first(shelf: OneShelf, size: int) -> None:
    """R47: at each change that whoever makes room makes. Both are there, for a publisher was killed in between; and the
    older one was used last.
    """
    shelf.publish("cat", 1)
    for name in "abcd":
        shelf.publish(name)
    dying = shelf.attach().shelf.core
    _, entry, generation, first, *_ = dying.begin(*key("cat"), 1, 1, BLOCK, 1, BLOCK, 11, 0, 1, True)
    shelf.write("cat", 2, first, BLOCK)
    dying.watch(kill_at(0, ShelfStep.RETIRE))
    with pytest.raises(Killed):
        dying.show(entry, generation, 1)
    maker, seen = shelf.attach().shelf.core, [shelf.find("cat")]
    maker.watch(lambda step: seen.append(shelf.find("cat")))
    while shelf.find("cat"):
        name = f"more {len(seen)}"
        _, entry, generation, *_ = maker.begin(*key(name), 2, size, BLOCK, 1, BLOCK, 11, 0, 50 + len(seen), True)
        assert maker.show(entry, generation, 2)
    assert set(seen) == {seen[0], 0}
    assert shelf.table.counts().items <= 8


def test_a_burial_leaves_what_others_fill(shelf: OneShelf) -> None:
    """R45."""
    _, entry, generation, _ = shelf.begin("cat", lane=1)
    shelf.begin("dog", lane=3)
    assert shelf.core.bury_publisher(3) == 1
    assert shelf.core.show(entry, generation, 1)


def test_what_is_retired_stays_until_its_last_pin_goes(shelf: OneShelf) -> None:
    """R43, R63: a view is a pin, and its rows stay as they are; the key is not found any more."""
    reader = shelf.reader()
    shelf.publish("cat", 1, 3 * BLOCK)
    pin = reader.pin("cat")
    assert pin is not None
    view = memoryview(pin)[BLOCK : BLOCK + 10]
    del pin
    assert shelf.core.unpublish(*key("cat")) == 1
    assert reader.pin("cat") is None
    assert shelf.core.sweep() == 0
    for name in "abcde":
        assert shelf.publish(name)
    assert shelf.table.counts().retired_bytes == 3 * BLOCK
    assert bytes(view) == content("cat", 1, 10)
    view.release()
    assert shelf.core.sweep() == 1


def test_an_item_that_needs_more_than_there_is_evicts_nothing(shelf: OneShelf) -> None:
    """R49: nothing is taken away for what cannot be published."""
    reader = shelf.reader()
    for name in "abcdefgh":
        shelf.publish(name)
    held = reader.pin("d")
    assert shelf.begin("large", 5 * BLOCK)[0] == Answer.NO_ROOM
    assert all(shelf.find(name) for name in "abcdefgh")
    assert shelf.begin("large", 4 * BLOCK)[0] == Answer.BEGUN
    assert [name for name in "abcdefgh" if shelf.find(name)] == ["a", "b", "c", "d"]
    assert held is not None


def test_a_replacing_publication_that_is_dropped_retires_the_older_ones_all_the_same(shelf: OneShelf) -> None:
    """R47: whoever was told of the drop, and looks then, finds nothing old."""
    reader = shelf.reader()
    shelf.publish("cat", 1)
    for name in "bcdefgh":
        shelf.publish(name)
    held = [reader.pin(name) for name in "bcdefgh"]
    assert shelf.begin("cat", 2 * BLOCK, replaces=True)[0] == Answer.NO_ROOM
    assert shelf.find("cat") == 0
    assert len(held) == 7


def test_a_publication_that_is_broken_off_leaves_nothing(shelf: OneShelf) -> None:
    """R49."""
    _, entry, generation, _ = shelf.begin("cat", 3 * BLOCK, lane=2)
    shelf.core.drop(entry, generation, 2, False)
    assert is_empty(shelf)
    assert shelf.core.show(entry, generation, 2) == 0


def test_nothing_below_the_floor_is_visible(shelf: OneShelf) -> None:
    """R48: neither what was there, nor what had begun."""
    reader = shelf.reader()
    shelf.publish("cat")
    _, entry, generation, _ = shelf.begin("dog", lane=1)
    floor = shelf.core.clear()
    assert floor == shelf.table.floor() > generation
    assert shelf.core.show(entry, generation, 1)
    assert (shelf.find("cat"), shelf.find("dog"), reader.pin("dog")) == (0, 0, None)
    assert shelf.publish("dog", 2)
    assert is_visible(shelf, "dog", 2)
    assert shelf.core.clear() > floor


def is_visible(shelf: OneShelf, text: str, version: int) -> bool:
    pin = shelf.reader().pin(text)
    return pin is not None and bytes(pin) == content(text, version, BLOCK)


def test_an_item_that_has_expired_is_not_there_and_is_the_first_to_go(shelf: OneShelf) -> None:
    """Also where an older one, without an end, was left beside it."""
    for name in "abcdefg":
        shelf.publish(name)
    _, entry, generation, _ = shelf.begin("brief", expires_ns=1000)
    shelf.core.show(entry, generation, 0)
    assert shelf.find("brief")
    shelf.now_ns = 1000
    assert shelf.find("brief") == 0
    shelf.publish("h")
    assert all(shelf.find(name) for name in "abcdefgh")


@pytest.mark.parametrize("seed", range(6))
def test_room_is_where_all_blocks_are_free_else_where_what_lies_was_used_the_longest_ago(seed: int) -> None:
    """As who looks at every block and at every window; items of up to a hundred blocks, and holes between them."""
    rng, num_blocks, it = random.Random(seed), 256, OneShelf(256)
    owners: list[str | None] = [None] * num_blocks
    used, end = dict[str, int](), 0
    for number in range(300):
        if used and rng.random() < 0.3:
            gone = rng.choice(list(used))
            it.core.unpublish(*key(gone))
            owners = [None if owner == gone else owner for owner in owners]
            del used[gone]
        want = rng.choice((1, 1, 2, 3, 33, 64, 100))
        answer, entry, generation, first = it.begin(f"{number}", want * BLOCK)
        assert answer == Answer.BEGUN
        assert it.core.show(entry, generation, 0)
        windows = {at: {*owners[at : at + want]} - {None} for at in range(num_blocks - want + 1)}
        free = [at for at, there in windows.items() if not there]
        if free:
            assert first == next((at for at in free if at >= end), free[0])
        else:
            newest = {at: max(used[name] for name in there if name is not None) for at, there in windows.items()}
            assert newest[first] == min(newest.values())
        for name in windows[first]:
            assert not it.find(str(name))
            owners = [None if owner == name else owner for owner in owners]
            del used[str(name)]
        owners[first : first + want] = [f"{number}"] * want
        used[f"{number}"], end = number, first + want
    it.close()


def test_a_full_pair_of_sets_gives_up_the_one_that_was_used_the_longest_ago() -> None:
    """P12: more keys than entries."""
    shelf = OneShelf(200)
    for number in range(150):
        assert shelf.publish(f"{number}")
    counts = shelf.table.counts()
    assert counts.items <= counts.entries == 64
    assert all(shelf.find(f"{number}") for number in range(145, 150))
    assert free_of(shelf) == 200 - counts.items
    shelf.close()


def free_of(shelf: OneShelf) -> int:
    at, count = shelf.control.layout.held, shelf.table.num_blocks
    return memoryview(shelf.control.mapping)[at : at + 8 * count].cast("Q").tolist().count(0)


# ---- who comes between


@pytest.mark.parametrize("nth", range(8))
def test_a_reader_whose_item_goes_between_its_look_and_its_pin_looks_again(shelf: OneShelf, nth: int) -> None:
    """R41, R46: what it gets is of one version, or it is not there."""
    shelf.publish("cat", 1)
    reader = shelf.reader()
    turns: list[int] = []

    def meanwhile(step: int) -> None:
        if step == ShelfStep.PIN and len(turns) <= nth:
            turns.append(shelf.publish("cat", 2 + len(turns)))

    reader.part.core.watch(meanwhile)
    pin = reader.pin("cat")
    assert pin is not None
    assert (bytes(pin), pin.number) == (content("cat", 2 + nth, BLOCK), turns[-1])


def test_the_floor_is_looked_at_behind_the_pin(shelf: OneShelf) -> None:
    """R48: also while who has raised it has retired nothing yet."""
    shelf.publish("cat", 1)
    reader, dying = shelf.reader(), shelf.attach().shelf.core
    dying.watch(kill_at(0, ShelfStep.RETIRE))

    def meanwhile(step: int) -> None:
        if step == ShelfStep.PIN:
            with pytest.raises(Killed):
                dying.clear()

    reader.part.core.watch(meanwhile)
    assert reader.pin("cat") is None
    assert shelf.table.counts().items == 1


def test_an_entry_that_is_lost_to_another_publisher_is_looked_for_again(shelf: OneShelf) -> None:
    """R39: and the head never falls."""
    other, done = shelf.attach().shelf.core, list[int]()

    def meanwhile(step: int) -> None:
        if step == ShelfStep.TAKE and not done:
            done.append(shelf.publish("cat", 2))

    other.watch(meanwhile)
    answer, entry, generation, *_ = other.begin(*key("cat"), 1, 1, BLOCK, 1, BLOCK, 11, 0, 5, True)
    assert (answer, other.show(entry, generation, 1) > done[0]) == (Answer.BEGUN, True)
    assert shelf.table.counts().items == 1


def test_blocks_that_are_lost_to_another_publisher_are_given_back(shelf: OneShelf) -> None:
    """R49: and others are looked for."""
    other, done = shelf.attach().shelf.core, list[int]()

    def meanwhile(step: int) -> None:
        if step == ShelfStep.BLOCK and len(done) < 2:
            done.append(1)
            if len(done) == 2:
                assert shelf.publish("dog", 1, 2 * BLOCK)

    other.watch(meanwhile)
    answer, entry, generation, *_ = other.begin(*key("cat"), 1, 4, 4 * BLOCK, 1, BLOCK, 11, 0, 5, True)
    assert (answer, other.show(entry, generation, 1) > 0) == (Answer.BEGUN, True)
    assert free_blocks(shelf) == 2


# ---- who dies


@pytest.mark.parametrize("nth", range(40))
def test_a_publisher_may_be_killed_at_any_change(shelf: OneShelf, nth: int) -> None:
    """P1, R44, R45: buried, it has left its item whole, or nothing; and the older one if it has shown none."""
    shelf.publish("cat", 1, 2 * BLOCK, lane=1)
    for name in "bcd":
        shelf.publish(name, 1, 2 * BLOCK)
    dying = shelf.attach().shelf.core
    dying.watch(kill_at(nth))
    with contextlib.suppress(Killed):
        _, entry, generation, first, *_ = dying.begin(*key("cat"), 3, 2, 2 * BLOCK, 1, BLOCK, 11, 0, 9, True)
        shelf.write("cat", 2, first, 2 * BLOCK)
        dying.show(entry, generation, 3)
    shelf.core.bury_publisher(3)
    pin = shelf.reader().pin("cat")
    assert pin is None or bytes(pin) in (content("cat", 1, 2 * BLOCK), content("cat", 2, 2 * BLOCK))
    del pin
    counts = shelf.table.counts()
    assert counts.filling == 0
    shelf.core.clear()
    assert is_empty(shelf)


@pytest.mark.parametrize("nth", range(12))
def test_whoever_evicts_may_be_killed_at_any_change(shelf: OneShelf, nth: int) -> None:
    """P1, R44: anybody finishes what is retired."""
    shelf.publish("cat", 1, 3 * BLOCK)
    dying = shelf.attach().shelf.core
    dying.watch(kill_at(nth))
    with contextlib.suppress(Killed):
        dying.unpublish(*key("cat"))
    assert is_empty(shelf) or is_whole(shelf)


def is_whole(shelf: OneShelf) -> bool:
    pin = shelf.reader().pin("cat")
    return pin is not None and bytes(pin) == content("cat", 1, 3 * BLOCK)


def test_a_dead_readers_pins_are_taken_away_before_its_entry_is_anothers(shelf: OneShelf) -> None:
    """R42: nothing of it holds the item, and nothing of it stands in its successor's ledger."""
    reader = shelf.reader()
    shelf.publish("cat")
    pin = reader.pin("cat")
    assert shelf.core.unpublish(*key("cat")) == 1
    assert not is_empty(shelf)
    reader.connection.hang_up()  # it dies before it takes the pin away
    shelf.table.remove_reader(reader.number)
    assert is_empty(shelf)
    assert pin is not None
    assert shelf.reader().number == reader.number


def test_threads_of_a_reader_share_a_pin_by_turns(shelf: OneShelf) -> None:
    """R42: the first stores it, the last takes it away."""
    reader = shelf.reader()
    shelf.publish("cat")
    pins = [reader.pin("cat") for _ in range(3)]
    assert reader.part.core.num_pins == 3
    shelf.core.unpublish(*key("cat"))
    while pins:
        assert shelf.core.sweep() == 0
        pins.pop()
    assert shelf.core.sweep() == 1


def test_a_child_that_forgets_its_pins_takes_none_away(shelf: OneShelf) -> None:
    """R60: they are the parent's."""
    reader = shelf.reader()
    shelf.publish("cat")
    pin = reader.pin("cat")
    reader.connection.hang_up()
    del pin
    shelf.core.unpublish(*key("cat"))
    assert shelf.core.sweep() == 0
