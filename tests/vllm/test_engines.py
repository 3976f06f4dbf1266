"""Whole runs of two engines with a node each, and what becomes of one when a part of the other dies."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

from engines import Ask, Running, encoded, ended, loaded
from test_behaviours import promised


def test_fifty_requests_with_twenty_images_encode_twenty_times(
    start: Callable[..., Running], producer: Running, name: str
) -> None:
    """Each of 1 to 3 images, in any order, through an encoder cache of four and an item cache of six: what was evicted
    comes again from the producer.
    """
    consumer = start("ec_consumer", {"cache_bytes": 6 * PAGESIZE}, cache_embeds=64)
    images = [f"{name}{k:02}" for k in range(20)]
    asks = [
        Ask(name=str(k), items=tuple((images[(7 * k + 3 * j) % 20], 16 * j, 16) for j in range(1 + k % 3)), prompt=64)
        for k in range(50)
    ]
    assert {it for ask in asks for it, _, _ in ask.items} == set(images)
    at_source = producer.run(*(Ask(name=f"{name}{ask.name}", items=ask.items, prompt=64) for ask in asks))
    assert sorted(encoded(at_source)) == images
    params = {it: told for _, its in ended(at_source).values() for it, told in its.items()}
    steps = consumer.run(*(Ask(name=ask.name, items=ask.items, prompt=64, params=params) for ask in asks))
    assert [how[0] for how in ended(steps).values()] == ["length"] * 50
    assert encoded(steps) == []
    assert set(loaded(steps)) == set(images)


def test_what_the_encoder_cache_has_and_the_shelf_has_no_more_is_published_again(
    producer: Running, consumer: Running, name: str
) -> None:
    promised(producer, name)
    producer.call("evict", name)
    steps = producer.run(Ask(name=f"{name}2", items=((name, 0, 16),)))
    assert encoded(steps) == []
    steps = consumer.run(Ask(name=name, items=((name, 0, 16),), params=ended(steps)[f"{name}2"][1]))
    assert loaded(steps) == [name]


def test_a_shelf_that_is_too_small_costs_the_producer_nothing_but_the_item(
    start: Callable[..., Running], name: str
) -> None:
    """`save_caches` raises nothing, and nobody is told of an item that is not there."""
    small = start("ec_producer", {"shelf_bytes": 1 << 16})
    large = ((name, 0, 1000),)
    steps = small.run(Ask(name="1", items=large, prompt=1024))
    why, told = ended(steps)["1"]
    assert (why, encoded(steps)) == ("stop", [name])
    assert "address" not in told[name]


def seconds_until_error(consumer: Running, ask: Ask) -> float:
    begun = time.monotonic()
    assert ended(consumer.run(ask))[ask.name][0] == "error"
    return time.monotonic() - begun


def test_when_the_producer_is_killed_requests_for_its_items_end_as_errors_within_a_second(
    start: Callable[..., Running], consumer: Running, name: str
) -> None:
    """As when its container is gone, with its node. What was fetched before stays, and others go on."""
    producer = start("ec_producer")
    images = [f"{name}{k}" for k in range(4)]
    params = promised(producer, *images)
    first = consumer.run(Ask(name=f"{name}1", items=((images[0], 0, 16),), params=params))
    assert loaded(first) == images[:1]
    kill_with_nodes(producer)
    took_s = [
        seconds_until_error(consumer, Ask(name=f"{name}{it}", items=((it, 0, 16),), params=params))
        for it in images[1:]
    ]
    print("seconds until the error:", took_s)
    assert max(took_s) < 1.0, took_s
    again = consumer.run(Ask(name=f"{name}9", items=((images[0], 0, 16),), params=params))
    assert ended(again)[f"{name}9"][0] == "length"  # it lies here


def test_when_a_producer_is_killed_that_was_never_met_its_requests_end_too(
    start: Callable[..., Running], name: str
) -> None:
    """That takes as long as its language node tries to reach it (`connect_timeout_s`), and a second."""
    node = {"geometry": {"hidden_size": 64, "num_blocks": 8}, "timing": {"connect_timeout_s": 1.0}}
    producer, consumer = start("ec_producer"), start("ec_consumer", {"node": node})
    params = promised(producer, name)
    kill_with_nodes(producer)
    took_s = seconds_until_error(consumer, Ask(name="1", items=((name, 0, 16),), params=params))
    print("seconds until the error:", took_s)
    assert took_s < 10.0


def test_a_request_that_waits_for_a_producer_that_is_killed_ends_as_an_error_within_a_second(
    start: Callable[..., Running], name: str
) -> None:
    """Its item may come for some seconds, so it waits."""
    producer, consumer = start("ec_producer"), start("ec_consumer", {"wait_s": 60})
    params = promised(producer, name)
    producer.call("evict", name)
    consumer.add(Ask(name="1", items=((name, 0, 16),), params=params))
    begun = time.monotonic()
    while time.monotonic() < begun + 2.0:
        assert not consumer.step().ended
        time.sleep(0.005)
    kill_with_nodes(producer)
    begun = time.monotonic()
    assert ended(consumer.run(until=1))["1"][0] == "error"
    took_s = time.monotonic() - begun
    print("seconds until the error:", took_s)
    assert took_s < 1.0


def test_a_node_that_was_launched_ends_with_its_engine(start: Callable[..., Running], folder: Path, name: str) -> None:
    engine = start("ec_both", {"shelf_bytes": 1 << 22})
    there = [it for it in folder.iterdir() if "ec_both" in it.name]
    assert len(there) == 2
    engine.stop()
    assert not [it for it in folder.iterdir() if it in there]


def test_of_an_engine_that_is_killed_nothing_is_left(start: Callable[..., Running], folder: Path) -> None:
    """Its launched nodes end, and take their run directories with them."""
    engine = start("ec_both", {"shelf_bytes": 1 << 22})
    there = [it for it in folder.iterdir() if "ec_both" in it.name]
    assert len(there) == 2
    engine.kill()
    deadline = time.monotonic() + 20
    while any(it.exists() for it in there):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_user_keeps_in_the_run_directory_stays(start: Callable[..., Running], folder: Path) -> None:
    run_dir = folder / "with-a-file"
    run_dir.mkdir(mode=0o700)
    (run_dir / "mine").write_text("1")
    start("ec_consumer", {"run_dir": str(run_dir)}).stop()
    assert [it.name for it in run_dir.iterdir()] == ["mine"]
    shutil.rmtree(run_dir)


def test_a_consumer_whose_node_dies_goes_on_with_the_next(
    start: Callable[..., Running], producer: Running, folder: Path, name: str
) -> None:
    """What needs an item meanwhile ends as an error; then the node is launched again, and its items come again."""
    consumer = start("ec_consumer")
    images = [f"{name}{k:03}" for k in range(200)]
    found = [outcome(consumer, images[0], promised(producer, images[0]))]
    for pid in launchers(consumer):
        os.killpg(pid, signal.SIGKILL)
    for image in images[1:]:
        found.append(outcome(consumer, image, promised(producer, image)))
        if "error" in found and found[-1] == "length":
            break
        time.sleep(0.05)
    assert (found[0], found[-1], set(found)) == ("length", "length", {"length", "error"})


def test_a_producer_whose_node_dies_goes_on_and_publishes_on_the_next(
    start: Callable[..., Running], consumer: Running, name: str
) -> None:
    """`save_caches` raises nothing; what is encoded meanwhile is told of without an address."""
    producer = start("ec_producer", runner="v2")
    for pid in launchers(producer):
        os.killpg(pid, signal.SIGKILL)
    found: list[bool] = []
    for k in range(200):
        steps = producer.run(Ask(name=f"{k}", items=((f"{name}{k:03}", 0, 16),)))
        why, told = ended(steps)[f"{k}"]
        assert why == "stop"
        found.append("address" in told[f"{name}{k:03}"])
        if False in found and found[-1]:
            break
        time.sleep(0.05)
    assert set(found) == {True, False}
    assert outcome(consumer, f"{name}{len(found) - 1:03}", told) == "length"


def outcome(consumer: Running, image: str, params: dict[str, Any]) -> str:
    """What becomes of a request with an image; another one, of text, goes on whatever that is."""
    steps = consumer.run(Ask(name=image, items=((image, 0, 16),), params=params), Ask(name=f"{image}text"))
    assert ended(steps)[f"{image}text"][0] == "length"
    why: str = ended(steps)[image][0]
    assert (loaded(steps) == [image]) == (why == "length")
    return why


def kill_with_nodes(engine: Running) -> None:
    groups = launchers(engine)
    assert groups
    for pid in groups:
        os.killpg(pid, signal.SIGKILL)
    engine.kill()
    for folder in Path(os.environ["XDG_RUNTIME_DIR"]).glob(f"*-{engine.spec.transfer['engine_id']}"):
        shutil.rmtree(folder)


def launchers(engine: Running) -> list[int]:
    """The launchers of the nodes that an engine's processes have started."""
    found = []
    for process in engine.processes:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found
