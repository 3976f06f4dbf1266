"""Which requests of an engine may be scheduled, and what becomes of those whose items cannot be had."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from support.caching import ADDRESS, StubCache

from embridge import NotPublished
from embridge.pipeline.client.cached_items import Key
from embridge.pipeline.client.engine_requests import COUNTS, EngineRequests, Need, told_address

WIDTH = 64
OWN = "tcp://127.0.0.1:7"


class OwnItems:
    """What the engine has published itself."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()

    def address(self) -> str:
        return OWN

    def address_of(self, key: Key) -> str:
        return OWN if key in self.keys else ""


class Engine:
    """Its requests; items have one row."""

    def __init__(self, may_make: str = "") -> None:
        self.stub = StubCache(1 << 20, shared=True)
        client: Any = SimpleNamespace(run_dir="there", item_cache=lambda max_bytes, **named: self.stub.cache)
        self.own = OwnItems()
        self.requests = EngineRequests(
            lambda: client, 1 << 20, width=WIDTH, dtype="uint8", encoders=["tcp://127.0.0.1:9"], own=self.own,
            may_make=lambda need: need.media in may_make,
        )  # fmt: skip

    def admit(
        self, request: str, told: str, untold: str = "", *, rows: int = 1, computed: int = 0, state: int = 0
    ) -> bool:
        """Of a request that needs items of which somebody has told, and others."""
        needs = [Need(key, rows, ADDRESS * (key in told), key) for key in told + untold]
        is_admitted = self.requests.admit(request, needs, computed, state)
        self.requests.hasten()
        self.stub.settle()
        return is_admitted

    def come(self, key: str, width: int = WIDTH) -> None:
        assert self.stub.come(key, width)

    def lack(self, key: str) -> None:
        self.stub.fetch_of(key).fail(NotPublished(key, "it is not there"))
        self.stub.settle()


def test_a_request_goes_on_when_all_that_it_needs_is_there() -> None:
    it = Engine()
    assert it.admit("text", "")
    assert not it.admit("1", "ab")
    it.come("a")
    assert not it.admit("1", "ab")
    it.come("b", 2 * WIDTH)  # several embeddings of a token
    assert it.admit("1", "ab")
    assert it.requests.find("b", "1") is not None
    it.requests.end("1")
    assert it.requests.find("b") is None
    assert it.requests.take_unavailable() == set()


def test_needs_are_not_looked_at_again_until_less_is_computed_or_the_request_has_changed() -> None:
    it = Engine()

    def is_looked_at(computed: int, state: int) -> bool:
        needs = iter([Need("a", 1)])
        assert it.requests.admit("1", needs, computed, state)
        return not list(needs)

    assert [is_looked_at(*how) for how in ((5, 1), (5, 1), (9, 1), (4, 1), (9, 2))] == [True, False, False, True, True]
    it.requests.end("1")
    assert is_looked_at(9, 2)


def test_a_request_is_over_when_an_item_cannot_be_had_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    it = Engine()
    assert not it.admit("1", "ab")
    it.lack("a")
    with caplog.at_level(logging.WARNING):
        assert not it.admit("1", "ab")
    assert caplog.messages == ["request 1: item 'a' cannot be had: it is not there"]
    assert not it.admit("1", "ab")  # and nothing is asked for any more
    assert [fetch.key for fetch in it.stub.under_way()] == []
    assert it.requests.take_unavailable() == {"1"}
    assert it.requests.take_unavailable() == set()
    counts = it.requests.take_counts()
    assert (counts["unavailable"], counts["missed"]) == (1, 1)
    assert set(counts) <= set(COUNTS)
    it.requests.end("1")
    assert not it.admit("1", "a")  # another one of that name
    it.come("a")
    assert it.admit("1", "a")


def test_what_ended_before_it_was_named_is_not_named() -> None:
    it = Engine()
    it.admit("1", "a")
    it.lack("a")
    assert not it.admit("1", "a")
    it.requests.end("1")
    assert it.requests.take_unavailable() == set()


def test_what_the_engine_makes_itself_is_needed_no_more() -> None:
    it = Engine(may_make="ac")
    assert not it.admit("1", "ab")
    it.lack("a")
    assert not it.admit("1", "ab")  # b comes anew
    it.come("b")
    assert it.admit("1", "ab")
    assert (it.requests.find("a", "1"), it.requests.take_unavailable()) == (None, set())
    assert it.admit("1", "ab", computed=0, state=1)  # nor after a preemption
    assert [fetch.key for fetch in it.stub.fetches] == ["a", "b", "b"]
    assert not it.admit("2", "cd")
    it.lack("d")
    assert not it.admit("2", "cd")
    assert it.requests.take_unavailable() == {"2"}


def test_an_item_of_which_nobody_has_told_is_had_from_who_has_it() -> None:
    it = Engine()
    assert it.admit("1", "", "a")  # nobody: the engine makes it
    it.own.keys.add("b")
    assert not it.admit("2", "", "b")
    assert it.stub.fetch_of("b").address == OWN
    it.come("b")
    assert it.admit("2", "", "b")
    it.own.keys.clear()
    assert it.admit("3", "", "b")  # as 2 has it
    assert it.requests.find("b", "3") is not None
    assert it.admit("4", "", "b", rows=2)  # which its rows do not fit
    assert it.requests.find("b", "4") is None
    assert it.requests.take_counts()["refused"] == 0


def test_an_item_that_was_only_tried_is_made_when_it_cannot_be_had() -> None:
    it = Engine()
    it.own.keys.add("a")
    assert not it.admit("1", "", "a")
    it.lack("a")
    assert it.admit("1", "", "a")
    assert it.requests.take_unavailable() == set()


@pytest.mark.parametrize(("rows", "width"), [(2, WIDTH), (1, WIDTH + 1)])
def test_rows_that_do_not_fit_end_their_request(
    rows: int, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    it = Engine()
    assert not it.admit("1", "a", rows=rows)
    it.come("a", width)
    assert not it.admit("1", "a", rows=rows)
    assert it.requests.take_unavailable() == {"1"}
    assert f"it has 1 rows of {width} uint8, and {rows} rows of a multiple of 64 uint8 are needed" in caplog.text
    assert it.requests.take_counts()["refused"] == 1


def test_an_item_that_is_needed_twice_is_asked_for_once() -> None:
    it = Engine()
    assert not it.admit("1", "aa")
    it.come("a")
    assert it.admit("1", "aa")
    assert it.requests.take_counts()["misses"] == 1


@pytest.mark.parametrize(
    "params", [None, 7, "a", [], {}, {"a": None}, {"a": "address"}, {"a": {"address": 7}}, {"b": {"address": "x"}}]
)
def test_what_clients_say_may_be_anything(params: object) -> None:
    assert told_address(params, "a") == ""
    assert told_address({"a": {"address": "x", "more": 1}}, "a") == "x"
