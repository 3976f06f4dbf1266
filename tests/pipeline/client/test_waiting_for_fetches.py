"""Who waits for the end of a fetch."""

from __future__ import annotations

import threading
import time

import pytest

from embridge import FetchError, FetchFailed
from embridge.pipeline.client import fetch as fetch_module
from embridge.pipeline.client.fetch import Fetch
from embridge.workers.timing import NS


class Turns:
    """Of a client whose library thread the test is: who waits sees nothing by looking."""

    row_bytes = 8
    clock = staticmethod(time.monotonic_ns)

    def look(self, it: Fetch) -> None:
        pass

    def retry(self, it: Fetch, addr: str, deadline_s: float | None) -> Fetch:
        raise NotImplementedError

    def give_up(self, it: Fetch, error: FetchError) -> None:
        it.end(None, error)
        it.call_back()


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """One after which nobody looks again by himself for a minute."""
    for name in ("LOOK_NS", "MOST_LOOK_NS"):
        monkeypatch.setattr(fetch_module, name, 60 * NS)
    return Fetch(Turns(), "cat", "tcp://127.0.0.1:1", 0)


def test_all_that_wait_are_woken_by_the_thread_that_notices_the_end(fetch: Fetch) -> None:
    seen: list[bool] = []
    waiting = [threading.Thread(target=lambda: seen.append(fetch.wait(50))) for _ in range(3)]
    for it in waiting:
        it.start()
    begun = time.monotonic()
    timer = threading.Timer(0.2, fetch.abort)
    timer.start()
    for it in waiting:
        it.join()
    assert time.monotonic() - begun < 25
    assert seen == [True] * 3
    assert isinstance(fetch.exception(), FetchFailed)
    assert fetch.wait(0)


def test_a_wait_that_ends_without_it_leaves_nothing_behind(fetch: Fetch) -> None:
    for _ in range(3):
        assert not fetch.wait(0.01)
    assert not fetch._callbacks
    fetch.abort()
    assert fetch.wait(0)
