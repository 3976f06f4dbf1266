"""What a scheduler process does for a test: functions that an `Agent` calls, through the queues or by hand."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from embridge import Client, EmbeddingReceiver, EmbeddingRequest, PreallocQueue, TransferQueue, attach
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from support.encoding import Outcome, ended
from support.rows import DELTA, Rows, arrived, difference
from support.waiting import wait_until


class Received(NamedTuple):
    """How a request came out of the transfer queue, with its bytes checked."""

    path: list[str]
    total: int
    rounds: int
    difference: str  # empty: every byte is right
    aux: tuple[int, int]
    chunks: list[tuple[int, int]]
    error: str
    reason: str
    ended_ns: int


class Queues:
    """A client with the scheduler's queues."""

    def __init__(self, client: Client, *, adaptive: bool = False) -> None:
        self.client = client
        self.transfer = TransferQueue(client, adaptive=adaptive)
        self.prealloc = PreallocQueue(client, self.transfer)
        self.requests: dict[int, EmbeddingRequest] = {}
        self.done: dict[int, EmbeddingRequest] = {}
        self.order: list[int] = []

    def add(
        self, addr: str, room: int, *, required: int = 1, timeout_s: float | None = None, keep: bool = False
    ) -> EmbeddingRequest:
        request = EmbeddingRequest(
            room=room, bootstrap_addr=addr, required_dst_info_num=required, timeout_s=timeout_s, keep_for_retry=keep
        )
        self.requests[room] = request
        self.prealloc.add(request)
        return request

    def step(self) -> None:
        finished, failed = self.transfer.pop_transferred()
        for request in (*finished, *failed):
            assert request.room not in self.done, f"room {request.room} came out twice"
            self.done[request.room] = request
            self.order.append(request.room)

    def wait(self, room: int, timeout_s: float) -> EmbeddingRequest:
        def came() -> bool:
            self.step()
            return room in self.done

        wait_until(came, timeout_s, lambda: f"room {room} out of the queue: {self.requests[room].receiver}")
        return self.done[room]

    def take(self, room: int, timeout_s: float) -> Received:
        """Wait for a request, check its bytes, and let go of it."""
        request = self.wait(room, timeout_s)
        received = self.check(request)
        request.release()
        del self.done[room], self.requests[room]
        return received

    def check(self, request: EmbeddingRequest) -> Received:
        path = [phase.name for phase in request.phase_path()]
        ended_ns = max(request.stamps_ns)
        result, failure = request.result, request.failure
        if result is None:
            assert failure is not None
            return Received(
                path, 0, request.num_rounds, "", (0, 0), [], type(failure).__name__, failure.reason, ended_ns
            )
        assert failure is None
        rows = arrived(result)
        wrong = difference(self.client.geometry, request.room, 0, rows)
        aux = (int(result.aux_datas[0]), result.mrope_position_delta)
        if request.transferred_tokens != len(rows.fill_ids):
            wrong = wrong or f"{request.transferred_tokens} tokens transferred, {len(rows.fill_ids)} in the result"
        return Received(
            path, request.total_embedding_length, request.num_rounds, wrong, aux, request.chunk_info, "", "", ended_ns
        )


def queues_of(state: SimpleNamespace, run_dir: Path) -> Queues:
    """This process's client of a language node, with its queues; attached on first use."""
    if not hasattr(state, "queues"):
        torch.set_num_threads(1)
        state.queues, state.receivers = {}, {}
    if run_dir not in state.queues:
        state.queues[run_dir] = Queues(attach(run_dir))
    queues: Queues = state.queues[run_dir]
    return queues


def leave(state: SimpleNamespace, run_dir: Path) -> None:
    """Close the client of a node, if there is one."""
    queues = getattr(state, "queues", {}).pop(run_dir, None)
    if queues is not None:
        queues.client.close()


# ---- through the queues


def request(
    state: SimpleNamespace, run_dir: Path, addr: str, room: int, *, required: int = 1, timeout_s: float | None = None
) -> None:
    queues_of(state, run_dir).add(addr, room, required=required, timeout_s=timeout_s)


def request_many(
    state: SimpleNamespace,
    run_dir: Path,
    addr: str,
    rooms: list[int],
    *,
    required: int = 1,
    timeout_s: float | None = None,
) -> None:
    for room in rooms:
        request(state, run_dir, addr, room, required=required, timeout_s=timeout_s)


def wait_granted(state: SimpleNamespace, run_dir: Path, room: int, tokens: int, timeout_s: float = 20.0) -> int:
    """Until a queued request was granted that much; what it is granted then."""
    wanted = queues_of(state, run_dir).requests[room]
    wait_until(lambda: wanted.receiver is not None and wanted.receiver.granted_tokens >= tokens, timeout_s)
    assert wanted.receiver is not None
    return wanted.receiver.granted_tokens


