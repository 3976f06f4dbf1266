"""P7: a write that was given up, and that lands when its receiver wakes, reaches only blocks that are kept for it.

Mooncake reports a write to a stopped process as failed, and a part of it lands after that process has woken: *failed*
is not *will not write*. Here it is provoked, with another request that waits for the very blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.carrying import carried, joined
from support.encoding import ended, give, open_sender
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.rows import rows_of
from support.stopping import is_stopped, stopped
from support.waiting import wait_until

from embridge.pipeline.client.client import library_of
from embridge.workers.transfer.engines import mooncake
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

WHY_NOT = mooncake.why_unavailable()
pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is there")]

HIDDEN, TOKENS, BLOCKS = 2048, 1024, 9  # 4 MiB: more than a connection's buffers hold


@pytest.fixture
def pair() -> Iterator[tuple[Station, Station]]:
    impatient = MooncakeSettings(write_timeout_s=1.0)
    settings: Settings = {
        "engine": "mooncake",
        "engine_settings": {"mooncake": impatient},
        "hidden_size": HIDDEN,
        "num_blocks": BLOCKS,
    }
    with (
        run_dirs() as path,
        station("encode", path / "e", **settings) as encode,
        station(
            "language", path / "l", default_allocate_tokens=TOKENS, fence_wait_s=4.0, fence_after_s=4.0, **settings
        ) as language,
    ):
        yield encode, language


def test_a_write_that_lands_after_its_request_has_failed_hits_only_blocks_in_quarantine(
    pair: tuple[Station, Station],
) -> None:
    """P7, R6, R7, R10, R11, D2: and the request that waits for those blocks gets them after the fence, and its own
    bytes in them.
    """
    encode, language = pair
    first, late, second = 2, 4, 6  # of one transfer worker, so of one session
    target = language.pid_of(f"worker{first % 2}")
    with joined(encode, language) as (sending, queues):
        client = queues.client
        # the session is open from here on
        assert carried(queues, encode.addr, sending, first, 100, 30).difference == ""
        # a late write may end within a number
        payload = library_of(client).attachment.buffers.input_embeddings.view(torch.uint8)
        sessions = library_of(client).attachment.control.sessions
        request = queues.add(encode.addr, late, timeout_s=3.0)
        wait_until(lambda: request.receiver is not None and request.receiver.granted_tokens == TOKENS)
        with stopped(target):
            sender = open_sender(sending, late, TOKENS)
            assert give(sender)
            failed = queues.take(late, 30)
            assert is_stopped(target)
            assert failed.error == ended(sender).error == "TransferTimeout"
            wait_until(lambda: language.counts().quarantined == TOKENS // 128, 10, language.counts)
            kept = sorted(block for blocks in sessions.quarantined().values() for block, _ in blocks)
            before = payload[kept]
            queues.add(encode.addr, second)
            other = open_sender(sending, second, 2000)
            assert give(other)
        wait_until(lambda: not payload[kept].equal(before), 3, lambda: f"a late write: {language.counts()}")
        assert language.counts().quarantined == len(kept)
        rows = (
            rows_of(client.geometry, late, 0, TOKENS)
            .input_embeddings.view(torch.uint8)
            .view(len(kept), 128, 2 * HIDDEN)
        )
        # the write that was given up, as far as it came, and nothing else
        for was, now in zip(before, payload[kept], strict=True):
            assert any(((now == was) | (now == row)).all() for row in rows)
        received = queues.take(second, 30)
        assert (received.error, received.difference) == ("", "")
        assert ended(other).error == ""
        sender.clear()
    assert language.pid_of(f"worker{first % 2}") != target  # the fence
