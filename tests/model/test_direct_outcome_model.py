"""How a request on the direct path ends (see `direct_outcome_model`): alike on every side, whoever dies between two
words, and always.
"""

from __future__ import annotations

import pytest
from direct_outcome_model import Rules, Setting, explore_outcome
from worlds import worlds

SMALL = {
    "everybody goes on": Setting(),
    "killed, and a destination that would fail": Setting(kills=1, failures=1),
    "stopped for ever": Setting(stops=1, failures=1),
    "two rows, their number comes late": Setting(rows=2, streaming=True, failures=1, kills=1),
    "the language node is lost": Setting(language_losses=1, kills=1),
    "the encode node is lost": Setting(encode_losses=1, failures=1, kills=1),
    "two destinations, the encoder aborts": Setting(destinations=2, encoder_aborts=1),
    "two destinations at a time": Setting(destinations=2, two_threads=True),
    "one here and one far": Setting(destinations=2, far=1),
    "one here and one far, killed": Setting(destinations=2, far=1, kills=1),
}

LARGE = {
    "a deadline at each side, an abort, a kill": Setting(encode_deadlines=1, failures=1, kills=1, encoder_aborts=1),
    "two destinations, killed": Setting(destinations=2, kills=1),
    "two destinations, one would fail": Setting(destinations=2, failures=1),
    "one here and one far, one would fail": Setting(destinations=2, far=1, failures=1),
    "two destinations, one is lost": Setting(destinations=2, language_losses=1),
    "two destinations at a time, killed": Setting(destinations=2, two_threads=True, kills=1),
    "two destinations at a time, one would fail": Setting(destinations=2, two_threads=True, failures=1),
    "two destinations, killed, both would fail, a deadline": Setting(
        destinations=2, kills=1, failures=2, encode_deadlines=1
    ),
    "two destinations, stopped, one would fail": Setting(destinations=2, stops=1, failures=1),
    "two destinations, killed, one is lost": Setting(destinations=2, kills=1, language_losses=1),
    "two destinations, their number of rows comes late": Setting(
        destinations=2, rows=2, streaming=True, failures=1, kills=1
    ),
    "three destinations": Setting(destinations=3),
    "two here and one far, one would fail": Setting(destinations=3, far=1, failures=1),
    "one here and one far, killed, one would fail, the other is lost": Setting(
        destinations=2, far=1, kills=1, failures=1, language_losses=1
    ),
}


@worlds(SMALL, LARGE)
def test_both_sides_and_all_destinations_end_alike_and_always(setting: Setting, max_states: int) -> None:
    """R36, P5, P8, D11: nobody has Success where another has Failed, no word falls, and all end, and know."""
    finding = explore_outcome(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r36_whole_before_the_encode_sides_word", "split", Setting(failures=1)),
    ("r36_every_destination_is_whole", "short", Setting(destinations=2)),
    ("r36_whole_stands_in_the_word", "split", Setting(failures=1)),
    ("r36_a_whole_one_does_not_fail_for_itself", "split", Setting(failures=1)),
    ("r36_the_encode_sides_word_is_first", "split", Setting(kills=1)),
    ("r36_recorded_before_whole", "split", Setting(kills=1)),
    ("r36_moved_by_cas", "split|word", Setting(failures=1)),
    ("r36_told_until_closed", "stuck", Setting(kills=1)),
]


@pytest.mark.parametrize(("rule", "kinds", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_the_outcome_is_needed(rule: str, kinds: str, setting: Setting) -> None:
    """R36: without it, one side has Success and another Failed, or somebody waits for ever."""
    assert explore_outcome(setting).fault is None
    finding = explore_outcome(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
