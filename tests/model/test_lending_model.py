"""Results that are lent stop nobody, and are what they were until they are released (see `lending_model`)."""

from __future__ import annotations

from lending_model import Rules, Setting, explore_lending
from worlds import rules, small_worlds

SETTINGS = {
    "three blocks, two schedulers": Setting(),
    "three blocks, one of two rows": Setting(totals=(2, 1, 1)),
    "two blocks, four requests": Setting(totals=(1, 1, 1, 1), schedulers=(0, 0, 1, 1), num_blocks=2),
    "one block": Setting(num_blocks=1),
    "four blocks, an encoder that stops": Setting(
        totals=(1, 2, 1, 2), schedulers=(0, 0, 1, 1), num_blocks=4, stopped=(3,)
    ),
    "two slots": Setting(totals=(1, 1, 1, 1), schedulers=(0, 0, 0, 1), num_blocks=5, num_slots=2),
    "a scheduler that dies": Setting(totals=(1, 1, 1, 1), schedulers=(0, 0, 1, 1), mortal=True),
    "rows that are read as they land": Setting(totals=(2, 1, 1), num_blocks=4, streamed=(0, 1)),
    "streamed requests that may fail": Setting(totals=(2, 1, 1), num_blocks=4, streamed=(0, 1), failing=(0, 1)),
    "all are streamed, and a scheduler dies": Setting(
        totals=(1, 1, 1), streamed=(0, 1, 2), failing=(0, 2), mortal=True
    ),
}


@small_worlds(
    SETTINGS,
    "four blocks, an encoder that stops",
    "streamed requests that may fail",
    "all are streamed, and a scheduler dies",
    "a scheduler that dies",
)
def test_a_scheduler_that_keeps_its_results_until_all_have_come_gets_them_all(setting: Setting) -> None:
    """R35, R82, D8: from every state; more than the pool without its quarter is never lent, and no view is torn."""
    finding = explore_lending(setting)
    assert finding.fault is None, finding


BROKEN = [
    ("r35_the_reserve_is_never_lent", "stuck", SETTINGS["four blocks, an encoder that stops"]),
    ("r35_a_quarter_is_never_lent", "hoard", SETTINGS["four blocks, an encoder that stops"]),
    ("r35_half_of_the_slots_are_never_lent", "stuck", SETTINGS["two slots"]),
    ("r35_who_takes_it_out_has_it", "torn", SETTINGS["three blocks, two schedulers"]),
    ("r35_a_result_keeps_its_slot", "stuck", SETTINGS["a scheduler that dies"]),
    ("r82_what_was_shown_stays", "torn", SETTINGS["rows that are read as they land"]),
    ("r82_marked_before_the_look", "torn", SETTINGS["streamed requests that may fail"]),
    ("r82_a_failure_leaves_what_is_marked", "torn", SETTINGS["streamed requests that may fail"]),
]


@rules(BROKEN, "r35_the_reserve_is_never_lent", "r35_a_result_keeps_its_slot")
def test_each_part_of_the_rule_for_lending_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """R35, R82: without it a result never comes, others are left with too little, or a view changes under its
    reader.
    """
    finding = explore_lending(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
