"""`--changed`: tests of which nothing has changed since they passed are left out, never silently, and never where all
are to run.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.unchanged import Rule, digests

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "pytest.ini": """
[pytest]
run_if_changed =
    slow/*.py: @imports core/*.c
    own/*.py: @own-imports
reads_by_path =
    slow/reader.py: data/*.txt
""",
    "core/ring.c": "int ring;",
    "conftest.py": "import harness",
    "harness.py": "",
    "data/rows.txt": "",
    "lib/client.py": "room = 1",
    "lib/other.py": "room = 2",
    "own/test_own.py": "def test_own(): pass",
    "slow/model.py": '"""What `lib/client.py` does."""',
    "slow/reader.py": "HERE = __file__",
    "slow/test_ring.py": """
import os, pytest, model, reader
def test_one(): pass
@pytest.mark.parametrize("i", [1, 2])
def test_two(i): assert i != int(os.environ.get("FAILS", 0))
""",
    "quick/test_other.py": "def test_other(): pass\n",
}
ALL = 5
RING = 3  # tests of slow/test_ring.py
OWN = 1
ALWAYS = 1  # the one without a rule


def written(folder: Path) -> Path:
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def once_passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = written(tmp_path_factory.mktemp("tree"))
    assert run(tree)[0] == ALL
    return tree


@pytest.fixture
def passed(once_passed: Path, tmp_path: Path) -> Path:
    """A tree whose tests have all passed."""
    return shutil.copytree(once_passed, tmp_path / "tree")


def run(tree: Path, *arguments: str, option: str = "--changed", **environment: str) -> tuple[int, str]:
    """How many tests passed, and what pytest said."""
    command = [sys.executable, "-m", "pytest", "-p", "support.unchanged", "-p", "no:cacheprovider", *option.split()]
    kept = {
        name: value for name, value in os.environ.items() if name not in ("CI", "ALL_EMBRIDGE_TESTS", "PYTEST_ADDOPTS")
    }
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # hypothesis costs each of these runs more than the rest of it
    result = subprocess.run(
        [*command, *arguments],
        cwd=tree,
        env={**kept, "PYTHONPATH": str(ROOT / "tests"), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", said)
    return int(passed[1]) if passed else 0, said


@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "2")], ids=["one process", "pytest-xdist"])
def test_what_has_passed_is_left_out_and_the_summary_says_so(tree: Path, processes: tuple[str, ...]) -> None:
    assert run(tree, *processes)[0] == ALL
    num_passed, said = run(tree, *processes)
    assert num_passed == ALWAYS
    assert f"{ALL - ALWAYS} tests were left out" in said
    assert "`make test ARGS=--all` runs them" in said


def test_they_run_again_when_what_they_depend_on_has_changed(passed: Path) -> None:
    assert run(passed)[0] == ALWAYS
    file = passed / "lib" / "client.py"
    file.write_text(file.read_text() + "\n")
    assert run(passed)[0] == RING + ALWAYS
    assert run(passed)[0] == ALWAYS


def test_what_they_depend_on_is_what_their_rules_name_and_what_they_import_name_and_read(tree: Path) -> None:
    """A pattern's file, one that is new, and what a test file imports, names or reads; nothing else."""
    ring, own = "slow/test_ring.py", "own/test_own.py"
    depend_on = {
        "core/ring.c": {ring},
        "core/new.c": {ring},
        "slow/test_ring.py": {ring},
        "slow/model.py": {ring},
        "own/test_own.py": {own},
        "lib/client.py": {ring},
        "lib/other.py": set(),
        "data/rows.txt": {ring},
        "quick/test_other.py": set(),
        "harness.py": {ring},
        "conftest.py": {ring},
    }
    settings = configparser.ConfigParser()
    settings.read(tree / "pytest.ini")
    rules = [Rule.of(line) for line in settings["pytest"]["run_if_changed"].split("\n") if line]
    reads_by_path = [line for line in settings["pytest"]["reads_by_path"].split("\n") if line]
    before = digests(tree, rules, reads_by_path)
    assert set(before) == {ring, own}
    for path, tests in depend_on.items():
        file = tree / path
        file.write_text((file.read_text() if file.exists() else "") + "\n")
        after = digests(tree, rules, reads_by_path)
        assert (path, {test for test in after if after[test] != before[test]}) == (path, tests)
        before = after


def test_all_with_a_rule_run_again_when_the_settings_of_pytest_have_changed(passed: Path) -> None:
    (passed / "pyproject.toml").write_text("")
    assert run(passed)[0] == ALL


def test_one_that_has_failed_runs_until_it_has_passed(passed: Path) -> None:
    (passed / "slow" / "model.py").write_text("")
    assert run(passed, FAILS="2")[0] == RING - 1 + ALWAYS
    assert run(passed, FAILS="2")[0] == ALWAYS
    assert run(passed)[0] == 1 + ALWAYS
    assert run(passed)[0] == ALWAYS


def test_one_that_has_passed_and_failed_since_runs_again(passed: Path) -> None:
    assert run(passed, "--all", FAILS="2")[0] == ALL - 1
    assert run(passed)[0] == 1 + ALWAYS


@pytest.mark.parametrize(
    ("arguments", "environment"), [(("--all",), {}), ((), {"CI": "true"}), ((), {"ALL_EMBRIDGE_TESTS": "1"})], ids=str
)
def test_all_run_where_all_are_asked_for(passed: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    assert run(passed, *arguments, **environment)[0] == ALL


def test_without_the_option_nothing_is_left_out_or_noted(passed: Path) -> None:
    assert run(passed, option="")[0] == ALL
    shutil.rmtree(passed / ".build")
    assert run(passed, option="")[0] == ALL
    assert not (passed / ".build").exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("core/ring.c", "run_if_changed: slow/*.py: no file is called core/*.c"),
        ("data/rows.txt", "reads_by_path: slow/reader.py: no file is called data/*.txt"),
    ],
)
def test_a_pattern_without_a_file_is_an_error_that_names_it(passed: Path, path: str, said: str) -> None:
    """A source that was renamed would else be one that never changes."""
    (passed / path).unlink()
    assert said in run(passed)[1]
