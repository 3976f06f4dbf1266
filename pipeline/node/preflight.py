"""Checks what a node needs before anything of it is made; raises LaunchError for what is missing, with what to do."""

from __future__ import annotations

import importlib.util
import logging
import resource
import sys
from dataclasses import replace

from embridge.allocator.errors import LaunchError
from embridge.allocator.geometry import Limits, Role
from embridge.allocator.records import MAX_WRITERS
from embridge.allocator.segment import SHARED_MEMORY, shared_memory_space
from embridge.pipeline.config import ROLES, PipelineConfig
from embridge.pipeline.node.naming import naming
from embridge.pipeline.node.sizing import DEFAULT_BLOCKS, chosen_pool, mib
from embridge.workers.discovery.auth_token import read_login, read_token
from embridge.workers.discovery.authorities import tls_context
from embridge.workers.discovery.etcd_url import is_etcd
from embridge.workers.transfer import engines
from embridge.workers.transfer.engines.base import Engine

log = logging.getLogger(__name__)


def with_pool(config: PipelineConfig) -> PipelineConfig:
    """The configuration with a number of blocks, which is chosen here where the configuration has none.

    Raises:
        SegmentError: the pool does not fit.
        LaunchError: the free space of shared memory cannot be found out.
    """
    with naming("shared memory", f"check that {SHARED_MEMORY} is a writable tmpfs"):
        space = shared_memory_space()
    geometry = chosen_pool(ROLES[config.role], config.geometry, config.limits, space)
    if not config.geometry.num_blocks and geometry.num_blocks < DEFAULT_BLOCKS:
        log.warning(
            "pool of %d blocks instead of %d: %s has %s, %s of it free, and half is left to another node; "
            "enlarge it (containers: --shm-size), or set num_blocks",
            *(geometry.num_blocks, DEFAULT_BLOCKS, SHARED_MEMORY, mib(space.size), mib(space.free)),
        )
    return replace(config, geometry=geometry)


def descriptors_left(role: Role, limits: Limits) -> int:
    """How many descriptors the launcher may have beyond those that it needs; groups of ranks may take these.

    A node that ran out of descriptors later would refuse clients, or lose a process.

    Raises:
        LaunchError: the limit of descriptors is lower than what the node needs.
    """
    needed = 48 + 5 * limits.max_clients + 4 * limits.num_workers
    if role == Role.LANGUAGE:  # a connection and three pidfds of each worker of each peer
        needed += 4 * min(MAX_WRITERS, limits.max_peers * limits.num_workers)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = sys.maxsize
    if limit < needed:
        raise LaunchError(
            f"descriptors: a process may have {limit}, a node with max_clients = {limits.max_clients} and "
            f"num_workers = {limits.num_workers} needs {needed}; raise `ulimit -n` or lower max_clients"
        )
    return limit - needed


def chosen_engines(config: PipelineConfig) -> tuple[Engine, ...]:
    """The engines of the node. Raises LaunchError when the setting `engine` names one that this machine cannot run."""
    offered = engines.engines_for(config.engine, config.host)
    for engine in offered:
        if why := engine.why_unavailable():
            raise LaunchError(f"engine {engine.name}: {why}")
    return offered


def check_discovery(config: PipelineConfig) -> None:
    """Raise LaunchError unless the registrar has what it needs: its packages, and files that can be used."""
    if not config.discovery:
        return
    if importlib.util.find_spec("aiohttp") is None:
        raise LaunchError(
            "discovery: aiohttp is not installed; run pip install 'embridge[discovery]', or set no discovery"
        )
    read = read_login if is_etcd(config.discovery) else read_token
    for name, use in (("discovery_token_file", read), ("discovery_ca_file", tls_context)):
        path = getattr(config, name)
        try:
            if path is not None:
                use(path)
        except ValueError as error:
            raise LaunchError(f"{name}: {error}") from error
