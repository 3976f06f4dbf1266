"""Two hosts on one machine: two network namespaces, and a cable (a veth pair) between them.

A node inside one reaches the other's only through that cable. They share the file system, and so the nodes' run
sockets; a node that is to be reached by network is started with the engine for that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from embridge.allocator.errors import EmbridgeError


class HostsError(EmbridgeError):
    """The namespaces cannot be made; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of the two: how a command runs there, and its addresses."""

    namespace: str
    cable: str
    address: str
    address6: str

    @property
    def within(self) -> tuple[str, ...]:
        """The words before a command that is to run there."""
        return ("ip", "netns", "exec", self.namespace)


def why_impossible() -> str:
    """What is missing for two hosts on this machine; empty if nothing is."""
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is missing: apt-get install iproute2"
    return ""


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both hosts, for the length of a block.

    Raises:
        HostsError: not root, no `ip`, or the kernel refuses.
    """
    why = why_impossible()
    if why:
        raise HostsError(why)
    tag = f"eb{os.getpid():x}"
    hosts = tuple(Host(f"{tag}{end}", f"{tag}{end}", f"10.77.0.{i}", f"fd77::{i}") for i, end in ((1, "a"), (2, "b")))
    with ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "delete", host.namespace)
        one, other = hosts
        _ip(
            "-n",
            one.namespace,
            "link",
            "add",
            one.cable,
            "type",
            "veth",
            "peer",
            "name",
            other.cable,
            "netns",
            other.namespace,
        )
        for host in hosts:
            inside = ("-n", host.namespace)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "address", "add", f"{host.address}/24", "dev", host.cable)
            _ip(*inside, "address", "add", f"{host.address6}/64", "dev", host.cable, "nodad")
            _ip(*inside, "link", "set", host.cable, "up")
        yield one, other


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostsError(f"ip {' '.join(words)}: {done.stderr.strip()}")
