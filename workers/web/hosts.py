"""The names by which an HTTP port may be asked: none that somebody else can make lead here.

A page of a stranger's may have its own name resolve to this host (DNS rebinding). A browser then takes this port for
the page's own server, and lets the page read what is answered. What gives it away is the header `Host`, which has that
name. So what tells of requests, processes and addresses is answered only where `Host` is an address, `localhost`, a
name that the operator has listed, or missing, as it is with no browser.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final

_LOCAL: Final = "localhost"
_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?")
_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_MAX_SHOWN: Final = 64


def listed_hosts(text: str) -> frozenset[str]:
    """The names of the setting `web_hosts`, which commas separate, in lower case. Raises ValueError."""
    names = [name.strip().lower() for name in text.split(",")] if text.strip() else []
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"web_hosts: {name!r} is no host name; give names without scheme and port, separated by commas, "
                "such as encode-7.cluster"
            )
    return frozenset(names)


def strange_name(host: str, listed: Collection[str] = ()) -> str:
    """The name in a `Host` header that may be a stranger's, cut for a message; empty for one that is answered."""
    found = _HOST.fullmatch(host)
    name = host if found is None else (found["v6"] or found["name"]).lower().removesuffix(".")
    if name in ("", _LOCAL) or name in listed:
        return ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name[:_MAX_SHOWN]
    return ""
