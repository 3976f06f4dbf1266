"""Nodes on two hosts of one machine: network namespaces that share nothing but a cable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from embridge.demo.hosts import Host
from embridge.workers.keys import allow_line, new_key_pair, write_key_file
from support.nodes import station

PEER_TIMEOUT_S: Final = 5.0


class Places:
    """Both hosts, a key for each, and nodes on them."""

    def __init__(self, path: Path, one: Host, other: Host) -> None:
        self.path = path
        self.hosts = {"encode": one, "language": other}
        self.allow_file = path / "nodes.allow"
        pairs = {role: new_key_pair() for role in self.hosts}
        self.allow_file.write_text(
            "".join(allow_line(host.address, pairs[role].public) + "\n" for role, host in self.hosts.items())
        )
        for role, pair in pairs.items():
            write_key_file(path / f"{role}.key", pair)

    def node(self, role: str, name: str, **settings: Any) -> Any:
        host = self.hosts[role]
        return station(
            role,
            self.path / name,
            within=host.within,
            host=host.address,
            key_file=self.path / f"{role}.key",
            allow_file=self.allow_file,
            engine="mooncake",
            peer_timeout_s=PEER_TIMEOUT_S,
            **{"num_blocks": 9, "default_allocate_tokens": 1024, "fence_after_s": 1.0, **settings},
        )
