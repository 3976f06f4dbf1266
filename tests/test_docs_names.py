"""What the pages name by a flag, a variable, a metric, a code or a key is there; and what is there they name."""

from __future__ import annotations

import json
import re
import tomllib
from collections import abc
from collections.abc import Iterator
from functools import cache

import click
import yaml
from support.pages import BLOCKS, COMMANDS, LANGUAGES, PAGES, ROOT, Block, prose, quoted

import embridge
from embridge import FailureCode, PipelineConfig, api_page
from embridge.allocator.settings import settings_of
from embridge.allocator.shelf import DTYPE_BYTES
from embridge.pipeline.cli import main
from embridge.pipeline.config import groups, variable_of
from embridge.workers.discovery import metrics as discovery
from embridge.workers.web.families import NODE

DOCS = ROOT / "docs"
OURS = re.compile(r"(\S*/)?(python|pytest|embridge|make)$")
"""Programs whose flags are of this repository, or of pytest."""
OF_OTHERS = {
    *("--auto-compaction-mode", "--auto-compaction-retention"),  # etcd
    *("--encoder-only", "--language-only", "--tp-size", "--dp-size", "--nnodes"),  # SGLang
}
COMPUTED = {"--allow-patience"}
"""Flags that stand nowhere as they are: `tests/storm/__main__.py` makes them of names."""
VARIABLES_OF_OTHERS = {"EMBRIDGE_SGLANG": "embridge/integrations/sglang", "ALL_EMBRIDGE_TESTS": ".ci/run"}


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands that do something, each with the words that name it."""
    context = click.Context(command)
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*words, name))


@cache
def options() -> dict[tuple[str, ...], set[str]]:
    """The flags of each command."""
    found = {}
    for words, command in leaves(main):
        params = [it for it in command.get_params(click.Context(command)) if isinstance(it, click.Option)]
        found[words] = {option for param in params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
    return found


def spoken(text: str) -> tuple[tuple[str, ...], set[str]] | None:
    """The words and flags of an `embridge` command; None: it is another one, or no command at all."""
    words = text.replace("\\", " ").split("#")[0].split()
    if words[:1] != ["embridge"] or len(words) < 2 or words[1].startswith("-"):
        return None
    named = next((key for key in options() if tuple(words[1 : 1 + len(key)]) == key), None)
    groups = {key[:1] for key in options() if len(key) > 1}
    assert named is not None or (tuple(words[1:2]) in groups and len(words) == 2), text
    if named is None:
        return None
    return named, {word.partition("=")[0] for word in words if word.startswith("--")}


def test_every_command_that_is_shown_has_its_options() -> None:
    """`embridge launch --role encode`, in a block or in a line."""
    shown = [line for _, line in COMMANDS] + [text for page in PAGES for text in quoted(page)]
    found = [(text, it) for text in shown if (it := spoken(text)) is not None]
    assert len(found) > 60
    assert [text for text, (command, given) in found if not given <= options()[command]] == []


def test_every_command_is_shown_and_every_option_has_its_line() -> None:
    page = (DOCS / "api" / "options.md").read_text()
    sections = dict(re.findall(r"(?ms)^## embridge (.*?)\n(.*?)(?=^## |\Z)", page))
    assert sections.keys() == {" ".join(words) for words in options()}
    for words, known in options().items():
        said = {flag.split()[0] for flag in re.findall(r"`(--?[^`]+)`", sections[" ".join(words)])}
        assert known - {"-h", "--help"} <= said, words  # click keeps what it was called with first
    table = re.findall(r"(?m)^\| `embridge ([a-z ]+?)(?: --[a-z-]+)?`", (DOCS / "commands.md").read_text())
    assert set(table) == sections.keys()


@cache
def literals() -> set[str]:
    """Every flag that stands in the sources of programs, scripts and tests."""
    folders = ("bench", "tests", ".ci", "pipeline", "embridge", "workers", "examples")
    paths = [path for it in folders for path in (ROOT / it).rglob("*") if path.suffix in (".py", "") and path.is_file()]
    texts = [path.read_text() for path in (*paths, ROOT / "Makefile") if not path.name.startswith("test_docs")]
    return {flag for text in texts for flag in flags(text)} | set().union(*options().values()) | OF_OTHERS | COMPUTED


def test_every_flag_that_is_named_is_there() -> None:
    """In a line of text: `--verify`. In a block: of programs of ours."""
    named = [(page, flag) for page in PAGES for text in quoted(page) if text.startswith("--") for flag in flags(text)]
    for block, line in COMMANDS:
        program = re.sub(r"^([A-Z_]+=\S* )+", "", line).split()[0]
        if OURS.match(program) and "sglang" not in line:
            named += [(block.page, flag) for flag in flags(line)]
    assert len(named) > 150
    unknown = [f"{page.name}: {flag}" for page, flag in named if flag not in literals()]
    assert not unknown


def flags(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z0-9]+(?:-[a-z0-9]+)*(?![\w-])", text)


def test_what_a_command_names_in_this_repository_is_there() -> None:
    """Files, and modules that are run."""
    missing = []
    for block, line in COMMANDS:
        paths = [ROOT / it for it in re.findall(r"(?<![\w./-])((?:tests|bench|deploy|docs|examples)/[\w./-]+)", line)]
        for module in re.findall(r"-m (storm[\w.]*|mutants)", line):
            path = ROOT / "tests" / module.replace(".", "/")
            paths.append(path / "__main__.py" if path.is_dir() else path.with_suffix(".py"))
        missing += [f"{block}: {path}" for path in paths if not path.exists()]
    assert missing == []


def test_every_variable_that_is_named_is_a_setting_s() -> None:
    known = {variable_of(group, name) for group, kind in {"": PipelineConfig, **groups()}.items()
             for name in settings_of(kind)}  # fmt: skip
    known |= {"EMBRIDGE_POOL_TOKENS", "EMBRIDGE_"}
    named = {
        (name, page.name)
        for page in PAGES
        if page.name != "mutants.md"  # names of tests, one of which misspells a variable
        for name in re.findall(r"\bEMBRIDGE_[A-Z_]*[A-Z](?![A-Z_<*.])", page.read_text())
    }
    assert [it for it in sorted(named) if it[0] not in known | VARIABLES_OF_OTHERS.keys()] == []
    for name, place in VARIABLES_OF_OTHERS.items():
        files = [ROOT / place] if (ROOT / place).is_file() else list((ROOT / place).rglob("*.py"))
        assert any(name in path.read_text() for path in files), name


def test_every_metric_that_is_named_is_served_and_every_one_is_named() -> None:
    served = {family.name for family in (*(it.family for it in NODE), *discovery.FAMILIES.values())}
    ends = r"(_total|_bucket|_sum|_count)?"
    places = [*PAGES, ROOT / "deploy" / "alerts.yml", ROOT / "deploy" / "grafana.json"]
    named = {name for path in places for name in re.findall(r"(?<![:\w])embridge_[a-z_]+[a-z]\b", path.read_text())}
    assert [name for name in named if not any(re.fullmatch(re.escape(it) + ends, name) for it in served)] == []
    page = (DOCS / "metrics.md").read_text()
    assert [name for name in served if not re.search(rf"\*\*`{name}(_total)?`\*\*", page)] == []


def test_every_exception_and_failure_code_has_its_cause_and_remedy_and_there_are_no_others() -> None:
    page = (DOCS / "errors.md").read_text()
    sections = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^#|\Z)", page))
    public = [getattr(embridge, name) for name in embridge.__all__]
    exceptions = [it.__name__ for it in public if isinstance(it, type) and issubclass(it, Exception)]
    wanted = [*exceptions, *(code.name for code in FailureCode if code)]
    assert not [
        name for name in wanted if not {"*Cause*", "*Remedy*"} <= set(re.findall(r"\*\w+\*", sections.get(name, "")))
    ]
    assert sections.keys() == set(wanted)
    codes = {name for it in PAGES for name in re.findall(r"`FailureCode\.([A-Z_]+)`", prose(it))}
    assert codes <= set(FailureCode.__members__)


def test_the_pages_of_the_api_are_those_of_the_docstrings() -> None:
    """`make api` writes them anew."""
    made = dict(api_page.pages())
    assert made == {path.name: path.read_text() for path in (DOCS / "api").glob("*.md")}


def test_every_dtype_that_may_be_published_is_named() -> None:
    named = set(re.findall(r"\w+", (ROOT / "docs" / "api" / "nodes.md").read_text()))
    assert DTYPE_BYTES.keys() <= named


def test_each_public_name_stands_on_one_page_of_the_api() -> None:
    listed = [name for _, _, *names in api_page.PAGES.values() for name in names]
    assert sorted(listed) == sorted(set(embridge.__all__) - {"__version__"})
    for kind, names in api_page.INTERNAL.items():
        has = {*dir(getattr(embridge, kind)), *getattr(embridge, kind).__annotations__, *api_page.OF_A_HANDLE}
        assert names <= has, f"{kind}: no such names"


def test_what_the_pages_of_the_api_show_takes_nothing_that_no_user_can_have() -> None:
    """Whoever reads of a parameter of an internal class is shown a method that only other files of embridge call."""
    rooms = [ROOT / room for room in ("pipeline", "workers", "allocator")]
    texts = [path.read_text() for room in rooms for path in (*room.rglob("*.py"), *room.rglob("*.pyi"))]
    internal = {name for text in texts for name in re.findall(r"(?m)^class (\w+)", text)}
    internal -= {*embridge.__all__, *dir(abc), "Path"}
    shown = "".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    taken = {
        (heading, name)
        for heading, signature in re.findall(r"### (\S+)\n\n```py\n(.*?)\) -> ", shown, re.DOTALL)
        for name in re.findall(r"\b[A-Z]\w+", signature)
        if name in internal
    }
    assert taken == set()


def test_every_block_says_what_it_is_and_data_can_be_read() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {block.language for block in BLOCKS if is_read(block)} == {"toml", "yaml", "console"}


def is_read(block: Block) -> bool:
    """Whether a block is data, or shows some that a program answers. Raises where these cannot be read."""
    if block.language == "toml":
        return bool(PipelineConfig.from_env({}, **tomllib.loads(block.text)))
    if block.language == "yaml":
        return bool(yaml.safe_load(block.text))
    answers = re.findall(r"(?m)^\{(?:.|\n  ?)*\}$", block.text) if block.language == "console" else []
    return bool([json.loads(text) for text in answers])


def test_every_page_stands_once_in_the_navigation_of_the_site() -> None:
    def paths(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from paths(inner)

    listed = sorted(paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed == sorted(["index.md", *(path.relative_to(DOCS).as_posix() for path in PAGES[1:])])
