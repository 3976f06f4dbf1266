"""The README and the pages of `docs/` hold: lines, links, files, names, commands and examples that they show are there,
and run.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from mutants.catalogue import MUTANTS
from support.pages import PAGES, PYTHON, ROOT, Block, blocks, prose, quoted

import embridge

SOURCES = ("embridge", "pipeline", "workers", "allocator", "examples", "deploy", "tests", "bench")
WIDTH_BYTES = 120
FILE = re.compile(r"[\w./-]+\.(py|pyi|c|h|md|toml|json)|(" + "|".join((*SOURCES, "docs")) + r")/[\w./-]+")
OF_OTHERS = {"SimpleQueue", "ThreadSanitizer", "TransferEngine.initialize", "PreallocQueue→TransferQueue"}
"""Names that the pages show and that others define."""

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@every_page
def test_no_line_is_longer_than_120_bytes(page: Path) -> None:
    """Bytes, for tools count them; so columns are no more."""
    lines = enumerate(page.read_bytes().split(b"\n"), 1)
    assert not [f"{number}: {len(line)}" for number, line in lines if len(line) > WIDTH_BYTES]


def test_the_first_page_has_at_most_150_lines() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 150


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


@every_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        headings = (
            re.findall(r"(?m)^#+ (.*)$", target.read_text()) if target.suffix == ".md" and target.exists() else []
        )
        if not target.exists() or (fragment and fragment not in map(anchor, headings)):
            broken.append(link)
    assert not broken


def test_every_page_is_found_from_the_readme() -> None:
    found, waiting = set(), [PAGES[0]]
    while waiting:
        page = waiting.pop()
        if page in found:
            continue
        found.add(page)
        waiting += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in links(page)
            if link.partition("#")[0].endswith(".md")
        ]
    assert not set(PAGES) - found


@cache
def files() -> set[str]:
    found = (path for top in (*SOURCES, "docs", "deploy") for path in (ROOT / top).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


@every_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    """A path from the root, or the bare name of a test or module; `file::test` names a test in it. Or what the reader
    is to save.
    """
    names = {name for path in files() for name in (path, path.rpartition("/")[2])} | {
        path.name for path in ROOT.iterdir()
    }
    names |= set(re.findall(r"Save this as `(\S+)`", page.read_text()))
    missing = []
    for text in quoted(page):
        path, _, test = text.partition("::")
        path = path.rstrip("/")
        is_path = FILE.fullmatch(path)
        if not is_path:
            continue
        if path not in names or (test and f"def {test.partition('[')[0]}(" not in (ROOT / path).read_text()):
            missing.append(text)
    assert not missing


class Defined(NamedTuple):
    """A class: the files that define one of its name, the names that stand in these, and its bases."""

    files: set[str]
    names: set[str]
    bases: set[str]


@cache
def classes() -> dict[str, Defined]:
    """Every class in the sources and tests."""
    found: dict[str, Defined] = defaultdict(lambda: Defined(set(), set(), set()))
    for path in files():
        if not path.endswith((".py", ".pyi")):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef):
                inner = [*ast.walk(node)]
                found[node.name].files.add(path)
                found[node.name].names.update(it.name for it in inner if isinstance(it, ast.FunctionDef | ast.ClassDef))
                found[node.name].names.update(it.attr for it in inner if isinstance(it, ast.Attribute))
                found[node.name].names.update(it.id for it in inner if isinstance(it, ast.Name))
                found[node.name].bases.update(it.id for it in node.bases if isinstance(it, ast.Name))
    return found


def members(name: str) -> set[str]:
    known = classes()
    if name not in known:
        return set()
    names = set(known[name].names)
    for base in known[name].bases - {name}:
        names |= members(base)
    return names | {member for base in names & known.keys() if base != name for member in known[base].names}


@every_page
def test_every_class_and_method_that_is_named_is_there(page: Path) -> None:
    """`TransferQueue._grant`, and words with two capitals inside: what is renamed is renamed here, too."""
    missing = []
    for text in quoted(page):
        name, _, member = text.partition("(")[0].partition(".")
        is_class = re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]*)+", name) or (member and re.fullmatch(r"[A-Z][a-z]\w*", name))
        if text in OF_OTHERS or name in OF_OTHERS or hasattr(builtins, name) or not (is_class or name in classes()):
            continue
        if (name not in classes()) if not re.fullmatch(r"\w+", member) else (member not in members(name)):
            missing.append(text)
    assert not missing


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/contributing.md", "docs/design/grants.md"])
def test_where_a_function_is_named_its_file_is_named_too(page: str) -> None:
    """These pages say where to look: each class of which a method is named stands in a file of the page."""
    said = quoted(ROOT / page)
    methods = {name for text in said if re.fullmatch(r"([A-Z]\w+)\.(\w+)", text) for name in [text.partition(".")[0]]}
    strays = [name for name in methods & classes().keys() if not classes()[name].files & set(said)]
    assert methods
    assert not strays


@every_page
def test_every_make_target_that_is_named_is_there(page: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    said = [line for block in blocks(page) for line in block.text.splitlines()] + quoted(page)
    named = {word for text in said if (found := re.match(r"\s*make ([a-z ]+)", text)) for word in found[1].split()}
    assert not named - targets


def test_contributing_says_when_to_run_each_make_target() -> None:
    listed = set(re.findall(r"(?m)^([a-z]+):.*## ", (ROOT / "Makefile").read_text())) - {"help"}
    said = re.findall(
        r"`make ([a-z]+)", re.findall(r"(?ms)^\| target .*?\n\n", (ROOT / "docs" / "contributing.md").read_text())[0]
    )
    assert listed == set(said)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_example_is_python_and_imports_what_is_there(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "embridge":
            assert {alias.name for alias in node.names} <= set(embridge.__all__)


def example() -> Block:
    """The first example of the README, which is a whole program."""
    return next(block for block in PYTHON if block.page == PAGES[0])


@pytest.mark.process
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(example().text)
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=100, check=False, env=environ
    )
    assert result.returncode == 0, result.stderr
    assert re.match(r"5000 tokens in \d+ rounds: Bootstrapping .*Success\n", result.stdout), result.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif("TESTED_EMBRIDGE_SITE" in os.environ, reason="types are checked over the sources")
def test_the_programs_of_the_readme_and_the_tutorial_pass_mypy_strict(tmp_path: Path) -> None:
    """Seen as they are installed, over the links of `make types`; the cache is the one of that, so this takes some
    seconds after it.
    """
    typing = ROOT / ".build" / "typing" / "embridge"
    typing.mkdir(parents=True, exist_ok=True)
    for target in (*(ROOT / "embridge").iterdir(), *(ROOT / name for name in ("pipeline", "workers", "allocator"))):
        if not os.path.lexists(typing / target.name):
            (typing / target.name).symlink_to(target)
    programs = [example(), *(block for block in PYTHON if block.page.name in ("tutorial.md", "in-flight.md"))]
    for number, block in enumerate(programs):
        (tmp_path / f"example_{number}.py").write_text(block.text)
    assert len(programs) == 5
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    mypy = [sys.executable, "-m", "mypy", *settings, *map(str, tmp_path.glob("*.py"))]
    environ = {**os.environ, "MYPYPATH": str(typing.parent)}
    result = subprocess.run(mypy, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=580, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", ["contributing.md", "design/grants.md"])
def test_every_place_that_decides_a_grant_is_named_where_people_look_for_it(page: str) -> None:
    """Whoever changes how much is granted at one of them alone changes it for some requests and not for others."""
    classes = [
        node
        for path in sorted((ROOT / "pipeline" / "scheduler").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    deciding = {
        f"{it.name}.{method.name}"
        for it in classes
        for method in it.body
        if isinstance(method, ast.FunctionDef) and ".note_granted(" in ast.unparse(method)
    }
    text = (ROOT / "docs" / page).read_text()
    assert len(deciding) > 1
    assert [name for name in sorted(deciding) if f"`{name}`" not in text] == []


def test_every_promise_has_a_section() -> None:
    promised = re.findall(r"(?m)^- \*\*(P\d+)\*\*", (ROOT / "docs" / "invariants.md").read_text())
    sections = re.findall(r"(?m)^## (P\d+)\b", (ROOT / "docs" / "promises.md").read_text())
    assert promised == sections


def test_the_page_of_mutants_names_those_of_the_catalogue_and_tests_of_theirs() -> None:
    page = (ROOT / "docs" / "mutants.md").read_text()
    named = {}
    for file, section in re.findall(r"(?ms)^## `(.*?)`\n(.*?)(?=^## |\Z)", page):
        for name, test in re.findall(r"(?ms)^- \*\*(.*?)\*\*.*?`(test_.*?)`$", section):
            named[name] = f"{file}::{test}"
    catalogue = {mutant.name: mutant for mutant in MUTANTS}
    assert named.keys() <= catalogue.keys()
    wrong = [
        name
        for name, test in named.items()
        if not any(test.startswith(given.split("[")[0]) for given in catalogue[name].tests)
    ]
    assert not wrong
