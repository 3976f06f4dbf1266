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

A value that cannot be used is an error that names the setting, the value, what is allowed, and where it came from.
`{POOL_TOKENS}` is the pool in tokens; it becomes `geometry.num_blocks`.

To add a setting, add one field (`pipeline/config.py`, the group's class, or an engine's file) with `setting(default,
help, ...)`. Flag, variable, TOML key, check and this page follow from it.
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
    text = f"**`{it.name}`** ({facts}): {it.help} {', '.join(places)}."
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _facts(it: Setting) -> Iterator[str]:
    """What kind of value it takes, which ones, and which it has if nobody gives one."""
    yield {"str": "text", "bool": "true or false", "Path": "path", "int": "whole number", "float": "number"}[
        it.kind.__name__
    ]
    if it.choices is not None:
        yield f"one of {', '.join(it.choices())}"
    elif it.low is not None:
        names = [name for name, _ in it.limits]
        low = f"{'above' if 'gt' in names else 'from'} {shown(it.low)}"
        yield low if it.high is None else f"{low} {'to below' if 'lt' in names else 'to'} {shown(it.high)}"
    if it.default not in (None, ""):
        default = str(it.default).lower() if it.kind is bool else it.default
        yield f"default {default}{it.unit}"


if __name__ == "__main__":
    print(page(), end="")
