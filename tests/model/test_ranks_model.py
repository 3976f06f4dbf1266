"""The log that ranks follow (see `ranks_model`): one order everywhere, nothing reused under a reader, nobody stuck;
each rule is needed.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
from ranks_model import FAILED, FINISHED, Rules, Setting, explore_ranks
from worlds import worlds

SMALL = {
    "one follower, one place": Setting(kinds=(FINISHED, FINISHED)),
    "one follower, a failure between": Setting(deadlines=False),
    "one follower, two places": Setting(num_places=2, deadlines=False, kills=1),
    "two followers": Setting(num_followers=2, kinds=(FINISHED, FAILED), deadlines=False),
    "two followers, nobody dies": Setting(num_followers=2, deadlines=False, kills=0),
    "a rank that never comes": Setting(absent=(0,), kills=0),
    "a rank that never comes, beside one that does": Setting(
        num_followers=2, kinds=(FINISHED, FINISHED), absent=(1,), log_items=1, kills=0
    ),
}

LARGE = {
    "one follower, two places, two kills": Setting(num_places=2, deadlines=False),
    "three requests and their deadlines": Setting(kills=1),
    "two followers, two places": Setting(num_followers=2, kinds=(FINISHED, FINISHED), num_places=2, deadlines=False),
}


@worlds(SMALL, LARGE)
def test_every_rank_sees_one_order_and_no_memory_is_reused_under_it(setting: Setting, max_states: int) -> None:
    """B8, D14, P8, P9: whoever is killed, and whenever: no torn record, a prefix of rank 0's order at each rank, all
    memory back.
    """
    finding = explore_ranks(setting, max_states=max_states)
    assert finding.fault is None, finding
    assert finding.num_states > 200


ALIVE = Setting(deadlines=False, kills=0)
BROKEN = [
    ("a_record_is_written_before_it_is_published", "a record was read before", ALIVE),
    ("a_batch_is_published_in_one_step", "order", ALIVE),
    ("the_log_is_written_by_the_pop", "order", Setting(kinds=(FAILED, FINISHED), deadlines=False, kills=0)),
    (
        "room_is_claimed_before_a_request_is_passed_on",
        "rank 1 has no room",
        Setting(log_items=1, num_places=2, deadlines=False),
    ),
    ("memory_waits_for_every_living_rank", "reused", ALIVE),
    ("a_rank_that_was_cut_off_keeps_its_holds", "reused", Setting(kinds=(FINISHED, FINISHED), log_items=1, kills=0)),
    ("a_release_names_what_it_releases", "reused", Setting(kinds=(FINISHED,) * 3, deadlines=False, kills=0)),
    ("the_dead_have_released_everything", "stuck", Setting(kinds=(FINISHED, FINISHED), deadlines=False, kills=1)),
    ("memory_is_waited_for_until_the_deadline_only", "stuck", Setting(absent=(0,), kills=0)),
    ("a_full_log_is_cut_off_at_the_deadline", "stuck", Setting(absent=(0,), kills=0)),
    ("the_door_tells_followers_of_the_end", "stuck", Setting(kinds=(FINISHED,), deadlines=False, kills=1)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_the_ranks_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """B8, D14, P8: with all rules this world holds; without this one, ranks differ, read another's bytes, or wait for
    ever.
    """
    assert explore_ranks(setting).fault is None
    finding = explore_ranks(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding


def test_no_rule_is_left_untried() -> None:
    """A rule that is taken away in no test proves nothing."""
    assert {field.name for field in fields(Rules)} == {rule for rule, _, _ in BROKEN}
