"""What a Python file says of others: which modules it imports, and which fixtures it asks for.

An import counts wherever it stands, in a function, too, but not where only a type checker sees it. A text that is no
docstring may be a program, a command line (`-m`) or the name of a module (`pytest_plugins`, what a test replaces): what
it names counts as imported.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple, TypeGuard

ANY: Final = "*"  # in the place of a name: whichever it is
BELOW: Final = "**"  # whichever, and the modules below it
NAMED: Final = re.compile(r"`((?:\w+/)+\w+\.(?:py|pyi|c|h))`")
COMPUTING: Final = {"import_module", "__import__"}
RUNNING: Final = {"run_module"}
PATHS: Final = {
    *("__file__", "__path__", "rootpath", "rootdir", "run_path", "spec_from_file_location"),
    *("getsource", "getsourcefile", "getsourcelines", "getfile", "inipath"),
}
"""By these a program comes to the path of a file of ours, from which it may go on to any other."""
ASKING: Final = {"usefixtures", "getfixturevalue"}

_FROM: Final = re.compile(r"\bfrom\s+(\w[\w.]*)\s+import\s+(?:\(([^)]*)\)|([\w ,*]+))")
_IMPORT: Final = re.compile(r"(?:\bimport|(?<!\S)-m)\s+(\w[\w.]*)")
_BEFORE: Final = re.compile(r"((?:\w+\.)*\w+)\.$")
_DOTTED: Final = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


class Import(NamedTuple):
    """A module, with a dot before it for each step up from the file's folder, and a name that is taken from it.

    `ANY` and `BELOW` are names that are computed; None says that the module alone is meant.
    """

    module: str
    name: str | None = None


@dataclass(slots=True)
class Part:
    """Of a file, or of one fixture: what is imported, and the fixtures that are asked for."""

    imports: set[Import] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    def add(self, other: Part) -> None:
        self.imports |= other.imports
        self.asked |= other.asked


@dataclass(slots=True)
class Content:
    """What one file says.

    - `fixtures`: those of a `conftest.py` that a test has only when it asks for them; they are not in `part`.
    - `lazy`: the names of a package that loads them when they are first used (it has a `__getattr__`, and the imports
      for type checkers), with the module of each.
    - `named`: the files that it names in backquotes.
    - `computes_modules`: it imports a module whose name it computes.
    - `has_paths`: it comes to the path of a file of ours (`PATHS`).
    """

    part: Part
    fixtures: dict[str, Part] = field(default_factory=dict)
    lazy: dict[str, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    computes_modules: bool = False
    has_paths: bool = False


def content_of(text: str, *, is_conftest: bool) -> Content:
    """Of a file with this text. Raises SyntaxError."""
    tree = ast.parse(text)
    nodes = list(running(tree))
    is_lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in nodes)
    content = Content(
        part=_part_of(nodes, with_texts=not is_lazy),  # those of a lazy package are its table
        lazy=_for_type_checkers(tree) if is_lazy else {},
        named=sorted(set(NAMED.findall(text))),
        computes_modules=not is_lazy and any(map(_is_computing, nodes)),
        has_paths=any(getattr(node, "id", getattr(node, "attr", "")) in PATHS for node in nodes),
    )
    if is_conftest:
        _take_apart(tree, content)
    return content


def running(*nodes: ast.AST) -> Iterator[ast.AST]:
    """These nodes and all in them that may run: neither docstrings nor what is for type checkers."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if _is_for_type_checkers(node):
            waiting += node.orelse
            continue
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                waiting += [it for it in value[_has_docstring(node, name) :] if isinstance(it, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                waiting.append(value)


def _has_docstring(node: ast.AST, name: str) -> bool:
    """Whether what begins there is one: of the body of a module, class or function."""
    if name != "body" or not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)


def _is_for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _for_type_checkers(tree: ast.Module) -> dict[str, str]:
    """The names that type checkers are told of, with the module of each."""
    blocks = [node for node in tree.body if _is_for_type_checkers(node)]
    found = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in found for alias in node.names}


