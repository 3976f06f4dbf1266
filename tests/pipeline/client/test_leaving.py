"""Leaving a node: what was mapped is free at once, the lane is kept while somebody copies, and whoever still asks is
refused (P9).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoding import give, num_doors, open_sender, through_workers, wait_doors
from support.leaks import is_shared_memory, open_descriptors
from support.nodes import Station, station
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, WaitingQueue, attach, follow
from embridge.allocator.records import Lane, LaneState
from embridge.allocator.status import Phase
from embridge.pipeline.client import library as library_module
from embridge.pipeline.client.client import library_of
from embridge.pipeline.inspection.node_status import node_status
from embridge.pipeline.scheduler.host_memory import HostRows
from embridge.pipeline.scheduler.lending import Lending

pytestmark = pytest.mark.process


def shared() -> Counter[str]:
    """What this process has mapped of segments: each by its file, with the number of mappings."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return Counter(words[5] for words in lines if len(words) > 5 and is_shared_memory(words[5]))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is freed by who leaves, and not because the garbage collector comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING, "embridge")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


# ---- memory and descriptors


def test_a_client_that_closes_frees_memory_and_descriptors_whoever_still_holds_its_objects(
    encode: Station, language: Station, room: int, no_collector: None, said: Callable[[], str]
) -> None:
    """P9: with requests in every state, on both sides, and nothing collected."""
    maps, files = shared(), open_descriptors()
    sending, queues = attach(encode.run_dir), Queues(attach(language.run_dir))
    assert shared() - maps
    request = queues.add(encode.addr, room)
    sender = open_sender(sending, room, 2000)
    assert give(sender)
    done = queues.wait(room, 20)
    waiting = queues.add(encode.addr, room + (1 << 40))
    wait_until(lambda: waiting.receiver is not None)
    half = open_sender(sending, room + (1 << 41), 2000)
    assert give(half, 0, 500)
    queues.client.close()
    sending.close()
    assert shared() == maps
    assert open_descriptors() == files
    assert said() == ""
    assert done is request
    assert queues.check(done).difference == ""  # a result is in this process's own memory by now
    assert {str(it) for it in (half, waiting.receiver)} == {
        f"<EmbeddingSender room={half.room}: this client is closed>",
        f"<EmbeddingReceiver room={waiting.room}: this client is closed>"
    }  # fmt: skip
    for it in (encode, language):
        it.wait_idle()


@pytest.mark.parametrize("kind", ["a tensor", "an array", "a slice"])
def test_what_is_still_looked_at_stays_until_it_is_gone_and_a_warning_says_so(
    language: Station, kind: str, no_collector: None, said: Callable[[], str]
) -> None:
    """P9, B12: the only exception."""
    maps = shared()
    client = attach(language.run_dir)
    buffers, payload = library_of(client).attachment.buffers, library_of(client).attachment.payload
    view = {
        "a tensor": buffers.input_embeddings,
        "an array": buffers.fill_ids,
        "a slice": buffers.input_embeddings[1][2:4],
    }[kind]
    before = torch.as_tensor(view).view(torch.uint8).clone()
    client.close()
    assert sum((shared() - maps).values()) == 1
    assert (
        f"{payload.size} bytes of its payload stay in use until the last tensor or array over them is gone (1 are left)"
        in said()
    )
    assert torch.equal(torch.as_tensor(view).view(torch.uint8), before)
    del view
    assert shared() == maps


def test_the_memory_of_a_node_that_is_gone_is_free_before_its_clients_have_closed(
    own_dir: Path, encode: Station, room: int, no_collector: None
) -> None:
    """P9, P13: else a node whose pool is more than half of /dev/shm could not be launched again."""
    with station("encode", own_dir / "e") as there, station("language", own_dir / "l", deepstack_layers=3) as here:
        maps, files = shared(), open_descriptors()
        sending, queues = attach(there.run_dir), Queues(attach(here.run_dir))
        receiving = queues.client
        addresses = library_of(sending).attachment.payload.address, library_of(receiving).attachment.payload.address
        assert all(is_shared_at(address) for address in addresses)
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, 2000)
        assert give(sender, 0, 500)
        for it, client, address in ((there, sending, addresses[0]), (here, receiving, addresses[1])):
            it.kill_group()
            wait_until(lambda client=client: client.node_gone)  # type: ignore[misc]
            wait_until(lambda address=address: not is_shared_at(address), 20, shared)  # type: ignore[misc]
        assert "node is gone" in str(sender.failure_exception())
        assert "node is gone" in str(queues.wait(room, 20).failure)
        with pytest.raises(BufferError, match="closed"):
            _ = library_of(sending).attachment.buffers.fill_ids
        for client in (sending, receiving):
            client.close()
        assert shared() == maps
        assert open_descriptors() == files


