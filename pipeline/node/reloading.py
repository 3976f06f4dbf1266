"""What a running node takes over from a configuration that was read again, and what needs a restart of the node.

`log_level` is taken at once by every process. The allow-list is read now: its processes look at the file once a second
by themselves, so here it is read to say what is wrong with it. The secret key cannot change within a life of a node:
its peers have bound this incarnation to the key with which it registered, and take a message under another for forged
(`docs/deploying.md` says how keys are exchanged). Sizes, times, ports and paths are fixed when a node is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec

from embridge.pipeline.config import PipelineConfig, all_settings
from embridge.workers.keys import KeyFileError, KeyPair, read_allow_list, read_key_file

RELOADABLE: Final = ("log_level",)
"""Settings that a running node takes over; besides, the contents of `allow_file` are read again."""


class Reloaded(msgspec.Struct, frozen=True):
    """What became of a reload: what is in force now, what needs a restart, and what cannot be used, in words."""

    taken: list[str]
    restart: list[str]
    wrong: list[str]

    def __str__(self) -> str:
        parts = [f"now in force: {', '.join(self.taken) or 'nothing new'}"]
        if self.restart:
            parts.append(f"needs a restart: {', '.join(self.restart)}")
        return "; ".join([*parts, *self.wrong])


def reloaded(
    running: PipelineConfig, fresh: PipelineConfig, keys: KeyPair | None
) -> tuple[PipelineConfig, Reloaded]:
    """What `fresh` changes in a node that runs with `running` and was born with `keys`.

    Returns the configuration that is in force from now on, and what to say.
    """
    taken, restart, wrong = [], [], []
    for name, old, new in _changes(running, fresh):
        if name in RELOADABLE:
            taken.append(f"{name} {new} (was {old})")
        else:
            restart.append(f"{name} {new} (is {old})")
    in_force = replace(running, **{name: getattr(fresh, name) for name in RELOADABLE})
    try:
        if running.allow_file is not None:
            taken.append(f"{running.allow_file} with {len(read_allow_list(running.allow_file).keys)} keys")
    except KeyFileError as error:
        wrong.append(f"{error}; the list as it was before stays in force")
    try:
        if running.key_file is not None and read_key_file(running.key_file) != keys:
            restart.append(f"{running.key_file}, which holds another key")
    except KeyFileError as error:
        wrong.append(f"{error}; a restart would fail")
    return in_force, Reloaded(taken, restart, wrong)


def _changes(running: PipelineConfig, fresh: PipelineConfig) -> Iterator[tuple[str, Any, Any]]:
    """The full name, the old and the new value of every setting that differs."""
    for group, it in all_settings():
        old, new = (_value(config, group, it.name) for config in (running, fresh))
        if old != new:
            yield f"{group}.{it.name}" if group else it.name, old, new


def _value(config: PipelineConfig, group: str, name: str) -> Any:
    values = getattr(config, group, None) or config.engine_settings.get(group) if group else config
    return getattr(values, name)
