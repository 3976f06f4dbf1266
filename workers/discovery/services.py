"""Which service a setting `discovery` means: our own server, or etcd."""

from __future__ import annotations

from collections.abc import Callable

from embridge.workers.discovery.auth_token import read_login
from embridge.workers.discovery.client import DiscoveryClient, DiscoveryService
from embridge.workers.discovery.etcd import EtcdClient
from embridge.workers.discovery.etcd_gateway import EtcdGateway
from embridge.workers.discovery.etcd_url import is_etcd, parse_etcd_url
from embridge.workers.discovery.http import DiscoveryError, Requests, TokenFile
from embridge.workers.timing import Timing


def open_service(
    url: str,
    *,
    token_file: str,
    ca_file: str,
    timing: Timing,
    clock: Callable[[], int],
    unreadable: Callable[[int], None],
) -> DiscoveryService:
    """The service at a URL, not connected yet; within a running event loop.

    Raises DiscoveryError for a file of authorities that cannot be used (any more).
    """
    timeout_s = timing.discovery_timeout_s
    try:
        requests = Requests(timeout_s, "etcd" if is_etcd(url) else "`embridge discovery`", ca_file)
    except ValueError as error:
        raise DiscoveryError(f"discovery_ca_file: {error}") from error
    if not is_etcd(url):
        return DiscoveryClient(url, TokenFile(token_file), requests, timing.discovery_ttl_s)
    etcd = parse_etcd_url(url)
    gateway = EtcdGateway(etcd.endpoints, TokenFile(token_file, read_login), requests)
    return EtcdClient(gateway, etcd.prefix, timing, clock, unreadable)
