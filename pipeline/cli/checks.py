"""The checks of `embridge doctor`: each looks at one thing, says what it saw and what to do.

They change nothing, but for `left_names`, which removes what nobody has any use for.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from embridge.workers.checks import Check

GIB: Final = 1 << 30
ANY_ROLE: Final = "encode"  # for what does not depend on it
MIN_DESCRIPTORS: Final = 1024  # a node with 16 clients holds some 300


def run_checks() -> list[Check]:
    """Every check in order; one that breaks is reported as failed and does not stop the others."""
    return [check for look in CHECKS for check in _guarded(look.__name__.replace("_", " "), look)]


def core() -> Check:
    """The native core loads."""
    from embridge.allocator import _core

    return Check("native core", "ok", str(getattr(_core, "__file__", "built in")))


def interpreter() -> Check:
    seen = f"Python {platform.python_version()}, torch {_version('torch') or 'missing'}, {os.cpu_count()} CPUs"
    if _version("torch") is None:
        return Check("interpreter", "fail", seen, "pip install torch")
    return Check("interpreter", "ok", seen)


def kernel() -> Check:
    """pidfds, by which deaths are noticed, and the socket option that gives a peer's (Linux 6.5)."""
    from embridge.workers.run_socket import SO_PEERPIDFD

    seen = f"Linux {platform.release()}"
    if not hasattr(os, "pidfd_open"):
        return Check("kernel", "fail", f"{seen}, no pidfd_open", "use Linux 5.3 or newer")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Check("kernel", "fail", f"{seen}, pidfd_open: {error.strerror}", "allow it in the sandbox")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError:
            return Check("kernel", "note", f"{seen}, no SO_PEERPIDFD", "clients are watched by their process numbers")
    return Check("kernel", "ok", seen)


def shared_memory() -> Check:
    """Room in /dev/shm for both segments of a node of each role, with the settings of the environment."""
    from embridge.allocator.errors import SegmentError
    from embridge.allocator.segment import SHARED_MEMORY, shared_memory_space
    from embridge.pipeline.config import ROLES, PipelineConfig
    from embridge.pipeline.node.sizing import DEFAULT_BLOCKS, Sizes, chosen_pool, mib

    space = shared_memory_space()
    enlarge = "mount it larger (containers: --shm-size)"
    seen, total, shrunk = [f"{mib(space.free)} free of {mib(space.size)}"], 0, False
    for name, role in ROLES.items():
        config = PipelineConfig.from_env(role=name)
        try:
            geometry = chosen_pool(role, config.geometry, config.limits, space)
        except SegmentError as error:
            return Check(SHARED_MEMORY, "fail", str(error), "see what is named there")
        sizes = Sizes.of(role, geometry, config.limits)
        total += sizes.total
        shrunk |= not config.geometry.num_blocks and geometry.num_blocks < DEFAULT_BLOCKS
        pool = f"{mib(sizes.payload)} payload of {geometry.num_blocks} blocks"
        shelf = f" + {mib(sizes.shelf)} shelf" if sizes.shelf else ""
        seen.append(f"{name} node: {mib(sizes.control)} control{shelf} + {pool}")
    text = "; ".join([*seen, f"one of each: {mib(total)}"])
    if shrunk:
        return Check(SHARED_MEMORY, "warn", text, f"{enlarge} for pools of {DEFAULT_BLOCKS} blocks, the default")
    if total > space.free:
        return Check(SHARED_MEMORY, "warn", text, f"{enlarge}, or use fewer --num-blocks, for one of each on this host")
    return Check(SHARED_MEMORY, "ok", text)


def left_names() -> Check:
    """Names in /dev/shm, without memory, of processes of this user that were killed as they made a segment."""
    from embridge.allocator.segment import SHARED_MEMORY, remove_left_names

    if removed := remove_left_names():
        return Check("left names", "note", f"removed from {SHARED_MEMORY}: {', '.join(removed)}")
    return Check("left names", "ok", "none")


def memory_lock() -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Check("locked memory", "ok", "unlimited")
    if _has_capability(14):
        return Check("locked memory", "ok", f"limit {_gib(limit)}, lifted by CAP_IPC_LOCK")
    if limit >= GIB:
        return Check("locked memory", "ok", f"limit {_gib(limit)}")
    advice = "larger pools stay unlocked: raise `ulimit -l` or give CAP_IPC_LOCK"
    return Check("locked memory", "warn", f"limit {_gib(limit)}", advice)


def descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"limit {soft}, at most {hard}"
    if soft < MIN_DESCRIPTORS:
        return Check("descriptors", "warn", seen, f"raise it: ulimit -n {MIN_DESCRIPTORS} or more")
    return Check("descriptors", "ok", seen)


def huge_pages(mounts: str | None = None) -> Check:
    """Whether /dev/shm gives them, which its mount says."""
    from embridge.allocator import segment

    state = segment.huge_pages(mounts)
    if state == "never":
        advice = "for faster copies and starts, as root: mount -o remount,huge=advise /dev/shm"
        return Check("huge pages", "note", "/dev/shm: never", advice)
    return Check("huge pages", "ok", f"/dev/shm: {state}")


def cuda() -> Check:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}))
        return Check("CUDA", "ok", f"{torch.cuda.device_count()} x {names}")
    if Path("/dev/nvidiactl").exists():
        seen = f"a device is there, torch {torch.__version__} does not see it"
        return Check("CUDA", "warn", seen, "install a CUDA build of torch")
    return Check("CUDA", "note", "no device", "rows stay in host memory")


def engines() -> list[Check]:
    """What each engine says of this machine, with its settings of the environment."""
    from embridge.pipeline.config import PipelineConfig
    from embridge.workers.transfer.engines import ENGINES

    settings = PipelineConfig.from_env(role=ANY_ROLE).engine_settings
    looks = {it.title: partial(it.check_machine, settings.get(it.name)) for it in ENGINES}
    return [check for title, look in looks.items() for check in _guarded(title, look)]


def keys() -> Check:
    """The key file and the allow-list that the environment names, read as a node reads them."""
    from embridge.pipeline.config import PipelineConfig
    from embridge.pipeline.node.launch import check_keys

    config = PipelineConfig.from_env(role=ANY_ROLE)
    if config.key_file is None or config.allow_file is None:
        return Check(
            "keys", "note", "none in the environment", "nodes bind loopback addresses only: see `embridge keys --help`"
        )
    try:
        check_keys(config)
    except ValueError as error:
        return Check("keys", "fail", str(error), "a node would not start with them; `embridge keys check` reads a list")
    return Check("keys", "ok", f"{config.key_file}, {config.allow_file}")


def rdma() -> Check:
    folder = Path("/sys/class/infiniband")
    devices = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not devices:
        return Check("RDMA", "note", "no device", "other machines are reached over TCP")
    return Check("RDMA", "ok", ", ".join(devices))


CHECKS: Final[tuple[Callable[[], Check | list[Check]], ...]] = (
    interpreter,
    core,
    kernel,
    shared_memory,
    left_names,
    memory_lock,
    descriptors,
    huge_pages,
    cuda,
    engines,
    rdma,
    keys,
)


def _guarded(name: str, look: Callable[[], Check | list[Check] | None]) -> list[Check]:
    try:
        found = look()
    except Exception as error:
        advice = "reinstall embridge: `make setup` or pip install" if look is core else ""
        return [Check(name, "fail", f"{type(error).__name__}: {error}", advice)]
    return found if isinstance(found, list) else [found] if found is not None else []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return effective is not None and bool(int(effective.group(1), 16) >> number & 1)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
