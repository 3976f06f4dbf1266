"""Every way to carry rows from one process to another that `end_to_end` compares, each as its users would write it.

A carrier is made in the benchmark's own process, where it may set up what both ends share. `sender` is called in the
encoder's process and returns what sends one request's rows; `receiver` in the scheduler's, and returns what waits for
the next request, and what is called when its rows are not needed any more. Rows are bf16 tensors (tokens, hidden) of
the sender's own memory; what is received is a tensor whose every element may be read.

One more way to carry rows is one more subclass of `Carrier`, and its place in a list of `end_to_end`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import FORK, need, shared
from _native import functions

Send = Callable[[int, torch.Tensor], None]
Receive = Callable[[], tuple[int, torch.Tensor]]
Release = Callable[[int], None]
Look = Callable[[], list[tuple[int, torch.Tensor]]]
Sleep = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is carried: so many requests of `tokens` rows of `hidden` elements, at most `in_flight` at a time."""

    tokens: int
    hidden: int
    in_flight: int

    @property
    def size(self) -> int:
        """Bytes of one request's rows."""
        return self.tokens * self.hidden * 2

    def empty(self) -> torch.Tensor:
        """Rows in memory of this process's own, its pages there already."""
        return torch.zeros(self.tokens, self.hidden, dtype=torch.bfloat16)


