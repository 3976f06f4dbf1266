"""Rows that a worker copies under the pin of its engine's cache (see `item_lent_model`)."""

from __future__ import annotations

from item_lent_model import Rules, Setting, explore_lent
from worlds import rules, worlds

SMALL = {
    "copied, evicted, and a new item in its place": Setting(loads=2, publications=2),
    "another reader beside it": Setting(ledgers=2),
    "the owner is killed, and its ledger is another reader's": Setting(owner_kills=1, publications=2),
    "the owner is killed, and both looks are in the other order": Setting(
        owner_kills=1, publications=2, whose_first=True
    ),
    "the owner is killed, with another reader beside it": Setting(owner_kills=1, ledgers=2),
    "the encode node is killed": Setting(node_kills=1, loads=2),
    "the owner and the encode node are killed": Setting(owner_kills=1, node_kills=1),
    "two workers": Setting(workers=2),
}
LARGE = {
    "two workers, everybody is killed, two ledgers": Setting(
        workers=2, ledgers=2, loads=2, publications=2, owner_kills=1, node_kills=1
    ),
    "three items, the owner is killed": Setting(loads=3, publications=3, owner_kills=1, ledgers=2),
}


@worlds(SMALL, LARGE)
def test_a_worker_has_the_rows_that_its_owner_has_pinned_or_none_and_these_only_if_that_is_dead(
    setting: Setting, max_states: int
) -> None:
    """R87, R64, R70, P5, P6, P8: no copy is torn, none fails under a living owner, and every pin can go."""
    finding = explore_lent(setting, max_states=max_states)
    assert finding.fault is None, finding


KILLED = SMALL["the owner is killed, and its ledger is another reader's"]
BROKEN = [
    ("r87_looks_behind_its_copy", "torn", KILLED),
    ("r87_looks_at_the_word", "torn", KILLED),
    ("r87_looks_whose_word_it_is", "torn", KILLED),
    ("r87_the_word_of_the_dead_counts", "torn", KILLED),
    ("r64_opened_where_it_is_pinned", "lost", SMALL["the encode node is killed"]),
    ("r70_pinned_until_all_have_read", "lost", SMALL["two workers"]),
]


@rules(BROKEN)
def test_each_part_of_the_rule_for_what_is_lent_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it a worker has rows of another item, or none; with it such worlds hold (above)."""
    finding = explore_lent(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
