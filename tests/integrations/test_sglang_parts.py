"""Embeddings of SGLang's encoders on their way to its schedulers, without SGLang: what is published, what is told, and
what each rank reads. `make engines` has the same with SGLang's own receivers and encoder.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fetching import no_door
from support.nodes import Station
from support.waiting import wait_until

from embridge import ConfigError, NodeGoneError, SegmentError
from embridge.integrations.sglang import register
from embridge.integrations.sglang.options import VARIABLE, Options
from embridge.integrations.sglang.parts import PartMissed, Parts
from embridge.integrations.sglang.published import PublishedParts, Told
from embridge.pipeline.client import shelf_doors

HERE = ("tcp://127.0.0.1:*",)
EMBEDDINGS = [torch.randn(40, 96).bfloat16(), torch.randn(7, 96).bfloat16(), torch.randn(3, 32)]


class Group:
    """SGLang's group of two ranks, which the test's one thread plays in turn: the first that speaks is rank 0."""

    def __init__(self) -> None:
        self._told: list[Any] = []

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        assert src == 0
        if obj is None:
            return self._told.pop()
        self._told.append(obj)
        return obj


@pytest.fixture
def published(shelved: Station) -> Iterator[PublishedParts]:
    it = PublishedParts(Options(run_dir=str(shelved.run_dir)))
    yield it
    it.close()


Making = Callable[..., Parts]


@pytest.fixture
def ranks(language: Station) -> Iterator[Making]:
    """Makes the parts of a rank."""
    made = []

    def make(*, leads: bool = True, group: Any = None, **options: Any) -> Parts:
        over = Options(**{"run_dir": str(language.run_dir), "encoders": HERE, **options})
        made.append(Parts(over, leads=leads, group=group))
        return made[-1]

    yield make
    for it in made:
        it.close()


def tell(published: PublishedParts, rows: torch.Tensor) -> Told:
    told = asyncio.run(published.publish(rows))
    assert told is not None
    return told


def expect(parts: Parts, rid: str, told: Mapping[int, Told], embeddings: list[torch.Tensor] = EMBEDDINGS) -> None:
    for index, it in told.items():
        parts.expect(rid, index, tuple(it), list(embeddings[index].shape), embeddings[index].dtype)


def come(parts: Parts, rid: str) -> Mapping[int, torch.Tensor]:
    """As SGLang's scheduler asks, in each of its turns."""
    found: list[Mapping[int, torch.Tensor]] = []

    def has_come() -> bool:
        rows = parts.rows(rid)
        found.extend([rows] if rows is not None else [])
        return bool(found)

    wait_until(has_come, what=f"the rows of {rid}")
    return found[0]


def all_right(rows: Mapping[int, torch.Tensor]) -> bool:
    return rows.keys() == set(range(len(EMBEDDINGS))) and all(
        it.dtype == EMBEDDINGS[index].dtype and torch.equal(it, EMBEDDINGS[index]) for index, it in rows.items()
    )


