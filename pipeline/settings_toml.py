"""Settings as a TOML file: the sample with every setting commented out, and the values that a node would have.

    python -m embridge.pipeline.settings_toml > deploy/node.toml
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from embridge.allocator.settings import Setting, settings_of
from embridge.allocator.texts import one_line
from embridge.pipeline.config import PipelineConfig, flags_of, groups, variable_of
from embridge.pipeline.settings_page import allowed_of, default_of

WIDTH: Final = 100
_EXAMPLES: Final = {
    "role": "encode",
    "run_dir": "/run/embridge-encode",
    "key_file": "/etc/embridge/node.key",
    "allow_file": "/etc/embridge/nodes.allow",
    "web_hosts": "encode-7.cluster",
    "discovery": "https://discovery.cluster:8998",
    "discovery_token_file": "/etc/embridge/discovery.token",
    "discovery_ca_file": "/etc/embridge/discovery-ca.pem",
    "device": "mlx5_0",
}
"""What stands in the sample for a setting that has no default."""
_HEAD: Final = """\
# Every setting of a node, commented out: what stands there is its default, or an example where it has none.
# `make settings` writes this file from the settings themselves; docs/settings.md explains where values come from.
#
#     embridge launch --config node.toml --check            # whether a node could start with it here
#     embridge launch --config node.toml --print-config     # what it comes to, and where each value comes from
"""


def sample() -> str:
    """The text of the sample: only the role, which is asked for, is not commented out."""
    parts = [_HEAD]
    for group, kind in {"": PipelineConfig, **groups()}.items():
        parts += [f"[{group}]\n"] if group else []
        parts += [_sample_entry(group, it) for it in settings_of(kind).values()]
    return "\n".join(parts)


def _sample_entry(group: str, it: Setting) -> str:
    facts = [fact for fact in (it.kind_name, allowed_of(it)) if fact]
    why = f" Why this default: {it.why}." if it.why else ""
    places = ", ".join([variable_of(group, it.name), *flags_of(group, it)])
    text = f"{it.help}{why} ({'; '.join(facts)}; {places})"
    told = textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    value = it.default if it.default not in (None, "") else _EXAMPLES.get(it.name, "")
    return f"{told}\n{'' if it.is_required else '#'}{it.name} = {text_of(value)}\n"


def effective(config: PipelineConfig, origins: Mapping[str, str]) -> str:
    """The values of this configuration as a TOML file, each with where it came from (`origins_of`).

    A value that somebody gave has its default beside it. What cannot stand in a file, an optional path that is not set,
    is a comment.
    """
    lines: list[str] = []
    for group, kind in {"": PipelineConfig, **groups()}.items():
        lines += ["", f"[{group}]"] if group else []
        values = getattr(config, group, None) or config.engine_settings.get(group) if group else config
        lines += _entries(group, kind, values, origins)
    return "\n".join(lines) + "\n"


def _entries(group: str, kind: Any, values: Any, origins: Mapping[str, str]) -> Iterator[str]:
    for name, it in settings_of(kind).items():
        value, full = getattr(values, name), f"{group}.{name}" if group else name
        origin = origins.get(full) or origins.get(group, "")
        if value is None:
            yield f"# {name}: not set"
        elif origin:
            yield f"{name} = {text_of(value)}  # from {one_line(origin)}; default: {default_of(it)}"
        else:
            made = "" if value == it.default else ", made from other settings"
            yield f"{name} = {text_of(value)}  # default{made}"


def text_of(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


if __name__ == "__main__":
    print(sample(), end="")
