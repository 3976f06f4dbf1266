"""The shelf of an engine's encode node: nothing is raised into the engine, and what fails is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embridge import NodeGoneError, Published, PublishStatus, WhyDropped
from embridge.integrations.engine_shelf import COUNTS, EngineShelf

ADDRESS = "tcp://127.0.0.1:8998"
ROWS = torch.zeros(1, 1)


class StubClient:
    """Of a node whose shelf has `keys`."""

    bootstrap_addr = ADDRESS

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.shelf = SimpleNamespace(counts=lambda: None, contains=self._contains)
        self.answer: Published | Exception = Published(PublishStatus.READY)

    def _contains(self, key: str) -> int:
        if isinstance(self.answer, Exception):
            raise type(self.answer)(*self.answer.args)
        return int(key in self.keys)

    def publish(self, key: str, rows: torch.Tensor) -> Published:
        if isinstance(self.answer, Exception):
            raise type(self.answer)(*self.answer.args)
        return self.answer


def shelf_of(client: StubClient) -> tuple[EngineShelf, Any]:
    member: Any = SimpleNamespace(look=lambda: client, clock=lambda: 0)
    return EngineShelf(member), member


def test_what_is_published_has_an_address_while_its_node_is_there() -> None:
    client = StubClient("a")
    shelf, member = shelf_of(client)
    assert [shelf.address_of(key) for key in "ab"] == [ADDRESS, ""]
    client.answer = NodeGoneError("gone")
    assert shelf.address_of("a") == ""
    member.look = lambda: None
    assert (shelf.address(), shelf.has("a"), shelf.address_of("a")) == ("", False, "")


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (Published(PublishStatus.READY), {"published": 1}),
        (Published(PublishStatus.ALREADY), {}),
        (Published(PublishStatus.DROPPED, why=WhyDropped.NO_ROOM), {"not_published": 1}),
        (NodeGoneError("gone"), {"not_published": 1}),
        (ValueError("no such dtype"), {"not_published": 1}),
    ],
)
def test_what_becomes_of_a_publication_is_counted_once(answer: Published | Exception, counted: dict[str, int]) -> None:
    client = StubClient()
    shelf, _ = shelf_of(client)
    client.answer = answer
    shelf.publish("a", ROWS)
    taken = shelf.take_counts()
    assert +taken == counted
    assert set(taken) <= set(COUNTS)
    assert not shelf.take_counts()