def is_shared_at(address: int) -> bool:
    """Whether a segment is mapped there."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(f"{address:x}-")]
    return any("/dev/shm/" in line for line in lines)


def test_looking_at_a_node_leaves_nothing_mapped(language: Station, no_collector: None) -> None:
    """P9: not even until the next collection."""
    maps = shared()
    for _ in range(3):
        assert node_status(language.run_dir)["role"] == "language"
    assert shared() == maps


# ---- the lane


def test_the_lane_is_kept_while_the_library_thread_copies(
    encode: Station,
    language: Station,
    sending: Client,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
    no_new_door: None,
) -> None:
    """D2, R8: blocks are not another's while somebody reads them, however long it takes; what was mapped stays
    as long.
    """
    copies, may_go_on = threading.Event(), threading.Event()
    drain = HostRows.drain

    def slow(*args: Any) -> None:
        copies.set()
        assert may_go_on.wait(60)
        drain(*args)

    monkeypatch.setattr(HostRows, "drain", slow)
    monkeypatch.setattr(Lending, "lend", lambda *_: False)
    monkeypatch.setattr(library_module, "END_WAIT_S", 0.01)
    maps = shared()
    queues = Queues(attach(language.run_dir))
    client, lane = queues.client, queues.client.lane
    queues.add(encode.addr, room)
    assert give(open_sender(sending, room, 5000))  # more than its blocks hold: it is copied out, and more is granted
    assert copies.wait(20)
    held = language.counts()
    assert held.free < sum(held)
    client.close()
    assert "its library thread has not ended in 0.01 s; it keeps its lane until then" in said()
    assert language.control.lanes.get(lane, Lane.STATE) == LaneState.ATTACHED
    assert language.counts() == held
    assert shared() - maps
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.poll()
    may_go_on.set()
    language.wait_idle()
    wait_until(lambda: shared() == maps, 20, shared)
    assert language.control.lanes.get(lane, Lane.STATE) != LaneState.ATTACHED


# ---- refused

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "publish": ("key", None), "item_cache": (1,), "fetch": ("key", "tcp://127.0.0.1:1"),
    "subscribe": ("tcp://127.0.0.1:1",),
    "rows": (0, 1), "commit": (0,),
    "sender": (1, 8), "receiver": ("tcp://127.0.0.1:1", 1),
    "allocate": (1,), "take": (1,), "init": ([],),
    "grant": ([], 0), "resume_transfer": ([], 0), "release_drained": (0,), "block_of": (0,), "holds": (0,),
    "wait": (0.0,),
    "fail": (1, "no"),
}  # fmt: skip
ANSWERED = {
    "close": "ends nothing a second time",
    "is_forked": "a fact about this process",
    "refuse": "refuses once more",
    "evict": "there is nothing left to be dropped",
    "wants_block": "what the library thread has noted last",
    "retry": "looks at the request first, which has not failed",
    "let_go": "gives the caller's rows back once",
    "done": "whether lent rows are the caller's again",
    "add_done_callback": "the same, and is called at once",
    "until_done": "the same, in a coroutine",
    **dict.fromkeys(
        ("end_without_slot", "entered", "prepare", "give_up", "catch_up", "check_room"),
        "is between a library and its handles"
    ),
    **dict.fromkeys(
        ("aux", "has_settled", "slot", "epoch", "opened_ns", "deadline_ns", "reported", "neighbour", "num_returned",
         "first_block", "required_dst_info_num"), "as it was"
    ),
    **dict.fromkeys(("driver", "request"), "there is no queue that drives it"),
    "end_here": "is for whoever has the turn", "may_end_here": "there is no queue that drives it",
    "check_neighbour": "is for whoever has the turn", "is_waiting": "as it was",
    "is_by_hand": "what the library thread goes by",
    "is_closed": "a fact about this client",
    "node_gone": "a fact about the node",
    "service": "is the library thread's",
    "pinned": "as it was", "pin_note": "as it was", "ranks": "as it was: its methods are refused",
    "num_ranks": "as it was", "geometry": "as it was",
}  # fmt: skip


def rows() -> tuple[Any, ...]:
    return (
        torch.zeros(4, 64, dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, 3, dtype=torch.int32),
    )


def answers(*objects: Any) -> dict[str, str]:
    """What each public method and property says: the text of its RuntimeError, or that it answers, or what else it
    raises.
    """
    said: dict[str, str] = {}
    for it in objects:
        for name in (name for name in dir(type(it)) if not name.startswith("_")):
            arguments = ARGUMENTS.get(name, ())
            if name in ("add", "extend"):
                request = EmbeddingRequest(room=7, bootstrap_addr="tcp://127.0.0.1:1")
                arguments = (request,) if name == "add" else ([request],)
            if name in ("write", "send_embedding"):
                arguments = (*((0,) if name == "write" else ()), *rows())
            try:
                found = getattr(it, name)
                if callable(found) and name not in ANSWERED:
                    found = found(*arguments)
                said[f"{type(it).__name__}.{name}"] = "answers"
            except RuntimeError as error:
                said[f"{type(it).__name__}.{name}"] = str(error)
            except Exception as error:
                said[f"{type(it).__name__}.{name}"] = repr(error)
    return said


def all_refused(said: dict[str, str], reason: str) -> None:
    assert len(said) > 5
    wrong = {name: it for name, it in said.items() if it != reason and name.partition(".")[2] not in ANSWERED}
    assert wrong == {}, "; ".join(f"{n}: {w}" for n, w in wrong.items())


def in_a_fork(call: Callable[[], Any]) -> Any:
    """What it returns in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return json.loads(said)


