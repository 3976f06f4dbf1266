"""Fetches of one item share a pin, also when the bootstrap that counts them is killed (see `item_pins_model`)."""

from __future__ import annotations

import pytest
from item_pins_model import Rules, Setting, explore_pins
from worlds import worlds

SMALL = {
    "two slots, a new item in the place of one": Setting(kills=0),
    "the bootstrap is killed": Setting(),
    "the bootstrap is killed twice": Setting(kills=2, publications=2),
}
LARGE = {
    "three slots, three kills": Setting(slots=3, fetches=5, publications=3, kills=3),
}


@worlds(SMALL, LARGE)
def test_an_item_stays_under_its_transfers_and_goes_after_the_last(setting: Setting, max_states: int) -> None:
    """R85, R52, R55, P6, P8: every transfer reads the rows of its item, and its room comes free in the end."""
    finding = explore_pins(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r85_pinned_before_the_slot_is_open", "torn", Setting(kills=0)),
    ("r85_released_before_the_pin_goes", "torn", Setting(kills=0)),
    ("r85_the_last_one_takes_it_away", "torn", Setting(kills=0)),
    ("r85_a_new_bootstrap_counts_the_slots", "torn", Setting()),
    ("r85_a_new_bootstrap_takes_the_others_away", "stuck", Setting()),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_part_of_the_rule_for_shared_pins_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """R85: without it a transfer reads rows of another item, or an item is pinned for ever."""
    finding = explore_pins(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
