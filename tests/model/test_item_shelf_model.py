"""A shelf of published items (see `item_shelf_model`): it holds, and it needs each of its rules."""

from __future__ import annotations

import pytest
from item_shelf_model import explore_shelf
from item_shelf_world import Item, Rules, Setting
from worlds import worlds

ONE_KEY = ((Item(0),), (Item(0),))
"""Two publishers of one key."""
TWO_KEYS = ((Item(0),), (Item(1),))
ONE_AFTER_THE_OTHER = ((Item(0), Item(1)),)
"""One publisher of two keys, the second of which needs the entry of the first."""
ANEW = ((Item(0, 1, replaces=True), Item(0, 2, replaces=True)),)
"""One publisher that publishes its key anew: it moves to another entry."""
TWICE_ANEW = ((*ANEW[0], Item(0, 3, replaces=True)),)

SMALL = {
    "three keys of mixed hashes through one entry": Setting(
        publications=ONE_AFTER_THE_OTHER, lookups=((2, 0),), evictions=2
    ),
    "one key twice, older ones stay, an eviction, reader twice": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=ANEW, lookups=((0, 0),),
        evictions=1, publisher_kills=1, older_ones_stay=True,
    ),
    "publication broken off while its device writes": Setting(
        halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, exceptions=1, has_device=True
    ),
    "reader stopped for ever with a pin, another publishes on": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=((*ANEW[0], Item(1)),),
        evictions=1, reader_stops=1,
    ),
    "reader killed, its successor reads on": Setting(
        halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, lookups=((0, 1),), evictions=2,
        reader_kills=1, reborn=True,
    ),
    "publisher killed, its successor publishes on": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER,
        publisher_kills=1, reborn=True,
    ),
    "all is cleared twice": Setting(halves=False, one_look=True, entries=2, blocks=2, clears=2),
    "two threads of one reader, one block": Setting(
        halves=False, one_look=True, one_process=True, publications=ONE_AFTER_THE_OTHER, lookups=((0,), (0, 1)),
        evictions=2,
    ),
    "two readers, one killed, one block": Setting(
        halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, lookups=((0,), (0,)),
        evictions=2, reader_kills=1,
    ),
}

LARGE = {
    "one key twice, publisher killed, an eviction, reader twice": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=ANEW, lookups=((0, 0),),
        evictions=1, publisher_kills=1,
    ),
    "all is cleared beside a publisher and a reader": Setting(lookups=((0, 0),), clears=1, evictions=1),
    "two evictors, both killed, reader killed, two blocks an item": Setting(
        blocks=2, length=2, evictors=2, halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER,
        evictions=1, evictor_kills=2, reader_kills=1,
    ),
    "two publishers of one key": Setting(entries=2, blocks=2, halves=False, one_look=True, publications=ONE_KEY),
    "one key thrice, in two entries": Setting(entries=2, blocks=2, publications=TWICE_ANEW),
    "publisher stopped for ever while it fills": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=TWO_KEYS, publisher_stops=1
    ),
    "publisher killed while its device writes, one block": Setting(
        entries=2, halves=False, one_look=True, publications=TWO_KEYS, publisher_kills=1, has_device=True
    ),
    "two evictors, one killed, reader twice": Setting(
        evictors=2, halves=False, publications=ONE_AFTER_THE_OTHER, lookups=((0, 0),), evictions=2, evictor_kills=1
    ),
    "two publishers of one key, one killed": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=ONE_KEY, publisher_kills=1
    ),
    "two publishers of one key, an eviction": Setting(
        entries=2, blocks=2, halves=False, one_look=True, publications=ONE_KEY, evictions=1
    ),
    "one key twice, an eviction, reader twice": Setting(
        entries=2, blocks=2, publications=ANEW, lookups=((0, 0),), evictions=1
    ),
    "one key twice, older ones stay, two evictors, reader twice": Setting(
        entries=2, blocks=2, evictors=2, publications=ANEW, lookups=((0, 0),), evictions=1, older_ones_stay=True
    ),
    "two blocks an item, two publishers, an eviction, reader killed": Setting(
        entries=2, blocks=2, length=2, halves=False, one_look=True, publications=TWO_KEYS, evictions=1, reader_kills=1
    ),
    "publisher killed while its device writes, one block, an eviction": Setting(
        entries=2, halves=False, one_look=True, publications=TWO_KEYS,
        evictions=1, publisher_kills=1, has_device=True,
    ),
    "all is cleared beside a publisher and a reader, two entries": Setting(
        entries=2, blocks=2, lookups=((0, 0),), clears=1, evictions=1
    ),
    "reader stopped for ever with a pin, look by look": Setting(
        entries=2, blocks=2, publications=((*ANEW[0], Item(1)),), evictions=1, reader_stops=1
    ),
}


