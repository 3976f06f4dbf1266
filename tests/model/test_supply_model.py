"""Who may take which block, on both sides at once (see `supply_model`): nobody waits for ever, and each rule
is needed.
"""

from __future__ import annotations

import pytest
from supply_model import Rules, Setting, explore_supply
from worlds import worlds

SMALL = {
    "one block a side, two clients": Setting(totals=(2, 1), clients=(0, 1)),
    "one block a side, three requests": Setting(totals=(1, 1, 1)),
    "one block a side, three clients": Setting(totals=(1, 1, 1), clients=(0, 1, 2)),
    "one block a side, all rows there": Setting(totals=(2, 2, 1), early_rows=True),
    "two source blocks": Setting(totals=(1, 1, 1), early_rows=True, source_blocks=2, clients=(0, 1, 1)),
    "two blocks a side, one destination": Setting(
        totals=(2, 1, 1), num_destinations=1, source_blocks=2, destination_blocks=2, clients=(0, 1, 0)
    ),
    "an encoder that is silent": Setting(totals=(2, 1, 1), silent=(0,), clients=(0, 1, 1)),
    "encoders that are silent, four blocks": Setting(
        totals=(4, 3, 2), num_destinations=1, source_blocks=1, destination_blocks=4, silent=(0, 1), clients=(0, 1, 1)
    ),
    "an encoder that stops in the midst of a block": Setting(
        totals=(4, 2, 1), num_destinations=1, block_rows=2, stops=(0,), clients=(0, 1, 1)
    ),
    "encoders that stop in the midst of a block, two blocks": Setting(
        totals=(3, 4, 2), num_destinations=1, source_blocks=2, destination_blocks=2, block_rows=2, stops=(0, 1),
        clients=(0, 1, 1),
    ),
    "a destination that does not come": Setting(totals=(2, 1, 1), absent=((0, 1),), clients=(0, 1, 1)),
}

LARGE = {
    "two source blocks, two clients": Setting(totals=(2, 2), source_blocks=2, clients=(0, 1)),
    "two blocks a side, two clients": Setting(totals=(2, 1), source_blocks=2, destination_blocks=2, clients=(0, 1)),
    "one block a side, four requests": Setting(totals=(2, 1, 1, 1), clients=(0, 1, 0, 1)),
    "two blocks a side, a destination that does not come": Setting(
        totals=(2, 1, 1), absent=((0, 1),), source_blocks=2, destination_blocks=2, early_rows=True
    ),
}


@worlds(SMALL, LARGE)
def test_every_request_passes_through_pools_of_one_block(setting: Setting, max_states: int) -> None:
    """D8, D9, P8: from every state each request can still end, and nobody is given a block that an earlier one could
    use.
    """
    finding = explore_supply(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r18_each_destination_is_told_its_own_progress", "stuck", Setting()),
    ("r19_rows_flow_on_each_destinations_own_grant", "stuck", Setting()),
    ("r21_destination_reserve_for_waiting_rows", "stuck", Setting(num_destinations=1, silent=(0,))),
    (
        "r21_destination_reserve_for_rows_that_fill_it", "stuck",
        Setting(totals=(4, 2), num_destinations=1, block_rows=2, stops=(0,)),
    ),
    ("r21_source_reserve_for_heads", "stuck", Setting(num_destinations=1, clients=(0, 1))),
    ("r21_source_reserve_is_dropped_after_the_write", "stuck", Setting(clients=(0, 1))),
    ("r22_a_head_without_rows_stops_nobody", "stuck", Setting(silent=(0,))),
    ("r22_first_come_first_served", "unfair", Setting()),
    (
        "r21_a_part_stays_for_those_whose_rows_came", "hoard",
        Setting(totals=(4, 2), num_destinations=1, destination_blocks=4, silent=(0,)),
    ),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_supply_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """D8, D9: with all rules this world holds; without this one, requests wait for each other for ever, or one is
    passed over.
    """
    assert explore_supply(setting).fault is None
    finding = explore_supply(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
