"""The settings of a model: small ones, which every run of the tests explores, and large ones, which a storm does."""

from __future__ import annotations

from collections.abc import Mapping
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
