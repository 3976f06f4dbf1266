"""Schedulers that keep their results: lent or drained, what is kept is right for as long as it is kept, and stops
nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.encoding import give, open_sender
from support.nodes import Station, every_engine, station
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, attach
from embridge.pipeline.client.client import library_of

pytestmark = [pytest.mark.process, every_engine]


def is_lent(client: Client, request: EmbeddingRequest) -> bool:
    """Whether its result is views of the payload."""
    assert request.result is not None
    payload = np.frombuffer(library_of(client).attachment.payload, np.uint8)
    at = request.result.input_embeddings.data_ptr() - payload.ctypes.data
    return 0 <= at < payload.nbytes


def test_a_scheduler_keeps_its_results_until_another_one_arrives(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """R35, D8: results of one block to five through nine blocks, and none is let go before the last has come; the
    later ones are asked for all at once.
    """
    numbers = [next(rooms) for _ in range(24)]
    kept: list[EmbeddingRequest] = []
    for i, room in enumerate(numbers):
        receiving.add(encode.addr, room)
        assert give(open_sender(sending, room, 100 + 150 * (i % 4)))
        if i < 8:
            kept.append(receiving.wait(room, 20))
    kept += [receiving.wait(room, 20) for room in numbers[8:]]
    lent = [is_lent(receiving.client, request) for request in kept]
    assert lent[0]
    assert not all(lent)
    assert language.counts().free >= language.control.blocks.num_blocks // 4 + 1
    for request in kept:
        assert receiving.check(request).difference == ""
    for room in numbers:
        receiving.take(room, 0)


def test_a_node_drains_though_results_are_lent_which_stay_right(
    own_dir: Path, encode: Station, sending: Client, room: int, engine: str
) -> None:
    """R35, P18: a scheduler that keeps its results does not keep its node from stopping."""
    settings: dict[str, Any] = {"engine": engine, "deepstack_layers": 3, "num_blocks": 16, "drain_timeout_s": 3600.0}
    with station("language", own_dir / "l", **settings) as draining, attach(draining.run_dir) as client:
        queues = Queues(client)
        request = queues.add(encode.addr, room)
        assert give(open_sender(sending, room, 500))
        queues.wait(room, 20)
        assert is_lent(client, request)
        draining.node.terminate()
        assert draining.node.wait(20) == 0
        wait_until(lambda: client.node_gone)
        assert queues.check(request).difference == ""
        request.release()


def test_a_forked_child_gives_nothing_back(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R35: what is lent is its parent's to release."""
    request = receiving.add(encode.addr, room)
    assert give(open_sender(sending, room, 500))
    receiving.wait(room, 20)
    assert is_lent(receiving.client, request)
    held = language.counts()
    pid = os.fork()
    if pid == 0:
        try:
            request.release()
            os._exit(request.result is not None)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert language.counts() == held
    assert receiving.check(request).difference == ""
    assert receiving.take(room, 0).error == ""
