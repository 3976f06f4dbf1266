"""The item cache: who is admitted when, what stays, what goes, and who is told of what."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from support.caching import ADDRESS, StubCache

from embridge import Busy, FetchFailed, FetchTimeout, ItemsTooLarge, NotPublished, WantStatus


def test_a_user_is_admitted_when_all_its_items_are_there_and_what_is_there_is_fetched_once() -> None:
    """R65, R67."""
    it = StubCache(100)
    assert not it.is_ready(1, "ab")
    assert not it.is_ready(2, "ab")
    assert sorted(fetch.key for fetch in it.under_way()) == ["a", "b"]
    assert it.come("a", 10)
    assert not it.is_ready(1, "ab")
    with pytest.raises(ValueError, match="does not have it"):
        it.cache.get(1, "a")
    rung = it.num_rung
    assert it.come("b", 10)
    assert it.num_rung > rung  # whoever sleeps until something has changed
    assert it.is_ready(1, "ab")
    assert it.is_ready(2, "ab")
    assert (it.value(1, "a"), it.value(2, "b")) == (ord("a"), ord("b"))
    assert it.is_ready(3, "a")
    counts = it.cache.counts()
    assert (counts.hits, counts.shared, counts.misses, counts.bytes, counts.admitted) == (1, 2, 2, 20, 3)


def test_items_of_an_admitted_user_stay_until_it_ends_and_then_as_long_as_there_is_room() -> None:
    """R69."""
    it = StubCache(30)
    it.is_ready(1, "ab")
    assert it.come("a", 10)
    assert it.come("b", 10)
    it.is_ready(2, "c")
    assert not it.come("c", 20)
    assert not it.is_ready(2, "c")
    it.cache.end(1)
    it.cache.end(1)
    assert it.come("c", 20)
    assert it.is_ready(2, "c")
    assert it.cache.counts().evictions == 1  # the one of them that was used longer ago
    assert it.is_ready(3, "b")
    assert not it.is_ready(4, "a")


def test_the_first_in_line_takes_what_only_users_behind_it_want_and_no_other() -> None:
    """R65, R66: else two of two items each would hold one of them, for ever."""
    it = StubCache(20)
    it.is_ready(1, "ab")
    it.is_ready(2, "cd")
    assert [fetch.key for fetch in it.under_way()] == ["a", "b"]  # whoever is behind begins when these have memory
    for key in "ab":
        assert it.fetch_of(key).ask(10)
    assert [fetch.key for fetch in it.under_way()] == ["a", "b"]
    it.cache.end(1)
    for fetch in it.under_way():  # they come to their end (R71)
        if fetch.is_admitted:
            fetch.come(10, 1)
    assert [fetch.key for fetch in it.under_way()] == ["c", "d"]
    assert it.come("c", 10)
    it.is_ready(3, "a")
    assert it.come("d", 10)
    assert it.is_ready(2, "cd")
    assert not it.is_ready(3, "a")


def test_a_failure_is_told_to_all_who_wait_once_and_whoever_asks_again_has_it_fetched_again() -> None:
    """R68."""
    it = StubCache(100)
    it.is_ready(1, "ab")
    it.is_ready(2, "b")
    it.fetch_of("b").fail(NotPublished("b", "it is not"))
    it.settle()
    for user, keys in ((1, "ab"), (2, "b")):
        answer = it.cache.want(user, dict.fromkeys(keys, ADDRESS))
        assert answer.status == WantStatus.MISSED
        assert [type(error) for error in answer.errors.values()] == [NotPublished]
    assert [fetch.key for fetch in it.under_way()] == ["a"]
    other = "tcp://127.0.0.1:8"
    assert it.cache.want(2, {"b": other}).status == WantStatus.NOT_YET
    assert not it.fetch_of("a").ask(10)  # whoever wants it has yet to ask again
    assert not it.is_ready(1, "ab")
    assert it.come("a", 10)
    assert it.fetch_of("b").address == other
    assert it.come("b", 10)
    assert it.is_ready(2, "b")
    assert it.is_ready(1, "ab")


def test_what_passes_by_itself_is_not_told() -> None:
    """R68: a node without a slot is asked again after a while; so is one whose item waited for memory here too long."""
    it = StubCache(10)
    it.is_ready(1, "a")
    it.fetch_of("a").fail(Busy("a", "no slot"))
    assert it.under_way() == []
    it.now_ns += 10**8
    assert not it.is_ready(1, "a")
    assert it.come("a", 10)
    it.is_ready(2, "b")
    fetch = it.fetch_of("b")
    assert not fetch.ask(10)
    fetch.fail(FetchTimeout("b", "its deadline has passed"))
    assert not it.is_ready(2, "b")
    assert not it.fetch_of("b").ask(10)
    it.fetch_of("b").fail(NotPublished("b", "it is gone"))
    it.settle()
    assert it.cache.want(2, {"b": ADDRESS}).status == WantStatus.MISSED


def test_a_node_that_stays_busy_is_told_of_in_the_end() -> None:
    it = StubCache(10)
    it.is_ready(1, "a")
    for _ in range(200):
        it.fetch_of("a").fail(Busy("a", "no slot"))
        it.settle()
        it.now_ns += 10**8
        if it.cache.want(1, {"a": ADDRESS}).status == WantStatus.MISSED:
            break
    assert 10.0 <= it.now_ns / 1e9 - 1 < 12.0


def test_a_set_that_never_fits_is_refused_at_once_and_holds_nothing() -> None:
    """D9: as soon as its sizes are known."""
    it = StubCache(20)
    it.is_ready(1, "a")
    assert it.come("a", 15)
    it.is_ready(2, "ab")
    assert not it.fetch_of("b").ask(6)
    with pytest.raises(ItemsTooLarge, match="21 bytes > max_bytes 20"):
        it.is_ready(2, "ab")
    assert it.under_way() == []
    assert it.cache.counts()[3:5] == (1, 0)  # admitted and waiting
    it.is_ready(3, "b")
    assert not it.fetch_of("b").ask(21)
    with pytest.raises(ItemsTooLarge):
        it.is_ready(3, "b")
    assert it.is_ready(1, "a")
    it.cache.end(1)
    with pytest.raises(ItemsTooLarge):
        it.is_ready(4, "ab") or it.fetch_of("b").ask(6) or it.is_ready(4, "ab")


def test_memory_counts_until_nobody_looks_at_it() -> None:
    """R63: an evicted item's view keeps it."""
    it = StubCache(20)
    it.is_ready(1, "a")
    assert it.come("a", 15)
    assert it.is_ready(1, "a")
    view = np.frombuffer(it.cache.get(1, "a").copied().bytes, np.uint8)
    it.cache.end(1)
    it.is_ready(2, "b")
    assert not it.come("b", 15)
    assert view.max() == ord("a")
    assert it.cache.counts().bytes == 15
    del view
    assert it.come("b", 15)
    assert it.is_ready(2, "b")
    assert it.cache.counts().bytes == 15


