"""Lost messages and killed processes (see `repair_model`): whatever is lost is said again, and both slots come free."""

from __future__ import annotations

from repair_model import Rules, Setting, explore_repair
from worlds import rules, worlds

SMALL = {
    "a loss of one row": Setting(total=1, losses=1),
    "one row comes twice, and a kill": Setting(total=1, doubles=1, kills=1),
}

LARGE = {
    "a loss of one row, and a poller that is killed": Setting(total=1, losses=1, poller_kills=1, worker_tells=False),
    "a message comes twice": Setting(total=1, losses=1, doubles=1, kills=1),
    "a loss, and pollers that are killed": Setting(total=1, losses=1, poller_kills=2),
    "the encoder gives up, and a loss": Setting(total=1, losses=1, encoder_aborts=1),
    "a loss": Setting(losses=1),
    "an abort, and a loss": Setting(total=1, losses=1, deadlines=1),
    "two losses": Setting(losses=2),
    "a loss and a kill, and the worker tells": Setting(losses=1, kills=1),
    "two losses and a kill": Setting(losses=2, kills=1, worker_tells=False),
    "three rows, three losses, two kills": Setting(total=3, losses=3, kills=2, worker_tells=False),
    "two losses, and everybody is killed": Setting(losses=2, kills=1, poller_kills=2, worker_tells=False),
    "a loss, and everybody is killed, and the worker tells": Setting(total=1, losses=1, kills=1, poller_kills=2),
    "a loss, a double and a kill": Setting(losses=1, doubles=1, kills=1),
    "an abort, a loss, a double and a kill": Setting(total=1, losses=1, doubles=1, kills=1, deadlines=1),
}


@worlds(SMALL, LARGE)
def test_whatever_is_lost_is_repaired_without_any_deadline(setting: Setting, max_states: int) -> None:
    """P5, P8, B5: from every state both sides can still end and give their slots back."""
    finding = explore_repair(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r23_ended_stays_in_the_heartbeats", "stuck", Setting(total=1, losses=1, worker_tells=False)),
    ("r23_slot_is_kept_until_closed", "stuck", Setting(total=1, losses=1)),
    ("r23_abort_is_sent_until_acknowledged", "stuck", Setting(total=1, losses=1, deadlines=1)),
    ("r23_unknown_is_closed", "stuck", Setting(total=1, losses=1)),
    ("r24_heartbeats", "stuck", Setting(losses=1)),
    ("r24_the_one_behind_gets_the_blocks_again", "stuck", Setting(losses=1)),
    ("r24_an_unheard_grant_is_sent_again", "stuck", Setting(total=1, losses=1)),
    ("r25_slow_scan", "stuck", Setting(total=1, kills=1)),
    ("r77_digests_are_compared", "stuck", Setting(losses=1)),
    ("r77_all_is_told_where_they_differ", "stuck", Setting(losses=1)),
    ("r83_the_word_is_raised_first", "outcome", Setting(total=1, encoder_aborts=1)),
    ("r83_heartbeats_repeat_what_the_worker_said", "stuck", Setting(total=1, losses=1)),
    ("d12_terminal_phases_absorb", "word", Setting(total=1, deadlines=1)),
]


@rules(
    BROKEN,
    "r23_abort_is_sent_until_acknowledged",
    "r24_the_one_behind_gets_the_blocks_again",
    "r77_all_is_told_where_they_differ",
)
def test_each_rule_of_repair_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """P8, D12: without it, one lost message or one kill leaves a request that never ends. With it all hold (above)."""
    finding = explore_repair(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
