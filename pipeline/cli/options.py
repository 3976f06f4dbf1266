"""The settings of a node as options, and how they are laid over environment, file and defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from embridge.pipeline.config import PipelineConfig

Function = TypeVar("Function", bound=Callable[..., Any])

GEOMETRY = frozenset({"hidden_size", "block_size", "num_blocks", "dtype", "deepstack_layers"})
LIMITS = frozenset({"num_slots", "num_workers", "max_clients"})
TIMING = frozenset({"request_timeout_s", "drain_timeout_s"})

# An option that is not given is None, and leaves the setting to the environment, the file, or the default.
_NODE_OPTIONS = (
    click.option("--role", type=click.Choice(["encode", "language"]), help="Which side of the transfer."),
    click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run socket; one a node."),
    click.option("--host", help="The address that the node binds; other than loopback needs keys."),
    click.option("--bootstrap-port", type=int, help="Port of init, resume and announce; 0: any free one."),
    click.option("--poller-port", type=int, help="Port of status and heartbeats; 0: any free one."),
    click.option("--key-file", type=click.Path(path_type=Path), help="Secret key of the node; see `embridge keys`."),
    click.option("--allow-file", type=click.Path(path_type=Path), help="Public keys of the other nodes, one line each."),
    click.option("--engine", help="How rows travel; auto: by where the peer is."),
    click.option("--discovery", help="URL of `embridge discovery`, http://host:port; default: none."),
    click.option("--discovery-token-file", type=click.Path(path_type=Path), help="File, mode 0600, of the token it expects."),
    click.option("--hidden-size", type=int, help="Elements of a token's row."),
    click.option("--block-size", type=int, help="Tokens a block."),
    click.option("--num-blocks", type=int, help="Blocks of the pool; 0: 64, or what half of /dev/shm has room for."),
    click.option("--dtype", help="bfloat16, float16 or float32."),
    click.option("--deepstack-layers", type=int, help="Deepstack rows a token; 0: none, Qwen3-VL: 3."),
    click.option("--default-allocate-tokens", type=int, help="Granted before the length is known."),
    click.option("--host-buffer-bytes", type=int, help="Limit of received tensors in host memory."),
    click.option("--num-slots", type=int, help="Requests that may be open at one time."),
    click.option("--unsent-max-bytes", type=int, help="Limit of rows in host memory that wait to be sent."),
    click.option("--num-workers", type=int, help="Transfer workers."),
    click.option("--max-clients", type=int, help="Encoder or scheduler processes that may attach."),
    click.option("--request-timeout-s", type=float, help="From opening a request to its end."),
    click.option("--drain-timeout-s", type=float, help="For accepted requests to end after the first signal."),
    click.option("--verify/--no-verify", default=None, help="Check rows on receipt; the nodes of both roles, or none."),
    click.option("--lock-memory/--no-lock-memory", default=None, help="mlock the pool."),
    click.option(
        "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False), help="Log level."
    ),
)


def node_options(function: Function) -> Function:
    for option in reversed(_NODE_OPTIONS):
        function = option(function)
    return function


def node_config(toml: Path | None, given: dict[str, Any]) -> PipelineConfig:
    """Flags over environment over TOML over defaults.

    Raises:
        ConfigError: names the setting that can't be used.
    """
    from embridge.pipeline.config import PipelineConfig

    over: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        for group, members in (("geometry", GEOMETRY), ("limits", LIMITS), ("timing", TIMING)):
            if name in members:
                over.setdefault(group, {})[name] = value
                break
        else:
            over[name] = value
    return PipelineConfig.from_env(**over) if toml is None else PipelineConfig.from_toml(toml, **over)


def run_dir_of(run_dir: Path | None, role: str | None) -> Path:
    """The run directory that a command about a running node means: as given, or as the environment or the role say.

    Raises:
        ConfigError: a setting in the environment can't be used.
    """
    return run_dir or node_config(None, {"role": role}).directory
