"""`--changed`: tests of which nothing has changed since they passed are left out, never silently, and never where all
are to run.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.unchanged import NAMED, Rule

ROOT = Path(__file__).resolve().parents[1]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["run_if_changed"]
SOURCES = {
    "pytest.ini": """
[pytest]
run_if_changed =
    slow/*.py: slow/*.py core/*.c
""",
    "core/ring.c": "int ring;",
    "lib/client.py": "room = 1",
    "lib/other.py": "room = 2",
    "slow/model.py": '"""What `lib/client.py` does."""',
    "slow/test_ring.py": """
import os, pytest
def test_one(): pass
@pytest.mark.parametrize("i", [1, 2])
def test_two(i): assert i != int(os.environ.get("FAILS", 0))
""",
    "quick/test_other.py": "def test_other(): pass\n",
}


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
    assert run(tree)[0] == 4
    return tree


@pytest.fixture
def passed(once_passed: Path, tmp_path: Path) -> Path:
    """A tree whose tests have all passed."""
    return shutil.copytree(once_passed, tmp_path / "tree")


def run(tree: Path, *arguments: str, option: str = "--changed", **environment: str) -> tuple[int, str]:
    """How many tests passed, and what pytest said."""
    command = [sys.executable, "-m", "pytest", "-p", "support.unchanged", "-p", "no:cacheprovider", *option.split()]
    kept = {
        name: value for name, value in os.environ.items() if name not in ("CI", "EMBRIDGE_ALL_TESTS", "PYTEST_ADDOPTS")
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
    assert run(tree, *processes)[0] == 4
    num_passed, said = run(tree, *processes)
    assert num_passed == 1
    assert "3 tests were left out" in said
    assert "(slow/*.py); `make test ARGS=--all` runs them" in said


@pytest.mark.parametrize(
    ("path", "num_passed"),
    [
        ("core/ring.c", 4),
        ("slow/model.py", 4),
        ("lib/client.py", 4),
        ("core/new.c", 4),
        ("lib/other.py", 1),
        ("quick/test_other.py", 1),
    ],
)
def test_they_run_again_when_what_they_depend_on_has_changed(passed: Path, path: str, num_passed: int) -> None:
    """A source, one that is new, and a file that a source names; nothing else."""
    file = passed / path
    file.write_text((file.read_text() if file.exists() else "") + "\n")
    assert run(passed)[0] == num_passed
    assert run(passed)[0] == 1


def test_one_that_has_failed_runs_until_it_has_passed(tree: Path) -> None:
    assert run(tree, FAILS="2")[0] == 3
    assert run(tree, FAILS="2")[0] == 1
    assert run(tree)[0] == 2
    assert run(tree)[0] == 1
    assert run(tree, "--all", FAILS="2")[0] == 3
    assert run(tree)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "environment"), [(("--all",), {}), ((), {"CI": "true"}), ((), {"EMBRIDGE_ALL_TESTS": "1"})], ids=str
)
def test_all_run_where_all_are_asked_for(passed: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    assert run(passed, *arguments, **environment)[0] == 4


def test_without_the_option_nothing_is_left_out_or_noted(tree: Path) -> None:
    assert run(tree, option="")[0] == 4
    assert not (tree / ".build").exists()
    run(tree)
    assert run(tree, option="")[0] == 4


def test_a_pattern_without_a_file_is_an_error_that_names_it(tree: Path) -> None:
    """A source that was renamed would else be one that never changes."""
    (tree / "core" / "ring.c").unlink()
    assert "run_if_changed: slow/*.py: no file is called core/*.c" in run(tree)[1]


def test_what_the_rules_of_this_repository_name_is_there() -> None:
    """So is each file that a model says it is a model of."""
    for rule in map(Rule.of, RULES):
        assert rule.digest(ROOT)
        assert list(ROOT.glob(rule.tests))
    named = {name for path in (ROOT / "tests" / "model").glob("*.py") for name in NAMED.findall(path.read_text())}
    assert "allocator/native/ring.h" in named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def named_by(path: Path) -> set[Path]:
    """The product's files that a test, or a module of `support` that it imports, imports by name."""
    found: set[Path] = set()
    looked, waiting = {path}, [path]
    while waiting:
        for name in imports(ast.parse(waiting.pop().read_text())):
            parts = name.split(".")
            at = ROOT.joinpath("tests", *parts) if parts[0] == "support" else ROOT.joinpath(*parts[1:])
            file = at.with_suffix(".py") if at.with_suffix(".py").is_file() else at / "__init__.py"
            if not file.is_file():
                continue  # a name in a module, or a library
            if parts[0] == "embridge":
                found.add(file)
            elif parts[0] == "support" and file not in looked:
                looked.add(file)
                waiting.append(file)
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))


def test_what_such_tests_import_is_among_the_sources_of_their_rule() -> None:
    """Else they were left out although what they test has changed."""
    rules = [Rule.of(line) for line in RULES]
    missing = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        at = path.relative_to(ROOT).as_posix()
        rule = next((rule for rule in rules if fnmatch.fnmatch(at, rule.tests)), None)
        if rule is None:
            continue
        sources = {file for pattern in rule.sources for file in ROOT.glob(pattern)}
        missing += [f"{at}: {file.relative_to(ROOT)}" for file in sorted(named_by(path) - sources)]
    assert missing == []
