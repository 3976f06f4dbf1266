"""R26: a request whose encode node is lost goes on from another one, at what was committed; and why another request may
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.encoding import ended, give, open_sender, wait_doors
from support.nodes import Settings, Station, every_engine, station
from support.ranks import ranks_of, seen
from support.rows import DELTA
from support.scheduling import ByHand, Queues
from support.stopping import stopped
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, attach, follow
from embridge.allocator.records import Destination
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.process

TOTAL = 60_000  # through 9 blocks of 128 tokens: what is killed in its first half is in the middle of it


def tokens_written(encode: Station) -> int:
    return sum(row["tokens_written"] for row in encode.control.metrics.all().values())


def lose(
    own_dir: Path,
    language: Station,
    receiving: Queues,
    room: int,
    engine: str,
    *,
    keep: bool = True,
    total: int = TOTAL,
) -> EmbeddingRequest:
    """A request of which some rows have come when every process of its encode node is killed."""
    with (
        station("encode", own_dir / f"e{room}", num_blocks=4, deepstack_layers=3, engine=engine) as doomed,
        attach(doomed.run_dir) as client,
    ):
        request = receiving.add(doomed.addr, room, keep=keep)
        give(open_sender(client, room, total), 0, total // 2)
        wait_until(lambda: request.transferred_tokens > 3000)
        doomed.kill_group()
        failed = receiving.wait(room, 20)
    assert failed is request
    assert "is lost" in str(request.failure)
    del receiving.done[room]
    return request


@every_engine
def test_a_request_whose_encode_node_dies_goes_on_from_another_one_at_what_was_committed(
    own_dir: Path, encode: Station, language: Station, sending: Client, receiving: Queues, room: int, engine: str
) -> None:
    """R26, P6: the same room on another node; the bytes that had come stay where they are, and are not sent twice."""
    request = lose(own_dir, language, receiving, room, engine)
    came, rows, rounds = request.transferred_tokens, request.record.rows, request.num_rounds
    assert request.is_retryable
    assert request.buffered_chunks[-1].end == came
    before, kept = tokens_written(encode), came // 128 * 128
    receiving.prealloc.retry(request, encode.addr)
    sender = open_sender(sending, room, TOTAL)
    give(sender)
    received = receiving.take(room, 60)
    assert (received.error, received.difference, received.total) == ("", "", TOTAL)
    assert received.aux == (TOTAL, DELTA)
    assert received.rounds > rounds
    assert [end for _, end in received.chunks][-1] == TOTAL
    assert ended(sender).error == ""
    assert request.record.rows is None, "released"
    assert rows is not None
    wait_until(
        lambda: tokens_written(encode) - before == TOTAL - kept,
        5,
        lambda: f"{tokens_written(encode) - before} of {TOTAL} - {kept}",
    )


def test_a_request_that_is_received_by_hand_goes_on_behind_what_its_caller_has_copied_out(
    own_dir: Path, encode: Station, sending: Client, receiving: Queues, room: int, engine: str
) -> None:
    """R26, R3: 300 of 384 rows were copied out, so two blocks are kept; the third is sent again, into a new block."""
    with (
        station("encode", own_dir / "e", deepstack_layers=3, engine=engine) as doomed,
        attach(doomed.run_dir) as client,
    ):
        first = ByHand(receiving.client, doomed.addr, room)
        first.grant(3, 384)
        give(open_sender(client, room, 1000), 0, 600)
        first.wait_sent(384)
        first.copy_out(300)
        with pytest.raises(ValueError, match="not to be retried: it has not failed"):
            first.receiver.retry(encode.addr, 300)
        doomed.kill_group()
        wait_until(lambda: first.receiver.poll().is_terminal)
    with pytest.raises(ValueError, match="num_tokens: 385 is outside 0 to 384"):
        first.receiver.retry(encode.addr, 385)
    second = first.receiver.retry(encode.addr, 300)
    assert (second.first_block, second.granted_tokens, second.total_embedding_length) == (2, 256, 1000)
    first.receiver.clear()
    sender = open_sender(sending, room, 1000)
    give(sender)
    again = ByHand.over(first, second, 256)
    again.grant(6, 744)
    again.wait_sent(1000)
    received = again.finish(1000)
    assert (received.error, received.difference, received.rounds) == ("", "", 1)
    assert ended(sender).error == ""


def test_another_encoder_that_announces_another_length_fails_the_request_on_both_sides(
    own_dir: Path, encode: Station, language: Station, sending: Client, receiving: Queues, room: int, engine: str
) -> None:
    """R26, B3: both lengths are named; what the first node sent is not mixed with what is no part of it."""
    request = lose(own_dir, language, receiving, room, engine)
    receiving.prealloc.retry(request, encode.addr)
    sender = open_sender(sending, room, TOTAL + 1)
    give(sender)
    received, sent = receiving.take(room, 20), ended(sender)
    assert received.reason == sent.reason == f"the encode side announced {TOTAL} tokens and then {TOTAL + 1}"
    with pytest.raises(ValueError, match="it failed as PROTOCOL"):
        receiving.prealloc.retry(request, encode.addr)


def test_a_retry_of_another_length_fails_also_where_the_rest_fits_into_one_grant(
    own_dir: Path, encode: Station, language: Station, sending: Client, receiving: Queues, room: int, engine: str
) -> None:
    """R26, B3: an encoder on the same host would have written all of its rows before anybody could say so."""
    with (
        station("encode", own_dir / "e", deepstack_layers=3, engine=engine) as doomed,
        attach(doomed.run_dir) as client,
    ):
        first = ByHand(receiving.client, doomed.addr, room)
        first.grant(3, 384)
        give(open_sender(client, room, 1000), 0, 600)
        first.wait_sent(384)
        first.copy_out(300)
        doomed.kill_group()
        wait_until(lambda: first.receiver.poll().is_terminal)
    second = first.receiver.retry(encode.addr, 300)
    first.receiver.clear()
    again = ByHand.over(first, second, 256)
    again.grant(6, 744)
    if engine == "shm":
        wait_doors(sending)
    sender, destinations = open_sender(sending, room, 999), library_of(sending).destinations
    wait_until(lambda: destinations.get(sender.slot, 0, Destination.GRANTED_TOKENS) == 1000)
    with stopped(language.pid_of("poller")):  # whose business it is to say so
        give(sender)
        wait_until(lambda: sender.poll().is_terminal)
    assert ended(second).reason == "the encode side announced 1000 tokens and then 999"
    second.clear()


def test_what_did_not_fail_for_want_of_its_encode_node_is_not_retried_and_says_why(
    own_dir: Path, encode: Station, language: Station, receiving: Queues, rooms: Iterator[int], engine: str
) -> None:
    """R26: the scheduler's own abort, a node of another geometry, no rows kept, rows released."""
    retry, room = receiving.prealloc.retry, next(rooms)
    aborted = receiving.add(encode.addr, room, keep=True)
    with pytest.raises(ValueError, match=f"room {room}: not to be retried: it has not failed"):
        retry(aborted, encode.addr)
    wait_until(lambda: aborted.receiver)
    aborted.abort("not wanted")
    receiving.wait(room, 20)
    with pytest.raises(ValueError, match=r"not to be retried: it failed as ABORTED, .*: not wanted"):
        retry(aborted, encode.addr)
    with station("encode", own_dir / "other", deepstack_layers=2, engine=engine) as other:
        refused = receiving.add(other.addr, room := next(rooms), keep=True)
        receiving.wait(room, 20)
    with pytest.raises(ValueError, match=r"it failed as REFUSED, .*deepstack_layers: language 3, encode 2"):
        retry(refused, encode.addr)
    with pytest.raises(ValueError, match="nothing of it was kept; add it with keep_for_retry=True"):
        retry(lose(own_dir, language, receiving, next(rooms), engine, keep=False), encode.addr)
    released = lose(own_dir, language, receiving, next(rooms), engine)
    with pytest.raises(ValueError, match="bootstrap_addr: 'nowhere' is not of the form"):
        retry(released, "nowhere")
    with pytest.raises(ValueError, match="room: -1 is outside"):
        retry(released, encode.addr, room=-1)
    assert released.is_retryable
    released.release()
    with pytest.raises(ValueError, match="it was released"):
        retry(released, encode.addr)


