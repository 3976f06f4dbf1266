"""Where an etcd is and under which prefix nodes register there, as one text: `etcd://host:2379[,host2:2379][/prefix]`.

`etcds://` is the same over TLS.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

DEFAULT_PREFIX: Final = "/embridge"
MAX_URL_CHARS: Final = 512
MAX_ENDPOINTS: Final = 9
MAX_PREFIX_CHARS: Final = 64
SCHEMES: Final = {"etcd": "http", "etcds": "https"}

_URL: Final = re.compile(r"\A(etcds?)://([^/]+)((?:/[A-Za-z0-9._-]+)*)/?\Z")
_ENDPOINT: Final = re.compile(r"\A(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})\Z")


class EtcdUrl(NamedTuple):
    """`endpoints` are `http(s)://host:port`, in the order in which they are tried. `prefix` ends with no slash."""

    endpoints: tuple[str, ...]
    prefix: str


def is_etcd(url: str) -> bool:
    """Whether a setting `discovery` means an etcd."""
    return url.partition("://")[0] in SCHEMES


def parse_etcd_url(url: str) -> EtcdUrl:
    """Raises ValueError, with what is wrong, for a text of another form."""
    found = _URL.match(url)
    if found is None or len(url) > MAX_URL_CHARS:
        raise ValueError(f"{url!r} is not of the form etcd://host:port[,host:port][/prefix]; nor etcds://, for TLS")
    scheme, hosts, prefix = found.groups()
    endpoints = hosts.split(",")
    for endpoint in endpoints:
        port = _ENDPOINT.match(endpoint)
        if port is None or int(port[1]) > 65535:
            raise ValueError(f"{url!r}: {endpoint!r} is not of the form host:port")
    if len(endpoints) > MAX_ENDPOINTS or len(prefix) > MAX_PREFIX_CHARS:
        raise ValueError(
            f"{url!r}: {len(endpoints)} endpoints > {MAX_ENDPOINTS}, or a prefix of {len(prefix)} characters > "
            f"{MAX_PREFIX_CHARS}"
        )
    return EtcdUrl(tuple(f"{SCHEMES[scheme]}://{endpoint}" for endpoint in endpoints), prefix or DEFAULT_PREFIX)