@pytest.mark.process
@pytest.mark.parametrize("is_far", [False, True], ids=["one host", "from afar"])
def test_parts_of_any_width_and_dtype_come_as_they_were_and_all_ranks_read_one_copy(
    shelved: Station, published: PublishedParts, ranks: Making, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    """P6, D16, R67: the rank that follows has no client of its own, and reads what the one that leads has fetched."""
    if is_far:
        monkeypatch.setattr(shelf_doors, "knock", no_door)
    group = Group()
    first, second = ranks(group=group), ranks(leads=False, group=group)
    told = {index: tell(published, it) for index, it in enumerate(EMBEDDINGS)}
    assert all(it.address == shelved.addr for it in told.values())
    for rank in (first, second):
        expect(rank, "request", told)
        assert rank.rows("text only") == {}
    assert all_right(come(first, "request"))
    assert second.rows("request") is None  # it was told of nothing yet
    for rank in (first, second):
        rank.exchange()
    rows = second.rows("request")
    assert rows is not None
    assert all_right(rows)
    assert all_right(come(first, "request"))


@pytest.mark.process
def test_a_request_has_its_parts_until_it_has_left_and_then_others_have_the_memory(
    published: PublishedParts, ranks: Making
) -> None:
    """R65, R69: two requests whose parts do not fit into the cache together."""
    parts = ranks(cache_bytes=9000)
    told = {0: tell(published, EMBEDDINGS[0])}
    others = {0: tell(published, EMBEDDINGS[0] + 1)}
    expect(parts, "one", told)
    rows = come(parts, "one")
    expect(parts, "two", others)
    for _ in range(50):
        assert parts.rows("two") is None
        parts.keep({"one": None, "two": None})
        assert torch.equal(rows[0], EMBEDDINGS[0])
    del rows
    parts.keep({"two": None})
    assert torch.equal(come(parts, "two")[0], EMBEDDINGS[0] + 1)


@pytest.mark.process
def test_a_request_whose_parts_cannot_be_had_is_told_why(
    shelved: Station, published: PublishedParts, ranks: Making
) -> None:
    """P5: at once, and no part that a message names is fetched from where nothing may come."""
    parts = ranks(encoders=(shelved.addr, "tcp://127.0.0.1:1"), cache_bytes=9000)
    there = tell(published, EMBEDDINGS[0])
    wrongs = {
        "not published": (Told("nothing", shelved.addr), EMBEDDINGS[0]),
        "none of the encode nodes": (Told(there.key, "tcp://127.0.0.1:2"), EMBEDDINGS[0]),
        "is no tcp://ip:port": (Told(there.key, "tcp://elsewhere:2"), EMBEDDINGS[0]),
        "its message tells of": (there, EMBEDDINGS[1]),
        "max_bytes": (tell(published, torch.zeros(10000, 1)), torch.zeros(10000, 1)),
        "nobody listens": (Told("elsewhere", "tcp://127.0.0.1:1"), EMBEDDINGS[0]),
    }
    for why, (told, rows) in wrongs.items():
        expect(parts, why, {0: told}, [rows])
    for why in list(wrongs):
        with pytest.raises(PartMissed, match=why):
            come(parts, why)
        del wrongs[why]
        parts.keep(wrongs)
    for garbage in ("key", ("key",), ("key", 7), {"key": "node"}, None):
        with pytest.raises(ValueError, match="names no item"):
            parts.expect("request", 0, garbage, [1, 1], torch.float32)
    expect(parts, "right", {0: there})
    assert torch.equal(come(parts, "right")[0], EMBEDDINGS[0])


@pytest.mark.process
@pytest.mark.parametrize("error", [NodeGoneError("gone"), SegmentError("there is no memory")], ids=lambda it: str(it))
def test_a_node_that_has_come_back_and_has_no_cache_fails_requests_and_not_their_scheduler(
    published: PublishedParts, ranks: Making, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """It is gone again, say; as soon as it has one, that is used."""
    parts, has_none, there = ranks(), True, tell(published, EMBEDDINGS[0])
    caches = parts._caches
    assert caches is not None
    client = caches.client
    assert client is not None

    def item_cache(*args: Any, **named: Any) -> Any:
        if has_none:
            raise type(error)(*error.args)
        return client.item_cache(*args, **named)

    again = SimpleNamespace(item_cache=item_cache, encode_nodes=client.encode_nodes, run_dir=client.run_dir)
    caches._find_client = lambda: again  # type: ignore[assignment, return-value]
    with caplog.at_level(logging.WARNING):
        for rid in ("one", "two"):
            expect(parts, rid, {0: there})
            with pytest.raises(PartMissed, match="the node of this scheduler is gone"):
                parts.rows(rid)
            parts.keep({})
    assert len(caplog.messages) == 1
    has_none = False
    caches._find_client = lambda: client
    expect(parts, "three", {0: there})
    assert torch.equal(come(parts, "three")[0], EMBEDDINGS[0])


@pytest.mark.process
def test_what_cannot_be_published_goes_by_sglangs_own_way(
    published: PublishedParts, ranks: Making, caplog: pytest.LogCaptureFixture
) -> None:
    """And what was published stays when its encoder has left."""
    there = tell(published, EMBEDDINGS[0])
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(published.publish(torch.zeros(3 << 20, 1))) is None
        assert asyncio.run(published.publish(torch.zeros(2, 2, dtype=torch.complex64))) is None
        published.close()
        assert asyncio.run(published.publish(EMBEDDINGS[0])) is None
    assert "its node has dropped it: TOO_LARGE" in caplog.text
    kept = [value for record in caplog.records for value in record.args or ()]
    assert not any(isinstance(value, BaseException) for value in kept)  # its frames, and the client, would stay, too
    parts = ranks()
    expect(parts, "request", {0: there})
    assert torch.equal(come(parts, "request")[0], EMBEDDINGS[0])


@pytest.mark.process
def test_nodes_that_cannot_do_it_are_refused_at_the_start(language: Station, ranks: Making) -> None:
    with pytest.raises(ValueError, match="shelf"):
        PublishedParts(Options(run_dir=str(language.run_dir)))
    with pytest.raises(ConfigError, match="encoders: name the encode nodes"):
        ranks(encoders=())


def test_without_its_variable_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    register()
    assert "embridge.integrations.sglang.plugin" not in sys.modules
    assert Options.from_env() == Options()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{", "is no JSON"),
        ("[]", "object"),
        ('{"encoder": []}', "encoder"),
        ('{"encoders": "tcp://127.0.0.1:1"}', "encoders"),
        ('{"encoders": ["localhost"]}', "encoders"),
        ('{"cache_bytes": 0}', "cache_bytes"),
        ('{"cache_bytes": true}', "cache_bytes"),
        ('{"cache_bytes": 1125899906842625}', "cache_bytes"),
        ('{"keep_s": 0}', "keep_s"),
        ('{"run_dir": 7}', "run_dir"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, said: str, why: str) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(ConfigError, match=f"{VARIABLE}: .*{why}"):
        Options.from_env()


def test_options_are_read_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"run_dir": "/run/e", "encoders": ["tcp://[0::1]:8998", "tcp://10.0.0.1:*"]}')
    options = Options.from_env()
    assert (str(options.directory("encode")), options.cache_bytes) == ("/run/e", 4 << 30)
    assert options.encoders == ("tcp://[0::1]:8998", "tcp://10.0.0.1:*")
