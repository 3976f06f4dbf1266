"""Slots, epochs, incarnations, registrations (see `identity_model`): nothing is taken for something else, and each rule
is needed.
"""

from __future__ import annotations

from identity_model import Rules, Setting, explore_identity
from worlds import rules, worlds

SMALL = {
    "two requests and a deadline": Setting(deadlines=1),
    "a worker is killed": Setting(kills=1, deadlines=1),
    "the language node is started again": Setting(language_restarts=1),
    "the language node is taken for dead": Setting(encode_burials=1),
    "both are taken for dead": Setting(requests=1, language_burials=1, encode_burials=1, kills=1, deadlines=1),
    "a slot with one epoch left": Setting(last_epoch=1),
}

LARGE = {
    "the encode node is started again": Setting(encode_restarts=1, deadlines=1),
    "three requests and deadlines": Setting(requests=3, deadlines=2),
    "the encode node is taken for dead": Setting(language_burials=1, kills=1),
    "both nodes are started again": Setting(language_restarts=1, encode_restarts=1),
    "both are taken for dead, two requests": Setting(language_burials=1, encode_burials=1),
    "a restart and a burial": Setting(encode_restarts=1, language_burials=1),
}


@worlds(SMALL, LARGE)
def test_a_stale_message_has_no_effect_and_every_request_ends(setting: Setting, max_states: int) -> None:
    """P17, D3, D5, D7: no report ends another request, no row lands in a block that was given back, no slot is
    stuck.
    """
    finding = explore_identity(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r12_waits_for_the_writers_end", "stray", Setting(requests=1, language_burials=1)),
    ("r14_reports_name_the_incarnation", "mixed", Setting(language_restarts=1)),
    ("r14_reports_name_the_epoch", "mixed", Setting()),
    ("r14_messages_name_their_target", "stray", Setting(encode_restarts=1)),
    ("r14_a_registration_voids_the_one_before", "stray", Setting(language_burials=1)),
    ("r14_worker_looks_again_behind_the_door", "stray", Setting(language_burials=1)),
    ("r15_tombstones", "stray", Setting(requests=1)),
    ("r15_abort_leaves_a_tombstone", "stray", Setting(requests=1, deadlines=1)),
    ("r17_last_epoch_retires_the_slot", "mixed", Setting(last_epoch=1)),
    ("d3_the_dead_may_register_again", "stuck", Setting(language_burials=1)),
]


@rules(
    BROKEN,
    "r14_a_registration_voids_the_one_before",
    "r14_worker_looks_again_behind_the_door",
    "d3_the_dead_may_register_again",
)
def test_each_rule_of_identity_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """P17, D2: with all rules this world holds; without this one, a request ends as another, or its row lands in
    another's block.
    """
    assert explore_identity(setting).fault is None
    finding = explore_identity(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
