"""A slot's claim and its block's life on the direct path (see `direct_claim_model`): it holds, and it needs each of its
rules.
"""

from __future__ import annotations

import pytest
from direct_claim_model import explore_claims
from direct_claim_world import Rules, Setting
from worlds import worlds

TWO = ((0, (0,)), (1, (1,)))
"""Two encoder processes, a room each."""
THREADS = ((0, (0, 1)), (0, (0, 1)))
"""Two threads of one encoder, each of which may write both rooms."""
NETWORK = ((0, (0, 1)), (1, (0, 1)))
"""An encoder, and a transfer worker of its node: either may write either room."""
WORKER = frozenset({1})

SMALL = {
    "one slot, one after the other, aborts, a kill": Setting(slots=1, aborts=2, kills=1),
    "the scheduler is killed, and the encoder": Setting(slots=1, aborts=1, scheduler_kills=1, kills=1),
    "grants are withdrawn": Setting(threads=TWO, withdrawals=2, aborts=1),
    "encoders are stopped for ever": Setting(threads=TWO, aborts=2, stops=1),
    "killed while a device copies": Setting(threads=TWO, aborts=1, kills=1, pinned=True),
    "rows come in another order than grants": Setting(second_room_first=True, withdrawals=-1),
    "a scheduler keeps views": Setting(keeps_views=True),
    "direct and network writer race for one slot": Setting(
        slots=1, threads=NETWORK, workers=WORKER, aborts=1, scheduler_kills=1
    ),
}

LARGE = {
    "direct and network writer race, one slot, both killed": Setting(
        slots=1, threads=NETWORK, workers=WORKER, aborts=1, kills=2
    ),
    "two encoders, one block, aborts, a kill": Setting(threads=TWO, aborts=2, kills=1),
    "two blocks each through one, two threads, an abort": Setting(length=2, threads=THREADS, aborts=1),
    "two blocks each through two, two encoders, an abort, a kill": Setting(
        blocks=2, length=2, threads=TWO, aborts=1, kills=1
    ),
    "the scheduler is killed, grants are withdrawn, two threads": Setting(
        threads=THREADS, scheduler_kills=1, withdrawals=1, aborts=1
    ),
    "direct and network writer race, two slots": Setting(threads=NETWORK, workers=WORKER, aborts=1, kills=1),
    "killed while a device copies, two aborts": Setting(threads=TWO, aborts=2, kills=1, pinned=True),
}


@worlds(SMALL, LARGE)
def test_no_write_strays_and_every_block_comes_back_whatever_happens(setting: Setting, max_states: int) -> None:
    """P5, P6, P7, P8, D2: each write lands where its request waits for it, nothing is read torn, and all ends."""
    finding = explore_claims(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r28_claims_before_it_copies", "stray", Setting(aborts=1)),
    ("r28_the_claim_has_the_epoch", "torn", Setting(slots=1, aborts=1)),
    ("r28_the_room_is_compared", "torn", Setting(slots=1, aborts=1)),
    ("r29_reads_behind_the_claim", "stray", Setting(blocks=2, threads=TWO, withdrawals=1)),
    ("r30_revoked_before_freed", "stray", Setting(aborts=1)),
    ("r30_revoked_is_quarantined", "stray", Setting(threads=TWO, aborts=1)),
    ("r31_given_back_by_cas", "stray|stuck", Setting(slots=1, threads=THREADS, aborts=1)),
    ("r32_the_word_is_moved_by_cas", "word", Setting(slots=1, aborts=1)),
    ("r32_the_word_before_giving_back", "stray", Setting(length=2, threads=THREADS)),
    ("r33_the_claim_names_its_writer", "stray", Setting(threads=TWO, kills=1, aborts=1)),
    ("r33_death_is_the_end_of_its_writes", "stray", Setting(threads=TWO, kills=1, pinned=True)),
    ("r34_a_grant_without_rows_is_withdrawn", "stuck", Setting(second_room_first=True, withdrawals=-1)),
    ("r35_the_last_block_is_not_lent", "stuck", Setting(keeps_views=True)),
]


@pytest.mark.parametrize(("rule", "kinds", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_claim_is_needed(rule: str, kinds: str, setting: Setting) -> None:
    """D2, P6, P8: without it, the shortest trace ends in a stray or torn row, or in somebody who waits for ever.

    With it such worlds hold (above).
    """
    finding = explore_claims(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
