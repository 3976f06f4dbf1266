"""The settings of a model: small ones, which every run of the tests explores, and large ones, which a storm does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import pytest

Setting = TypeVar("Setting")

MOST_STATES = 30_000  # of a small world
MOST_STATES_OF_A_LARGE_ONE = 3_000_000


def small_worlds(settings: Mapping[str, Setting], *large: str) -> pytest.MarkDecorator:
    """Parametrises a test by (setting); those that are named as large are for a storm."""
    assert set(large) <= set(settings)
    return pytest.mark.parametrize(
        "setting",
        [
            pytest.param(setting, id=name, marks=[pytest.mark.storm] if name in large else [])
            for name, setting in settings.items()
        ],
    )


def rules(broken: Sequence[tuple[str, str, Setting]], *large: str) -> pytest.MarkDecorator:
    """Parametrises a test by (rule, kind, setting): a rule that is left out, what is wrong then, and a setting that
    shows it. Those that are named as large are for a storm.
    """
    assert set(large) <= {rule for rule, _, _ in broken}
    return pytest.mark.parametrize(
        ("rule", "kind", "setting"),
        [pytest.param(*it, id=it[0], marks=[pytest.mark.storm] if it[0] in large else []) for it in broken],
    )


def worlds(small: Mapping[str, Setting], large: Mapping[str, Setting]) -> pytest.MarkDecorator:
    """Parametrises a test by (setting, max_states)."""
    return pytest.mark.parametrize(
        ("setting", "max_states"),
        [
            *(pytest.param(setting, MOST_STATES, id=name) for name, setting in small.items()),
            *(
                pytest.param(setting, MOST_STATES_OF_A_LARGE_ONE, id=name, marks=pytest.mark.storm)
                for name, setting in large.items()
            ),
        ],
    )