def test_what_is_named_ahead_is_fetched_when_no_user_lacks_memory_and_takes_none_that_one_wants() -> None:
    it = StubCache(20)
    it.is_ready(1, "a")
    it.cache.prefetch("b", ADDRESS)
    assert [fetch.key for fetch in it.under_way()] == ["a"]
    assert it.come("a", 10)
    assert it.come("b", 10)
    it.cache.prefetch("c", ADDRESS)
    assert it.come("c", 10)  # in the place of b, which nobody wants
    assert it.is_ready(2, "c")
    it.cache.prefetch("d", ADDRESS)
    assert not it.come("d", 10)
    assert not it.is_ready(3, "d")
    it.cache.end(2)
    assert it.come("d", 10)
    assert it.is_ready(3, "d")
    it.cache.prefetch("e", ADDRESS)
    it.fetch_of("e").fail(NotPublished("e", "it is not"))
    assert it.under_way() == []


def test_what_is_forgotten_is_fetched_anew_and_stays_for_those_who_have_it() -> None:
    it = StubCache(20)
    it.is_ready(1, "a")
    assert it.come("a", 10, value=1)
    assert it.is_ready(1, "a")
    it.cache.forget("a")
    it.cache.forget("nothing")
    assert not it.is_ready(2, "a")
    assert it.come("a", 10, value=2)
    assert it.is_ready(2, "a")
    assert (it.value(1, "a"), it.value(2, "a")) == (1, 2)
    it.cache.end(1)
    assert it.cache.counts().bytes == 10
    it.is_ready(3, "b")
    it.cache.forget("b")
    fetches = it.under_way()
    assert [fetch.key for fetch in fetches] == ["b"]
    assert it.come("b", 5, value=3)
    assert it.is_ready(3, "b")