def _part_of(nodes: list[ast.AST], *, with_texts: bool = True) -> Part:
    """What these nodes, with all that is in them, import and ask for."""
    part = Part()
    for node in nodes:
        if isinstance(node, ast.Import):
            part.imports |= {Import(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            part.imports |= {Import(_module(node), alias.name) for alias in node.names}
        elif with_texts and isinstance(node, ast.Constant):
            part.imports |= set(_in_text(_text(node)))
        elif with_texts and isinstance(node, ast.JoinedStr):
            part.imports |= set(_computed_in(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            part.asked |= _arguments(node)
        elif isinstance(node, ast.Call) and _called(node) in ASKING:
            part.asked |= {_text(word) or ANY for word in node.args}
    part.imports |= set(_attributes(nodes))
    part.imports |= set(_started(nodes))
    return part


def _module(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def _in_text(text: str) -> Iterator[Import]:
    for found in _FROM.finditer(text):
        for name in (found[2] or found[3]).split(","):
            yield Import(found[1], next(iter(name.split()), None))  # without the `as`
    for found in _IMPORT.finditer(text):
        yield Import(found[1])
        yield Import(f"{found[1]}.__main__")
    for dotted in _DOTTED.findall(text):
        yield Import(dotted)


def _computed_in(text: ast.JoinedStr) -> Iterator[Import]:
    """The module before a computed name: any that lies below."""
    for before, value in pairwise(text.values):
        if isinstance(value, ast.FormattedValue) and (found := _BEFORE.search(_text(before))):
            yield Import(found[1], BELOW)


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The fixtures that pytest gives to this function."""
    if not (function.name.startswith("test") or any("fixture" in ast.unparse(it) for it in function.decorator_list)):
        return set()
    return {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}


def _attributes(nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """What is taken from a module that was imported, `import embridge` and then `embridge.attach`."""
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            whole = {it.name.partition(".")[0]: it.name.partition(".")[0] for it in node.names if not it.asname}
            bound |= whole | {it.asname: it.name for it in node.names if it.asname}
        elif isinstance(node, ast.ImportFrom):
            module = _module(node)
            bound |= {it.asname or it.name: module + "." * (module[-1:] != ".") + it.name for it in node.names}
    num_taken, num_used = Counter[str](), Counter[str]()
    for node in nodes:
        if isinstance(node, ast.Attribute) and (names := _dotted(node)) and names[0] in bound:
            num_taken[names[0]] += len(names) == 2
            yield Import(".".join([bound[names[0]], *names[1:-1]]), names[-1])
        elif isinstance(node, ast.Name):
            num_used[node.id] += 1
    for name, module in bound.items():
        if num_used[name] > num_taken[name]:  # somebody is given it: `getattr(module, ...)`
            yield Import(module, ANY)


def _dotted(node: ast.Attribute) -> list[str]:
    """The names of `a.b.c`; none where it begins with something else."""
    names = [node.attr]
    inner = node.value
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    return [inner.id, *reversed(names)] if isinstance(inner, ast.Name) else []


def _started(nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """Modules that are run: what follows `-m` in the words of a command, or is run by name."""
    is_said_elsewhere = False
    for node in nodes:
        words = node.args if isinstance(node, ast.Call) else getattr(node, "elts", [])
        modules = [module for word, module in pairwise(words) if _text(word) == "-m"]
        modules += words[:1] if isinstance(node, ast.Call) and _called(node) in RUNNING else []
        for module in modules:
            if text := _text(module):
                yield Import(text)
                yield Import(f"{text}.__main__")
            is_said_elsewhere |= not _text(module)
    if is_said_elsewhere:
        for text in filter(None, map(_text, nodes)):
            if text.isidentifier():
                yield Import(text)
                yield Import(f"{text}.__main__")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_computing(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) in COMPUTING and bool(node.args) and not _text(node.args[0])


# ---- conftest.py


def _take_apart(tree: ast.Module, content: Content) -> None:
    """Give what is imported at the top to who uses its name: a fixture that a test does not ask for brings it nothing.

    So does a function or class without a decorator, of which fixtures may make use.
    """
    brought: dict[str, list[ast.AST]] = {}
    rest: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                alone = ast.Import([alias]) if isinstance(node, ast.Import) else _one_of(node, alias)
                brought.setdefault(name, []).append(alone)
        elif not _is_for_type_checkers(node):
            rest.append(node)
    unused = brought.keys() - _names(*rest)
    content.part = _part_of([alone for name in unused for alone in brought[name]])  # for what its import does
    helpers = {node.name: node for node in rest if _is_helper(node)}
    for node in rest:
        if _is_helper(node):
            continue
        part = _part_of(_with_helpers(node, brought, helpers))
        if _is_asked_for(node):
            content.fixtures[node.name] = part
        else:
            content.part.add(part)


def _one_of(node: ast.ImportFrom, alias: ast.alias) -> ast.ImportFrom:
    return ast.ImportFrom(node.module, [alias], node.level)


def _names(*nodes: ast.AST) -> set[str]:
    return {inner.id for inner in running(*nodes) if isinstance(inner, ast.Name)}


def _with_helpers(
    node: ast.stmt, brought: dict[str, list[ast.AST]], helpers: Mapping[str, ast.stmt]
) -> list[ast.AST]:
    """All that runs in this node, and in what it makes use of by name; with the imports of these names."""
    found, waiting, names = [node], [node], set[str]()
    while waiting:
        new = _names(waiting.pop()) - names
        names |= new
        used = [helpers[name] for name in new & helpers.keys()]
        found += used
        waiting += used
    return [*running(*found), *(alone for name in names for alone in brought.get(name, ()))]


def _is_helper(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.ClassDef]:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return False
    return not node.decorator_list and not node.name.startswith("pytest_")


def _is_asked_for(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Whether it is a fixture that a test has only when it asks for it, by the function's name."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    return any("fixture" in mark for mark in marks) and not any(
        word in mark for mark in marks for word in ("autouse", "name=")
    )
