"""What vLLM's scheduler does with our connector: what is loaded, what is encoded, who waits and who does not."""

from __future__ import annotations

from collections.abc import Callable
from mmap import PAGESIZE  # a cache that its workers read has whole pages
from typing import Any

import pytest
from engines import Ask, Running, counted, encoded, ended, loaded
from runners import HIDDEN

RUNNERS = pytest.mark.parametrize("runner", ["v1", "v2"])


def promised(producer: Running, *names: str, length: int = 16) -> dict[str, Any]:
    """Have images encoded by the producer. Returns what its response says of each."""
    asks = [Ask(name=f"e{name}", items=((name, 0, length),), prompt=length + 8) for name in names]
    found = ended(producer.run(*asks))
    params: dict[str, Any] = {}
    for ask in asks:
        why, told = found[ask.name]
        assert why == "stop"
        params |= told
    assert all(params[name]["address"].startswith("tcp://127.0.0.1:") for name in names)
    return params


def test_a_request_of_text_alone_allocates_and_loads_nothing(consumer: Running, name: str) -> None:
    steps = consumer.run(Ask(name=name, params={"x": {"address": "tcp://127.0.0.1:9"}}))
    assert ended(steps) == {name: ("length", None)}
    assert (loaded(steps), encoded(steps)) == ([], [])


def test_an_item_that_the_producer_has_is_loaded_and_not_encoded(
    producer: Running, consumer: Running, name: str
) -> None:
    steps = consumer.run(Ask(name=name, items=((name, 4, 16),), params=promised(producer, name)))
    assert (loaded(steps), encoded(steps)) == ([name], [])
    assert ended(steps)[name][0] == "length"
    assert (counted(steps, "loads"), counted(steps, "load_bytes")) == (1, 16 * HIDDEN * 2)


@RUNNERS
def test_either_runner_of_vllm_publishes_and_loads(
    runner: str, start: Callable[..., Running], producer: Running, name: str
) -> None:
    both = start("ec_both", {"shelf_bytes": 1 << 22}, runner=runner)
    params = promised(producer, f"{name}a")
    steps = both.run(Ask(name="1", items=((f"{name}a", 0, 16), (f"{name}b", 16, 8)), prompt=30, params=params))
    assert (loaded(steps), encoded(steps)) == ([f"{name}a"], [f"{name}b"])
    assert "address" in ended(steps)["1"][1][f"{name}b"]  # it is published here


def test_an_item_of_which_nobody_has_told_is_encoded(consumer: Running, name: str) -> None:
    steps = consumer.run(Ask(name=name, items=((name, 4, 16),)))
    assert (loaded(steps), encoded(steps)) == ([], [name])


def test_of_several_items_those_are_loaded_that_the_producer_has(
    producer: Running, consumer: Running, name: str
) -> None:
    a, b, c = f"{name}a", f"{name}b", f"{name}c"
    steps = consumer.run(
        Ask(name=name, items=((a, 0, 16), (b, 16, 16), (c, 32, 16)), prompt=60, params=promised(producer, a, c))
    )
    assert (loaded(steps), encoded(steps)) == ([a, c], [b])


def test_an_item_that_stands_in_a_prompt_twice_is_loaded_once(producer: Running, consumer: Running, name: str) -> None:
    params = promised(producer, name)
    items = ((name, 0, 16), (name, 20, 16))
    steps = consumer.run(Ask(name=f"{name}1", items=items, prompt=40, params=params))
    assert (loaded(steps), encoded(steps)) == ([name], [])


def test_what_lies_in_the_encoder_cache_is_neither_loaded_nor_encoded(
    producer: Running, consumer: Running, name: str
) -> None:
    params = promised(producer, name)
    asks = [Ask(name=f"{name}{k}", items=((name, 0, 16),), params=params) for k in range(2)]
    first, again = consumer.run(asks[0]), consumer.run(asks[1])
    assert loaded(first) == [name]
    assert (loaded(again), encoded(again)) == ([], [])


def test_several_requests_with_the_same_item_share_one_fetch_and_one_load(
    producer: Running, consumer: Running, name: str
) -> None:
    params = promised(producer, name)
    steps = consumer.run(*(Ask(name=f"{name}{k}", items=((name, 0, 16),), params=params) for k in range(5)))
    assert loaded(steps) == [name]
    assert (counted(steps, "misses"), counted(steps, "shared") + counted(steps, "hits")) == (1, 4)


