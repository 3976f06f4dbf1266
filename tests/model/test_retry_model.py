"""A request that goes on from another encode node (see `retry_model`): it holds, and it needs each part of its rule."""

from __future__ import annotations

from retry_model import Rules, Setting, explore_retry
from worlds import rules, small_worlds

SETTINGS = {
    "a network, and somebody who takes what comes free": Setting(bystanders=1),
    "shared memory, and somebody who takes what comes free": Setting(shared_memory=True, bystanders=1),
    "three rows through one block": Setting(total=3, other_total=3, blocks=1, bystanders=1),
    "three rows through two blocks": Setting(total=3, other_total=3),
    "another length": Setting(other_total=1),
}


@small_worlds(SETTINGS, "a network, and somebody who takes what comes free")
def test_a_retried_request_is_received_whole_and_no_block_is_used_while_its_first_encode_node_may_write(
    setting: Setting,
) -> None:
    """R26, P6, P7, D2: whatever is copied, freed, taken and written in between, and whether A is dead or not."""
    finding = explore_retry(setting)
    assert finding.fault is None, finding


BROKEN = [
    ("r26_begins_behind_what_is_kept", "stuck", Setting()),
    ("r26_only_what_has_landed_is_kept", "torn", Setting()),
    ("r26_a_copy_counts_if_its_block_is_still_ours", "torn", Setting(bystanders=1)),
    ("r26_the_old_blocks_stay_in_quarantine", "stray", Setting()),
    ("r26_the_length_is_that_of_before", "short", Setting(other_total=1)),
]


@rules(BROKEN, "r26_a_copy_counts_if_its_block_is_still_ours")
def test_each_part_of_the_rule_of_the_retry_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """R26: with all of it this world holds; without this part, its shortest trace ends in a stray or wrong row, or
    nowhere.
    """
    assert explore_retry(setting).fault is None
    finding = explore_retry(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