@worlds(SMALL, LARGE)
def test_a_reader_sees_the_rows_of_its_key_and_every_block_comes_back_whatever_happens(
    setting: Setting, max_states: int
) -> None:
    """R39 to R49, P1, P6, P8: no torn, stray or older row, no key said to be absent that was there; all can end."""
    finding = explore_shelf(setting, max_states=max_states)
    assert finding.fault is None, finding


EVICTED = Setting(publications=ONE_AFTER_THE_OTHER, evictions=1)

BROKEN = [
    (
        "r39_the_generation_is_drawn_after_the_look",
        "falls",
        Setting(halves=False, one_look=True, publications=TWO_KEYS, evictions=1),
    ),
    ("r40_all_is_written_before_ready", "torn", Setting()),
    ("r41_looks_again_behind_its_pin", "torn", EVICTED),
    ("r41_pins_before_it_looks", "torn", EVICTED),
    (
        "r42_pins_are_words_of_their_reader",
        "stuck",
        Setting(publications=ONE_AFTER_THE_OTHER, evictions=1, reader_kills=1),
    ),
    ("r42_threads_share_a_word_by_turns", "torn", SMALL["two threads of one reader, one block"]),
    (
        "r42_a_ledger_is_cleared_before_it_is_anothers",
        "torn",
        Setting(
            halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, lookups=((0, 0),), evictions=1,
            reader_kills=1, reborn=True,
        ),
    ),
    ("r43_retired_before_the_scan", "torn", EVICTED),
    (
        "r43_retired_is_final",
        "torn",
        Setting(
            evictors=2, halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, lookups=((0, 0),), evictions=2
        ),
    ),
    (
        "r44_cells_are_freed_by_cas",
        "stray",
        Setting(evictors=2, halves=False, one_look=True, publications=ONE_AFTER_THE_OTHER, evictions=1),
    ),
    ("r44_anyone_finishes_a_retired_entry", "stuck", Setting(evictions=1, evictor_kills=1)),
    (
        "r45_filling_names_its_publisher",
        "stolen",
        Setting(entries=2, blocks=2, halves=False, one_look=True, publications=TWO_KEYS, publisher_kills=1),
    ),
    (
        "r45_not_before_its_device_is_silent",
        "stray",
        LARGE["publisher killed while its device writes, one block"],
    ),
    ("r45_nor_given_back", "stray", SMALL["publication broken off while its device writes"]),
    (
        "r45_retired_before_the_lane_is_anothers",
        "stolen",
        SMALL["publisher killed, its successor publishes on"],
    ),
    ("r46_absent_after_two_equal_looks", "absent", LARGE["one key thrice, in two entries"]),
    ("r47_the_newest_counts", "old", Setting(entries=2, blocks=2, publications=ANEW, lookups=((0, 0),))),
    ("r47_a_dropped_one_retires_them_too", "old", Setting(publications=ANEW)),
    (
        "r47_the_oldest_goes_first",
        "old",
        LARGE["one key twice, publisher killed, an eviction, reader twice"],
    ),
    ("r48_the_floor_is_looked_at_again", "old", Setting(clears=1)),
    ("r48_the_floor_only_rises", "old", SMALL["all is cleared twice"]),
    (
        "r49_who_finds_no_room_gives_back",
        "stuck",
        Setting(entries=2, blocks=2, length=2, halves=False, one_look=True, publications=TWO_KEYS),
    ),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_shelf_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it, the shortest trace ends in one of the faults of `explore_shelf`; with it such worlds hold (above)."""
    finding = explore_shelf(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