def test_a_preempted_request_gets_its_item_again_when_it_was_evicted_meanwhile(
    producer: Running, start: Callable[..., Running], name: str
) -> None:
    """R69: the item stays until the request has ended, though the encoder cache holds one image, and the producer none
    any more.
    """
    small = start("ec_consumer", cache_embeds=16)
    a, b = f"{name}a", f"{name}b"
    params = promised(producer, a, b)
    for who, item in (("1", a), ("2", b)):
        small.add(Ask(name=who, items=((item, 0, 16),), prompt=40, max_tokens=20, params=params))
    steps = [small.step()]
    while len(loaded(steps)) < 2:
        steps.append(small.step())
    for item in (a, b):
        producer.call("evict", item)
    small.call("preempt_all")
    steps += small.run(until=2)
    assert {who: how[0] for who, how in ended(steps).items()} == {"1": "length", "2": "length"}
    assert (encoded(steps), sorted(loaded(steps))) == ([], [a, a, b, b])


def test_without_blocks_nothing_is_loaded(producer: Running, start: Callable[..., Running], name: str) -> None:
    small = start("ec_consumer", num_blocks=6)
    params = promised(producer, name)
    small.add(Ask(name="1", prompt=60, max_tokens=10))
    assert small.step().scheduled == {"1": 60}
    small.add(Ask(name="2", items=((name, 0, 16),), prompt=40, params=params))
    for _ in range(5):
        step = small.step()
        assert "2" not in step.scheduled
        assert step.loads == []
    steps = small.run(until=2)
    assert loaded(steps) == [name]


def test_a_request_that_waits_holds_no_block_and_does_not_stop_those_behind_it(
    start: Callable[..., Running], name: str
) -> None:
    """Nobody answers at the address of its item, which may come for some seconds."""
    patient = start("ec_consumer", {"wait_s": 30})
    free = patient.step().free_blocks
    ask = Ask(name="waits", items=((name, 0, 16),), params={name: {"address": "tcp://127.0.0.1:9"}})
    patient.add(ask)
    steps = patient.run(Ask(name="text"), Ask(name="image", items=((f"{name}b", 0, 16),)))
    assert sorted(ended(steps)) == ["image", "text"]
    assert steps[-1].free_blocks == free
    patient.call("abort", "waits")
    assert patient.step().free_blocks == free


def test_an_item_that_cannot_be_had_ends_its_request_as_an_error_once(
    producer: Running, consumer: Running, name: str
) -> None:
    """It is not published any more, or never was."""
    params = promised(producer, name)
    producer.call("evict", name)
    steps = consumer.run(Ask(name=name, items=((name, 0, 16),), params=params))
    assert ended(steps) == {name: ("error", None)}
    assert (loaded(steps), encoded(steps), counted(steps, "unavailable")) == ([], [], 1)


def test_an_item_that_cannot_be_had_is_encoded_where_that_was_asked_for_and_can_be(
    producer: Running, start: Callable[..., Running], name: str
) -> None:
    consumer = start("ec_consumer", {"on_missing": "encode"})
    a, b = f"{name}a", f"{name}b"
    params = promised(producer, a, b)
    producer.call("evict", a)
    items = ((a, 0, 16), (b, 16, 16))
    steps = consumer.run(Ask(name="1", items=items, prompt=40, params=params))
    assert (loaded(steps), encoded(steps), ended(steps)["1"][0]) == ([b], [a], "length")
    steps = consumer.run(Ask(name="2", items=((f"{a}2", 0, 16),), params={f"{a}2": params[a]}, has_data=False))
    assert ended(steps)["2"][0] == "error"


@pytest.mark.parametrize("address", ["tcp://10.1.2.3:8998", "ipc:///tmp/x", "tcp://localhost:1", 7, None, {"a": 1}])
def test_an_address_that_is_not_allowed_is_not_asked(consumer: Running, name: str, address: Any) -> None:
    """What requests say comes from clients. What is no address at all is nothing that was told."""
    steps = consumer.run(Ask(name=name, items=((name, 0, 16),), params={name: {"address": address}}))
    assert ended(steps)[name][0] == ("error" if isinstance(address, str) else "length")
    assert counted(steps, "refused") == isinstance(address, str)


@pytest.mark.parametrize("params", [None, [], "x", {"a": 5}, {"a": {"address": "\0" * 1000}}])
def test_params_of_any_form_harm_nobody(consumer: Running, name: str, params: Any) -> None:
    steps = consumer.run(Ask(name=name, items=((name, 0, 16),), params=params))
    assert ended(steps)[name][0] == "length"


