"""What the product defines it also uses: words of shared memory, kicks, counters, states, settings and functions.

A word that is written and never read is a promise that nobody keeps (or a check that is missing), and one that is read
and never written is always 0. What only a test calls is the test's. (Fields of messages:
`tests/workers/wire/test_wire_fields.py`.)
"""

from __future__ import annotations

import ast
import enum
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.trees import nodes_of, parsed

import embridge
from embridge.allocator import errors, geometry, metrics, plain_enums, ranklog, records, rings, shelf, status
from embridge.pipeline.config import PipelineConfig
from embridge.workers.timing import Timing
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("allocator", "workers", "pipeline", "examples") for path in (ROOT / package).rglob("*.py")
)
MODULES = (errors, geometry, metrics, ranklog, records, rings, shelf, status)

WRITE = {"set", "put", "store", "raise_to", "count", "set_bits", "clear_bits", "compare_exchange", "add", "settle"}
READ = {"get", "load", "compare_exchange", "_word"}
ACCESSORS = {"LaneBits"}  # classes that set, clear and read the word that they are given
SEND = {"send", "send_now", "kick_bootstrap", "kick_worker"}

WORDS = (
    *(records.SegmentHeader, records.Process, records.Lane, records.Slot),
    *(records.Destination, records.Peer, records.Writer, records.Session, records.Shelf, records.Reader),
    *(records.Route, records.Discovery, ranklog.LogHeader, ranklog.Rank),
)
STATES = (
    *(records.NodeState, records.LaneState, records.PeerState, records.DiscoveryState, geometry.Role),
    *(ranklog.LeaderState, ranklog.RankState, status.Phase, errors.FailureCode, shelf.Answer, shelf.ItemState),
)

Word = tuple[type[enum.Enum], str]


class Use:
    """One mention of a member of an enum: in which call it stands, and whether that call's answer is used."""

    def __init__(self, node: ast.Attribute, parents: dict[ast.AST, ast.AST], tree: ast.AST) -> None:
        self.calls: set[str] = set()
        self.is_stored = self.is_loaded = self.is_compared = False
        child: ast.AST = node
        while (parent := parents.get(child)) is not None:
            if isinstance(parent, ast.Subscript) and child is parent.slice:
                self.is_stored |= isinstance(parent.ctx, ast.Store)
                self.is_loaded |= isinstance(parent.ctx, ast.Load)
                return
            if isinstance(parent, ast.Dict) and child in parent.keys:  # words that are stored one after the other
                self.is_stored = True
                return
            if isinstance(parent, ast.Compare | ast.match_case):
                self.is_compared = True
                return
            if isinstance(parent, ast.Call) and child is not parent.func:
                name = called(parent)
                if name in ACCESSORS:
                    self.is_stored = self.is_loaded = True
                    return
                if name != "range" and (name[:1].islower() or name.startswith("_")):
                    self.calls.add(name)
                    if name == "add" and not isinstance(parents.get(parent), ast.Expr):
                        self.is_loaded = True
                    return
            if isinstance(parent, ast.For | ast.comprehension) and child is parent.iter:
                body = parent.body if isinstance(parent, ast.For) else [parents[parent]]
                self.calls |= {
                    called(inner) for part in body for inner in ast.walk(part) if isinstance(inner, ast.Call)
                }
                return
            if isinstance(parent, ast.stmt):
                return
            child = parent


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@cache
def uses() -> dict[Word, list[Use]]:
    """Every mention of a member of an enum of `MODULES` outside its own class."""
    found: dict[Word, list[Use]] = defaultdict(list)
    for path in SOURCES:
        tree = parsed(path)
        parents = {child: node for node in nodes_of(tree) for child in ast.iter_child_nodes(node)}
        names = _names(path, tree)
        for node in nodes_of(tree):
            if isinstance(node, ast.Attribute):
                owner = names.get(ast.unparse(node.value))
                if owner is not None:
                    found[owner, node.attr].append(Use(node, parents, tree))
    return found


