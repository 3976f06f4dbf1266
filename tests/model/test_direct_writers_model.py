"""The names of direct writers (see `direct_writers_model`): a death ends the claims of the dead, and nobody else's."""

from __future__ import annotations

import pytest
from direct_writers_model import Rules, Setting, explore_writers


@pytest.mark.parametrize("writers", [3, 5])
def test_whoever_buries_a_writer_gives_back_its_claims_only_and_all_of_them(writers: int) -> None:
    """R33, P7, P8: whatever happens between a look at a claim and the CAS, and whoever of those who bury is killed."""
    finding = explore_writers(Setting(writers=writers))
    assert finding.fault is None, finding
    assert finding.num_states > 500


BROKEN = [
    ("r33_a_spent_entry_retires", "stray", Setting()),
    ("r33_the_claim_has_the_generation", "stray", Setting()),
    ("r33_claims_are_given_back_before_the_entry_is_free", "stray|stuck", Setting()),
]


@pytest.mark.parametrize(("rule", "kinds", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_writers_name_is_needed(rule: str, kinds: str, setting: Setting) -> None:
    """R33: without it, a death ends a living writer's claim, or a block waits for the dead for ever."""
    finding = explore_writers(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
