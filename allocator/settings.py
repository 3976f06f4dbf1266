"""Settings: dataclass fields that state their help, their range and their choices once, for all who read or show them.

A group is a frozen dataclass whose fields are made by `setting`. `check` looks at a group's values (in its
`__post_init__`). `settings_of` lists its fields; environment, TOML, command line and `docs/settings.md` go by that
list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import msgspec

_BOOLEANS: Final = {"yes": "true", "no": "false"}  # beside true, false, 1 and 0, which msgspec knows
_KINDS: Final = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Path": "path"}
_SEEN: Final = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list",
                "dict": "a table", "NoneType": "nothing"}  # fmt: skip
_COUNTED: Final = {
    *("blocks", "clients", "destinations", "layers", "peers", "records", "restarts", "routes", "slots"),
    *("tokens", "workers"),
}


class Setting(NamedTuple):
    """One field of a group.

    `given_help` is its help, or a function that makes it. `why` is the reason of its default. `limits` are those of
    `msgspec.Meta`, by name. With `is_flag` the command line has the setting, too. A setting that `is_required` has no
    default: it is asked for, and the group that has it refuses the empty text.
    """

    name: str
    kind: type
    is_optional: bool
    default: Any
    given_help: str | Callable[[], str]
    why: str
    limits: tuple[tuple[str, float], ...]
    choices: Callable[[], Sequence[str]] | None
    is_flag: bool
    given_unit: str
    is_required: bool

    @property
    def help(self) -> str:
        """What the setting is for, as one or more sentences."""
        return self.given_help if isinstance(self.given_help, str) else self.given_help()

    @property
    def low(self) -> float | None:
        """The least value, or the value that all are above."""
        return next((limit for name, limit in self.limits if name in ("ge", "gt")), None)

    @property
    def high(self) -> float | None:
        """The greatest value, or the value that all are below."""
        return next((limit for name, limit in self.limits if name in ("le", "lt")), None)

    @property
    def unit(self) -> str:
        """The last word of the name, with a space before it, if that word is a unit; else empty."""
        return {"s": " s", "bytes": " bytes"}.get(self.name.rpartition("_")[2], "")

    @property
    def counted(self) -> str:
        """What its number counts, for people: `s`, `bytes`, `slots`; empty for what counts nothing."""
        last = self.name.rpartition("_")[2]
        return self.given_unit or self.unit.strip() or (last if self.kind is int and last in _COUNTED else "")

    @property
    def kind_name(self) -> str:
        """The kind of its values, in words."""
        return _KINDS[self.kind.__name__]

    @property
    def expected(self) -> str:
        """The same, as what an error expects."""
        return f"a {self.kind_name}" if self.kind not in (str, bool) else self.kind_name

    def error(self, value: object) -> str:
        """What is wrong with a value, in the words of an error."""
        if self.choices is not None and isinstance(value, str):
            return f"{self.name}: {value!r} is unknown; use one of {', '.join(self.choices())}"
        is_number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
        if self.low is None or not is_number:
            return f"{self.name}: expected {self.expected}, got {seen(value)}"
        if self.high is None:
            return f"{self.name}: {value!r}{self.unit} < {shown(self.low)}{self.unit}; give at least that"
        return f"{self.name}: {value!r}{self.unit} is outside {shown(self.low)} to {shown(self.high)}{self.unit}"

    def from_text(self, text: str) -> Any:
        """The value that a text stands for; its range is not checked. Raises ValueError."""
        if self.kind is bool:
            return msgspec.convert(_BOOLEANS.get(text.lower(), text), bool, strict=False)
        return self.kind(text)


def seen(value: object) -> str:
    """A value and its type, as an error about its type says what it got."""
    kind = type(value).__name__
    return "nothing" if value is None else f"{value!r}, {_SEEN.get(kind, f'of type {kind}')}"


def no_table(name: str, value: object, group: type) -> str:
    """What is wrong with a value that is no group of settings, in the words of an error."""
    return f"{name}: expected a table of settings, [{name}] in a file ({group.__name__}), got {seen(value)}"


def shown(limit: float) -> str:
    """A limit as people write it."""
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def setting(
    default: Any,
    help: str | Callable[[], str],
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
    is_flag: bool = False,
    why: str = "",
    unit: str = "",
    is_required: bool = False,
) -> Any:
    """A dataclass field that is a setting (see `Setting`).

    `choices`, and `help` where it is a function, are called each time they are shown or checked, not before. `why` ends
    the sentence that its default begins: no capital letter, no full stop.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    given = tuple((name, limit) for name, limit in limits.items() if limit is not None)
    told = {"given_help": help, "why": why, "limits": given, "choices": choices, "is_flag": is_flag}
    return dataclasses.field(default=default, metadata=told | {"given_unit": unit, "is_required": is_required})


@cache
def settings_of(group: Hashable) -> dict[str, Setting]:
    """The settings of a group, by name, in their order. Fields without help, such as other groups, are left out."""
    kind: Any = group
    found, hints = {}, get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if "given_help" in field.metadata:
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            found[field.name] = Setting(
                name=field.name, kind=kinds[0], is_optional=type(None) in kinds, default=field.default, **field.metadata
            )
    return found


@cache
def _type_of(setting: Setting) -> Any:
    """The type as msgspec checks it."""
    kind: Any = setting.kind
    limits: dict[str, Any] = dict(setting.limits)
    if limits:
        kind = Annotated[kind, msgspec.Meta(**limits)]
    return kind | None if setting.is_optional else kind


def check(group: Any) -> None:
    """Check every setting of a group.

    Raises:
        ValueError: a value is of another type, out of its range, or none of its choices; the text begins with its name.
    """
    kind: Any = type(group)
    for name, it in settings_of(kind).items():
        value = getattr(group, name)
        if it.kind is Path and isinstance(value, str):
            continue
        try:
            msgspec.convert(value, _type_of(it))
        except msgspec.ValidationError:
            raise ValueError(it.error(value)) from None
        if it.choices is not None and value not in it.choices() and not (it.is_required and value == ""):
            raise ValueError(it.error(value))
