"""Writes the pages of the API from the docstrings of the public names.

    python -m embridge.api_page docs/api

A name of `embridge.__all__` stands on one page (`PAGES`). Of a class, what is public is shown; `INTERNAL` has what only
other files of embridge use.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

import embridge
from embridge.allocator.settings import settings_of
from embridge.pipeline import options_page
from embridge.pipeline.config import PipelineConfig, groups

WIDTH: Final = 120
PAGES: Final = {
    "nodes": (
        "Nodes and clients",
        "Launch a node, join it from a process, and look at it.",
        *("launch", "Node", "attach", "Client", "spawn", "node_status", "RouteRecord"),
        *("PipelineConfig", "Geometry", "Limits", "Timing", "MooncakeSettings"),
    ),
    "encoder": (
        "The encoder's side",
        "Give the rows of a request. [The guide for encoders](../encoder.md) shows them at work.",
        *("EmbeddingSender", "WritableRows"),
    ),
    "scheduler": (
        "The scheduler's side",
        "Receive requests. [The guide for schedulers](../scheduler.md) shows them at work.",
        *("PreallocQueue", "TransferQueue", "WaitingQueue", "EmbeddingRequest", "EmbeddingResult", "EmbeddingChunk"),
        *("Phase", "FailureCode", "receive", "Arrival", "EmbeddingReceiver", "follow", "Follower", "FollowedRequest"),
    ),
    "items": (
        "Published items",
        "Rows under a key, and caches of them. [The guide to published items](../items.md) shows them at work.",
        *("ClientShelf", "Published", "PublishStatus", "WhyDropped", "PublishedRows", "ShelfCounts", "ItemRecord"),
        *("WantedItem", "Fetch", "Item", "Subscription", "ItemNotice", "NoticeKind", "ItemCache", "Wanted"),
        *("WantStatus", "HeldItem", "RowsAt", "CacheReader", "CacheCounts", "RequestItems", "StepLoads"),
    ),
    "errors": (
        "Exceptions",
        "The classes, and what they carry. [Errors](../errors.md) has the cause and the remedy of each.",
        *("EmbridgeError", "ConfigError", "LaunchError", "SegmentError", "AttachError", "NodeGoneError"),
        *("NodeUnhealthyError", "NodeBusyError", "NoRouteError", "TransferError", "TransferTimeout"),
        *("TransferAborted", "PeerLost", "FetchError", "FetchFailed", "FetchTimeout", "NotPublished"),
        *("GenerationGone", "ItemsTooLarge", "Busy"),
    ),
}
"""Of each page its title, what it is about, and its names in the order in which a reader needs them."""
MADE_BY_CALLERS: Final = {
    *("PreallocQueue", "TransferQueue", "WaitingQueue", "EmbeddingRequest", "RequestItems", "CacheReader"),
}
OF_A_HANDLE: Final = {
    *("aux", "catch_up", "end_here", "end_without_slot", "entered", "evict", "fail", "give_up", "has_risen"),
    *("has_settled", "is_by_hand", "is_untold", "is_waiting", "keep_outcome", "let_go", "may_end_here", "driver"),
    *("prepare", "refuse", "release_untold", "service", "tell", "wants_block", "stock", "send_granted", "is_tainted"),
    "wake",
}
INTERNAL: Final = {
    "EmbeddingSender": OF_A_HANDLE,
    "EmbeddingReceiver": {*OF_A_HANDLE, "check_neighbour", "grant", "neighbour", "num_returned", "request", "take"},
    "EmbeddingRequest": {"record", "receiver"},
    "TransferQueue": {"add", "check_room"},
    "Fetch": {"call_back", "end"},
    "Item": {"copied", "move_out", "move_to"},
    "Subscription": {"take"},
    "PublishedRows": {"end"},
    "WritableRows": {"of", "until"},
    "Wanted": {"missed"},
    "PipelineConfig": {"of_layers"},
}
_SETTINGS: Final = {"": PipelineConfig, **groups()}
_SECTION: Final = re.compile(r"(?m)^(Returns|Raises):$")
_ENTRY: Final = re.compile(r"(?m)^(?=[\w.]*[A-Z]\w+(?:, [A-Z]\w+)*: )")


class Member(NamedTuple):
    """What is public of a class: `kind` is of the list `KINDS`."""

    name: str
    kind: str
    type: str
    default: str
    doc: str
    value: Any = None


def pages() -> Iterator[tuple[str, str]]:
    """Of each page the name of its file, and its text."""
    yield "index.md", _index()
    for file, (title, about, *names) in PAGES.items():
        parts = [f"# {title}", f"{about}\n\n{_GENERATED}", *(part for name in names for part in _entry(name))]
        yield f"{file}.md", "\n\n".join(parts) + "\n"
    yield "options.md", options_page.page()


_GENERATED: Final = "This page is generated: `make api` writes it from the docstrings, and a test compares the two."


def _index() -> str:
    parts = [
        "# API",
        _fill(f"Every public name, each to be imported from `embridge`. {_GENERATED}"),
    ]
    for file, (title, _, *names) in PAGES.items():
        lines = [
            _fill(f"- [`{name}`]({file}.md#{name.lower()}): {_first(name)}", indent="  ") for name in names
        ]
        parts += [f"## [{title}]({file}.md)", "\n".join(lines)]
    parts.append("[Options](options.md) lists those of each command.")
    return "\n\n".join(parts) + "\n"


def _first(name: str) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=\.)\s", inspect.cleandoc(getattr(embridge, name).__doc__ or ""), maxsplit=1)[0]


def _entry(name: str) -> Iterator[str]:
    it = getattr(embridge, name)
    path = _path(it)
    yield f"## {name}"
    bases = [f"`{base.__name__}`" for base in getattr(it, "__bases__", ()) if _is_told(base)]
    kind = "Function" if not isinstance(it, type) else f"Class, of {' and '.join(bases)}" if bases else "Class"
    yield f"{kind}, in [`{path}`](../../{path})"
    if not isinstance(it, type) or name in MADE_BY_CALLERS:
        yield _signature(name, it)
    if it.__doc__ and not it.__doc__.startswith(f"{name}("):  # that one the dataclass has made
        yield from _text(it.__doc__)
    if isinstance(it, type):
        yield from _members(it)


def _is_told(base: type) -> bool:
    """Whether it says something of a class that this is a base of it: one of ours, or what a caller may catch."""
    return base.__name__ in embridge.__all__ or (issubclass(base, Exception) and base is not Exception)


def _path(it: Any) -> str:
    """Where a class or function stands, from the root of the sources."""
    parts = it.__module__.split(".")
    return "/".join(parts[1:] if parts[1] != "integrations" else parts) + ".py"


def _members(it: type) -> Iterator[str]:
    if group := [group for group, kind in _SETTINGS.items() if kind is it]:
        names = ", ".join(f"`{name}`" for name in settings_of(it))
        yield _fill(f"Its fields are keyword arguments, and [settings](../settings.md): {names}.")
    members = [member for member in _found(it) if not (group and member.kind == "field")]
    fields = [member for member in members if member.kind in ("field", "property", "member")]
    if fields:
        yield "\n".join(_line(member) for member in fields)
    for member in members:
        if member.kind == "method":
            yield f"### {it.__name__}.{member.name}"
            yield _signature(member.name, member.value)
            yield from _text(member.doc)


def _line(member: Member) -> str:
    default = f", by default `{member.default}`" if member.default else ""
    said = f" ({f'`{member.type}`' if member.type else ''}{default})" if member.type else ""
    value = f" = {member.default}" if member.kind == "member" else ""
    doc = " ".join(part.replace("\n", " ") for part in _text(member.doc))
    text = f"- **`{member.name}{value}`**{said if member.kind != 'member' else ''}{': ' if doc else ''}{doc}"
    return _fill(text, indent="  ")


def _found(it: type) -> Iterator[Member]:
    """What is public of a class and of its bases that have no entry of their own, in the order of the sources."""
    seen = set(INTERNAL.get(it.__name__, ()))
    for base in it.__mro__:
        if not base.__module__.startswith("embridge.") or (base is not it and base.__name__ in embridge.__all__):
            continue
        source = inspect.getsource(base)
        tree = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for member in _defined(base, tree, source.splitlines()):
            if not member.name.startswith("_") and member.name not in seen:
                seen.add(member.name)
                yield member


def _defined(it: type, tree: ast.ClassDef, lines: list[str]) -> Iterator[Member]:
    for node, behind in zip(tree.body, [*tree.body[1:], None], strict=True):
        doc = _doc_of(node, behind, lines)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = "" if node.value is None else _default(node.value)
            yield Member(node.target.id, "field", ast.unparse(node.annotation), default, doc)
        elif isinstance(node, ast.Assign) and issubclass(it, Enum) and isinstance(node.targets[0], ast.Name):
            value = it.__members__.get(node.targets[0].id)
            if value is not None:
                yield Member(node.targets[0].id, "member", "", f"{value.value!r}", doc)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            static = inspect.getattr_static(it, node.name)
            if isinstance(static, property):
                said = ast.unparse(node.returns) if node.returns else ""
                yield Member(node.name, "property", said, "", static.__doc__ or "")
            else:
                yield Member(node.name, "method", "", "", static.__doc__ or "", getattr(it, node.name))


def _default(value: ast.expr) -> str:
    """The default of a field as it stands in the source; empty for one that is no argument."""
    if isinstance(value, ast.Call):
        given = {it.arg: it.value for it in value.keywords}
        is_set_by_us = "init" in given
        return "" if is_set_by_us or "default" not in given else ast.unparse(given["default"])
    return ast.unparse(value)


def _doc_of(node: ast.stmt, behind: ast.stmt | None, lines: list[str]) -> str:
    """The text behind a field: of a string on the next line, or of a comment on its own."""
    if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant) and isinstance(behind.value.value, str):
        return behind.value.value
    comment = re.search(r"  # (.*)$", lines[(node.end_lineno or node.lineno) - 1])
    return f"{comment[1]}." if comment and not comment[1].startswith(("type:", "noqa", "fmt:")) else ""


def _signature(name: str, it: Callable[..., Any]) -> str:
    try:
        found = inspect.signature(it)
    except ValueError:
        return ""
    parts, was_keyword = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not was_keyword:
            parts.append("*")
        was_keyword |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" * (parameter.kind is parameter.VAR_KEYWORD)
        said = "" if parameter.annotation is parameter.empty else f": {_named(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{said}{default}")
    begin = f"{'class' if isinstance(it, type) else 'async def' if inspect.iscoroutinefunction(it) else 'def'} {name}("
    end = ")" if isinstance(it, type) else f") -> {_named(found.return_annotation)}"
    line = f"{begin}{', '.join(parts)}{end}"
    if len(line) > WIDTH - 10:
        line = "\n".join([begin, *(f"    {part}," for part in parts), end])
    return f"```py\n{line}\n```"


def _named(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _value(default: Any) -> str:
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    return "..." if callable(default) else repr(default)


def _text(doc: str | None) -> Iterator[str]:
    """The paragraphs of a docstring, as Markdown."""
    text, *sections = _SECTION.split(inspect.cleandoc(doc or ""))
    for part in text.split("\n\n"):
        if part.startswith("    "):
            yield f"```py\n{textwrap.dedent(part).rstrip()}\n```"
        elif part.strip():
            yield part if part.startswith("- ") else _fill(part)
    for name, section in zip(sections[::2], map(_section, sections[1::2]), strict=True):
        if name == "Raises":
            yield "Raises:\n\n" + "\n".join(
                _fill(re.sub(r"^([\w., ]+?): ", lambda it: f"- {_quoted(it[1])}: ", entry), indent="  ")
                for entry in _ENTRY.split(section)
                if entry.strip()
            )
        else:
            yield _fill(f"Returns {section}" if not section[0].isupper() else f"Returns: {section}")


def _section(text: str) -> str:
    """What stands indented under a section's name."""
    return textwrap.dedent(text.strip("\n")).strip()


def _quoted(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for file, text in pages():
        (folder / file).write_text(text)
