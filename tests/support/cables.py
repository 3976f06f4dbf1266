"""The cable between two hosts of one machine (`embridge.demo.hosts`), to be pulled and plugged in again."""

from __future__ import annotations

import subprocess

from embridge.demo.hosts import Host


def pull(host: Host) -> None:
    """Pull the cable at this end: nothing passes, and nobody is told."""
    _set(host, "down")


def plug(host: Host) -> None:
    _set(host, "up")


def _set(host: Host, state: str) -> None:
    subprocess.run([*host.within, "ip", "link", "set", host.cable, state], capture_output=True, check=True)
