"""Requests of which no process of either node hears, unless it is told (see `direct_told_model`)."""

from __future__ import annotations

import pytest
from direct_told_model import explore_told
from direct_told_world import Rules, Setting
from worlds import small_worlds

ONE_DOOR = Setting(doubles=True, doorless=True, deadlines=True)
SETTINGS = {
    "no node is told": Setting(told=()),
    "the language node may be told": Setting(told=("language",)),
    "the encode node may be told": Setting(told=("encoder",)),
    "both may be told": Setting(),
    "the room is used again": Setting(later=True),
    "two senders have the room": Setting(doubles=True, deadlines=True),
    "two senders have the room, and one has no door": ONE_DOOR,
    "the node joins another sender to the same request": Setting(another=True),
    "the grant is withdrawn": Setting(withdraws=True),
    "the grant is withdrawn, and deadlines": Setting(withdraws=True, deadlines=True),
    "the grant is withdrawn, and both are killed": Setting(withdraws=True, encoder_kills=1, scheduler_kills=1),
    "deadlines": Setting(deadlines=True),
    "the encoder is killed": Setting(encoder_kills=1),
    "the scheduler is killed": Setting(scheduler_kills=1),
    "both are killed, and deadlines": Setting(deadlines=True, encoder_kills=1, scheduler_kills=1),
}


@small_worlds(SETTINGS, "both are killed, and deadlines")
def test_whoever_is_told_one_writes_both_end_alike_and_nothing_is_left(setting: Setting) -> None:
    """R78, R79, R80, R81, P8: of the four ways to be told or not, each ends, with every message late or again."""
    finding = explore_told(setting)
    assert finding.fault is None, finding


BROKEN = [
    ("r34_kept_from_all_before_it_is_withdrawn", "stray|stuck", Setting(withdraws=True)),
    ("r34_opened_anew_it_is_told", "stuck", Setting(told=("encoder",), withdraws=True)),
    ("r78_told_or_released_by_one_cas", "touched", Setting(told=("language",))),
    ("r78_the_slots_of_the_dead_are_told", "stuck", Setting(encoder_kills=1)),
    ("r78_a_report_tells", "stuck", Setting(encoder_kills=1)),
    ("r79_joined_by_one_cas", "twice", Setting()),
    ("r79_the_bound_one_is_taken_up", "stuck", Setting(told=("language",))),
    ("r79_who_notes_looks_whether_it_is_told", "stuck", Setting(told=("encoder",))),
    ("r79_what_was_closed_is_closed_again", "stuck", Setting(another=True)),
    ("r79_what_was_closed_is_known_until_its_release", "stuck", Setting(another=True)),
    ("r80_released_after_both_words", "stuck", Setting(told=())),
    ("r80_told_is_shown_before_the_init", "stuck", Setting(told=("language",))),
    ("r80_who_has_ended_looks_whether_it_is_shown", "stuck", Setting(told=("language",))),
    ("r81_success_ends_the_claim", "stray", Setting(later=True)),
    ("r81_whoever_writes_is_bound", "twice", Setting(doubles=True, deadlines=True)),
    ("r81_so_is_who_has_the_worker_write", "twice", Setting(doubles=True, deadlines=True)),
    ("r81_who_finds_a_grant_marks_it_first", "twice", ONE_DOOR),
    ("r81_who_joins_looks_at_the_mark", "twice", ONE_DOOR),
    ("r81_a_finder_is_kept_off", "twice", ONE_DOOR),
]


@pytest.mark.parametrize(("rule", "kinds", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_the_untold_is_needed(rule: str, kinds: str, setting: Setting) -> None:
    """R78, R79, R80, R81: without it two write, a released slot is touched, or somebody waits for ever.

    With it such worlds hold (above).
    """
    finding = explore_told(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
