"""The transfer protocol between an encode node and one destination (see `transfer_model`): it holds, and it needs each
of its rules.
"""

from __future__ import annotations

import functools

from transfer_model import explore_transfer
from transfer_world import Rules, Setting
from worlds import rules, worlds

SMALL = {
    "two blocks, a kill and a failure": Setting(blocks=2, kills=1, failures=1, all_succeed=True),
    "one source block": Setting(totals=(2, 1), sources=1, failures=1, kills=1, all_succeed=True),
    "two attempts at once, a kill and a failure": Setting(
        totals=(2,), blocks=2, attempts=2, failures=1, kills=1, all_succeed=True
    ),
    "two attempts at once, from two source blocks": Setting(
        totals=(2,), blocks=2, attempts=2, sources=2, failures=1, all_succeed=True
    ),
    "reports word by word": Setting(totals=(2, 1), fine_steps=True, failures=1, all_succeed=True),
    "a pause before each submit": Setting(fine_steps=True, deadlines=1),
    "shared memory, with deaths": Setting(shared_memory=True, deaths=1, kills=1, deadlines=1, encoder_aborts=1),
    "a network, with deaths": Setting(deaths=1, kills=1, failures=1),
}

LARGE = {
    "two blocks and a kill": Setting(totals=(2, 1), blocks=2, kills=1, all_succeed=True),
    "two source blocks": Setting(totals=(2, 1), sources=2, failures=1, all_succeed=True),
    "two blocks and a deadline": Setting(totals=(2, 1), blocks=2, deadlines=1, spare_fences=1),
    "a deadline, a kill, and a fence too many": Setting(totals=(2, 2), deadlines=1, kills=1, spare_fences=1),
    "streaming into a partly filled block": Setting(
        totals=(3, 1), block_rows=2, streaming=True, deadlines=1, failures=1
    ),
    "aborts from both sides, and a kill": Setting(deadlines=1, encoder_aborts=1, kills=1, spare_fences=1),
    "two attempts at once, and a deadline": Setting(totals=(2, 1), blocks=2, attempts=2, deadlines=1, failures=1),
    "two blocks, three rows, a kill and a failure": Setting(
        totals=(2, 1), blocks=2, kills=1, failures=1, all_succeed=True
    ),
    "three rows, aborts from both sides, and a kill": Setting(
        totals=(2, 1), deadlines=1, encoder_aborts=1, kills=1, spare_fences=1
    ),
    "streaming, two blocks of two rows, a kill": Setting(
        totals=(3, 2), blocks=2, block_rows=2, streaming=True, kills=1, all_succeed=True
    ),
    "one source block for two, a failure and a deadline": Setting(
        totals=(2, 1), blocks=2, sources=1, failures=1, deadlines=1
    ),
    "reports word by word, a failure and a deadline": Setting(totals=(2, 1), fine_steps=True, failures=1, deadlines=1),
    "shared memory, two blocks, everything": Setting(
        totals=(2, 1), blocks=2, shared_memory=True, deaths=1, kills=1, deadlines=1, encoder_aborts=1
    ),
    "a network, everything": Setting(deaths=1, kills=1, failures=1, deadlines=1, spare_fences=1),
}


@worlds(SMALL, LARGE)
def test_rows_arrive_intact_and_every_block_comes_back_whatever_happens(setting: Setting, max_states: int) -> None:
    """P5, P6, P7, D2: no row lands where it does not belong, none is read torn, no word falls, and everything ends."""
    finding = explore_transfer(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r1_grants_are_absolute", "torn", Setting(totals=(3,), blocks=2)),
    ("r2_sent_is_not_obeyed", "word", Setting(totals=(2, 1))),
    ("r3_whole_blocks_are_freed", "stray", Setting(totals=(2, 1), block_rows=2, streaming=True)),
    ("r4_success_is_all_rows", "short", Setting(totals=(2,))),
    ("r5_resume_from_counters", "stuck", Setting(totals=(3,))),
    ("r6_failure_taints", "stray", Setting(failures=1)),
    ("r6_death_taints", "stray", Setting(kills=1)),
    ("r6_sent_is_read_before_tainted", "stray", Setting(fine_steps=True, failures=1)),
    ("r6_tainted_is_stored_before_sent", "stray", Setting(totals=(2, 1), fine_steps=True, failures=1)),
    ("r6_sent_rises_in_order", "torn", Setting(totals=(2,), blocks=2, attempts=2)),
    ("r6_nothing_counts_behind_a_failed_one", "torn", Setting(totals=(2,), blocks=2, attempts=2, failures=1)),
    ("r7_reports_carry_tainted", "stray", Setting(kills=1)),
    ("r7_tainted_is_quarantined", "stray", Setting(kills=1)),
    ("r7_failed_frees_nothing", "stray", Setting(encoder_aborts=1)),
    ("r8_reading_is_respected", "torn", Setting(blocks=2, sources=1)),
    ("r8_broken_attempt_keeps_its_source", "torn", Setting(blocks=2, sources=1, failures=1)),
    ("r9_ack_after_the_last_attempt", "stray", Setting(deadlines=1, fine_steps=True)),
    ("r10_worker_keeps_to_its_grants_session", "stray", Setting(deadlines=1, spare_fences=1)),
    ("r10_new_port", "stray", Setting(kills=1)),
    ("r10_windows_are_sent_again", "stuck", Setting(blocks=2, kills=1)),
    ("r10_fence_spares_the_new_session", "stray", Setting(blocks=2, deadlines=2, spare_fences=1)),
    ("r10_fenced_is_no_failure", "stuck", Setting(blocks=2, kills=1, all_succeed=True)),
    ("r11_fence_runs_by_itself", "stuck", Setting(kills=1)),
    ("r12_death_is_no_fence", "stray", Setting(deaths=1)),
    ("r12_waits_for_the_writers_end", "stray", Setting(deaths=1, shared_memory=True)),
    ("r13_done_is_applied", "torn", Setting()),
    ("r15_abort_leaves_a_tombstone", "stray", Setting(deadlines=1)),
]


@functools.cache
def holds(setting: Setting) -> bool:
    return explore_transfer(setting).fault is None


@rules(BROKEN, "r10_fence_spares_the_new_session")
def test_each_rule_of_the_transfer_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """D2, P6: with all rules this world holds; without this one, its shortest trace ends in a stray, torn, or
    lost row.
    """
    assert holds(setting)
    finding = explore_transfer(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