def wait_transferred(state: SimpleNamespace, run_dir: Path, room: int, tokens: int, timeout_s: float = 20.0) -> str:
    """Until so many rows of a queued request were copied out; its phase then."""
    wanted = queues_of(state, run_dir).requests[room]
    wait_until(lambda: wanted.transferred_tokens >= tokens, timeout_s, lambda: f"{wanted.receiver} {tokens} tokens")
    assert wanted.receiver is not None
    return wanted.receiver.poll().name


def wait_phase(state: SimpleNamespace, run_dir: Path, room: int, phase: str, timeout_s: float = 20.0) -> None:
    wanted = queues_of(state, run_dir).requests[room]
    wait_until(lambda: wanted.receiver is not None and wanted.receiver.poll() >= Phase[phase], timeout_s)
    assert wanted.receiver is not None
    assert wanted.receiver.poll() == Phase[phase], wanted.receiver


def abort(state: SimpleNamespace, run_dir: Path, room: int, reason: str) -> None:
    queues_of(state, run_dir).requests[room].abort(reason)


def take(state: SimpleNamespace, run_dir: Path, room: int, timeout_s: float = 30.0) -> Received:
    """Wait for a queued request to come out; its bytes are checked here."""
    return queues_of(state, run_dir).take(room, timeout_s)


def take_many(state: SimpleNamespace, run_dir: Path, rooms: list[int], timeout_s: float = 100.0) -> dict[int, Received]:
    """Take requests in the order in which they finish."""
    queues, left, out = queues_of(state, run_dir), set(rooms), {}
    deadline = time.monotonic() + timeout_s
    while left:
        queues.step()
        for room in left & queues.done.keys():
            out[room] = queues.take(room, 0.0)
            left.discard(room)
        if left and time.monotonic() > deadline:
            first = queues.requests[min(left)].receiver
            raise AssertionError(
                f"{len(left)} of {len(rooms)} requests not done within {timeout_s:g} s, {first} among them"
            )
        time.sleep(0.001)
    return out


# ---- by hand


class ByHand:
    """One request, received without the queues: each round is granted, awaited, copied out and released by the
    caller.
    """

    def __init__(
        self, client: Client, addr: str, room: int, *, required: int = 1, timeout_s: float | None = None
    ) -> None:
        self.client = client
        self.room = room
        self.receiver: EmbeddingReceiver = client.receiver(
            addr, room, required_dst_info_num=required, timeout_s=timeout_s
        )
        self.chunks: list[Rows] = []
        self.first = 0
        self.aux: tuple[int, int] = (0, 0)
        self.words: list[int] = []

    @classmethod
    def over(cls, before: ByHand, receiver: EmbeddingReceiver, num_kept: int) -> ByHand:
        """The retry of a request that has failed, with the first rows of what was copied out before."""
        again = cls.__new__(cls)
        again.client, again.room, again.receiver, again.words = before.client, receiver.room, receiver, []
        again.chunks, again.first = [before.merged().cut(num_kept)], num_kept
        again.aux = before.aux
        return again

    def grant(self, num_blocks: int, tokens: int) -> None:
        """The initial transfer, or a resumed one."""
        receiver = self.receiver
        wait_until(lambda: receiver.handshake_done, 20.0, lambda: f"{receiver} handshake")
        blocks = receiver.allocate(num_blocks)
        assert len(blocks) == num_blocks, f"{len(blocks)} of {num_blocks} blocks"
        before = receiver.progress()
        if receiver.granted_blocks == receiver.first_block:
            receiver.init(blocks, tokens)
        else:
            receiver.resume_transfer(blocks, receiver.sent_tokens, tokens)
        assert receiver.progress() >= before

    def wait_sent(self, tokens: int, timeout_s: float = 20.0) -> str:
        """Until so many rows have landed; the phase then."""
        receiver = self.receiver

        def landed() -> bool:
            self.words.append(library_of(self.client).attachment.control.status.load(receiver.slot))
            return receiver.sent_tokens >= tokens or receiver.poll().is_terminal

        wait_until(landed, timeout_s, lambda: f"{receiver} sent {tokens}")
        assert receiver.sent_tokens == tokens, receiver
        return receiver.poll().name

    def end_round(self, timeout_s: float = 20.0) -> str:
        """Until all that was granted has landed, here and at the other destinations; the phase then.

        The rows of one destination may be told a moment before the phase that they bring about.
        """
        receiver, total = self.receiver, self.receiver.total_embedding_length
        self.wait_sent(min(receiver.granted_tokens, total) if total else receiver.granted_tokens, timeout_s)
        wait_until(
            lambda: receiver.poll() >= Phase.Transferring, timeout_s, lambda: f"{receiver} at the end of a round"
        )
        return receiver.poll().name

    def copy_out(self, end: int) -> int:
        """Keep rows up to `end`, and release the blocks behind them. Returns how many blocks came free."""
        receiver, bs, buffers = (
            self.receiver,
            self.client.geometry.block_size,
            library_of(self.client).attachment.buffers,
        )
        if self.first == 0:
            aux = buffers.aux_datas[receiver.block_of(0)]
            self.aux = (int(aux[0]), int(aux[1]))
        while self.first < end:
            k = self.first // bs
            upto = min(end, (k + 1) * bs)
            at, rows = receiver.block_of(k), slice(self.first - k * bs, upto - k * bs)
            deepstack = buffers.deepstack_embeddings
            self.chunks.append(
                Rows(
                    torch.as_tensor(buffers.input_embeddings[at][rows]).clone(),
                    torch.as_tensor(buffers.fill_ids[at][rows]).clone(),
                    torch.as_tensor(buffers.mrope_positions[at][rows]).clone(),
                    None if deepstack is None else torch.as_tensor(deepstack[at][rows]).clone(),
                )
            )
            self.first = upto
        return receiver.release_drained(end)

    def merged(self) -> Rows:
        embeddings, ids, positions, deepstack = zip(*self.chunks, strict=True)
        return Rows(
            torch.cat(embeddings),
            torch.cat(ids),
            torch.cat(positions),
            None if deepstack[0] is None else torch.cat(deepstack),
        )

    def finish(self, total: int) -> Received:
        """Wait for Success, copy the rest, and let go of the request."""
        receiver = self.receiver
        wait_until(lambda: receiver.poll().is_terminal, 20.0, lambda: f"{receiver} at its end")
        assert receiver.poll() == Phase.Success, receiver.failure_exception()
        assert receiver.sent_tokens == total
        self.copy_out(total)
        rounds, length = receiver.num_rounds, receiver.total_embedding_length
        receiver.clear()
        words = np.array(self.words, np.uint64)
        assert (words[1:] >= words[:-1]).all(), "its status word decreased"
        wrong = difference(self.client.geometry, self.room, 0, self.merged())
        path = [phase.name for phase in receiver.phase_path()]
        return Received(path, length, rounds, wrong, self.aux, [], "", "", max(receiver.stamps_ns))


