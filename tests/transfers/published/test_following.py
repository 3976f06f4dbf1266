"""Following what is published on an encode node, between processes: whoever waits for a notice is woken by it (R72)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch
from support.nodes import Station
from support.waiting import wait_until

from embridge import Client, ItemNotice, NoticeKind, Subscription, attach
from embridge.pipeline.client import subscriptions

pytestmark = pytest.mark.process

ROWS = torch.ones(2, 8)


def num_waiting(it: Subscription) -> int:
    return len(it._all.turn._waiters)  # type: ignore[attr-defined]


@pytest.fixture
def followed(
    shelved: Station, publisher: Client, language: Station, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Subscription]:
    """By a client that does not look by itself while it waits."""
    monkeypatch.setattr(subscriptions, "LOOK_S", 60.0)
    with attach(language.run_dir) as client, client.subscribe(shelved.addr) as it:
        while not it.is_whole:
            assert it.wait(30)
            it.poll()
        while it.wait(0.3):  # until what other tests have left is told
            it.poll()
        yield it


def test_threads_that_wait_are_woken_by_what_is_published(followed: Subscription, publisher: Client) -> None:
    found: list[ItemNotice] = []
    threads = [threading.Thread(target=lambda: found.append(next(iter(followed)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: num_waiting(followed) == 3)
    for key in ("one", "two", "three"):
        publisher.publish(key, ROWS)
    for thread in threads:
        thread.join(30)
    assert {(it.kind, it.key) for it in found} == {(NoticeKind.PUBLISHED, key) for key in (b"one", b"two", b"three")}
    assert not followed.wait(0)


def test_a_coroutine_that_waits_is_woken_by_what_is_published(followed: Subscription, publisher: Client) -> None:
    async def read() -> ItemNotice:
        async with asyncio.timeout(30):
            async for notice in followed:
                return notice
        raise AssertionError("it has no end")

    async def both() -> ItemNotice:
        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        publisher.publish("one", ROWS)
        return await reading

    assert asyncio.run(both()).key == b"one"


def test_who_waits_hears_that_it_is_closed(followed: Subscription) -> None:
    raised: list[str] = []

    def wait() -> None:
        try:
            while followed.wait(30):  # of what other tests have left
                followed.poll()
        except ValueError as error:
            raised.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: num_waiting(followed) == 1)
    followed.close()
    thread.join(20)
    assert raised == [f"subscription of {followed.address}: it was closed"]
