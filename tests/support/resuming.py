"""A long run that was interrupted goes on where it was: tests that have passed are noted in a file, and left out when
it is resumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from support.passes import Passes, leave_out

PASSED: Final = "passed"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("resuming")
    group.addoption("--passed", type=Path, metavar="FILE", help="note in this file which tests have passed")
    group.addoption(
        "--resume",
        action="store_true",
        help="leave out the tests that are noted there; without it, the file begins anew",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--passed") is not None:
        config.pluginmanager.register(Resuming(config))


class Resuming:
    """In each of pytest's processes; only the first of them reads and writes the file, and the others have its list
    from that.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._file: Path = config.getoption("--passed")
        self._passes = Passes()
        self._is_first = not hasattr(config, "workerinput")
        if not self._is_first:
            self._passed = set(config.workerinput[PASSED])  # type: ignore[attr-defined]
            return
        if not config.getoption("--resume"):
            self._file.unlink(missing_ok=True)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._passed = set(self._file.read_text().splitlines()) if self._file.exists() else set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """pytest-xdist starts a process."""
        node.workerinput[PASSED] = sorted(self._passed)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        leave_out(config, items, self._passed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._is_first and self._passes.hear(report):
            with self._file.open("a") as file:
                file.write(f"{report.nodeid}\n")
