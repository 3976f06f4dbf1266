"""What `embridge bench` measures: rows from an encoder's process to this one, by embridge and ZeroMQ, and a bare copy.

A request begins when its rows are complete in the encoder's memory, and ends when this process, the scheduler, holds a
tensor with all of them. The carriers take turns, round by round, for one moment of a machine is not like the next; a
figure is the median of its rounds.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import zmq

from embridge.allocator._core import copy, set_parent_death_signal
from embridge.allocator.geometry import Geometry
from embridge.allocator.segment import shared_memory_space
from embridge.pipeline.attach import attach
from embridge.pipeline.cli.errors import CommandError
from embridge.pipeline.config import PipelineConfig
from embridge.pipeline.inspection.node_status import node_status
from embridge.pipeline.node.launch import launch
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue

HIDDEN: Final = 3584  # Qwen2.5-VL's, in bfloat16
ROW_BYTES: Final = 2 * HIDDEN
BLOCK_TOKENS: Final = 128
BLOCKS: Final = 160  # of each node: the largest requests that are in flight together, and some to spare
LEAST_BLOCKS: Final = 16
GRANTED_TOKENS: Final = 1280
WATCHDOG_S: Final = 30.0
COPY: Final = "one copy"
OURS: Final = "embridge"
NETWORK: Final = "embridge over Mooncake"
ZEROMQ: Final = "ZeroMQ"


class Size(NamedTuple):
    """Requests of so many tokens, and how many of them are in flight where several are."""

    title: str
    tokens: int
    at_once: int


SIZES: Final = (Size("0.46 MB", 64, 16), Size("9 MB", 1250, 4), Size("42 MB", 5859, 2))


class Figures(NamedTuple):
    """Of one carrier and size: the median time of one at a time, and rates with several at once; 0: not measured."""

    one_ms: float
    gb_per_s: float
    per_s: float


class Job(NamedTuple):
    """What the encoder's process is to send: `where` is the run directory of its node, or ZeroMQ's address."""

    carrier: str
    where: str
    tokens: int
    total: int
    ahead: int
    first_room: int


Send = Callable[[int, torch.Tensor], None]


# ---- the encoder's process


def encoder(connection: Any, gate: Any) -> None:
    """Send what each job asks for, one request whenever the gate opens, and tell when each began; until None comes."""
    set_parent_death_signal(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    keep_pages()
    clients: dict[str, Any] = {}
    while (job := connection.recv()) is not None:
        sources = [torch.zeros(job.tokens, HIDDEN, dtype=torch.bfloat16) for _ in range(job.ahead)]
        with contextlib.ExitStack() as stack:
            send = _by_zeromq(job, stack) if job.carrier == ZEROMQ else _by_embridge(job, clients)
            connection.send("ready")
            began = []
            for number in range(job.total):
                gate.acquire()
                rows = sources[number % job.ahead]
                for part in (rows,) if job.ahead == 1 else (rows[:1], rows[-1:]):
                    part.fill_(mark_of(number))
                began.append(time.monotonic_ns())
                send(number, rows)
            connection.send(began)
            connection.recv()  # all of it has come
    for client in clients.values():
        client.close()


def mark_of(number: int) -> int:
    """What stands in the rows of a request; bfloat16 has it exactly."""
    return number % 128 + 1


def _by_embridge(job: Job, clients: dict[str, Any]) -> Send:
    """Each room is opened before its rows are there, as an encoder does."""
    client = clients.get(job.where) or clients.setdefault(job.where, attach(Path(job.where)))

    def opened(number: int) -> Any:
        sender = client.sender(job.first_room + number, job.tokens)
        if job.tokens > GRANTED_TOKENS:
            sender.announce()
        return sender

    senders = {number: opened(number) for number in range(min(job.ahead, job.total))}

    def send(number: int, rows: torch.Tensor) -> None:
        senders.pop(number).write(0, rows)
        if number + job.ahead < job.total:
            senders[number + job.ahead] = opened(number + job.ahead)

    return send


def _by_zeromq(job: Job, stack: contextlib.ExitStack) -> Send:
    """Without copies of pyzmq's: the tensor's memory is the message."""
    push = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PUSH))
    push.set_hwm(0)
    push.connect(job.where)

    def send(number: int, rows: torch.Tensor) -> None:
        push.send(number.to_bytes(8, "little"), zmq.SNDMORE)
        push.send(rows.view(torch.uint8).numpy(), copy=False)

    return send


# ---- this process, the scheduler


class Receiver:
    """Takes the requests of one job. `take` waits for the next; `release` says that its rows are used."""

    def take(self) -> tuple[int, torch.Tensor]:
        raise NotImplementedError

    def release(self, number: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing of the job comes any more."""


