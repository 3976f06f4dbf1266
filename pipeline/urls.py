"""The URL of a discovery server, or of an etcd: its form, and what has to be set besides."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from embridge.workers.discovery.etcd_url import is_etcd, parse_etcd_url

MAX_URL_CHARS: Final = 120


def check_discovery_url(url: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Raise ValueError, which names the setting, unless that is empty, or the URL of our own server or of an etcd.

    Our server, where others reach it, expects a token. What an etcd expects is its operator's affair.
    """
    if not url:
        return
    if ca_file is not None and not url.startswith(("https://", "etcds://")):
        raise ValueError(f"discovery_ca_file: {url} has no certificate; use https:// or etcds://")
    if is_etcd(url):
        try:
            parse_etcd_url(url)
        except ValueError as error:
            raise ValueError(f"discovery: {error}") from error
        return
    host = host_of_url(url)
    if len(url) > MAX_URL_CHARS or host is None:
        raise ValueError(f"discovery: {url!r} is not of the form http://host:port, or etcd://host:port")
    if not is_loopback(host) and token_file is None:
        raise ValueError(
            f"discovery: {host} is not a loopback address; a server there expects a token: set discovery_token_file"
        )


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
