"""The setting `metrics_addr`: where a node's HTTP port is, or that it has none."""

from __future__ import annotations

import ipaddress
from typing import Final

OFF: Final = ("", "off")


def web_address(text: str) -> tuple[str, int] | None:
    """(IP address, port) of `address:port` or `[address]:port`; None for "" and "off". Raises ValueError."""
    if text in OFF:
        return None
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        is_v6 = ipaddress.ip_address(bare).version == 6
    except ValueError:
        is_v6 = host != bare  # brackets around what is no address of version 6
        colon = ""
    if not colon or is_v6 != (host != bare) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"metrics_addr: {text!r} is not of the form address:port, such as 127.0.0.1:9464 or [::1]:9464 "
            "(port 0: any free one), nor off"
        )
    return bare, int(port)
