"""The cache of published items (see `item_cache_model`): it holds, and needs each of its rules."""

from __future__ import annotations

import pytest
from item_cache_model import Rules, Setting, explore_cache
from worlds import worlds

OVERLAPPING = ((0, 1), (1, 2))

SMALL = {
    "two users of two items each, memory for two": Setting(),
    "two users of two items each, in any order": Setting(in_turn=False),
    "two users share an item, two failures": Setting(wanted=OVERLAPPING, failures=2),
    "two users share an item, preempted twice": Setting(wanted=OVERLAPPING, preemptions=2),
    "two users share an item, two aborts, a failure": Setting(wanted=OVERLAPPING, aborts=2, failures=1),
    "two followers, one killed, memory for one": Setting(places=1, wanted=((0,), (1,), (0,)), followers=2, kills=1),
    "memory for three, three users of two": Setting(places=3, wanted=((0, 1), (2, 3), (3, 4))),
}

LARGE = {
    "three users share items, two failures": Setting(wanted=(*OVERLAPPING, (0,)), failures=2),
    "three users share items, two failures, in any order": Setting(
        wanted=(*OVERLAPPING, (0,)), failures=2, in_turn=False
    ),
    "three users share items, preempted twice": Setting(wanted=(*OVERLAPPING, (2,)), preemptions=2),
    "three users share items, two aborts, a failure": Setting(wanted=((0, 1), (2, 1), (0, 2)), aborts=2, failures=1),
    "memory for three, three users of two, in any order": Setting(
        places=3, wanted=((0, 1), (2, 3), (3, 4)), in_turn=False
    ),
}


@worlds(SMALL, LARGE)
def test_every_user_gets_its_whole_set_and_keeps_it_until_it_ends(setting: Setting, max_states: int) -> None:
    """R65 to R71, D8, P8: no admitted user misses an item, nobody reads another one, and all can end."""
    finding = explore_cache(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r65_the_first_takes_from_those_behind", "stuck", Setting(in_turn=False)),
    ("r67_one_fetch_a_key", "twice", Setting(wanted=((0,), (0,)))),
    ("r68_all_who_wait_are_told_of_a_failure", "stuck", Setting(wanted=((0,), (0,)), failures=1)),
    ("r69_an_admitted_users_items_stay", "miss", Setting(wanted=OVERLAPPING, preemptions=1)),
    ("r70_followers_are_past_what_is_used_again", "torn", Setting(places=1, wanted=((0,), (1,)))),
    ("r71_memory_under_a_fetch_is_its_own", "stray", Setting(in_turn=False, aborts=1)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_cache_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it, the shortest trace ends in one of the faults of `explore_cache`; with it such worlds hold (above)."""
    finding = explore_cache(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