def by_hand(
    state: SimpleNamespace,
    run_dir: Path,
    addr: str,
    room: int,
    total: int,
    grants: list[tuple[int, int]],
    *,
    required: int = 1,
) -> tuple[Received, list[str]]:
    """Receive a request in rounds of (blocks, tokens). Returns what came, and the phase seen at the end of
    each round.
    """
    transfer = ByHand(queues_of(state, run_dir).client, addr, room, required=required)
    granted, phases = 0, []
    for i, (blocks, tokens) in enumerate(grants):
        transfer.grant(blocks, tokens)
        # what a grant left open of the block before counts as granted now
        granted = transfer.receiver.granted_tokens
        transfer.wait_sent(min(granted, total))
        phases.append(transfer.end_round())
        if i < len(grants) - 1:
            assert transfer.receiver.needs_resume
            transfer.copy_out(granted)
    return transfer.finish(total), phases


def open_by_hand(
    state: SimpleNamespace, run_dir: Path, addr: str, room: int, *, required: int = 1, timeout_s: float | None = None
) -> None:
    """Begin a request whose steps are called one by one with `step_by_hand`."""
    client = queues_of(state, run_dir).client
    state.receivers[room] = ByHand(client, addr, room, required=required, timeout_s=timeout_s)


def step_by_hand(state: SimpleNamespace, room: int, step: str, *arguments: object) -> object:
    """Call a method of `ByHand`."""
    return getattr(state.receivers[room], step)(*arguments)


def outcome(state: SimpleNamespace, room: int, timeout_s: float = 30.0) -> Outcome:
    """Wait for the end of a request received by hand, and let go of it."""
    receiver = state.receivers[room].receiver
    result = ended(receiver, timeout_s)
    receiver.clear()
    return result


class Holder:
    """A request that holds blocks and grants none of them: memory that others have to wait for."""

    def __init__(self, client: Client, addr: str, room: int) -> None:
        self._client = client
        self.receiver = client.receiver(addr, room)
        wait_until(lambda: self.receiver.handshake_done, 20.0, lambda: f"{self.receiver} handshake")
        self.blocks: list[int] = []
        self._freed = library_of(client).blocks_freed

    def take(self, most: int) -> int:
        """Take up to so many free blocks; how many it got."""
        got = self.receiver.allocate(most).tolist()
        self.blocks += got
        return len(got)

    def take_whatever_comes_free(self) -> None:
        """From now on, before anybody else can have it."""

        def freed() -> None:
            self.take(library_of(self._client).attachment.control.blocks.num_blocks)
            self._freed()

        self.take(library_of(self._client).attachment.control.blocks.num_blocks)
        library_of(self._client).blocks_freed = freed  # type: ignore[method-assign]

    def give_back(self, block: int) -> None:
        """Let others have one block."""
        self.blocks.remove(block)
        held = np.array([block], np.uint32)
        assert (
            library_of(self._client).attachment.control.blocks.release(held, self.receiver.slot, self.receiver.epoch)
            == 1
        )
        self._freed()

    def end(self) -> None:
        """Let others have all of them."""
        library_of(self._client).blocks_freed = self._freed  # type: ignore[method-assign]
        self.receiver.clear()


def aux_is_right(received: Received) -> bool:
    return received.aux == (received.total, DELTA)