class Carrier:
    """One way to carry rows."""

    name = ""
    has_rows = True  # else what is received is not looked at
    copied: Any = None  # where a copy was timed by itself: when each had been made, in ns

    def __init__(self, job: Job) -> None:
        self.job = job

    def begin(self, total: int) -> None:
        """In the benchmark's own process, before each round of so many requests."""

    def sender(self) -> Send:
        raise NotImplementedError

    def adopt(self, sources: list[torch.Tensor]) -> None:
        """In the encoder's process, after `sender`: the tensors whose rows will be sent."""

    def source(self, number: int, own: torch.Tensor) -> torch.Tensor:
        """In the encoder's process: where the rows of that request are to be written before it begins; they are what
        is given to `sender`'s function.

        That is a tensor of the encoder's `own`; a carrier that sends in place answers with memory that the scheduler
        has, too.
        """
        return own

    def receiver(self) -> tuple[Receive, Release]:
        look, sleep, release = self.looker()
        done: deque[tuple[int, torch.Tensor]] = deque()

        def receive() -> tuple[int, torch.Tensor]:
            while not done:
                sleep()
                done.extend(look())
            return done.popleft()

        return receive, release

    def looker(self) -> tuple[Look, Sleep, Release]:
        """In the scheduler's process, in place of `receiver`: what has come, without waiting; what waits until
        something may have come, at most 100 ms; and as above.
        """
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Processes of its own, whose CPU time counts, too."""
        return []

    def close(self) -> None:
        """All of it is gone."""


class Slots(Carrier):
    """What carriers over a block of shared memory have in common: a slot a request in flight."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stride = -(-job.size // 4096) * 4096
        self._memory = shared(self._stride * job.in_flight)
        self.order = FORK.RawArray(ctypes.c_int64, job.in_flight)  # the numbers of the requests that were sent last
        self.copy = functions().copy_plain

    def slots(self) -> list[torch.Tensor]:
        shape = (self.job.tokens, self.job.hidden)
        return [
            torch.frombuffer(self._memory, dtype=torch.bfloat16, count=self.job.size // 2, offset=at).view(shape)
            for at in range(0, self._stride * self.job.in_flight, self._stride)
        ]


class SharedBlock(Slots):
    """What one writes by hand in an hour: a copy into a slot of shared memory, an eventfd, and a copy out of the slot
    into the scheduler's own memory.
    """

    name = "shared block, by hand"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._there = os.eventfd(0)

    def sender(self) -> Send:
        slots, size, copy = [slot.data_ptr() for slot in self.slots()], self.job.size, self.copy
        there, order, in_flight = self._there, self.order, self.job.in_flight

        def send(number: int, rows: torch.Tensor) -> None:
            copy(slots[number % in_flight], rows.data_ptr(), size)
            order[number % in_flight] = number
            os.eventfd_write(there, 1)

        return send

    def receiver(self) -> tuple[Receive, Release]:
        slots, size, copy = [slot.data_ptr() for slot in self.slots()], self.job.size, self.copy
        there, order, in_flight = self._there, self.order, self.job.in_flight
        own = [self.job.empty() for _ in range(in_flight)]
        addresses = [rows.data_ptr() for rows in own]
        received = known = 0

        def receive() -> tuple[int, torch.Tensor]:
            nonlocal received, known
            if received == known:
                known += os.eventfd_read(there)
            slot = received % in_flight
            received += 1
            copy(addresses[slot], slots[slot], size)
            return order[slot], own[slot]

        return receive, lambda number: None

    def close(self) -> None:
        os.close(self._there)


class ZeroMQ(Carrier):
    """PUSH to PULL without pyzmq's copies: the tensor's memory is the message, and the message's memory the tensor."""

    is_tuned = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        need("zmq")
        self._folder = tempfile.mkdtemp(prefix="eb-")
        self.address = self._address()

    def _address(self) -> str:
        return f"ipc://{self._folder}/socket"

    def sender(self) -> Send:
        import zmq

        if self.is_tuned:
            keep_pages(self.job)
        push = zmq.Context().socket(zmq.PUSH)
        push.set_hwm(0)
        push.connect(self.address)
        self._push = push

        def send(number: int, rows: torch.Tensor) -> None:
            push.send(number.to_bytes(8, "little"), zmq.SNDMORE)
            push.send(rows.view(torch.uint8).numpy(), copy=False)

        return send

    def _pull(self) -> Any:
        import zmq

        if self.is_tuned:
            keep_pages(self.job)
        pull = zmq.Context().socket(zmq.PULL)
        pull.set_hwm(0)
        pull.bind(self.address)
        return pull

    def _receive(self, pull: Any, held: dict[int, Any]) -> Receive:
        shape = (self.job.tokens, self.job.hidden)

        def receive() -> tuple[int, torch.Tensor]:
            number = int.from_bytes(pull.recv(), "little")
            frame = held[number] = pull.recv(copy=False)
            return number, torch.frombuffer(frame.buffer, dtype=torch.bfloat16).view(shape)

        return receive

    def receiver(self) -> tuple[Receive, Release]:
        held: dict[int, Any] = {}
        return self._receive(self._pull(), held), held.pop

    def looker(self) -> tuple[Look, Sleep, Release]:
        """A thread of the scheduler's process receives, and the scheduler's own looks into its queue."""
        held: dict[int, Any] = {}
        receive = self._receive(self._pull(), held)
        come: queue.SimpleQueue[tuple[int, torch.Tensor]] = queue.SimpleQueue()
        first: list[tuple[int, torch.Tensor]] = []

        def receive_all() -> None:
            while True:
                come.put(receive())

        def look() -> list[tuple[int, torch.Tensor]]:
            found = first[:]
            first.clear()
            while not come.empty():
                found.append(come.get_nowait())
            return found

        def sleep() -> None:
            with contextlib.suppress(queue.Empty):
                first.append(come.get(timeout=0.1))

        threading.Thread(target=receive_all, daemon=True).start()
        return look, sleep, held.pop

    def close(self) -> None:
        shutil.rmtree(self._folder)


class ZeroMQIpc(ZeroMQ):
    name = "ZeroMQ, ipc"


class TunedZeroMQIpc(ZeroMQ):
    name = "ZeroMQ, ipc, malloc tuned"
    is_tuned = True


class TunedZeroMQTcp(ZeroMQ):
    name = "ZeroMQ, tcp, malloc tuned"
    is_tuned = True

    def _address(self) -> str:
        return f"tcp://127.0.0.1:{free_port()}"


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def keep_pages(job: Job) -> None:
    """Tell this process's malloc never to give memory back, and let it have what so many requests need.

    Else each message of 128 KiB or more is mapped anew, and every page of it zeroed. (M_MMAP_THRESHOLD would not do: it
    ends at 32 MiB.)
    """
    libc = ctypes.CDLL(None)
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
    kept = [job.empty() for _ in range(job.in_flight + 1)]
    del kept


class Safetensors(Carrier):
    """A file in /dev/shm for each request, its path through a pipe; it is mapped, and removed after use."""

    name = "safetensors in /dev/shm"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        need("safetensors")
        self._folder = Path(tempfile.mkdtemp(prefix="eb-", dir="/dev/shm"))
        self._out, self._in = FORK.Pipe(duplex=False)

    def sender(self) -> Send:
        from safetensors.torch import save_file

        def send(number: int, rows: torch.Tensor) -> None:
            save_file({"rows": rows}, self._folder / str(number))
            self._in.send_bytes(number.to_bytes(8, "little"))

        return send

    def receiver(self) -> tuple[Receive, Release]:
        from safetensors.torch import load_file

        def receive() -> tuple[int, torch.Tensor]:
            number = int.from_bytes(self._out.recv_bytes(), "little")
            return number, load_file(self._folder / str(number))["rows"]

        return receive, lambda number: (self._folder / str(number)).unlink()

    def close(self) -> None:
        shutil.rmtree(self._folder)
        self._out.close()
        self._in.close()


class TorchQueue(Carrier):
    """`torch.multiprocessing` by one who knows it: a copy into one of a few tensors that were shared once, and the
    tensor through a queue. By file names and to one who keeps the tensors that come, it carries no descriptor and maps
    nothing anew.
    """

    name = "torch.multiprocessing"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import torch.multiprocessing

        self._queue = torch.multiprocessing.get_context("fork").SimpleQueue()

    def sender(self) -> Send:
        torch.multiprocessing.set_sharing_strategy("file_system")
        torch.set_num_threads(1)  # a second one would have to find the other core idle
        tensors = [self.job.empty().share_memory_() for _ in range(self.job.in_flight)]

        def send(number: int, rows: torch.Tensor) -> None:
            mine = tensors[number % len(tensors)]
            mine.copy_(rows)
            self._queue.put((number, mine))

        return send

    def receiver(self) -> tuple[Receive, Release]:
        torch.multiprocessing.set_sharing_strategy("file_system")
        kept: dict[int, torch.Tensor] = {}

        def receive() -> tuple[int, torch.Tensor]:
            number, rows = self._queue.get()
            kept[number % self.job.in_flight] = rows
            return number, rows

        return receive, lambda number: None


class RawMooncake(Carrier):
    """Mooncake's engine over TCP between two registered memories, and a byte through a pipe when a write is done."""

    name = "Mooncake, raw (tcp)"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        need("mooncake")
        self._out, self._in = FORK.Pipe(duplex=False)
        self._tell_in, self._tell = FORK.Pipe(duplex=False)

    @staticmethod
    def _engine() -> Any:
        os.environ |= {"MC_FORCE_TCP": "1", "MC_LOG_LEVEL": "ERROR"}
        from mooncake.engine import TransferEngine

        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        return engine

    def sender(self) -> Send:
        self._engine_here = engine = self._engine()
        port, base = self._tell_in.recv()
        name, size, in_flight = f"127.0.0.1:{port}", self.job.size, self.job.in_flight
        pending: deque[tuple[int, int]] = deque()  # (number, the engine's id of its write), oldest first

        def watch() -> None:
            while True:
                while pending and engine.transfer_check_status(pending[0][1]) == 1:
                    self._in.send_bytes(pending.popleft()[0].to_bytes(8, "little"))
                time.sleep(50e-6)

        def send(number: int, rows: torch.Tensor) -> None:
            at = base + number % in_flight * size
            if in_flight > 1:
                pending.append((number, engine.transfer_submit_write(name, rows.data_ptr(), at, size)))
                return
            assert engine.transfer_sync_write(name, rows.data_ptr(), at, size) == 0
            self._in.send_bytes(number.to_bytes(8, "little"))

        if in_flight > 1:
            threading.Thread(target=watch, daemon=True).start()
        return send

    def adopt(self, sources: list[torch.Tensor]) -> None:
        for rows in sources:
            assert self._engine_here.register_memory(rows.data_ptr(), self.job.size) == 0

    def receiver(self) -> tuple[Receive, Release]:
        memory = np.zeros(self.job.size * self.job.in_flight, np.uint8)
        engine = self._engine()
        assert engine.register_memory(memory.ctypes.data, memory.nbytes) == 0
        self._tell.send((engine.get_rpc_port(), memory.ctypes.data))
        in_flight = self.job.in_flight
        rows = torch.from_numpy(memory).view(torch.bfloat16).view(in_flight, self.job.tokens, self.job.hidden)

        def receive() -> tuple[int, torch.Tensor]:
            number = int.from_bytes(self._out.recv_bytes(), "little")
            return number, rows[number % in_flight]

        self._kept = engine
        return receive, lambda number: None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
