"""Published items that are used where they lie (see `item_in_place_model`): it holds, and needs each of its rules."""

from __future__ import annotations

import pytest
from item_in_place_model import Rules, Setting, explore_in_place
from worlds import worlds

SMALL = {
    "a recall, evicted and published anew": Setting(),
    "a rank is killed": Setting(rank_kills=1),
    "both ranks are killed": Setting(rank_kills=2),
    "the encode node is killed under views": Setting(encode_kills=1),
    "the encode node and a rank are killed": Setting(encode_kills=1, rank_kills=1, publications=2),
}

LARGE = {
    "the encode node and a rank are killed, three loads": Setting(
        encode_kills=1, rank_kills=1, loads=3, publications=4
    ),
    "the encode node and both ranks are killed, three loads": Setting(
        encode_kills=1, rank_kills=2, loads=3, publications=4
    ),
}


@worlds(SMALL, LARGE)
def test_a_view_shows_its_item_until_it_ends_and_all_ranks_agree(setting: Setting, max_states: int) -> None:
    """R60 to R64, P6, P8: no view is torn, no rank is without what another one has, and every pin can go."""
    finding = explore_in_place(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r60_who_reads_pins", "torn", Setting(rank_kills=1)),
    ("r61_given_when_all_ranks_have_pinned", "split", Setting()),
    ("r61_answers_name_what_was_pinned", "split", Setting(encode_kills=1)),
    ("r62_copied_before_it_is_said", "torn", Setting()),
    ("r62_unpinned_behind_the_loads", "torn", Setting()),
    ("r63_no_unpin_under_a_view", "torn", Setting()),
    ("r64_the_mapping_of_the_dead_stays", "torn", Setting(encode_kills=1)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_for_use_in_place_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it a view shows another item's bytes, or the ranks do not agree; with it such worlds hold (above)."""
    finding = explore_in_place(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
