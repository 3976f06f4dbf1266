"""The settings of a node as options, and how they are laid over environment, file and defaults."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.pipeline.cli.errors import expected_errors

if TYPE_CHECKING:
    from embridge.allocator.settings import Setting
    from embridge.pipeline.config import PipelineConfig


class NodeCommand(click.Command):
    """A command with a node's settings among its options, which are asked for when it runs, not when it is imported."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        with expected_errors():
            return [*own, *_setting_options(), help_option]


@cache
def _setting_options() -> list[click.Option]:
    from embridge.pipeline.config import all_settings, flags_of

    return [_option("/".join(flags_of(group, it)), it) for group, it in all_settings() if it.is_flag]


def _option(flags: str, it: Setting) -> click.Option:
    """An option that is not given is None, and leaves the setting to the environment, the file, or the default."""
    kind: Any = it.kind
    if it.choices is not None:
        choices = it.choices()
        kind = click.Choice(choices, case_sensitive=not all(choice.isupper() for choice in choices))
    elif it.kind is Path:
        kind = click.Path(path_type=Path)
    return click.Option([flags], type=kind, default=None, help=it.help)


def node_config(toml: Path | None, given: dict[str, Any]) -> PipelineConfig:
    """Flags over environment over TOML over defaults.

    Raises:
        ConfigError: names the setting that can't be used, and where its value came from.
    """
    from embridge.pipeline import config

    settings = {config.long_name(group, it.name): (group, it) for group, it in config.all_settings() if it.is_flag}
    values: dict[str, Any] = {}
    origins = {}
    for option, value in given.items():
        if value is None:
            continue
        group, it = settings[option]
        (values.setdefault(group, {}) if group else values)[it.name] = value
        origins[f"{group}.{it.name}" if group else it.name] = config.flags_of(group, it)[0]
    files = [] if toml is None else [config.toml_file(toml)]
    flags = config.Layer(values, origins=origins)
    return config.PipelineConfig.of_layers(*files, config.environment(), flags)


def run_dir_of(run_dir: Path | None, role: str | None) -> Path:
    """The run directory that a command about a running node means: as given, or as the environment or the role say.

    Raises:
        ConfigError: a setting in the environment can't be used.
    """
    return run_dir or node_config(None, {"role": role}).directory