def test_rows_that_do_not_fit_the_model_are_refused(
    start: Callable[..., Running], producer: Running, consumer: Running, name: str
) -> None:
    """Of another width than a multiple of the model's, or of another number than the prompt has places."""
    wide = start("ec_producer", width=HIDDEN + 1)
    a, b = f"{name}a", f"{name}b"
    params = promised(wide, a) | promised(producer, b)
    asks = [Ask(name=it, items=((it, 0, length),), params=params) for it, length in ((a, 16), (b, 8))]
    steps = consumer.run(*asks)
    assert {who: how[0] for who, how in ended(steps).items()} == {a: "error", b: "error"}
    assert counted(steps, "refused") == 2


def test_rows_of_one_request_are_not_loaded_for_another_that_has_other_places_for_them(
    producer: Running, start: Callable[..., Running], name: str
) -> None:
    """Clients may name their media themselves, and give two of them one name."""
    small = start("ec_consumer", cache_embeds=16)
    a, b = f"{name}a", f"{name}b"
    params = promised(producer, a, b)
    small.add(Ask(name="1", items=((a, 0, 16),), max_tokens=200, params=params))
    while not small.step().loads:
        pass
    assert loaded(small.run(Ask(name="2", items=((b, 0, 16),), params=params))) == [b]  # in the place of a
    steps = small.run(Ask(name="3", items=((a, 0, 8),)))
    assert (loaded(steps), encoded(steps), ended(steps)["3"][0]) == ([], [a], "length")
    steps = small.run(Ask(name="4", items=((b, 0, 16),), params=params), Ask(name="5", items=((a, 0, 16),)))
    assert (loaded(steps), encoded(steps)) == ([b, a], [])  # of which 5 was told nothing, and 1 has it
    small.call("abort", "1")


def test_deepstack_rows_are_several_times_as_wide(start: Callable[..., Running], name: str) -> None:
    source, target = start("ec_producer", width=4 * HIDDEN), start("ec_consumer", width=4 * HIDDEN)
    steps = target.run(Ask(name=name, items=((name, 0, 16),), params=promised(source, name)))
    assert loaded(steps) == [name]


def test_only_items_beyond_what_is_computed_are_asked_for(start: Callable[..., Running], name: str) -> None:
    """A prefix that lies in the KV cache needs its image no more."""
    consumer = start("ec_consumer", prefix_caching=True)
    items = ((name, 0, 16),)
    consumer.run(Ask(name="xy", items=items, prompt=64))
    gone = {name: {"address": "tcp://127.0.0.1:9"}}
    steps = consumer.run(Ask(name="yx", items=items, prompt=64, params=gone))
    assert ended(steps)["yx"][0] == "length"
    assert counted(steps, "misses") == 0


def test_what_a_step_loads_stays_though_its_request_is_aborted_meanwhile(
    producer: Running, start: Callable[..., Running], name: str
) -> None:
    """R70. The cache has room for one image."""
    consumer = start("ec_consumer", {"cache_bytes": PAGESIZE})
    a, b = f"{name}a", f"{name}b"
    params = promised(producer, a, b)
    consumer.add(Ask(name="1", items=((a, 0, 16),), params=params))
    step = consumer.step()
    while not step.scheduled:
        step = consumer.step(between="1")
    assert step.loads == [a]
    steps = consumer.run(Ask(name="2", items=((b, 0, 16),), params=params))
    assert loaded(steps) == [b]
    assert consumer.call("read_bytes") == PAGESIZE


def test_of_a_step_of_which_nothing_is_heard_the_next_one_tells(
    producer: Running, start: Callable[..., Running], name: str
) -> None:
    """R70, P21: what it loads is not kept until something is loaded again, and its pins stay no longer."""
    consumer = start("ec_consumer", num_ranks=2)
    consumer.add(Ask(name=name, items=((name, 0, 16),), max_tokens=200, params=promised(producer, name)))
    while not (step := consumer.step(is_told=False)).loads:
        pass
    assert len(consumer.call("kept_steps")) == 1
    step = consumer.step()
    assert (step.loads, step.stats["loads"], consumer.call("kept_steps")) == ([], 1, [])
    assert "loads" not in consumer.step().stats
    consumer.call("abort", name)


def test_several_ranks_read_one_copy(producer: Running, start: Callable[..., Running], name: str) -> None:
    """D16."""
    consumer = start("ec_consumer", num_ranks=2)
    steps = consumer.run(Ask(name=name, items=((name, 0, 16),), params=promised(producer, name)))
    assert loaded(steps) == [name]
    assert consumer.call("read_bytes") == PAGESIZE
