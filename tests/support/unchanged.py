"""With `--changed`, as `make test` has it, some tests run only when what they depend on has changed since they last
passed.

Which, and what they depend on, is said by `run_if_changed` in pyproject.toml, a line each: `<tests>: <sources>
<sources> ...`. The first line whose pattern matches a test file is the one for it. Sources are patterns of paths, or
`@imports`: all that the test file imports, and the processes that it starts (`sources.py` says how that is found). The
file itself is always one, and a test without a line always runs. `@own-imports` is the same without what the
`conftest.py` files have for every test: it is for models and for the core in C, of which the check for what they leave
behind shows nothing.

What has passed is kept under `.build`, by test file, with a digest of its sources: after any change of them each of its
tests runs again, as one does that has failed or was skipped. `--all` runs every test, as continuous integration does
(`CI` or `ALL_EMBRIDGE_TESTS` in the environment). How many were left out, and how to run them, is said at the end.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.passes import Passes, leave_out
from support.sources import Sources, split_line

FILE: Final = Path(".build", "passed.json")
WORKER_KEY: Final = "unchanged"
ALL_IN: Final = ("CI", "ALL_EMBRIDGE_TESTS")
IMPORTS: Final = "@imports"
OWN_IMPORTS: Final = "@own-imports"
COMMON: Final = ("constraints.txt", "pyproject.toml")  # the libraries, and how pytest runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A line of `run_if_changed`."""

    tests: str
    sources: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> Rule:
        """Raises ValueError for a line that is none."""
        tests, sources = split_line("run_if_changed", line)
        return cls(tests=tests, sources=sources)

    def files(self, test: str, sources: Sources) -> set[str]:
        """On which the tests of this file depend. Raises ValueError where a pattern has none."""
        patterns = [it for it in self.sources if it not in (IMPORTS, OWN_IMPORTS)]
        found = {test, *sources.matching(patterns, f"run_if_changed: {self.tests}")}
        if {IMPORTS, OWN_IMPORTS} & set(self.sources):
            found |= sources.of(test, with_conftests=IMPORTS in self.sources)
        return found


def rule_for(test: str, rules: Iterable[Rule]) -> Rule | None:
    """The rule for a test file; None where its tests always run."""
    return next((rule for rule in rules if fnmatch.fnmatch(test, rule.tests)), None)


def digest_of(files: Iterable[str], sources: Sources) -> str:
    """Of all that is in these files, of what all tests have in common, and of the machine."""
    made = hashlib.sha256(f"{sys.version} {platform.machine()} {os.environ.get('CC', '')}".encode())
    for file in sorted({*files, *sources.existing(COMMON)}):
        made.update(f"\0{file}\0{sources.digest(file)}".encode())
    return made.hexdigest()


def digests(root: Path, rules: Iterable[Rule], reads_by_path: Iterable[str]) -> dict[str, str]:
    """Of each test file that has a rule, by its path from the root."""
    rules = list(rules)
    sources = Sources(root, reads_by_path)
    folders = sorted({rule.tests.partition("/")[0] for rule in rules})
    tests = sorted(path.relative_to(root).as_posix() for it in folders for path in (root / it).rglob("test_*.py"))
    found = {test: rule.files(test, sources) for test in tests if (rule := rule_for(test, rules)) is not None}
    made = {test: digest_of(files, sources) for test, files in found.items()}
    sources.keep()
    return made


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("unchanged")
    group.addoption(
        "--changed", action="store_true", help="leave out what has passed since its sources changed (run_if_changed)"
    )
    group.addoption("--all", action="store_true", help="leave none of them out")
    parser.addini(
        "run_if_changed", "tests that run when their sources have changed: '<tests>: <sources> ...'", type="linelist"
    )
    parser.addini(
        "reads_by_path", "what a file reads by path or by a computed name: '<file>: <patterns> ...'", type="linelist"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--changed"):
        config.pluginmanager.register(Unchanged(config))


class Unchanged:
    """In each of pytest's processes; only the first of them reads and writes the file, and the others have its list
    from that.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._passes = Passes()
        self._num_left_out = 0
        self._is_first = not hasattr(config, "workerinput")
        if not self._is_first:
            self._left_out = set(config.workerinput[WORKER_KEY])  # type: ignore[attr-defined]  # pytest-xdist's
            return
        try:
            rules = [Rule.of(line) for line in config.getini("run_if_changed")]
            self._digests = digests(self._root, rules, config.getini("reads_by_path"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        self._passed = self._read()
        runs_all = config.getoption("--all") or any(os.environ.get(name) for name in ALL_IN)
        self._left_out = set() if runs_all else {test for tests in self._passed.values() for test in tests}

    def _read(self) -> dict[str, set[str]]:
        """By test file, the tests that have passed with its sources as they are."""
        try:
            kept: dict[str, Any] = json.loads((self._root / FILE).read_text())
        except (OSError, ValueError):
            kept = {}
        found = {file: kept.get(file, {}) for file in self._digests}
        return {
            file: set(it["passed"]) if it.get("digest") == self._digests[file] else set() for file, it in found.items()
        }

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """pytest-xdist starts a process."""
        node.workerinput[WORKER_KEY] = sorted(self._left_out)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._num_left_out = leave_out(config, items, self._left_out)
        if not self._is_first:
            config.workeroutput[WORKER_KEY] = self._num_left_out  # type: ignore[attr-defined]  # pytest-xdist's

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of pytest-xdist has ended; each has collected the same."""
        self._num_left_out = max(self._num_left_out, getattr(node, "workeroutput", {}).get(WORKER_KEY, 0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._is_first:
            return
        passed = self._passed.get(report.nodeid.partition("::")[0])
        if passed is not None and self._passes.hear(report):
            passed.add(report.nodeid)
        elif passed is not None and report.failed:
            passed.discard(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._is_first:
            kept = {
                file: {"digest": self._digests[file], "passed": sorted(passed)}
                for file, passed in self._passed.items()
                if passed
            }
            file = self._root / FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(kept, indent=1))
            new.replace(file)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._num_left_out:
            terminalreporter.write_line(
                f"{self._num_left_out} tests were left out, for their sources are as they were when they passed; "
                "`make test ARGS=--all` runs them"
            )