def test_who_leaves_gives_up_what_only_it_waited_for() -> None:
    it = StubCache(20)
    it.is_ready(1, "ab")
    it.is_ready(2, "b")
    it.cache.end(1)
    assert [fetch.key for fetch in it.under_way()] == ["b"]
    it.cache.end(2)
    assert it.under_way() == []
    assert it.cache.counts().waiting == 0


def test_a_user_asks_for_the_same_keys_until_it_ends() -> None:
    it = StubCache(20)
    it.is_ready(1, "a")
    with pytest.raises(ValueError, match="other keys"):
        it.is_ready(1, "ab")
    bad: list[dict[str, str]] = [{}, {"a" * 300: ADDRESS}, {"b": "nowhere"}]
    for items in bad:
        with pytest.raises(ValueError, match=r"."):
            it.cache.want(2, items)
    assert it.cache.counts().waiting == 1
    with pytest.raises(ValueError, match="max_bytes"):
        StubCache(0)


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_every_user_gets_its_whole_set_in_the_end(seed: int, forgets: bool) -> None:
    """R65 to R69, R71, P8, D8: any interleaving; the limit is never passed, and nobody reads another's rows."""
    rng = random.Random(seed)
    it, keys = StubCache(30), "abcdefg"
    sizes = {key: rng.randint(1, 12) for key in keys}
    line = {user: "".join(rng.sample(keys, rng.randint(1, 3))) for user in range(12)}
    line = {user: them for user, them in line.items() if sum(sizes[key] for key in them) <= 30}
    arrived, failures = list(line), 6
    for _ in range(4000):
        if not line:
            break
        assert it.cache.counts().bytes <= 30
        what, under_way = rng.random(), it.under_way()
        keys_under_way = [fetch.key for fetch in under_way]
        assert len(keys_under_way) == len(set(keys_under_way)) or forgets
        if under_way and what < 0.4:
            fetch = rng.choice(under_way)
            if failures and rng.random() < 0.1:
                failures -= 1
                fetch.fail(FetchFailed(fetch.key, "by the test"))
            elif fetch.is_admitted:
                fetch.come(sizes[fetch.key], ord(fetch.key))
            else:
                fetch.ask(sizes[fetch.key])
        elif what < 0.45:
            it.cache.prefetch(rng.choice(keys), ADDRESS)
        elif what < 0.48 and forgets:
            it.cache.forget(rng.choice(keys))
        elif arrived:
            user = rng.choice(list(line))
            if it.is_ready(user, line[user]):
                assert [it.value(user, key) for key in line[user]] == [ord(key) for key in line[user]]
                if rng.random() < 0.5:  # else it is preempted, and resumed later
                    it.cache.end(user)
                    del line[user]
        it.now_ns += 10**7
    assert not line
    for fetch in it.under_way():
        fetch.abort()
    it.settle()
    assert it.cache.counts()[3:5] == (0, 0)


def test_whoever_only_wants_to_know_whether_to_ask_again_wakes_nobody() -> None:
    it = StubCache(100)
    assert it.cache.has_answer(1)  # it has not asked yet
    it.is_ready(1, "a")
    assert not it.cache.has_answer(1)
    it.fetch_of("a").fail(NotPublished("a", "it is not"))
    it.settle()
    assert it.cache.has_answer(1)
    assert it.cache.want(1, {"a": ADDRESS}).status == WantStatus.MISSED
    it.is_ready(1, "a")
    assert not it.cache.has_answer(1)
    assert it.come("a", 10)
    assert it.cache.has_answer(1)


@pytest.mark.parametrize("call", ["end", "forget", "get", "counts", "want", "prefetch"])
def test_no_call_in_a_forked_child_waits_for_a_thread_of_the_parent(call: str) -> None:
    """P8: the library thread had the lock when the child was forked, and is not there to give it back."""
    it = StubCache(100)
    it.is_ready(1, "a")
    calls: dict[str, Callable[[], object]] = {
        "end": lambda: it.cache.end(1),
        "forget": lambda: it.cache.forget("a"),
        "get": lambda: it.cache.get(1, "a"),
        "counts": lambda: it.cache.counts(),
        "want": lambda: it.cache.want(1, {"a": ADDRESS}),
        "prefetch": lambda: it.cache.prefetch("a", ADDRESS),
    }
    it.fork()
    with it.cache._lock:
        if call in ("end", "forget"):
            calls[call]()
        else:
            with pytest.raises(RuntimeError, match="forked"):
                calls[call]()
