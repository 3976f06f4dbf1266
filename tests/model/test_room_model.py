"""A room number that is used twice (see `room_model`): the first use bars the second no longer than its late comers
need.
"""

from __future__ import annotations

import pytest
from room_model import Rules, explore_room


def test_a_room_that_has_failed_is_free_again_when_everybody_who_belongs_to_it_knows() -> None:
    """R15, D11: each late comer hears of the failure, nothing of the first use reaches the second, and that one
    succeeds.
    """
    for gives_up in (0, 1):
        finding = explore_room(gives_up=gives_up)
        assert finding.fault is None, finding
    assert finding.num_states > 50


BROKEN = [
    ("r15_late_comers_are_refused", "stuck", 0),
    ("r15_bar_ends_when_all_know", "barred", 1),
    ("r15_bar_lasts_until_the_refused_know", "mixed|stuck|barred", 1),
    ("r15_a_refused_ones_abort_bars_nothing", "barred", 1),
    ("r15_abort_raises_the_tombstone", "mixed|barred", 1),
]


@pytest.mark.parametrize(("rule", "kinds", "gives_up"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_an_ended_room_is_needed(rule: str, kinds: str, gives_up: int) -> None:
    """R15: without it, somebody waits for ever, or the first use fails the second, or is taken for it."""
    finding = explore_room(Rules(**{rule: False}), gives_up=gives_up)
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
