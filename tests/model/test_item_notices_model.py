"""Notices of what is published (see `item_notices_model`): they hold, and need each of their rules."""

from __future__ import annotations

import pytest
from item_notices_model import Rules, Setting, explore_notices
from worlds import worlds

SMALL = {
    "one key, two changes, a loss, poller killed": Setting(changes=2, doubles=0, subscriber_kills=0),
    "one key, two changes, a double, subscriber late": Setting(changes=2, losses=0, poller_kills=0),
    "two keys, two changes, a loss, a double": Setting(keys=2, changes=2, poller_kills=0, subscriber_kills=0),
    "one key, a change, all faults": Setting(changes=1),
    "older snapshots are taken": Setting(changes=2, losses=0, takes_older_snapshots=True),
}

LARGE = {
    "one key, three changes, all faults": Setting(),
    "one key, three changes, all faults, older snapshots are taken": Setting(takes_older_snapshots=True),
    "two keys, two changes, a loss, a double, poller killed": Setting(keys=2, changes=2, subscriber_kills=0),
    "two keys, subscriber late, two losses": Setting(keys=2, losses=2, poller_kills=0),
}


@worlds(SMALL, LARGE)
def test_a_subscriber_knows_what_is_published_in_the_end(setting: Setting, max_states: int) -> None:
    """R72 to R76, P8: from every state; and who has heard the last notice knows what was announced."""
    finding = explore_notices(setting, max_states=max_states)
    assert finding.fault is None, finding


ONE_LOSS = Setting(changes=1, doubles=0, poller_kills=0, subscriber_kills=0)

BROKEN = [
    ("r72_the_poller_compares", "stuck", Setting(changes=1, losses=0, doubles=0, poller_kills=0, subscriber_kills=0)),
    ("r73_a_new_poller_begins_a_new_stream", "wrong", Setting(losses=0, doubles=0, subscriber_kills=0)),
    ("r74_heartbeats_carry_the_number", "stuck", ONE_LOSS),
    ("r75_a_gap_asks_for_a_snapshot", "wrong", Setting(keys=2, doubles=0, poller_kills=0, subscriber_kills=0)),
    ("r76_a_snapshot_has_its_number", "stuck", ONE_LOSS),
    ("r76_a_snapshot_is_of_what_was_announced", "wrong", Setting(changes=2, doubles=0, subscriber_kills=0)),
]


@pytest.mark.parametrize(("rule", "kind", "setting"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_rule_of_a_notice_is_needed(rule: str, kind: str, setting: Setting) -> None:
    """Without it the subscriber has a wrong view and does not know it, or never has the right one."""
    finding = explore_notices(setting, Rules(**{rule: False}))
    assert (finding.fault or "holds").startswith(kind), finding
