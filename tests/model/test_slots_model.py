"""Two full slot tables do not wait for each other: P8, D8, R15 (`slots_model`)."""

from __future__ import annotations

import pytest
from slots_model import Rules, explore_slots


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(aborts=0), id="lost, doubled and late", marks=pytest.mark.storm),
        pytest.param(Rules(aborts=0, losses=0), id="doubled and late"),
        pytest.param(Rules(aborts=0, doubles=0), id="lost and late"),
        pytest.param(Rules(losses=0, doubles=0), id="aborted", marks=pytest.mark.storm),
    ],
)
def test_rooms_that_are_opened_in_opposite_orders_all_end(rules: Rules) -> None:
    """P8, D8, R15: on both sides, whatever is lost, doubled, late, overrun or aborted, and though neither side has
    slots for all.
    """
    finding = explore_slots(rules)
    assert finding.fault is None, finding
    assert finding.num_states > 1000


@pytest.mark.parametrize(
    "rules",
    [
        Rules(unasked_hold_half=False, calls_wait_without_slot=False, losses=0, doubles=0, aborts=0),
        Rules(unasked_hold_half=False, losses=0, doubles=0, aborts=0),
        Rules(asked_take_any=False, losses=0, doubles=0, aborts=0),
        Rules(calls_wait_without_slot=False, losses=0, doubles=0, aborts=0),
        Rules(ask_or_resend=False, doubles=0, aborts=0),
        pytest.param(Rules(r15_abort_fails_the_room=False, losses=0, doubles=0), marks=pytest.mark.storm),
    ],
    ids=[
        "first come, first served, and refused beyond that",
        "first come, first served, on both sides",
        "who is asked for waits for its turn",
        "calls beyond half of the slots are refused",
        "nothing is asked for again",
        "an abort is forgotten",
    ],
)
def test_each_rule_for_slots_is_needed(rules: Rules) -> None:
    """P8: without it, two full tables wait for each other until a deadline."""
    finding = explore_slots(rules)
    assert finding.fault is not None, finding
    assert finding.fault.startswith("stuck")
