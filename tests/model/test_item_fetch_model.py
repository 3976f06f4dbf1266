"""A published item that is fetched from another node (see `item_fetch_model`): it holds, and needs each of its rules.
"""

from __future__ import annotations

import pytest
from item_fetch_model import explore_fetch
from item_fetch_world import Rules, Setting
from worlds import worlds

KEPT = Setting(length=2, keeps_rows=True, doubles=0, failures=1)
"""What has come of a fetch that failed counts for the next one."""

SMALL = {
    "two fetches, a double": Setting(),
    "two rows through one block": Setting(length=2, doubles=0),
    "an attempt fails and lands late": Setting(failures=1, doubles=0),
    "an attempt fails and lands late, aborted": Setting(fetches=1, failures=1, aborts=1, doubles=0),
    "encode node killed": Setting(encode_kills=1, doubles=0),
}

LARGE = {
    "rows kept for a retry, an attempt fails": KEPT,
    "two slots, two blocks": Setting(slots=2, blocks=2, doubles=0, aborts=1),
    "bootstrap killed": Setting(bootstrap_kills=1, doubles=0, aborts=1),
    "language node killed": Setting(language_kills=1, failures=1, doubles=0, publications=1),
    "a loss, an abort": Setting(losses=1, aborts=1, doubles=0, publications=1),
    "two fetches, two doubles": Setting(doubles=2, under_way=3),
    "two rows through one block, three messages": Setting(length=2, under_way=3),
    "an attempt fails and lands late, aborted, a double": Setting(failures=1, aborts=1),
    "a loss, a double, an abort": Setting(losses=1, aborts=1),
    "two rows, encode node killed": Setting(length=2, encode_kills=1),
    "language node killed, an attempt fails, a double": Setting(language_kills=1, failures=1),
    "bootstrap killed, a double, an abort": Setting(bootstrap_kills=1, aborts=1),
    "rows kept for a retry, encode node killed": Setting(length=2, keeps_rows=True, encode_kills=1, doubles=0),
    "rows kept for a retry, an attempt fails, a double": Setting(length=2, keeps_rows=True, failures=1),
    "two slots, two blocks, two doubles, an abort": Setting(slots=2, blocks=2, doubles=2, aborts=1, under_way=3),
}


@worlds(SMALL, LARGE)
def test_a_fetch_has_the_rows_of_one_version_or_fails_and_nothing_stays(setting: Setting, max_states: int) -> None:
    """R50 to R59, P6, P7, P8: each row lands where its fetch waits for it, and all can end and be free."""
    finding = explore_fetch(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r50_a_refusal_raises_the_tombstone", "stray", Setting()),
    ("r51_one_request_one_slot", "stray", Setting(slots=2)),
    ("r52_the_item_word_is_a_pin", "torn", Setting()),
    ("r52_looks_again_behind_the_item_word", "torn", Setting()),
    ("r53_the_pin_lasts_until_no_attempt_is_open", "torn", Setting(failures=1)),
    ("r54_refused_after_the_last_attempt", "stray", Setting(failures=1)),
    ("r55_a_new_bootstrap_gives_taken_slots_back", "stuck", Setting(bootstrap_kills=1, doubles=0)),
    (
        "r56_a_death_ends_the_slots_of_the_dead",
        "stuck",
        Setting(fetches=1, language_kills=1, doubles=0, publications=1),
    ),
    ("r57_the_retry_names_its_generation", "mixed", KEPT),
    (
        "r58_a_generation_names_the_incarnation",
        "mixed",
        Setting(length=2, keeps_rows=True, encode_kills=1, doubles=0, evictions=0),
    ),
    ("r59_a_refusal_frees_what_came_with_the_question", "stuck", Setting(fetches=1, doubles=0)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_fetch_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it, the shortest trace ends in one of the faults of `explore_fetch`; with it such worlds hold (above)."""
    finding = explore_fetch(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
