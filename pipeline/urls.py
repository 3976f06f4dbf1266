"""The host in the URL of a discovery server, and whether others reach it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def host_of_url(url: str) -> str | None:
    """The host of `http(s)://host:port`, without path, query or user; None for anything else."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.port and parts.path in ("", "/")
    except ValueError:
        return None
    has_more = parts.query or parts.fragment or parts.username or parts.password
    is_ours = plain and not has_more and url.isascii() and url.isprintable()
    return parts.hostname if is_ours else None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
