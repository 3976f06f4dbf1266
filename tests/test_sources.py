"""What a test depends on, as it is found from imports: in all their forms, and for what real nodes and clients load."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.launching import before_pythonpath
from support.sources import Sources
from support.unchanged import COMMON, Rule, rule_for
from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]

TREE = {
    "pyproject.toml": """
[tool.setuptools]
packages = ["carrier", "carrier.lane", "carrier.lane.deep"]
package-dir = { "carrier.lane" = "lane" }
""",
    "setup.py": "",
    "carrier/__init__.py": '''
"""A lazy package."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from carrier.lane.one import One as One
    from carrier.lane.two import two as two
TABLE = {"carrier.lane.one": ["One"], "carrier.lane.two": ["two"]}
if not TYPE_CHECKING:
    def __getattr__(name):
        from importlib import import_module
        return getattr(import_module(next(it for it in TABLE if name in TABLE[it])), name)
''',
    "carrier/__main__.py": "from carrier.lane import main",
    "lane/__init__.py": "",
    "lane/main.py": "",
    "lane/one.py": "def one():\n    from carrier.lane.deep import inner",
    "lane/two.py": "",
    "lane/deep/__init__.py": "",
    "lane/deep/inner.py": '"""See `lane/two.py`."""\nHERE = __file__',
    "lane/starter.py": 'CODE = "import sys; from carrier.lane.child import main; main()"',
    "lane/child.py": "",
    "lane/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from carrier.lane.two import two",
    "lane/_core.pyi": "",
    "lane/core.c": "",
    "lane/native/core.h": "",
    "docs/page.md": "",
    "tests/conftest.py": """
import carrier
import pytest
from support import effect
from support.checks import check
from support.nodes import node
pytest_plugins = ["support.plugin"]
@pytest.fixture(autouse=True)
def checked(): check()
@pytest.fixture
def station(): return started()
@pytest.fixture
def pair(station): return station
@pytest.fixture
def two(): return later()
def started(): return node()
def later(): return last()
def last(): return carrier.two()
""",
    "tests/support/__init__.py": "",
    "tests/support/checks.py": "",
    "tests/support/effect.py": "",
    "tests/support/plugin.py": "",
    "tests/support/nodes.py": "from carrier import two",
    "tests/support/paths.py": "FOLDER = __file__",
    "tests/room/helper.py": "",
    "tests/room/models/__init__.py": "",
    "tests/room/models/other.py": "",
}
LANE = {"carrier/__init__.py", "lane/__init__.py"}
ONE = {*LANE, "lane/one.py", "lane/deep/__init__.py", "lane/deep/inner.py"}
TWO = {*LANE, "lane/two.py"}
NODES = {"tests/support/nodes.py", *TWO}
CONFTEST = {
    *("tests/conftest.py", "tests/support/__init__.py", "tests/support/checks.py"),
    *("tests/support/effect.py", "tests/support/plugin.py"),
}
MODELS = {"tests/room/models/__init__.py", "tests/room/models/other.py"}
TEST = "tests/room/test_it.py"

FORMS = {
    "nothing": ("", set()),
    "a module": ("import carrier.lane.two", TWO),
    "a module of a package": ("from carrier.lane import two", TWO),
    "in a function": ("def test_it():\n    from carrier.lane import two", TWO),
    "a lazy name": ("from carrier import One", ONE),
    "a lazy package": ("import carrier", {"carrier/__init__.py"}),
    "a lazy attribute": ("import carrier\ncarrier.two()", TWO),
    "a lazy attribute by another name": ("import carrier as it\nit.two()", TWO),
    "a lazy package that is handed on": ("import carrier\nvars(carrier)", ONE | TWO),
    "all of a lazy package": ("from carrier import *", ONE | TWO),
    "an attribute of a package": ("import carrier.lane\ncarrier.lane.two.two()", TWO),
    "an attribute of a package by its name": ("from carrier import lane\nlane.two.two()", TWO),
    "for type checkers": ("from carrier.lane import typed", {*LANE, "lane/typed.py"}),
    "in C": ("from carrier.lane import _core", {*LANE, "setup.py", "lane/core.c", "lane/native/core.h"}),
    "a text that starts it": ("from carrier.lane import starter", {*LANE, "lane/starter.py", "lane/child.py"}),
    "a program": ('CODE = """\nimport os\nfrom carrier import (\n  two as it,\n)\n"""', TWO),
    "a text that is computed": ('def of(it):\n    return f"carrier.lane.deep.{it}"', ONE - {"lane/one.py"}),
    "what is replaced": ('monkeypatch.setattr("carrier.lane.two.MOST", 1)', TWO),
    "a docstring": ('"""As `from carrier import two` or carrier.lane.one does."""', set()),
    "a command": ('run([sys.executable, "-m", "carrier"])', {*LANE, "carrier/__main__.py", "lane/main.py"}),
    "a command whose module is computed": (
        'def run(module):\n    call(sys.executable, "-m", module)\nrun("carrier")',
        {*LANE, "carrier/__main__.py", "lane/main.py"},
    ),
    "a command line": ('sh("python -m carrier")', {*LANE, "carrier/__main__.py", "lane/main.py"}),
    "beside it": ("import helper", {"tests/room/helper.py"}),
    "in the folder of all tests": ("from support import nodes", NODES),
    "from its own package": ("from .models import other", MODELS),
    "a fixture": ("def test_it(station): pass", NODES),
    "a fixture of a fixture": ("import pytest\n@pytest.fixture\ndef it(pair): pass", NODES),
    "a fixture by its name": ('pytestmark = pytest.mark.usefixtures("pair")', NODES),
    "a fixture by a computed name": ("def test_it(request, name): request.getfixturevalue(name)", NODES),
    "a fixture with an attribute": ("def test_it(two): pass", TWO),
    "an argument that is no fixture": ("def started(station): pass", set()),
    "a file in backquotes": ('"""What `lane/one.py` does."""', {"lane/one.py"}),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def sources_of(tree: Path, text: str, *lines: str) -> set[str]:
    """Of a test file with this text, but for what every test there has."""
    (tree / TEST).write_text(text)
    sources = Sources(tree, lines)
    found = sources.of(TEST)
    assert found >= {TEST} | CONFTEST
    sources.keep()
    assert Sources(tree, lines).of(TEST) == found  # from what is kept, too
    return {*found} - {TEST} - CONFTEST


@pytest.mark.parametrize(("text", "files"), FORMS.values(), ids=FORMS)
def test_what_is_imported_is_found_and_nothing_else(tree: Path, text: str, files: set[str]) -> None:
    assert sources_of(tree, text) == files


@pytest.mark.parametrize(
    "text",
    [
        "def test_it(name): importlib.import_module(name)",
        "HERE = Path(__file__)",
        "from carrier import lane\nFOLDER = lane.__path__",
        "def test_it(pytestconfig): pytestconfig.rootpath",
        "from support import paths",
        "this is no Python",
    ],
)
def test_what_may_read_any_file_depends_on_all_of_them(tree: Path, text: str) -> None:
    assert sources_of(tree, text) == {*TREE} - CONFTEST


def test_but_for_what_is_said_of_it(tree: Path) -> None:
    """A Python file that is named is followed."""
    assert sources_of(tree, "HERE = __file__", f"{TEST}: docs/*.md lane/main.py") == {"docs/page.md", "lane/main.py"}
    said = "tests/support/paths.py: lane/starter.py"
    files = {"tests/support/paths.py", "lane/starter.py", "lane/child.py", "carrier/__init__.py", "lane/__init__.py"}
    assert sources_of(tree, "from support import paths", said) == files


@pytest.mark.parametrize("line", ["tests/support/paths.py", "tests/support/paths.py: lane/renamed.py"])
def test_a_line_that_says_nothing_is_an_error(tree: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"reads_by_path: .*(form|lane/renamed\.py)"):
        Sources(tree, [line])


def test_without_the_conftest_files_there_is_what_the_test_itself_has_with_the_fixtures_that_it_asks_for(
    tree: Path,
) -> None:
    (tree / TEST).write_text("def test_it(station): pass")
    own = Sources(tree).of(TEST, with_conftests=False)
    assert own == {TEST, "tests/support/__init__.py", *NODES}


def test_a_file_that_has_changed_is_read_again(tree: Path) -> None:
    assert sources_of(tree, "import helper") == {"tests/room/helper.py"}
    (tree / "tests/room/helper.py").write_text("from carrier import two")
    assert sources_of(tree, "import helper") == {"tests/room/helper.py", *TWO}


# ---- of this repository


def test_nobody_whom_many_tests_import_may_read_any_file() -> None:
    """Else each of them ran after every change; and what is said of a file is said of one that may."""
    sources = Sources(ROOT, OPTIONS["reads_by_path"])
    said = {line.partition(":")[0] for line in OPTIONS["reads_by_path"]}
    doubtful = {file for file in sources.everything if file.endswith(".py") and sources.is_doubtful(file)}
    assert said - doubtful == set()
    assert {file for file in doubtful - said if not Path(file).name.startswith("test_")} == {
        "tests/mutants/run.py",  # it copies everything
        *(file for file in doubtful if file.startswith("bench/")),  # scripts, each with a name of its own
    }
    of_nodes = sources.of("tests/transfers/test_scenarios.py")
    assert "workers/poller/encode.py" in of_nodes
    assert "pipeline/cli/doctor.py" not in of_nodes


NOTING = """
import os, sys
def note(event, arguments, root={root!r}, noted={noted!r}, seen=set()):
    path = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes)) else ""
    if path.startswith(root) and path not in seen:
        seen.add(path)
        fd = os.open(noted, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, path.encode() + b"\\n")
        os.close(fd)
sys.addaudithook(note)
"""
PROVED = "tests/transfers/test_discovery.py"
ROLES = {
    *(f"workers/{room}/{role}.py" for room in ("bootstrap", "poller", "transfer") for role in ("encode", "language")),
    *("workers/discovery/registrar.py", "workers/discovery/server.py", "workers/wire/loop.py"),
    *("pipeline/node/launcher.py", "pipeline/cli/discovery.py", "pipeline/client/client.py"),
}


@pytest.mark.process
@pytest.mark.skipif("TESTED_EMBRIDGE_SITE" in os.environ, reason="there the sources hide the wheel's package")
def test_the_processes_of_nodes_and_clients_load_nothing_but_sources(tmp_path: Path) -> None:
    """A test that starts a node of each role, a discovery server and clients: every file of ours that one of its
    processes opens is among its sources. Else it were left out although what it tests has changed.
    """
    noted, site = tmp_path / "noted", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOTING.format(root=f"{ROOT}{os.sep}", noted=str(noted)))
    name = "test_a_registered_node_is_listed_with_its_health_and_load_and_found_by_the_other_side"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "agents_import=torch"]
    command += [f"{PROVED}::{name}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTHONPATH"] = before_pythonpath(site)
    with open(tmp_path / "said", "w+") as said:
        run = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=said, stderr=said, start_new_session=True)
        assert run.wait(100) == 0, (tmp_path / "said").read_text()
    wait_until(lambda: not has_members(run.pid), 20)  # its fork server ends when it has imported torch
    opened = {Path(line).relative_to(ROOT) for line in noted.read_text().splitlines()}
    built = (".", "embridge.egg-info")  # what `make wheel` leaves names the package's commands
    ours = {source_of(path) for path in opened if not path.parts[0].startswith(built)}
    assert ours >= ROLES
    sources = Sources(ROOT, OPTIONS["reads_by_path"]).of(PROVED)
    assert ours - sources - set(COMMON) == set()


def has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def source_of(path: Path) -> str:
    """The file from which that one was made, by its path from the root."""
    if path.parent.name == "__pycache__":
        path = path.parent.with_name(path.name.partition(".")[0] + ".py")
    return "allocator/_core.c" if path.suffix == ".so" else path.as_posix()


def test_every_test_file_in_a_folder_has_a_rule() -> None:
    """Those beside `conftest.py` look at the whole tree, and always run, but for some that do not."""
    rules = [Rule.of(line) for line in OPTIONS["run_if_changed"]]
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {test for test in tests if rule_for(test, rules) is None} == {
        f"tests/test_{name}.py"
        for name in ("benchmarks", "docs", "docs_names", "imports", "package", "site", "sources", "words")
    }
