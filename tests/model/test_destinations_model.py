"""A request with two destinations (see `destinations_model`): Success only when all have all, and everybody hears how
it ended.
"""

from __future__ import annotations

from destinations_model import Rules, Setting, explore_destinations
from worlds import rules, worlds

SMALL = {
    "two rows": Setting(),
    "one is lost": Setting(total=1, losses=1),
    "the encoder aborts": Setting(total=1, encoder_aborts=1),
}

LARGE = {
    "one is lost, two rows": Setting(losses=1),
    "one gives up": Setting(total=1, deadlines=1),
    "one gives up, one is lost": Setting(total=1, deadlines=1, losses=1),
    "one gives up, two rows": Setting(deadlines=1),
    "one gives up, one is lost, the encoder aborts": Setting(total=1, deadlines=1, losses=1, encoder_aborts=1),
}


@worlds(SMALL, LARGE)
def test_success_means_that_every_destination_has_every_row_and_all_hear_the_outcome(
    setting: Setting, max_states: int
) -> None:
    """D11, D12, P5, B2: nobody ends in Success before the encode node does, no word falls, and everyone ends."""
    finding = explore_destinations(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r4_success_needs_every_destination", "short", Setting(total=1)),
    ("r4_success_needs_the_total", "short", Setting(total=1)),
    ("r15_abort_fails_the_room", "stuck", Setting(total=1, deadlines=1)),
    ("r18_an_absent_destination_counts_as_nothing", "word", Setting(total=1)),
    ("r18_progress_is_kept_apart", "short", Setting(total=1)),
    ("r20_success_is_taken_from_the_phase", "split", Setting(total=1)),
    ("d11_everyone_is_told", "stuck", Setting(total=1, deadlines=1)),
    ("d11_late_comers_are_told", "stuck", Setting(total=1, deadlines=1)),
    ("d12_terminal_phases_absorb", "word", Setting(total=1, deadlines=1)),
]


@rules(BROKEN, "r15_abort_fails_the_room", "d11_late_comers_are_told")
def test_each_rule_of_several_destinations_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """D11, B2: without it, a destination ends otherwise than the others, or never hears the outcome.

    With it all hold (above).
    """
    finding = explore_destinations(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
