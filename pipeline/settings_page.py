"""Writes the page of settings from the settings themselves.

    python -m embridge.pipeline.settings_page > docs/settings.md
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from embridge.allocator.settings import Setting, settings_of, shown
from embridge.pipeline.config import DOCUMENTED, POOL_TOKENS, PipelineConfig, flags_of, groups, variable_of
from embridge.workers.transfer import engines

WIDTH: Final = 120
_HEAD: Final = f"""# Settings

This page is generated: `make settings` writes it from the fields of `PipelineConfig`, and a test compares the two.

```bash
EMBRIDGE_NUM_SLOTS=512 embridge launch --config node.toml --role encode --num-blocks 256
```

A value comes from the first of these places that has one:

1. a flag of `embridge launch` (or an argument of `PipelineConfig`),
2. a variable of the environment,
3. the TOML file that `--config` names; groups are tables there (`[limits]`),
4. the default.

A value that cannot be used is an error that names the setting, the value, what is allowed, and where it came from. A
variable `EMBRIDGE_...` that no setting has is named in a warning, with the one that is nearest to it.
`{POOL_TOKENS}` is the pool in tokens; it becomes `geometry.num_blocks`.

```bash
embridge launch --print-config --config node.toml --role encode   # every value, and where it comes from, as a TOML file
embridge launch --check --config node.toml --role encode          # whether such a node could start here, now
```

[`deploy/node.toml`](../deploy/node.toml) is a file with every setting, its range and its reason, each
commented out. `--check` looks at the keys, the packages, the limits, shared memory, both ports and the run directory,
makes nothing, and ends with status 1 if a node would not start.

SIGHUP has a running node read `log_level`, the allow-list and the key file again; all else needs a restart
([signals](deploying.md#signals)).

To add a setting, add one field (`pipeline/config.py`, the group's class, or an engine's file) with `setting(default,
help, why=...)`. Flag, variable, TOML key, check, this page and the sample file follow from it.
"""
_TITLES: Final = {
    "": "The node",
    "geometry": "Blocks: `[geometry]`",
    "limits": "How much of everything: `[limits]`",
    "timing": "Times: `[timing]`",
}
"""Of the node's own groups; an engine's has its title."""


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    titles = _TITLES | {it.name: f"{it.title}: `[{it.name}]`" for it in engines.ENGINES}
    for group, kind in {"": PipelineConfig, **groups()}.items():
        parts.append(f"## {titles[group]}\n")
        parts.append("\n".join(_entry(group, it) for it in settings_of(kind).values()) + "\n")
    return "\n".join(parts)


def _entry(group: str, it: Setting) -> str:
    facts = "; ".join(_facts(it))
    places = [f"`{variable_of(group, it.name)}`"]
    if documented := DOCUMENTED.get(f"{group}.{it.name}" if group else it.name):
        places.append(f"`{documented}`")
    places[:0] = [f"`{flag}`" for flag in flags_of(group, it)]
    places.append(f"TOML `{group}.{it.name}`" if group else f"TOML `{it.name}`")
    why = f" Why this default: {it.why}." if it.why else ""
    text = f"**`{it.name}`** ({facts}): {it.help}{why} {', '.join(places)}."
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _facts(it: Setting) -> Iterator[str]:
    """What kind of value it takes, which ones, and which it has if nobody gives one."""
    yield it.kind_name
    if allowed := allowed_of(it):
        yield allowed
    if it.is_required:
        yield "no default, it is asked for"
    elif it.default not in (None, ""):
        yield f"default {default_of(it)}"


def allowed_of(it: Setting) -> str:
    """The choices of a setting, or its range with the unit; empty where it takes any value of its kind."""
    if it.choices is not None:
        return f"one of {', '.join(it.choices())}"
    unit = f" {it.counted}" if it.counted else ""
    if it.low is None:
        return ""
    names = [name for name, _ in it.limits]
    low = f"{'above' if 'gt' in names else 'from'} {shown(it.low)}"
    return f"{low}{f' {_below(names)} {shown(it.high)}' if it.high is not None else ''}{unit}"


def _below(names: list[str]) -> str:
    return "to below" if "lt" in names else "to"


def default_of(it: Setting) -> str:
    """The default as people write it, with its unit; `none` where there is none."""
    if it.default in (None, ""):
        return "none"
    default = str(it.default).lower() if it.kind is bool else f"{it.default}"
    return f"{default} {it.counted}" if it.counted else default


if __name__ == "__main__":
    print(page(), end="")
