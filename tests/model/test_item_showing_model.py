"""Items of one key are in the order in which they were shown (see `item_showing_model`)."""

from __future__ import annotations

from item_showing_model import Rules, Setting, explore_showing
from worlds import rules, worlds

SMALL = {
    "two publishers, one killed": Setting(kills=1, evictions=0),
}
LARGE = {
    "two publishers, an eviction": Setting(),
    "two publishers, an eviction, look by look": Setting(one_look=False),
    "two publishers, an eviction, one killed, or the evictor": Setting(kills=1),
    "two publishers, one of them twice": Setting(publications=(2, 1)),
}


@worlds(SMALL, LARGE)
def test_a_reader_never_sees_an_older_item_after_a_newer_one(setting: Setting, max_states: int) -> None:
    """R84, R47, P8: also where one that began earlier is shown later, after the newer one was evicted."""
    finding = explore_showing(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r84_the_number_is_drawn_when_it_is_shown", "old", Setting()),
    ("r84_showing_before_the_number_is_drawn", "old", Setting()),
    ("r84_who_retires_completes_what_is_shown", "old", Setting()),
    ("r84_the_number_is_set_once", "old", Setting()),
    ("r84_it_is_for_the_generation_that_was_seen_before", "old", Setting(publications=(2, 1), looks=1)),
]


@rules(BROKEN, "r84_it_is_for_the_generation_that_was_seen_before")
def test_each_part_of_the_rule_for_showing_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """R84: without it a reader sees the number of an item fall, though both publications were sound."""
    finding = explore_showing(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
