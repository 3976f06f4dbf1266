"""Whether a node with a given configuration could start on this machine now: what the launcher would ask for, asked.

Nothing is made: the folders of the run directory are looked at, the ports bound and let go at once, and no segment is
created. So a node that passes may still lose a race, for a port or for memory, against whoever comes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

from embridge.allocator.errors import EmbridgeError, LaunchError
from embridge.pipeline.config import ROLES, ConfigError, PipelineConfig
from embridge.pipeline.node.claim import check_own
from embridge.pipeline.node.launch import check_keys
from embridge.pipeline.node.ports import listen
from embridge.pipeline.node.preflight import check_discovery, chosen_engines, descriptors_left, with_pool
from embridge.pipeline.node.sizing import Sizes, mib
from embridge.pipeline.run_dir import RunDirError, open_run_dir
from embridge.workers.checks import Check
from embridge.workers.files import open_regular
from embridge.workers.web.address import web_address


def start_checks(config: PipelineConfig) -> list[Check]:
    """What each check saw; the node could start if the state of none is `fail`."""
    return [_checked(name, look, config) for name, look in _LOOKS.items()]


def _checked(name: str, look: Callable[[PipelineConfig], Check | str], config: PipelineConfig) -> Check:
    try:
        found = look(config)
    except (EmbridgeError, ConfigError) as error:
        seen, _, advice = str(error).rpartition("; ")
        return Check(name, "fail", seen or advice, advice if seen else "")
    return Check(name, "ok", found) if isinstance(found, str) else found


def _keys(config: PipelineConfig) -> str:
    check_keys(config)
    return f"{config.key_file}, {config.allow_file}" if config.key_file else f"none; {config.host} is loopback"


def _engines(config: PipelineConfig) -> str:
    return ", ".join(engine.title for engine in chosen_engines(config))


def _descriptors(config: PipelineConfig) -> str:
    return f"{descriptors_left(ROLES[config.role], config.limits)} more than the node needs"


def _discovery(config: PipelineConfig) -> str:
    check_discovery(config)
    return config.discovery or "none"


def _memory(config: PipelineConfig) -> str:
    sized = with_pool(config)
    sizes = Sizes.of(ROLES[config.role], sized.geometry, sized.limits)
    return f"{mib(sizes.total)} for {sized.geometry.num_blocks} blocks and the tables"


def _locking(config: PipelineConfig) -> Check | str:
    """A pool that may not be locked is a node all the same."""
    if not config.lock_memory:
        return "not asked for"
    geometry = with_pool(config).geometry
    size = Sizes.of(ROLES[config.role], geometry, config.limits).payload
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY and limit < size:
        seen = f"{mib(size)} to lock > limit {mib(limit)}"
        return Check(LOCKED, "warn", seen, "the pool stays unlocked: raise `ulimit -l`, or set --no-lock-memory")
    return mib(size)


def _ports(config: PipelineConfig) -> str:
    where = {"bootstrap": (config.host, config.bootstrap_port), "poller": (config.host, config.poller_port)}
    if web := web_address(config.metrics_addr):
        where["web"] = web
    with contextlib.ExitStack() as stack:  # all at one time, as a node has them
        for name, (host, port) in where.items():
            fd, _ = listen(name, host, port, NO_PATIENCE)
            stack.callback(os.close, fd)
    return ", ".join(f"{name} {host}:{port or 'any'}" for name, (host, port) in where.items())


def _run_directory(config: PipelineConfig) -> str:
    path = config.directory
    try:
        directory = open_run_dir(path)
    except RunDirError as error:
        raise LaunchError(str(error)) from error
    except FileNotFoundError:
        above = next(parent for parent in path.parents if parent.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise LaunchError(
                f"run directory {path}: {above} cannot be written to; choose another with --run-dir"
            ) from None
        return f"{path}: it would be made"
    except OSError as error:
        raise LaunchError(f"run directory {path}: {error.strerror}; choose another with --run-dir") from error
    try:
        check_own(path, directory)
        _check_lock(path, directory)
    finally:
        os.close(directory)
    return str(path)


def _check_lock(path: Path, directory: int) -> None:
    """Raise LaunchError if a node holds the lock of its run directory."""
    with contextlib.suppress(FileNotFoundError):
        fd = open_regular("lock", os.O_RDWR | os.O_NOFOLLOW, directory=directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"run directory {path}: a node is running there; stop it or choose another --run-dir"
            ) from error
        finally:
            os.close(fd)


NO_PATIENCE: Final = 0.0  # of the monotonic clock, which is past that
LOCKED: Final = "locked memory"
_LOOKS: Final[dict[str, Callable[[PipelineConfig], Check | str]]] = {
    "run directory": _run_directory,
    "keys": _keys,
    "engines": _engines,
    "discovery": _discovery,
    "descriptors": _descriptors,
    "shared memory": _memory,
    LOCKED: _locking,
    "ports": _ports,
}
