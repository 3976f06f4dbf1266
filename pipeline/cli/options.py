"""The settings of a node as options, and how they are laid over environment, file and defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.pipeline.cli.errors import NoNodeError, QuestionError, expected_errors

if TYPE_CHECKING:
    from embridge.allocator.settings import Setting
    from embridge.pipeline.config import Layer, PipelineConfig


class NodeCommand(click.Command):
    """A command with a node's settings among its options, which are asked for when it runs, not when it is imported."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        with expected_errors():
            return [*own, *_setting_options(), help_option]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if variable := _variable_instead(error.option_name):
                what = f"{error.message} This setting has none; set {variable}, or its key in the file of --config."
                raise click.UsageError(what, ctx) from error
            raise


def _variable_instead(option: str) -> str:
    """The variable of a setting that somebody takes to be an option; empty: there is no such setting."""
    from embridge.pipeline.config import all_settings, long_name, variable_of

    names = {long_name(group, it.name): variable_of(group, it.name) for group, it in all_settings() if not it.is_flag}
    name = option.removeprefix("--").replace("-", "_")
    return names.get(name) or names.get(name.removeprefix("no_"), "")


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
    from embridge.pipeline.settings_page import default_of

    told = "asked for" if it.is_required else f"default: {default_of(it)}"
    said = it.help if "default:" in it.help.lower() else f"{it.help} [{told}]"
    return click.Option([flags], type=kind, default=None, help=said)


def node_config(toml: Path | None, given: dict[str, Any]) -> PipelineConfig:
    """Flags over environment over TOML over defaults.

    Raises:
        ConfigError: names the setting that can't be used, and where its value came from.
    """
    from embridge.pipeline import config

    return config.PipelineConfig.of_layers(*node_layers(toml, given))


def node_layers(toml: Path | None, given: dict[str, Any]) -> list[Layer]:
    """What the file, the environment and the flags say, each going over those before it. Raises ConfigError."""
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
    return [*files, config.environment(), config.Layer(values, origins=origins)]


def node_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a command about a running node is told which one."""
    function = click.option(
        "--role", type=click.Choice(["encode", "language"]), help="Which of the two default run directories."
    )(function)
    return click.option(
        "--run-dir", type=click.Path(path_type=Path),
        help="The node's run directory; default: that of the role, or of the one node that runs in one of the two.",
    )(function)  # fmt: skip


def run_dir_of(run_dir: Path | None, role: str | None) -> Path:
    """The run directory that a command about a running node means: as given, or as the environment or the role say.

    Where nobody says anything, it is that of the one node that runs in a default run directory.

    Raises:
        ConfigError: a setting in the environment can't be used.
        QuestionError: two nodes run in default run directories; which one is meant is asked for.
        NoNodeError: none does.
    """
    from embridge.pipeline.config import ROLES, environment

    said = environment().values
    if run_dir is not None:
        return run_dir
    if role is not None or {"run_dir", "role"} & said.keys():
        return node_config(None, {"role": role or said.get("role") or next(iter(ROLES))}).directory
    running = _running()
    if len(running) > 1:
        raise QuestionError(f"which node? two run here: say {' or '.join(f'--role {name}' for name in running)}")
    return next(iter(running.values()))


def run_dirs_of(run_dirs: Sequence[Path], role: str | None) -> Sequence[Path]:
    """The run directories that a command about several nodes means; without a word about it, those of all nodes that
    run in default ones.

    Raises as `run_dir_of`.
    """
    from embridge.pipeline.config import environment

    if run_dirs:
        return run_dirs
    if role is None and not {"run_dir", "role"} & environment().values.keys():
        return list(_running().values())
    return [run_dir_of(None, role)]


def _running() -> dict[str, Path]:
    """The nodes that run in default run directories, by role. Raises NoNodeError: none does."""
    from embridge.pipeline.config import ROLES, default_run_dir
    from embridge.workers.run_socket import SOCKET_NAME

    running = {name: path for name in ROLES if ((path := default_run_dir(name)) / SOCKET_NAME).exists()}
    if not running:
        places = " nor ".join(str(default_run_dir(name)) for name in ROLES)
        raise NoNodeError(f"no node runs in {places}; say --run-dir where it is elsewhere")
    return running
