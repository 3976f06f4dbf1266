"""What `embridge doctor` says of this machine: a line for each thing that is looked at, by whoever knows that thing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

START_TIMEOUT_S: Final = 60.0


class Check(NamedTuple):
    """What one check found. `state`: ok, note (as it is), warn (slower, or less), fail (a node would not run)."""

    name: str
    state: str
    seen: str
    advice: str = ""


def installed(distributions: Iterable[str]) -> str | None:
    """The first of these distributions that is installed and its version, as `name version`; None if none is."""
    from importlib import metadata  # and with it a good part of the mail parser: not in every process of a node

    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def why_it_fails(script: str, *arguments: str) -> str:
    """The last line that an interpreter of its own says when it fails with this script; empty where it ends well.

    For what can abort its process, as a driver that does not fit, or leaves behind what it has opened.

    Raises:
        TimeoutExpired: it has not ended within `START_TIMEOUT_S`.
    """
    import subprocess
    import sys

    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=START_TIMEOUT_S)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def library_advice(said: str, packages: Mapping[str, str]) -> str:
    """What to install for a shared library of which `said` complains.

    `packages` has, for each library, the package as distributions call it.
    """
    package = next((package for library, package in packages.items() if library in said), "the library that it names")
    return f"install {package} with the system's package manager"
