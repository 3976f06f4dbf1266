"""With `--changed`, as `make test` has it, some tests run only when what they depend on has changed since they last
passed.

Which, and what they depend on, is said by `run_if_changed` in pyproject.toml, a line each: `<tests>: <sources>
<sources> ...`, as patterns of paths. A test depends, too, on each file that its own sources name in backquotes by its
path from the root: a model names what it is a model of. What has passed is kept under `.build`, by test, with a digest
of the sources: after any change of them each of these tests runs again, as one does that has failed or was skipped.
`--all` runs every test, as continuous integration does (`CI` or `EMBRIDGE_ALL_TESTS` in the environment). How many were
left out, and how to run them, is said at the end.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.passes import Passes, leave_out

FILE: Final = Path(".build", "passed.json")
WORKER_KEY: Final = "unchanged"
ALL_IN: Final = ("CI", "EMBRIDGE_ALL_TESTS")
COMMON: Final = ("constraints.txt",)  # the libraries that the tests are run with
NAMED: Final = re.compile(r"`((?:\w+/)+\w+\.(?:py|pyi|c|h))`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A line of `run_if_changed`."""

    tests: str
    sources: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> Rule:
        tests, separator, sources = line.partition(":")
        if not (separator and tests.strip() and sources.split()):
            raise pytest.UsageError(f"run_if_changed: {line!r} is not of the form '<tests>: <sources> ...'")
        return cls(tests=tests.strip(), sources=tuple(sources.split()))

    def digest(self, root: Path) -> str:
        """Of all that these tests depend on. Raises UsageError where a pattern has no file: it was renamed, perhaps."""
        files: set[Path] = set()
        for pattern in self.sources:
            found = {path for path in root.glob(pattern) if path.is_file()}
            if not found:
                raise pytest.UsageError(
                    f"run_if_changed: {self.tests}: no file is called {pattern}; name what these tests depend on"
                )
            files |= found
        for path in [path for path in files if path.suffix in (".py", ".c", ".h")]:
            files |= {root / name for name in NAMED.findall(path.read_text()) if (root / name).is_file()}
        files |= {root / name for name in COMMON if (root / name).is_file()}
        made = hashlib.sha256(f"{sys.version} {platform.machine()} {os.environ.get('CC', '')}".encode())
        for path in sorted(files):
            made.update(f"\0{path.relative_to(root).as_posix()}\0".encode())
            made.update(hashlib.sha256(path.read_bytes()).digest())
        return made.hexdigest()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("unchanged")
    group.addoption(
        "--changed", action="store_true", help="leave out what has passed since its sources changed (run_if_changed)"
    )
    group.addoption("--all", action="store_true", help="leave none of them out")
    parser.addini(
        "run_if_changed", "tests that run when their sources have changed: '<tests>: <sources> ...'", type="linelist"
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
        self._rules = [Rule.of(line) for line in config.getini("run_if_changed")]
        self._digests = {rule.tests: rule.digest(self._root) for rule in self._rules}
        self._passed = self._read()
        runs_all = config.getoption("--all") or any(os.environ.get(name) for name in ALL_IN)
        self._left_out = set() if runs_all else {test for tests in self._passed.values() for test in tests}

    def _read(self) -> dict[str, set[str]]:
        """By the tests of each rule, those that have passed with the sources as they are."""
        try:
            kept: dict[str, Any] = json.loads((self._root / FILE).read_text())
        except (OSError, ValueError):
            kept = {}
        known = {tests: kept.get(tests, {}) for tests in self._digests}
        return {
            tests: set(it["passed"]) if it.get("digest") == self._digests[tests] else set()
            for tests, it in known.items()
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
        rule = next(
            (rule for rule in self._rules if fnmatch.fnmatch(report.nodeid.partition("::")[0], rule.tests)), None
        )
        if rule is not None and self._passes.hear(report):
            self._passed[rule.tests].add(report.nodeid)
        elif rule is not None and report.failed:
            self._passed[rule.tests].discard(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._is_first:
            kept = {
                tests: {"digest": self._digests[tests], "passed": sorted(passed)}
                for tests, passed in self._passed.items()
            }
            file = self._root / FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(kept, indent=1))
            new.replace(file)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._num_left_out:
            where = ", ".join(tests for tests, passed in self._passed.items() if passed & self._left_out)
            terminalreporter.write_line(
                f"{self._num_left_out} tests were left out, for their sources are as they were when they passed ({where}); "
                "`make test ARGS=--all` runs them"
            )