@pytest.fixture
def no_new_door(sending: Client) -> Iterator[None]:
    """The encoder's client maps no node meanwhile that it had not mapped before."""
    wait_doors(sending)
    with through_workers(sending):
        yield


@pytest.fixture
def in_flight(encode: Station, language: Station, rooms: Iterator[int]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Both clients with everything that they make, of requests that have not ended; the clients stand first."""
    sending, queues = attach(encode.run_dir), Queues(attach(language.run_dir))
    sender = open_sender(sending, next(rooms), 2000)
    receiver = queues.client.receiver(encode.addr, next(rooms))
    wait_until(lambda: receiver.handshake_done)
    wait_doors(sending)
    yield [sending, sender], [queues.client, receiver, queues.transfer, queues.prealloc]
    sending.close()
    queues.client.close()
    for it in (encode, language):
        it.wait_idle()


def test_after_close_every_method_is_refused(in_flight: tuple[list[Any], list[Any]], language: Station) -> None:
    """P9: none reads memory or uses a descriptor that is another's by now."""
    for objects in in_flight:
        objects[0].close()
        all_refused(answers(*objects), "this client is closed")
    waiting = WaitingQueue(in_flight[1][2])
    with pytest.raises(RuntimeError, match="this client is closed"):
        waiting.update()


def test_in_a_forked_child_every_method_is_refused(in_flight: tuple[list[Any], list[Any]]) -> None:
    """DESIGN: a client is one process; the child has no mapping and no descriptor of it, and the parent goes on."""
    maps, files = shared(), open_descriptors()
    said, left, open_here = in_a_fork(
        lambda: ([answers(*objects) for objects in in_flight], shared(), open_descriptors())
    )
    for those in said:
        all_refused(those, "this client was attached before a fork; attach() again in the child")
    doors = num_doors(in_flight[0][0])
    assert doors
    assert sum(left.values()) == sum(maps.values()) - 4 - 2 * doors
    assert files["anon_inode:[eventfd]"] - open_here.get("anon_inode:[eventfd]", 0) == 12  # three a client, each twice
    assert files["socket"] - open_here.get("socket", 0) == 2 + doors
    assert in_flight[0][1].poll() == in_flight[1][1].poll() == Phase.Bootstrapping


def test_after_close_a_descriptor_of_another_file_is_left_alone(language: Station) -> None:
    """The number of the eventfd is used again; `arm` would have taken eight bytes out of whatever it is, or hung."""
    client = attach(language.run_dir)
    number = client.fileno()
    client.close()
    others = [os.eventfd(5, os.EFD_NONBLOCK)]
    while others[-1] != number:
        others.append(os.eventfd(5, os.EFD_NONBLOCK))
    try:
        for call in (client.arm, client.fileno):
            with pytest.raises(RuntimeError, match="this client is closed"):
                call()
        assert os.eventfd_read(number) == 5
    finally:
        for fd in others:
            os.close(fd)


def test_what_has_ended_can_be_asked_how_after_close(encode: Station, language: Station, rooms: Iterator[int]) -> None:
    """P5: an outcome is nobody else's."""
    sending, queues = attach(encode.run_dir), Queues(attach(language.run_dir))
    good, bad = next(rooms), next(rooms)
    request = queues.add(encode.addr, good)
    sender, other = open_sender(sending, good, 100), open_sender(sending, bad, 100)
    assert give(sender)
    queues.wait(good, 20)
    other.abort("enough")
    wait_until(lambda: sender._final is not None and other._final is not None)
    sending.close()
    queues.client.close()
    assert (sender.poll(), sender.sent_tokens, sender.failure_exception()) == (Phase.Success, 100, None)
    assert other.poll() == Phase.Failed
    assert "enough" in str(other.failure_exception())
    assert request.result is not None
    request.release()
    for it in (encode, language):
        it.wait_idle()


def test_what_was_seen_to_have_ended_can_be_asked_how_though_the_library_has_not_come_to_it(
    encode: Station, language: Station, rooms: Iterator[int]
) -> None:
    """P5: a receiver that nobody has cleared stands in its slot until the client is closed."""
    client = attach(language.run_dir)
    receiver = client.receiver(encode.addr, next(rooms))
    receiver.abort("enough")
    wait_until(lambda: receiver.poll() == Phase.Failed)
    client.close()
    assert receiver.poll() == Phase.Failed
    assert "enough" in str(receiver.failure_exception())
    assert receiver.phase_path()[-1] == Phase.Failed
    language.wait_idle()


# ---- ranks


def test_ranks_that_leave_free_memory_and_are_refused(
    encode: Station,
    other_language: Station,
    sending: Client,
    rooms: Iterator[int],
    no_collector: None,
    said: Callable[[], str],
    no_new_door: None,
) -> None:
    """P9: the log, and the rows but for results that somebody holds."""
    maps, files = shared(), open_descriptors()
    queues = Queues(attach(other_language.run_dir, num_ranks=2))
    follower = follow(other_language.run_dir, rank=1)
    first, second, third = next(rooms), next(rooms), next(rooms)
    for room in (first, second):
        queues.add(encode.addr, room)
        assert give(open_sender(sending, room, 100))
        queues.wait(room, 20)
    queues.add(encode.addr, third)  # and is in flight
    held, released = [wait_until(lambda: follower.pop_transferred()[0])[0] for _ in range(2)]
    released.release()
    assert held.result is not None
    ids = held.result.input_embeddings
    before = ids.clone()
    forked = in_a_fork(lambda: answers(follower))
    all_refused(forked, "this follower joined before a fork; follow() again in the child")
    ranks = queues.client.ranks
    assert ranks is not None
    queues.client.close()
    assert "bytes of its results of all ranks stay in use" in said()
    queues.done.pop(first).release()
    queues.done.pop(second).release()
    with pytest.raises(RuntimeError, match="rank 0 has left its node"):
        ranks.states()
    follower.close()
    all_refused(answers(follower), "this follower is closed")
    assert f"{follower.run_dir}: " in said()
    assert sum((shared() - maps).values()) == 1
    assert torch.equal(ids.view(torch.int16), before.view(torch.int16))
    del ids, held
    assert shared() == maps
    assert open_descriptors() == files
    other_language.wait_idle()