def _names(path: Path, tree: ast.Module) -> dict[str, type[enum.Enum]]:
    """What the enums of `MODULES` are called in a file."""
    names: dict[str, type[enum.Enum]] = {}
    own = f"embridge.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}"
    for module in MODULES:
        classes = {
            name: it for name, it in vars(module).items() if isinstance(it, type) and it.__module__ == module.__name__
        }
        here = {name: it for name, it in classes.items() if issubclass(it, enum.Enum)}
        if module.__name__ == own:
            names.update(here)
        for node in nodes_of(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if node.module in (module.__name__, plain_enums.__name__) and alias.name in here:
                    names[alias.asname or alias.name] = here[alias.name]
                elif f"{node.module}.{alias.name}" == module.__name__:
                    names.update({f"{alias.asname or alias.name}.{name}": value for name, value in here.items()})
    return names


# ---- words, kicks, counters, states

ALIKE = {
    (records.Slot, "EPOCH"): "`native/slots.h` writes it",
    (records.Shelf, "DRAWN"): "`native/shelf.h` writes it",
    (records.Shelf, "FLOOR"): "`native/shelf.h` writes it",
    (records.Shelf, "READERS"): "`native/shelf.h` reads it",
    (records.SegmentHeader, "SLOT_WAITERS"): "a `LaneBits` reads and writes it",
    (records.SegmentHeader, "ROOM_WAITERS"): "a `LaneBits` reads and writes it",
    (records.Lane, "NUM_EARLY"): "it is read of all lanes at once, as a range from the first",
}


def unused() -> Iterator[str]:
    """The words that nobody writes, or nobody reads."""
    for words in WORDS:
        for name in words.__members__:
            if (words, name) in ALIKE:
                continue
            found = uses()[words, name]
            if not any(use.is_stored or use.calls & WRITE for use in found):
                yield f"{words.__module__}.{words.__name__}.{name}: nobody writes it"
            if not any(use.is_loaded or use.calls & READ for use in found):
                yield f"{words.__module__}.{words.__name__}.{name}: nobody reads it"


def test_every_word_has_a_writer_and_a_reader() -> None:
    """Of the control segment and of the log of the ranks."""
    assert sorted(unused()) == []


def test_every_kick_is_sent_and_told_apart() -> None:
    """LOOK is what every kick asks for; the others say more."""
    for kick in rings.Kick:
        found = uses()[rings.Kick, kick.name]
        assert any(use.calls & SEND for use in found), f"nobody sends {kick!r}"
        assert any(use.is_compared for use in found) or kick == rings.Kick.LOOK, f"nobody looks for {kick!r}"


def test_every_counter_is_counted_and_shown() -> None:
    for metric in metrics.Metric:
        found = uses()[metrics.Metric, metric.name]
        assert any(use.calls & {"count", "count_for_client"} for use in found), f"nobody counts {metric!r}"
    assert "control.metrics.all()" in (ROOT / "pipeline" / "inspection" / "observe.py").read_text()


BEGINNINGS = {
    (errors.FailureCode, "NONE"): "what stands in `Slot.FAILURE` before anybody has claimed a failure",
    (ranklog.LeaderState, "LEADING"): "what stands in `LogHeader.LEADER` until the launcher writes there",
    (ranklog.RankState, "AWAITED"): "what stands in `Rank.STATE` until the launcher writes there",
}


def test_every_state_is_somebodys() -> None:
    """A state that no code names is one that nothing is ever in, or that nobody has thought of."""
    for states in STATES:
        for name, state in states.__members__.items():
            if (states, name) in BEGINNINGS:
                assert state == 0
            else:
                assert uses()[states, name], f"nobody names {states.__name__}.{name}"


def test_a_word_that_is_not_used_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a word that nobody writes, and one that nobody reads."""
    class Slot(enum.IntEnum):
        ROOM = 0
        NOWHERE = 1

    found = {
        (Slot, "ROOM"): [
            use for use in uses()[records.Slot, "ROOM"] if "get" not in use.calls and not use.is_loaded
        ],
        (Slot, "NOWHERE"): [],
    }
    monkeypatch.setattr("test_words.WORDS", (Slot,))
    monkeypatch.setattr("test_words.uses", lambda: found)
    assert [problem.partition(".Slot.")[2] for problem in unused()] == [
        "ROOM: nobody reads it", "NOWHERE: nobody writes it", "NOWHERE: nobody reads it",
    ]  # fmt: skip


# ---- settings

SETTINGS: dict[Any, set[str]] = {
    PipelineConfig: {"config", "_config"},
    Timing: {"timing", "_timing"},
    geometry.Limits: {"limits", "_limits"},
    geometry.Geometry: {"geometry", "_geometry"},
    MooncakeSettings: {"settings", "_settings"},
}
"""And what a variable is called that holds one."""
THROUGH = {"run_dir": "directory"}  # the property that reads it: never None


@cache
def readers() -> dict[str, set[str]]:
    """Field name -> what it is taken from, wherever the product reads an attribute, but for a dataclass's look at
    itself.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for node in nodes_of(parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                value = node.value
                found[node.attr].add(value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", ""))
    return found


@pytest.mark.parametrize("group", SETTINGS, ids=lambda group: group.__name__)
def test_every_setting_is_read(group: Any) -> None:
    found, names = readers(), SETTINGS[group]
    for field in fields(group):
        name = THROUGH.get(field.name, field.name)
        assert found[name] & names, f"{group.__name__}.{field.name}: nobody reads it; it is taken from {found[name]}"


# ---- functions and constants

PUBLIC = {
    "from_toml": "of a configuration, for who launches a node from Python",
    "publishing": "of a shelf, for who makes rows where they will be read",
    "buffered_chunks": "of a request, for who looks at it before its end",
    "copy_to": "of a result, for who needs its rows elsewhere",
    "pop_available": "of a transfer queue, for who reads rows as they land",
    "kept_bytes": "of a fetch, for who decides whether to retry it",
}
CALLED_BY_OTHERS = {
    "emit": "logging",
    "resolve": "aiohttp",
    "format_commands": "click",
    "forward": "torch",
}


class Names(ast.NodeVisitor):
    """What a file defines, and what it mentions; a template mentions what stands in its braces."""

    def __init__(self) -> None:
        self.defined: dict[str, int] = {}
        self.mentioned: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.defined[node.name] = node.lineno
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef

    def visit_Assign(self, node: ast.Assign) -> None:
        self.defined.update({it.id: it.lineno for it in node.targets if isinstance(it, ast.Name) and it.id.isupper()})
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id.isupper():
            self.defined[node.target.id] = node.lineno
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.mentioned.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.mentioned.add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.mentioned.update({node.value} if node.value.isidentifier() else re.findall(r"\{v\.(\w+)", node.value))


def test_what_the_product_defines_it_uses_or_offers() -> None:
    """Else it is dead, or the test's, and stands there."""
    seen = {}
    for path in SOURCES:
        seen[path] = Names()
        seen[path].visit(parsed(path))
    users = Names()
    for path in (ROOT / "embridge").rglob("*.py"):
        users.visit(parsed(path))
    mentioned = users.mentioned.union(*(names.mentioned for names in seen.values()))
    excused = {name for table in (PUBLIC, CALLED_BY_OTHERS) for name in table}
    dead = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, names in seen.items()
        for name, line in names.defined.items()
        if name not in mentioned | excused | set(embridge.__all__) and not (name.startswith("__") or is_member(name))
    ]
    assert dead == []
    assert excused <= {name for names in seen.values() for name in names.defined} - mentioned, (
        "an excuse that nobody needs"
    )


def is_member(name: str) -> bool:
    """Members of the enums of `MODULES` have tests of their own."""
    return any(
        name in it.__members__ for module in MODULES for it in vars(module).values() if isinstance(it, enum.EnumType)
    )
