"""Rank 0 and a follower in one process: memory waits for the last reader, a full log waits for its reader, and whoever
cannot be a rank is told why.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.ranks import SHARED_BYTES, Seen, language_station, ranks_of, seen
from support.rows import DELTA, arrived
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, FollowedRequest, Follower, TransferQueue, attach, follow
from embridge.allocator import ranklog
from embridge.allocator.errors import AttachError, NodeGoneError, SegmentError, TransferTimeout
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def place(shared_dir: Path) -> Iterator[Station]:
    """A language node with little host memory, all of which its ranks share."""
    with language_station(shared_dir / "t") as made:
        yield made


class Pair:
    """Rank 0 and, once it joined, rank 1."""

    def __init__(self, place: Station, encode: Station, sending: Client) -> None:
        self.place, self.encode, self.sending = place, encode, sending
        self.client = attach(place.run_dir, num_ranks=2)
        self.queues = Queues(self.client)
        self.follower: Follower | None = None

    def join(self) -> Follower:
        self.follower = follow(self.place.run_dir, rank=1, timeout_s=5.0)
        return self.follower

    def send(self, room: int, total: int) -> None:
        self.queues.add(self.encode.addr, room)
        sender = open_sender(self.sending, room, total)
        assert give(sender)
        ended(sender)

    def expire(self, room: int) -> None:
        """Once a request has arrived, and waits for room: let its deadline pass."""
        ranks = ranks_of(self.client)
        wait_until(lambda: len(ranks) == 1)
        self.queues.step()
        assert room not in self.queues.done
        self.queues.requests[room].timeout_s = 0.001

    def take(self, room: int) -> Seen:
        request = self.queues.wait(room, 20.0)
        return seen(self.client.geometry, room, request.result, request.failure)

    def release(self, room: int) -> None:
        self.queues.done.pop(room).release()

    def followed(self) -> FollowedRequest:
        """The next request, of a batch of one."""
        assert self.follower is not None
        finished, failed = self.follower.pop_transferred()
        (request,) = (*finished, *failed)
        return request

    @property
    def used_bytes(self) -> int:
        return ranks_of(self.client).memory.num_used_bytes

    def collected(self) -> int:
        """What is in use after rank 0 has looked at what was released."""
        memory = ranks_of(self.client).memory
        wait_until(lambda: not memory._returned)
        return self.used_bytes

    def wait_free(self) -> None:
        wait_until(lambda: self.used_bytes == 0, 10.0, lambda: self.used_bytes)


@pytest.fixture
def pair(place: Station, encode: Station, sending: Client) -> Iterator[Pair]:
    pair = Pair(place, encode, sending)
    yield pair
    if pair.follower is not None:
        pair.follower.close()
    pair.client.close()
    place.wait_idle()


def test_memory_waits_for_the_last_rank_however_it_lets_go(pair: Pair, rooms: Iterator[int]) -> None:
    """D14, B12: release() by either rank first, or the last tensor going away; until then not a byte changes."""
    follower = pair.join()
    one, two, three = (next(rooms) for _ in range(3))
    for room in (one, two, three):
        pair.send(room, 300)
        assert pair.take(room).difference == ""
    first, second, third = (pair.followed() for _ in range(3))
    assert pair.client.ranks is not None
    assert pair.client.ranks.num_batches == follower.num_batches == 3
    for room in (one, two):
        pair.release(room)
    assert first.result is not None
    assert third.result is not None
    tensor = third.result.input_embeddings[7]
    third.release()
    pair.release(three)
    second.result = None
    del second, tensor
    gc.collect()
    wait_until(lambda: pair.used_bytes == _size(pair, 512))  # of the first alone, which was granted the default
    four = next(rooms)
    pair.send(four, 300)
    pair.take(four)
    assert seen(follower.geometry, one, first.result, None).difference == ""
    first.release()
    first.release()
    pair.release(four)
    pair.followed().release()
    pair.wait_free()


def _size(pair: Pair, tokens: int) -> int:
    """Shared memory of one request, in whole pages."""
    return -(-HostRows.size_of(pair.client.geometry, tokens) // 4096) * 4096


def test_a_followers_tensors_cannot_be_written(pair: Pair, room: int) -> None:
    """D2: what one rank does cannot change what another reads."""
    pair.join()
    pair.send(room, 10)
    pair.take(room)
    request = pair.followed()
    assert request.result is not None
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        arrived(request.result).fill_ids.fill_(1)  # and dies of it
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV


def test_a_forked_child_lets_go_of_nothing(pair: Pair, room: int) -> None:
    """D14: the child has copies of the arrays, and of what frees them; the hold is its parent's."""
    follower = pair.join()
    pair.send(room, 10)
    pair.take(room)
    request = pair.followed()
    child = os.fork()
    if child == 0:
        try:
            request.release()
            follower.poll()
        except RuntimeError as error:
            os._exit(0 if "before a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    pair.release(room)
    assert pair.collected() > 0
    assert seen(follower.geometry, room, request.result, None).difference == ""
    request.release()
    pair.wait_free()


def test_a_result_that_no_piece_of_shared_memory_can_hold_yet_is_copied_in_when_one_can(
    pair: Pair, rooms: Iterator[int]
) -> None:
    """D8, P8: the oldest request exceeds the limit rather than wait; its rows are moved once others have let go."""
    pair.join()
    large, larger = next(rooms), next(rooms)
    pair.send(large, 5000)
    pair.take(large)
    pair.followed().release()
    pair.send(larger, 6000)
    pair.queues.step()
    assert larger not in pair.queues.done
    num_moved = ranks_of(pair.client).memory.num_moved
    pair.release(large)
    assert pair.take(larger).difference == ""
    assert ranks_of(pair.client).memory.num_moved == num_moved + 1
    request = pair.followed()
    assert seen(pair.client.geometry, larger, request.result, None).difference == ""
    pair.release(larger)
    request.release()
    pair.wait_free()


@pytest.mark.parametrize("joins", [True, False], ids=["is slow", "never comes"])
def test_a_request_that_a_rank_leaves_no_memory_fails_at_its_deadline_and_names_the_rank(
    pair: Pair, rooms: Iterator[int], joins: bool
) -> None:
    """D1, P8, P12: rank 0 never waits for it; whoever is in the way is named; and once it lets go, all goes on."""
    if joins:
        pair.join()
    large, second, third = next(rooms), next(rooms), next(rooms)
    pair.send(large, 6000)
    pair.take(large)
    pair.release(large)
    pair.send(second, 6000)
    pair.expire(second)
    assert pair.take(second).error == "TransferTimeout"
    failed = pair.queues.done.pop(second).failure
    assert isinstance(failed, TransferTimeout)
    who = f"rank 1 (process {os.getpid()})" if joins else "rank 1, which has not joined"
    assert who in failed.reason
    assert "holds 1 results that rank 0 has released" in failed.reason
    if not joins:
        pair.join()
    assert pair.followed().room == large
    refused = pair.followed()
    assert (refused.room, str(refused.failure)) == (second, str(failed))
    pair.wait_free()
    pair.send(third, 6000)
    assert pair.take(third).difference == ""
    pair.release(third)
    assert pair.followed().result is not None


def test_a_request_as_large_as_the_limit_arrives(pair: Pair, room: int) -> None:
    """P8: what is not refused as too large finds room, if only alone."""
    pair.join()
    total = SHARED_BYTES // pair.client.geometry.token_bytes
    pair.send(room, total)
    assert pair.take(room) == Seen(room, total, "", (total, DELTA), "", "")
    assert seen(pair.client.geometry, room, pair.followed().result, None).difference == ""
    pair.release(room)
    pair.wait_free()


def test_rank_0_that_keeps_its_own_results_is_told_so(pair: Pair, rooms: Iterator[int]) -> None:
    """D1: the one in the way may be rank 0 itself."""
    pair.join()
    large, second = next(rooms), next(rooms)
    pair.send(large, 6000)
    pair.take(large)
    pair.followed().release()
    pair.send(second, 6000)
    pair.expire(second)
    pair.take(second)
    failed = pair.queues.done.pop(second).failure
    assert failed is not None
    assert "rank 0 itself holds 1 results" in failed.reason
    pair.release(large)


def test_a_rank_whose_log_stays_full_is_cut_off_and_saw_a_prefix(
    place: Station, encode: Station, sending: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8, P8, P12: the log is bounded; at a request's deadline the others go on without the rank that does not read."""
    monkeypatch.setattr(ranklog, "RING_RECORDS", 4)
    pair = Pair(place, encode, sending)
    follower = pair.join()
    whole = [next(rooms) for _ in range(4)]
    for room in whole:
        pair.send(room, 10)
        pair.take(room)
    waits = next(rooms)
    pair.send(waits, 10)
    pair.expire(waits)
    assert pair.take(waits).difference == ""
    assert pair.client.ranks is not None
    assert pair.client.ranks.states() == {1: "cut off"}
    assert [pair.followed().room for _ in range(4)] == whole
    with pytest.raises(NodeGoneError, match="rank 1 was cut off: it left its log full until a request's deadline"):
        follower.poll()
    for room in (*whole, waits):
        pair.release(room)
    follower.close()
    pair.wait_free()
    pair.client.close()
    place.wait_idle()


def test_what_waits_for_a_full_log_goes_on_when_the_rank_reads(
    place: Station, encode: Station, sending: Client, rooms: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: back-pressure first; nobody is cut off who reads before the deadline. A batch never exceeds its room."""
    monkeypatch.setattr(ranklog, "RING_RECORDS", 2)
    pair = Pair(place, encode, sending)
    pair.join()
    every = [next(rooms) for _ in range(6)]
    for room in every:
        pair.send(room, 10)
    popped: list[int] = []

    def came() -> bool:
        pair.queues.step()
        assert pair.follower is not None
        popped.extend(request.room for request in pair.follower.pop_transferred()[0])
        return len(popped) == len(every)

    wait_until(came, 20.0, lambda: popped)
    assert popped == pair.queues.order == every
    for room in every:
        pair.release(room)
    pair.follower.close()  # type: ignore[union-attr]
    pair.client.close()
    place.wait_idle()


def test_a_full_dev_shm_is_one_clear_error(place: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """P13: at attach, before any request; nothing of it is left."""

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match=r"No space left on device.*lower host_buffer_bytes or enlarge /dev/shm"):
        attach(place.run_dir, num_ranks=2)
    monkeypatch.undo()
    place.wait_idle()


def test_a_client_without_ranks_has_memory_of_its_own(place: Station) -> None:
    """Nothing is shared, reserved or logged that nobody asked for."""
    with attach(place.run_dir) as client:
        assert client.ranks is None
        assert type(TransferQueue(client).memory) is HostMemory


def test_groups_of_one_node_are_told_apart(place: Station) -> None:
    """D5: the name decides; a name that is taken is refused, with who has it."""
    two: Any = np.int64(2)
    three: Any = np.int64(3)
    with attach(place.run_dir, num_ranks=2, group="a"), attach(place.run_dir, num_ranks=three, group="b"):
        with follow(place.run_dir, rank=two, group="b") as third, follow(place.run_dir, rank=1, group="a") as second:
            assert (third.num_ranks, second.num_ranks) == (3, 2)
        with pytest.raises(
            AttachError, match=rf"process {os.getpid()} is rank 0 of group 'a'; give this group another name"
        ):
            attach(place.run_dir, num_ranks=2, group="a")


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), 10**400], ids=["inf", "nan", "huge"])
def test_a_request_with_a_time_that_is_none_comes_out_as_failed_with_ranks(
    pair: Pair, rooms: Iterator[int], timeout_s: float
) -> None:
    """P5: it is passed on, though it has no deadline."""
    room, behind = next(rooms), next(rooms)
    pair.queues.add(pair.encode.addr, room, timeout_s=timeout_s)
    pair.send(behind, 100)
    assert "timeout_s" in pair.take(room).reason
    assert pair.take(behind).reason == ""
    pair.release(behind)


def test_who_cannot_be_a_rank_is_told_why(place: Station, encode: Station, pair: Pair) -> None:
    """P13: one clear message for each mistake, at the start."""
    with pytest.raises(ValueError, match="num_ranks: 33 is outside 2 to 32"):
        attach(place.run_dir, num_ranks=33, group="other")
    with pytest.raises(ValueError, match="rank: 0 is outside 1 to 31; rank 0 calls attach"):
        follow(place.run_dir, rank=0)
    with pytest.raises(ValueError, match="use one queue a client with ranks"):
        TransferQueue(pair.client)
    with pytest.raises(AttachError, match="this is an encode node"):
        attach(encode.run_dir, num_ranks=2)
    with pytest.raises(AttachError, match="rank 2 is outside 1 to 1"):
        follow(place.run_dir, rank=2)
    with pytest.raises(AttachError, match="no rank 0 leads group 'none' here"):
        follow(place.run_dir, rank=1, group="none", timeout_s=0.1)
    pair.join()
    with pytest.raises(AttachError, match=f"process {os.getpid()} is rank 1"):
        follow(place.run_dir, rank=1)
    assert pair.follower is not None
    pair.follower.close()
    assert pair.client.ranks is not None
    wait_until(lambda: pair.client.ranks is not None and pair.client.ranks.states()[1] == "left")
    with pytest.raises(AttachError, match="rank 1 has left, and has missed what came since"):
        follow(place.run_dir, rank=1)
    with pytest.raises(RuntimeError, match="closed"):
        pair.follower.poll()
