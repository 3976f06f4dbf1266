"""How fetches share the slots of an encode node (see `fetch_share_model`): it holds, and needs its rules."""

from __future__ import annotations

import pytest
from fetch_share_model import Rules, Setting, explore_shares


@pytest.mark.parametrize("setting", [Setting(), Setting(capacity=8, nodes=2), Setting(capacity=3, nodes=1, deaths=0)])
def test_no_node_keeps_another_from_its_part_and_one_that_is_alone_has_all(setting: Setting) -> None:
    """R86, P21."""
    finding = explore_shares(setting)
    assert finding.fault is None, finding


BROKEN = [
    ("r86_each_living_node_has_a_part", "starved", Setting(deaths=0)),
    ("r86_what_is_beyond_the_parts_is_shared", "idle", Setting(nodes=1, deaths=0)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_the_shares_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it, the shortest trace ends in a node that is refused."""
    finding = explore_shares(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