def test_ranks_that_follow_see_the_failure_and_later_the_whole_of_the_same_request(
    own_dir: Path, encode: Station, sending: Client, room: int, engine: str
) -> None:
    """R26, B8, D16: one order for all; the rows stay where they are in the memory that all of them see."""
    settings: Settings = {"num_blocks": 9, "deepstack_layers": 3, "engine": engine, "host_buffer_bytes": 40 << 20}
    with (
        station("language", own_dir / "l", **settings) as language,
        attach(language.run_dir, num_ranks=2) as client,
        follow(language.run_dir, rank=1) as follower,
    ):
        queues = Queues(client)
        request = lose(own_dir, language, queues, room, engine)
        follower_failed = wait_until(lambda: follower.pop_transferred()[1])
        assert [(f.room, str(f.failure)) for f in follower_failed] == [(room, str(request.failure))]
        queues.prealloc.retry(request, encode.addr)
        sender = open_sender(sending, room, TOTAL)
        give(sender)
        assert queues.wait(room, 60).failure is None
        (followed,) = wait_until(lambda: follower.pop_transferred()[0])
        assert seen(client.geometry, room, followed.result, followed.failure) == (
            room,
            TOTAL,
            "",
            (TOTAL, DELTA),
            "",
            "",
        )
        followed.release()
        assert queues.take(room, 1).difference == ""
        assert ended(sender).error == ""
        memory = ranks_of(client).memory
        wait_until(lambda: not memory.num_used_bytes, 20, lambda: memory.num_used_bytes)
    encode.wait_idle()