class ByEmbridge(Receiver):
    def __init__(self, client: Any, addr: str, job: Job) -> None:
        self._client, self._addr, self._job = client, addr, job
        self._transfer = TransferQueue(client)
        self._prealloc = PreallocQueue(client, self._transfer)
        self._requests: dict[int, EmbeddingRequest] = {}
        self._come: list[int] = []
        self._opened = 0
        for _ in range(job.ahead):
            self._open_next()

    def _open_next(self) -> None:
        if self._opened < self._job.total:
            request = EmbeddingRequest(room=self._job.first_room + self._opened, bootstrap_addr=self._addr)
            self._requests[self._opened] = request
            self._prealloc.add(request)
            self._opened += 1

    def take(self) -> tuple[int, torch.Tensor]:
        deadline = time.monotonic() + WATCHDOG_S
        while not self._come:
            self._client.poll()
            finished, failed = self._transfer.pop_transferred()
            if failed:
                raise CommandError(f"a request of the benchmark has failed: {failed[0].failure}")
            self._come += [request.room - self._job.first_room for request in finished]
            if not self._come:
                self._client.wait(0.1)
            if time.monotonic() > deadline:
                raise CommandError(f"no request came within {WATCHDOG_S:g} s; `embridge doctor` looks at this machine")
        number = self._come.pop(0)
        result = self._requests[number].result
        assert result is not None
        return number, result.input_embeddings

    def release(self, number: int) -> None:
        self._requests.pop(number).release()
        self._open_next()


class ByZeroMQ(Receiver):
    def __init__(self, pull: Any, job: Job) -> None:
        self._pull, self._shape = pull, (job.tokens, HIDDEN)
        self._held: dict[int, Any] = {}

    def take(self) -> tuple[int, torch.Tensor]:
        number = int.from_bytes(self._pull.recv(), "little")
        frame = self._held[number] = self._pull.recv(copy=False)
        return number, torch.frombuffer(frame.buffer, dtype=torch.bfloat16).view(self._shape)

    def release(self, number: int) -> None:
        del self._held[number]


class Pair(NamedTuple):
    """Two nodes, and this process's client of the second."""

    encode_dir: Path
    addr: str
    client: Any


class Bench:
    """The nodes, the encoder's process and ZeroMQ's socket, for the length of a block. Owned by the main thread."""

    def __init__(self, *, with_network: bool) -> None:
        self._with_network = with_network
        self._stack = contextlib.ExitStack()
        self._rooms = 1

    def __enter__(self) -> Bench:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eb-")))
            engines = {OURS: "shm", **({NETWORK: "mooncake"} if self._with_network else {})}
            blocks = _blocks(2 * len(engines))
            self._pairs = {
                carrier: stack.enter_context(_pair(root / str(i), engine, blocks))
                for i, (carrier, engine) in enumerate(engines.items())
            }
            pull = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PULL))
            pull.set_hwm(0)
            pull.setsockopt(zmq.RCVTIMEO, round(1000 * WATCHDOG_S))
            self._address = f"ipc://{root}/zeromq"
            pull.bind(self._address)
            self._pull = pull
            self._connection = stack.enter_context(_encoding())
            torch.set_num_threads(1)
            keep_pages()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def carriers(self) -> list[str]:
        return [*self._pairs, ZEROMQ]

    def measure(self, carrier: str, size: Size, seconds: float) -> Figures:
        """One round: half of the time one request at a time, half several at once.

        Raises:
            CommandError: a request failed, or none came.
        """
        first = self._run(carrier, size.tokens, 4, 1)
        one_s = statistics.median(first.times_s)
        one = self._run(carrier, size.tokens, _number(seconds / 2, one_s), 1)
        several = self._run(carrier, size.tokens, max(3 * size.at_once, _number(seconds / 2, one_s)), size.at_once)
        per_s = len(several.times_s) / several.whole_s
        return Figures(statistics.median(one.times_s) * 1e3, per_s * size.tokens * ROW_BYTES / 1e9, per_s)

    def _run(self, carrier: str, tokens: int, total: int, ahead: int) -> _Run:
        where = self._address if carrier == ZEROMQ else str(self._pairs[carrier].encode_dir)
        job = Job(carrier, where, tokens, total, ahead, self._rooms)
        self._rooms += total
        connection, gate = self._connection
        connection.send(job)
        receiver = self._receiver(job)
        self._hear()
        ended = [0] * total
        for _ in range(min(ahead, total)):
            gate.release()
        for _ in range(total):
            number, rows = receiver.take()
            ended[number] = time.monotonic_ns()
            if not float(rows[0, 0]) == float(rows[-1, -1]) == mark_of(number):
                raise CommandError(f"{carrier}: the rows of request {number} are not those that were sent")
            del rows
            receiver.release(number)
            gate.release()
        began = self._hear()
        for _ in range(min(ahead, total)):  # what was let in behind the last
            gate.acquire()
        connection.send("done")
        times = [(end - begin) / 1e9 for begin, end in zip(began, ended, strict=True)]
        return _Run(times, (max(ended) - min(began)) / 1e9)

    def _receiver(self, job: Job) -> Receiver:
        if job.carrier == ZEROMQ:
            return ByZeroMQ(self._pull, job)
        pair = self._pairs[job.carrier]
        return ByEmbridge(pair.client, pair.addr, job)

    def _hear(self) -> Any:
        connection, _ = self._connection
        if not connection.poll(WATCHDOG_S):
            raise CommandError(f"the encoder's process has said nothing for {WATCHDOG_S:g} s")
        try:
            return connection.recv()
        except EOFError:
            raise CommandError("the encoder's process has died") from None


