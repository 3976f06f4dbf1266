"""Tells the service manager (systemd, or whoever speaks its protocol) how a service fares: sd_notify(3).

A datagram of `NAME=value` lines to the AF_UNIX socket that `NOTIFY_SOCKET` names. Where that is not set, nothing is
told and nothing costs anything. The variables are taken out of the environment, for they are meant for this process and
for none that it starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

from embridge.workers.timing import NS

log = logging.getLogger(__name__)

US: Final = 1000  # ns
SEND_TIMEOUT_S: Final = 1.0


class ServiceManager:
    """Whoever has started this process as a service. `clock` gives monotonic ns, as `MONOTONIC_USEC` has to be."""

    def __init__(
        self, environ: MutableMapping[str, str] = os.environ, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._clock = clock
        self._address = environ.pop("NOTIFY_SOCKET", "")
        interval, for_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = not for_pid or for_pid == str(os.getpid())
        usec = int(interval) if interval.isascii() and interval.isdigit() else 0
        self._every_ns = usec * US // 2 if self._address and is_ours else 0  # half of it, as systemd advises
        self._due_ns = 0
        self._is_told = True

    @property
    def is_there(self) -> bool:
        return bool(self._address)

    @property
    def has_watchdog(self) -> bool:
        """Whether it ends and restarts a service that has not said for some time that it lives."""
        return self._every_ns > 0

    def ready(self, status: str) -> None:
        """The service serves: it has started, or what was reloaded is in force."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The service reads its configuration again; `ready` says when that is over."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._clock() // US}")

    def stopping(self, status: str, within_s: float) -> None:
        """The service ends, within that time at the latest, which the manager is asked to wait."""
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(within_s * NS) // US}")

    def alive(self, is_alive: Callable[[], bool]) -> None:
        """Call it several times within the watchdog's time; it is asked, and told, when that is due."""
        if self._every_ns and self._clock() >= self._due_ns and is_alive():
            self._due_ns = self._clock() + self._every_ns
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        said = "\n".join(" ".join(line.split("\n")) for line in lines)
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto(said.encode(), address)
            self._is_told = True
        except OSError as error:
            if self._is_told:  # once, until it works again
                log.warning("the service manager at %s cannot be told: %s", self._address, error.strerror or error)
            self._is_told = False
