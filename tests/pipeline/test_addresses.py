"""Where nodes are: IPv6 addresses, and names that must be looked up."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.encoding import give, open_sender
from support.nodes import run_dirs, station
from support.scheduling import Queues

from embridge.pipeline import attach
from embridge.workers.engines import mooncake

pytestmark = pytest.mark.process

_NO_MOONCAKE = mooncake.why_unavailable()


def _has_ipv6() -> bool:
    path = Path("/proc/net/if_inet6")
    return path.exists() and "00000000000000000000000000000001" in path.read_text()


@pytest.mark.skipif(bool(_NO_MOONCAKE), reason=_NO_MOONCAKE or "it is there")
@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")
def test_mooncake_moves_rows_between_ipv6_addresses() -> None:
    """P6: its handshake knows IPv4 alone, unless it is told."""
    with (
        run_dirs() as path,
        station("encode", path / "e", host="::1", engine="mooncake") as encode,
        station("language", path / "l", host="::1", engine="mooncake") as language,
        attach(encode.run_dir) as sending,
        attach(language.run_dir) as client,
    ):
        assert encode.addr.startswith("tcp://[::1]:")
        queues = Queues(client)
        queues.add(encode.addr, 1)
        assert give(open_sender(sending, 1, 300))
        assert queues.take(1, 20).difference == ""
