"""The catalogue of mutants: that it fits the sources is checked always; that each mutant turns a test red is `make
mutants`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.agents import running

from .catalogue import MUTANTS
from .mutant import Mutant
from .run import ROOT, MutantError, check_syntax, mutated

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
LABEL = re.compile(r"\*\*([RBDP]\d+)\*\*")


def test_every_mutant_applies_once_and_those_in_python_compile() -> None:
    """So the list cannot rot: who changes a line that a mutant changes is told here."""
    for mutant in MUTANTS:
        text = mutated(mutant)
        if not mutant.is_native:
            check_syntax(mutant, text)


@pytest.mark.storm
def test_every_mutant_of_the_core_compiles() -> None:
    """A tenth of a second each; `make mutants` says so, too."""
    for mutant in MUTANTS:
        if mutant.is_native:
            check_syntax(mutant, mutated(mutant))


def test_every_mutant_has_a_name_of_its_own_and_breaks_what_is_promised() -> None:
    """The labels stand in the documents."""
    assert len(BY_NAME) == len(MUTANTS) >= 24
    text = (ROOT / "docs" / "invariants.md").read_text()
    promised = set(LABEL.findall(text))
    for mutant in MUTANTS:
        labels = set(mutant.breaks.split(", "))
        assert labels, mutant.name
        assert labels <= promised, f"{mutant.name}: {labels - promised}"


def test_every_mutant_stands_on_the_page_of_mutants() -> None:
    """With what it breaks; and nothing else stands there."""
    page = "".join((ROOT / "docs" / "mutants.md").read_text().split())
    items = {mutant.name: f"- **{mutant.name}** ({mutant.breaks}): {mutant.what}." for mutant in MUTANTS}
    assert [name for name, item in items.items() if "".join(item.split()) not in page] == []
    assert sorted(re.findall(r"-\*\*([a-z0-9-]+)\*\*\(", page)) == sorted(BY_NAME)


def _functions(file: str) -> set[str]:
    """The tests of a file as mutants name them, without parameters; the file itself is one."""
    functions = (node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef))
    return {file, *(f"{file}::{node.name}" for node in functions if node.name.startswith("test"))}


class _Collected:
    """A plugin that keeps the names of what pytest has collected."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = {item.nodeid for item in session.items}


def _collect(_agent: SimpleNamespace, files: list[str]) -> set[str]:
    """The tests of these files with their parameters; for a process of its own, which pytest changes."""
    collected = _Collected()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
        status = pytest.main([*options, *(f"{ROOT}/{file}" for file in files)], plugins=[collected])
    assert status == 0, said.getvalue()
    return collected.names


def test_every_test_that_a_mutant_names_is_there() -> None:
    """With its parameters, if it is named with them."""
    named = {test for mutant in MUTANTS for test in mutant.tests}
    files = {test: test.partition("::")[0] for test in named}
    assert {test.partition("[")[0] for test in named} <= set().union(*map(_functions, set(files.values())))
    with_parameters = {test for test in named if "[" in test}
    assert with_parameters
    with running("collector") as agent:
        assert with_parameters <= agent.call(_collect, sorted({files[test] for test in with_parameters}))


def test_a_mutant_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    mutant = Mutant("gone", "P1", "", "file.py", "old", "new", ())
    (tmp_path / "file.py").write_text("old and old")
    with pytest.raises(MutantError, match=r"stands 2 times in file\.py, not once"):
        mutated(mutant, tmp_path)
    (tmp_path / "file.py").write_text("another")
    with pytest.raises(MutantError, match="stands 0 times"):
        mutated(mutant, tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As `make mutants` does, in a process of its own."""
    command = [sys.executable, "-m", "mutants", *arguments]
    return subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.storm
def test_a_mutant_is_killed_by_a_test_that_is_green_without_it() -> None:
    """One, from the baseline to the verdict."""
    done = run("--only", "tombstone-not-checked")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 selections of tests are green without a mutant" in done.stdout
    assert "test_an_init_at_or_below_the_tombstone_opens_nothing" in done.stdout
