"""How encoder and scheduler of one host find each other, and which path a request takes (see
`direct_rendezvous_model`).
"""

from __future__ import annotations

import pytest
from direct_rendezvous_model import Rules, Setting, explore_rendezvous
from worlds import worlds

SMALL = {
    "either comes first": Setting(),
    "either comes first, and no init comes": Setting(init=False),
    "the table is full": Setting(entries=1),
    "the encoder needs the network": Setting(changes=1),
    "the encoder needs the network, the table is full": Setting(entries=1, changes=1),
    "deadlines, and perhaps the network": Setting(deadlines=True, changes=1),
    "both are killed, and perhaps the network": Setting(encoder_kills=1, scheduler_kills=1, changes=1),
    "two rooms, the table is full": Setting(rooms=(0, 1), entries=1),
}

LARGE = {
    "two rooms with one tag, the table is full": Setting(rooms=(0, 1), entries=1, same_tag=True),
    "asked again at another node, a scheduler is killed": Setting(rooms=(0, 0), scheduler_kills=1),
    "asked again at another node, deadlines": Setting(rooms=(0, 0), entries=1, deadlines=True),
    "two rooms with one tag, a scheduler is killed": Setting(rooms=(0, 1), entries=1, same_tag=True, scheduler_kills=1),
    "two rooms with one tag, an encoder is killed": Setting(rooms=(0, 1), entries=1, same_tag=True, encoder_kills=1),
    "two rooms, one needs the network": Setting(rooms=(0, 1), entries=1, changes=1),
}


@worlds(SMALL, LARGE)
def test_both_find_each_other_and_one_path_writes_and_all_ends(setting: Setting, max_states: int) -> None:
    """R28, R37, P8: whoever comes first, nobody writes beside the claim, nothing is left, and each request ends."""
    finding = explore_rendezvous(setting, max_states=max_states)
    assert finding.fault is None, finding


BROKEN = [
    ("r28_the_network_takes_the_claim", "stray", Setting(changes=1)),
    ("r28_the_networks_claim_lasts_until_its_end", "stray", Setting(changes=1, deadlines=True)),
    ("r37_posts_then_looks", "stuck", Setting(init=False)),
    ("r37_the_room_is_compared_in_the_slot", "mixed", Setting(rooms=(0, 1), entries=1, same_tag=True)),
    ("r37_the_encode_node_is_compared_in_the_slot", "mixed", Setting(rooms=(0, 0), entries=1, scheduler_kills=1)),
    ("r37_the_epoch_is_looked_at_again", "stuck", Setting(rooms=(0, 1), entries=1, same_tag=True)),
    ("r37_posts_of_the_dead_are_taken_off", "stuck", Setting(scheduler_kills=1)),
    ("r37_the_init_follows", "stuck", Setting(changes=1)),
]


@pytest.mark.parametrize(("rule", "kinds", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_the_rendezvous_is_needed(rule: str, kinds: str, setting: Setting) -> None:
    """R28, R37: without it two write, or one for another's request, or somebody waits for ever.

    With it such worlds hold (above).
    """
    finding = explore_rendezvous(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(tuple(kinds.split("|"))), finding
