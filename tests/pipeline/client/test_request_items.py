"""What the requests of an engine have of an item cache, whatever becomes of them and of the engine's node."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from support.caching import ADDRESS, StubCache

from embridge import EmbridgeError, Item, NodeGoneError, NotPublished, RequestItems, SegmentError, StepLoads, WantStatus
from embridge.pipeline.client.allowed_nodes import AllowedNodes
from embridge.pipeline.client.cached_items import Key

PAGE = 4096


class Engine:
    """Its requests, over a node that the test takes away and brings back. Items have a page each."""

    def __init__(self, num_items: int, *, encoders: Sequence[str] = ("tcp://127.0.0.1:*",), own: str = "") -> None:
        self.max_bytes = num_items * PAGE
        self.error: Exception | None = None  # which a new cache raises
        self.told: list[str] | Exception = ValueError("it has no discovery")
        self.stub: StubCache
        self.client: Any = self.new_client()
        self.items = RequestItems(
            lambda: self.client, self.max_bytes, encoders=encoders, own_address=lambda: own
        )

    def new_client(self) -> Any:
        return SimpleNamespace(run_dir="there", item_cache=self._item_cache, encode_nodes=self._encode_nodes)

    def _item_cache(self, max_bytes: int, *, wait_s: float, shared: bool, in_place: bool) -> Any:
        assert in_place
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # not the one that keeps its frames
        self.stub = StubCache(max_bytes, shared=shared)
        return self.stub.cache

    def _encode_nodes(self) -> list[Any]:
        if isinstance(self.told, Exception):
            raise type(self.told)(*self.told.args)
        return [SimpleNamespace(bootstrap_addr=address) for address in self.told]

    def ask(self, request: str, keys: str, fits: Callable[[Key, Item], str] | None = None) -> WantStatus:
        items: dict[Key, str] = dict.fromkeys(keys, ADDRESS)
        status = (self.items.ask(request, items, fits) if fits else self.items.ask(request, items)).status
        self.items.hasten()
        self.stub.settle()
        return status

    def come(self, key: str, size: int = PAGE) -> bool:
        return self.stub.come(key, size)

    def has(self, request: str, keys: str) -> bool:
        """As an engine that steps until that is so."""
        for _ in range(3):
            for fetch in self.stub.under_way():
                if fetch.ask(PAGE):
                    fetch.come(PAGE, ord(fetch.key))
                    self.stub.settle()
            if self.ask(request, keys) == WantStatus.READY:
                return True
        return False


def test_a_request_has_its_items_when_all_are_there_and_until_it_ends() -> None:
    """R65, R69."""
    it = Engine(2)
    assert it.ask("1", "ab") == WantStatus.NOT_YET
    assert it.come("a")
    assert it.ask("1", "ab") == WantStatus.NOT_YET
    assert it.items.find("a") is None
    assert it.come("b")
    assert it.ask("1", "ab") == WantStatus.READY
    assert it.ask("1", "b") == WantStatus.READY
    held = it.items.find("a")
    assert held is not None
    assert (held.item.shape, held.address, held.nbytes) == ((1, PAGE), ADDRESS, PAGE)
    assert it.items.find("a", "1") == held
    assert it.items.find("a", "2") is None
    assert it.ask("2", "c") == WantStatus.NOT_YET
    assert not it.come("c")
    it.items.end("1")
    it.items.end("1")
    assert it.items.find("a") is None
    del held
    assert it.come("c")
    assert it.ask("2", "c") == WantStatus.READY


def test_who_needs_more_later_keeps_what_it_has() -> None:
    """R69: a request that is preempted needs again what was computed when it was first asked for."""
    it = Engine(3)
    assert it.has("settled", "e")
    assert it.has("grows", "b")
    assert it.ask("first", "cd") == WantStatus.NOT_YET
    assert it.come("c")
    assert it.ask("grows", "ab") == WantStatus.NOT_YET
    assert not it.come("d")  # neither in the place of b
    assert it.ask("grows", "ab") == WantStatus.NOT_YET
    assert it.items.find("b", "grows") is not None
    it.items.end("settled")
    assert it.has("first", "cd")
    it.items.end("first")
    assert it.has("grows", "ab")


def test_requests_that_need_more_do_not_wait_for_one_another_for_ever() -> None:
    """R65: each holds one of two that fit, and needs another one."""
    it = Engine(2)
    assert it.has("1", "a")
    assert it.has("2", "b")
    left = {"1": "ac", "2": "bd"}
    for _ in range(10):
        for request in [name for name, keys in left.items() if it.has(name, keys)]:
            it.items.end(request)
            del left[request]
    assert not left


@pytest.mark.parametrize("seed", range(10))
def test_every_request_gets_what_it_needs_in_the_end_whatever_it_needs_later(seed: int) -> None:
    """R65, R69, P8."""
    rng, it, keys = random.Random(seed), Engine(3), "abcdef"
    left = {str(k): ["".join(rng.sample(keys, rng.randint(1, 3))) for _ in range(3)] for k in range(8)}
    for turn in range(3000):
        if not left:
            break
        request = rng.choice(list(left))
        wanted = left[request]
        if it.has(request, wanted[0]):
            assert all(it.items.find(key, request) is not None for key in wanted[0])
            wanted.pop(0)
        if not wanted or rng.random() < 0.01:
            it.items.end(request)
            del left[request]
        assert it.stub.cache.counts().bytes <= it.max_bytes, turn
    assert not left


def test_what_a_step_loads_stays_until_it_is_read_whatever_becomes_of_the_request() -> None:
    """R70."""
    it = Engine(1)
    assert it.has("1", "a")
    held = it.items.find("a")
    assert held is not None
    assert it.items.tell() == StepLoads(1, {}, is_owed=False)
    it.items.add("name", held)
    assert it.items.tell() == StepLoads(2, {"name": held.lent.at}, is_owed=True)
    assert it.items.tell() == StepLoads(3, {}, is_owed=True)
    it.items.end("1")
    del held
    assert it.ask("2", "b") == WantStatus.NOT_YET
    assert not it.come("b")
    it.items.has_read(1)
    assert not it.come("b")
    it.items.take_counts()
    it.items.has_read(3)
    assert it.items.take_counts() == {"loads": 1, "load_bytes": PAGE}
    assert it.come("b")
    assert not it.items.tell().is_owed


def test_rows_that_do_not_fit_are_told_of_and_fetched_anew_for_whoever_asks_next() -> None:
    it = Engine(2)
    assert it.ask("1", "a") == WantStatus.NOT_YET
    assert it.come("a", 2 * PAGE)
    answer = it.items.ask("1", {"a": ADDRESS}, lambda key, item: "it is too wide" * (item.shape[1] > PAGE))
    assert answer.status == WantStatus.MISSED
    assert answer.errors["a"].reason == "it is too wide"
    assert it.items.find("a") is None
    assert it.ask("1", "a") == WantStatus.NOT_YET
    assert it.come("a")
    assert it.ask("1", "a") == WantStatus.READY
    counts = it.items.take_counts()
    assert (counts["refused"], counts["missed"], counts["misses"]) == (1, 0, 2)
    assert not it.items.take_counts()


def test_what_cannot_be_fetched_is_told_once_and_asked_for_anew() -> None:
    """R68."""
    it = Engine(2)
    it.ask("1", "ab")
    it.stub.fetch_of("b").fail(NotPublished("b", "it is not"))
    it.stub.settle()
    assert it.ask("1", "ab") == WantStatus.MISSED
    assert it.items.take_counts()["missed"] == 1
    assert it.ask("1", "a") == WantStatus.NOT_YET
    assert it.come("a")
    assert it.ask("1", "a") == WantStatus.READY
    assert it.ask("2", "abc") == WantStatus.NOT_YET
    assert it.stub.fetch_of("b").ask(PAGE)
    assert not it.stub.fetch_of("c").ask(PAGE)
    assert it.ask("2", "abc") == WantStatus.MISSED  # for ever too large


def test_a_node_that_goes_and_comes_back_costs_nobody_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    it = Engine(2)
    assert it.has("1", "a")
    assert it.ask("2", "b") == WantStatus.NOT_YET
    it.client, gone = None, it.client
    assert it.ask("1", "a") == WantStatus.READY
    assert it.ask("2", "b") == WantStatus.MISSED
    assert it.ask("1", "ac") == WantStatus.MISSED
    assert it.items.find("a", "1") is not None
    it.client = gone
    it.client = it.new_client()
    it.error = SegmentError("there is no memory")
    caplog.clear()
    for _ in range(3):  # as each step of the engine does
        assert it.ask("2", "b") == WantStatus.MISSED
    assert len(caplog.messages) == 1
    it.error = None
    old = it.stub
    assert it.has("2", "b")
    assert it.stub is not old
    assert it.has("1", "ac")
    assert [fetch.key for fetch in it.stub.fetches] == ["b", "c"]  # a lies here still
    it.items.end("1")
    it.items.end("2")
    assert it.items.find("a") is None


@pytest.mark.parametrize("error", [NodeGoneError("gone"), RuntimeError("closed")])
def test_a_node_that_dies_in_the_midst_of_a_call_raises_nothing(error: Exception) -> None:
    """It would end the engine."""
    it = Engine(2, encoders=(), own="tcp://127.0.0.1:1")
    it.told = error
    it.ask("1", "a")
    assert it.ask("1", "a") == WantStatus.MISSED
    it = Engine(2)
    it.ask("1", "a")

    def fail(*_: object) -> None:
        raise RuntimeError("closed")

    it.stub.cache._library.wake = fail  # type: ignore[assignment, method-assign]
    it.items.ask("2", {"b": ADDRESS})
    it.items.hasten()
    it.items.end("1")
    it.stub.cache._attachment.check_attached = fail  # type: ignore[method-assign]
    it.items.ask("3", {"c": ADDRESS})
    it.items.hasten()
    assert it.items.ask("3", {"c": ADDRESS}).status == WantStatus.MISSED


def test_only_nodes_are_asked_that_are_listed_or_the_engine_s_own_or_told_of_by_discovery() -> None:
    listed = Engine(2, encoders=["tcp://[0::1]:8998"], own="tcp://127.0.0.1:7")
    discovering = Engine(2, encoders=(), own="tcp://127.0.0.1:7")
    discovering.told = ["tcp://127.0.0.1:9"]
    for it, address, is_asked in (
        (listed, "tcp://[::1]:8998", True),
        (listed, "tcp://127.0.0.1:7", True),
        (listed, "tcp://127.0.0.1:9", False),
        (discovering, "tcp://127.0.0.1:9", True),
        (discovering, "tcp://127.0.0.1:8", False),
        (listed, "ipc:///tmp/x", False),
        (listed, "\ud800", False),
    ):
        it.items.ask("1", {"a": address})
        it.items.hasten()
        answer = it.items.ask("1", {"a": address})
        assert (answer.status == WantStatus.NOT_YET) == is_asked, address
        assert (it.items.take_counts()["refused"] == 0) == is_asked
        it.items.end("1")
    with pytest.raises(ValueError, match="discovery"):
        Engine(2, encoders=())
    with pytest.raises(ValueError, match="encoders: 'localhost'"):
        AllowedNodes(["localhost"])


def test_addresses_are_compared_in_their_one_form() -> None:
    allowed = AllowedNodes(["tcp://[0::1]:8998", "tcp://10.0.0.1:*"])
    assert not allowed.why_not("tcp://[::1]:8998", None)
    assert not allowed.why_not("tcp://10.0.0.1:1234", None)
    others: list[Any] = [None, 7, b"tcp://10.0.0.1:1", [], {}, "a" * 10_000]
    assert all("is not of the form" in allowed.why_not(address, None) for address in others)
    assert allowed.why_not("tcp://[::1]:8999", None)
    assert allowed.why_not("tcp://10.0.0.11:1234", None)


def test_an_error_of_another_kind_is_none_of_ours() -> None:
    """What is raised on purpose is caught, and no other: that is a fault, and must be seen."""
    it = Engine(2)
    it.client = it.new_client()
    it.error = KeyError("a fault")
    assert not issubclass(KeyError, EmbridgeError)
    with pytest.raises(KeyError):
        it.items.ask("1", {"a": ADDRESS})
