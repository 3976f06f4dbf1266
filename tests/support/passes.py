"""Which tests have passed: those of which no phase failed or was left out, the teardown with them."""

from __future__ import annotations

import pytest


class Passes:
    """Hears the reports of a run, as pytest's first process has them all."""

    def __init__(self) -> None:
        self._not_passed: set[str] = set()

    def hear(self, report: pytest.TestReport) -> bool:
        """Whether this report is the one with which its test has passed."""
        if not report.passed:
            self._not_passed.add(report.nodeid)
        return report.when == "teardown" and report.nodeid not in self._not_passed


def leave_out(config: pytest.Config, items: list[pytest.Item], passed: set[str]) -> int:
    """Take these tests out of what was collected; returns how many they are."""
    left_out = [item for item in items if item.nodeid in passed]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in passed]
    return len(left_out)