class _Run(NamedTuple):
    times_s: list[float]
    whole_s: float


def copy_figures(size: Size, seconds: float) -> Figures:
    """One thread copies the rows of one request into shared memory, in the way that embridge does."""
    source = torch.zeros(size.tokens, HIDDEN, dtype=torch.bfloat16)
    num_bytes = size.tokens * ROW_BYTES
    with mmap.mmap(-1, num_bytes) as target:
        moves, rows = np.array([0, 0, num_bytes], np.int64), source.view(torch.uint8).numpy()
        times, until = list[int](), time.monotonic() + seconds
        copy(target, rows, moves, 1)  # it has its pages now
        while time.monotonic() < until or len(times) < 3:
            source.fill_(mark_of(len(times)))
            begin = time.monotonic_ns()
            copy(target, rows, moves, 1)
            times.append(time.monotonic_ns() - begin)
    one_s = statistics.median(times) / 1e9
    return Figures(one_s * 1e3, num_bytes / 1e9 / one_s, 1 / one_s)


def keep_pages() -> None:
    """Have this process's malloc keep the memory that it was given, as one who uses ZeroMQ for such messages would.

    Else each message of 128 KiB or more is mapped anew, and every page of it zeroed. Only glibc knows of it.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_MAX: Final = -4
_M_ARENA_MAX: Final = -8


def _number(seconds: float, one_s: float) -> int:
    """How many requests take about so long; their making takes some time, too."""
    return max(5, min(2000, int(seconds / (2 * one_s + 1e-4))))


def _blocks(num_nodes: int) -> int:
    fit = int(0.8 * shared_memory_space().free / num_nodes / (BLOCK_TOKENS * ROW_BYTES))
    if fit < LEAST_BLOCKS:
        raise CommandError(
            f"/dev/shm has room for {fit} blocks a node < {LEAST_BLOCKS}; mount it larger (containers: --shm-size)"
        )
    return min(BLOCKS, fit)


@contextlib.contextmanager
def _pair(root: Path, engine: str, blocks: int) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        geometry = Geometry(
            hidden_size=HIDDEN, block_size=BLOCK_TOKENS, num_blocks=blocks, fill_ids=False, mrope_positions=False
        )
        common: dict[str, Any] = {"engine": engine, "geometry": geometry, "lock_memory": False, "metrics_addr": "off"}
        common |= {"log_level": "WARNING", "default_allocate_tokens": GRANTED_TOKENS}
        configs = [PipelineConfig(role=role, run_dir=root / role, **common) for role in ("encode", "language")]
        nodes = [stack.enter_context(launch(config)) for config in configs]
        for node in nodes:
            _wait_touched(node.run_dir)
        client = stack.enter_context(attach(nodes[1].run_dir))
        yield Pair(nodes[0].run_dir, nodes[0].bootstrap_addr, client)


def _wait_touched(run_dir: Path) -> None:
    """Until a node has touched the memory of its pool, which it does in the background."""
    deadline = time.monotonic() + WATCHDOG_S
    while len(set(node_status(run_dir)["touched"].removesuffix(" MiB").split(" of "))) > 1:
        if time.monotonic() > deadline:
            raise CommandError(f"a node has not touched its memory within {WATCHDOG_S:g} s")
        time.sleep(0.05)


@contextlib.contextmanager
def _encoding() -> Iterator[tuple[Any, Any]]:
    """The encoder's process, with a connection to it and its gate."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    gate = spawning.Semaphore(0)
    process = spawning.Process(target=encoder, args=(theirs, gate), name="embridge bench encoder", daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours, gate
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(WATCHDOG_S)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
