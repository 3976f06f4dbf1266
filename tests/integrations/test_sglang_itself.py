"""SGLang's own receivers on two ranks, its encoder's delivery and its plugins, over real nodes: `make engines`."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from support import engines, sglang
from support.agents import Agent, running
from support.engines import STANDS_IN, has_sglang, stand_in_for_sglang
from support.fetching import shelf_node
from support.nodes import Station
from support.ports import port_to_keep
from support.sglang import Ended, rows_of_part
from support.waiting import wait_until

from embridge.allocator.metrics import Metric

if not has_sglang():
    pytest.skip("SGLang is not installed here; `make engines` installs it apart", allow_module_level=True)
pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]  # three processes import SGLang


SMALL: Final = {"geometry": {"hidden_size": 64, "num_blocks": 8}, "lock_memory": False}


class Pair(NamedTuple):
    """An encoder and the two ranks of a scheduler."""

    node: Station
    encoder: Agent
    url: str
    ranks: list[Agent]

    def carry(self, rid: str, tokens: list[int], *, abort: bool = False) -> list[Ended]:
        """A request of parts with so many tokens each: how it ends on both ranks."""
        for rank in self.ranks:
            rank.start(sglang.receive, rid, self.url, len(tokens), abort=abort)
        if not abort:
            for part, count in enumerate(tokens):
                assert self.encoder.call(sglang.encode, rid, part, len(tokens), part, count) == ""
        ended = [rank.result() for rank in self.ranks]
        for rank in self.ranks:
            wait_until(lambda: rank.call(sglang.is_forgotten))  # noqa: B023
        return ended


@pytest.fixture(scope="module")
def pair(shared_dir: Path, language: Station) -> Iterator[Pair]:
    with shelf_node(shared_dir / "sglang") as node, running("encoder") as encoder:
        url = encoder.call(sglang.begin_encoder, f'{{"run_dir": "{node.run_dir}"}}', timeout_s=800)
        options = f'{{"run_dir": "{language.run_dir}", "encoders": ["tcp://127.0.0.1:*"]}}'
        meet_at = f"tcp://127.0.0.1:{port_to_keep()}"
        with running("rank 0") as first, running("rank 1") as second:
            ranks = [first, second]
            for number, rank in enumerate(ranks):
                rank.start(sglang.begin_rank, options, number, 2, meet_at)
            for rank in ranks:
                assert rank.result(800) == "embridge.integrations.sglang.plugin.ReceiverByHTTP"
            yield Pair(node, encoder, url, ranks)
            for rank in ranks:
                rank.call(sglang.end_rank)
        encoder.call(sglang.leave)


def are_right(ended: list[Ended], tokens: list[int]) -> bool:
    want = torch.cat([rows_of_part(part, count) for part, count in enumerate(tokens)])
    return all(it.error == "" and torch.equal(it.rows["IMAGE"], want) for it in ended)


def _said(default: object) -> object:
    return getattr(default, "value", default)


def fetched(node: Station) -> int:
    return sum(row.get(Metric.FETCHED_IN_PLACE.name.lower(), 0) for row in node.control.metrics.all().values())


def test_stand_ins_have_the_names_and_signatures_of_the_real_classes() -> None:
    stand_in_for_sglang()
    real = importlib.import_module(engines.SGLANG_BASE)
    for stand_in in STANDS_IN:
        theirs = getattr(real, stand_in.__name__)
        assert stand_in.__abstractmethods__ == theirs.__abstractmethods__
        for name in stand_in.__abstractmethods__:
            ours = inspect.signature(getattr(stand_in, name)).parameters.values()
            them = inspect.signature(getattr(theirs, name)).parameters.values()
            assert [(it.name, it.kind) for it in ours] == [(it.name, it.kind) for it in them], name
            assert [_said(it.default) for it in ours] == [_said(it.default) for it in them], name
    for name in ("Failed", "Bootstrapping", "WaitingForInput", "Transferring", "Success"):
        assert getattr(real.KVPoll, name) == getattr(engines.KVPoll, name)


def test_both_ranks_get_every_byte_and_it_was_fetched_once(pair: Pair, language: Station) -> None:
    """R67, D16: two parts for two ranks are two items, and four messages without rows."""
    assert pair.encoder.call(sglang.delivers).startswith("embridge.integrations.sglang.plugin")
    before = fetched(language)
    assert are_right(pair.carry("two parts", [300, 40]), [300, 40])
    assert fetched(language) - before == 2


def test_what_a_turn_costs_in_which_a_request_waits(pair: Pair) -> None:
    """A figure, for the page: it is no promise."""
    for rank in pair.ranks:
        rank.start(sglang.exchanges_s, 1000)
    print(f"telling the other rank takes {max(rank.result() for rank in pair.ranks) * 1e6:.0f} us a turn")


def test_what_finds_no_room_on_the_shelf_comes_by_sglangs_own_way(pair: Pair) -> None:
    """Also beside a part that is published."""
    tokens = [13000, 40]  # of 192 bytes: more than 2 MiB
    assert are_right(pair.carry("too large", tokens), tokens)


def test_a_request_that_is_aborted_or_whose_encoder_fails_leaves_nothing(pair: Pair) -> None:
    for ended in pair.carry("aborted", [40], abort=True):
        assert (ended.error, ended.code) == ("Aborted by user", 400)
    assert are_right(pair.carry("afterwards", [40]), [40])


def test_an_encoder_with_another_way_of_delivery_is_refused(pair: Pair) -> None:
    assert "give zmq_to_scheduler" in pair.encoder.call(sglang.refuses, "mooncake")


def test_a_bootstrap_server_is_an_encode_node_which_a_manager_joins_again(own_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what SGLang and torch have to say when they are imported
        stand_in_for_sglang()
        mode = importlib.import_module("sglang.srt.disaggregation.utils").DisaggregationMode.PREFILL
        rooms = importlib.import_module("embridge.integrations.sglang.rooms")
    port, path = port_to_keep(), own_dir / "encode"

    def begun() -> Any:
        server = rooms.EmbridgeKVBootstrapServer("127.0.0.1", port, run_dir=path, **SMALL)
        assert server.address == f"tcp://127.0.0.1:{port}"
        return server

    server = begun()
    manager = rooms.EmbridgeKVManager(None, mode, None, run_dir=path)
    before = manager.client
    manager.register_to_bootstrap()
    assert manager.client is before
    server.close()
    wait_until(lambda: before.node_gone)
    server = begun()
    manager.register_to_bootstrap()
    assert not manager.client.node_gone
    manager.close()
    server.close()


def test_requests_of_a_dead_encode_node_fail_within_a_second(pair: Pair) -> None:
    """P5. The last test: the node of this file is killed when the part is published, and before it is fetched."""
    pair.encoder.call(sglang.kill_before_telling, pair.node.node.pid)
    ended = pair.carry("lost", [300])
    for it in ended:
        assert it.error.startswith("embridge: ")
        assert it.code == 502
    print(f"failed {max(it.waited_s for it in ended):.3f} s after it was asked for")
    tokens = [50]  # and what comes then goes by SGLang's own way
    assert are_right(pair.carry("without a node", tokens), tokens)
