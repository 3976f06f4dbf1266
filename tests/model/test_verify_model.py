"""A request between nodes that verify (see `verify_model`): no damaged row is ever said to be there, and no good one to
be damaged.
"""

from __future__ import annotations

import pytest
from verify_model import Rules, Setting, explore_verify
from worlds import worlds

SMALL = {
    "nothing happens": Setting(),
    "two destinations, a row is damaged": Setting(total=1, destinations=2, damages=1),
    "a row is damaged, a process is killed": Setting(damages=1, kills=1),
    "two processes are killed": Setting(kills=2),
    "a row is damaged, a deadline passes": Setting(damages=1, deadlines=1),
}

LARGE = {
    "three rows, one is damaged, two processes are killed": Setting(total=3, damages=1, kills=2),
    "two destinations, a row is damaged, a process is killed": Setting(total=1, destinations=2, damages=1, kills=1),
    "two destinations, a row is damaged, a deadline passes": Setting(total=1, destinations=2, damages=1, deadlines=1),
}


@worlds(SMALL, LARGE)
def test_rows_that_are_said_to_be_there_are_those_that_were_sent(setting: Setting, max_states: int) -> None:
    """R27, P6, D11, D12: what is damaged fails the request on every side, and nothing else does; everyone ends."""
    finding = explore_verify(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r27_word_rises_after_the_check", "wrong", Setting(total=1, damages=1)),
    ("r27_success_when_all_have_checked", "split", Setting(total=1, damages=1)),
    ("r27_summed_before_sent", "alarm", Setting(kills=1)),
    ("r27_new_worker_counts_what_is_summed", "alarm", Setting(kills=1)),
    ("r27_sent_and_checksum_are_one_word", "alarm", Setting()),
    ("r27_checked_is_stored_before_the_word", "alarm", Setting(kills=1)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_part_of_the_rule_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """R27: without it, a damaged row is said to be there, or a good one to be damaged, or the two sides end apart."""
    finding = explore_verify(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
