"""Every way to carry rows from one process to another that `end_to_end` compares, each as its users would write it.

A carrier is made in the benchmark's own process, where it may set up what both ends share. `sender` is called in the
encoder's process and returns what sends one request's rows; `receiver` in the scheduler's, and returns what waits for
the next request, and what is called when its rows are not needed any more. Rows are bf16 tensors (tokens, hidden) of
the sender's own memory; what is received is a tensor whose every element may be read.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
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
from _harness import FORK, HERE, Missing, _build_directory, need, shared

Send = Callable[[int, torch.Tensor], None]
Receive = Callable[[], tuple[int, torch.Tensor]]
Release = Callable[[int], None]


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

    def __init__(self, job: Job) -> None:
        self.job = job

    def begin(self, total: int) -> None:
        """In the benchmark's own process, before each round of so many requests."""

    def adopt(self, sources: list[torch.Tensor]) -> None:
        """In the encoder's process, after `sender`: the tensors whose rows will be sent."""

    def sender(self) -> Send:
        raise NotImplementedError

    def receiver(self) -> tuple[Receive, Release]:
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Processes of its own, whose CPU time counts, too."""
        return []

    def close(self) -> None:
        """All of it is gone."""


def one_copy() -> Any:
    """The floor's two ways to copy (`native/one_copy.c`). Raises: Missing, where there is no compiler."""
    library = _build_directory() / "one_copy.so"
    if not library.exists():
        source = HERE / "native" / "one_copy.c"
        try:
            subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        except FileNotFoundError:
            raise Missing("gcc is not installed") from None
    functions = ctypes.CDLL(str(library))
    for name in ("copy_plain", "copy_streaming"):
        getattr(functions, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        getattr(functions, name).restype = None
    return functions


class Slots(Carrier):
    """What the carriers over a block of shared memory have in common: a slot a request in flight, and an eventfd each
    way.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stride = -(-job.size // 4096) * 4096
        self._memory = shared(self._stride * job.in_flight)
        self._there = os.eventfd(0)
        self._order = FORK.RawArray(ctypes.c_int64, job.in_flight)
        self._sent = FORK.RawValue(ctypes.c_int64, 0)

    def slot(self, number: int) -> torch.Tensor:
        at = number % self.job.in_flight * self._stride
        flat = torch.frombuffer(self._memory, dtype=torch.bfloat16, count=self.job.size // 2, offset=at)
        return flat.view(self.job.tokens, self.job.hidden)

    def _slots(self) -> list[torch.Tensor]:
        return [self.slot(number) for number in range(self.job.in_flight)]

    def close(self) -> None:
        os.close(self._there)


class OneCopy(Slots):
    """The floor: one copy into shared memory and one wake-up, and the rows are used where they are."""

    how = ""

    def sender(self) -> Send:
        slots, size = [slot.data_ptr() for slot in self._slots()], self.job.size
        copy = getattr(one_copy(), self.how)
        there, order, in_flight = self._there, self._order, self.job.in_flight
        sent = 0

        def send(number: int, rows: torch.Tensor) -> None:
            nonlocal sent
            copy(slots[number % in_flight], rows.data_ptr(), size)
            order[sent % in_flight] = number
            sent += 1
            os.eventfd_write(there, 1)

        return send

    def receiver(self) -> tuple[Receive, Release]:
        slots, there, order, in_flight = self._slots(), self._there, self._order, self.job.in_flight
        ready: deque[int] = deque()
        received = 0

        def receive() -> tuple[int, torch.Tensor]:
            nonlocal received
            while not ready:
                for _ in range(os.eventfd_read(there)):
                    ready.append(order[received % in_flight])
                    received += 1
            number = ready.popleft()
            return number, slots[number % in_flight]

        return receive, lambda number: None


class PlainCopy(OneCopy):
    name = "floor: one memcpy"
    how = "copy_plain"


class StreamingCopy(OneCopy):
    name = "floor: one non-temporal copy"
    how = "copy_streaming"


class SharedBlock(OneCopy):
    """What one writes by hand in an hour: a copy into a slot of shared memory, and a copy out of it into the
    scheduler's own memory.
    """

    name = "shared block, by hand"
    how = "copy_plain"

    def receiver(self) -> tuple[Receive, Release]:
        receive_slot, _ = super().receiver()
        own = [self.job.empty() for _ in range(self.job.in_flight)]
        copy, size = one_copy().copy_plain, self.job.size

        def receive() -> tuple[int, torch.Tensor]:
            number, slot = receive_slot()
            mine = own[number % self.job.in_flight]
            copy(mine.data_ptr(), slot.data_ptr(), size)
            return number, mine

        return receive, lambda number: None


class ZeroMQ(Carrier):
    """PUSH to PULL without pyzmq's copies: the tensor's memory is the message, and the message's memory the tensor."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        need("zmq")
        self._folder = tempfile.mkdtemp(prefix="eb-")
        self.address = self._address()

    def _address(self) -> str:
        raise NotImplementedError

    def sender(self) -> Send:
        import zmq

        push = zmq.Context().socket(zmq.PUSH)
        push.set_hwm(0)
        push.connect(self.address)
        self._push = push

        def send(number: int, rows: torch.Tensor) -> None:
            push.send(number.to_bytes(8, "little"), zmq.SNDMORE)
            push.send(rows.view(torch.uint8).numpy(), copy=False)

        return send

    def receiver(self) -> tuple[Receive, Release]:
        import zmq

        pull = zmq.Context().socket(zmq.PULL)
        pull.set_hwm(0)
        pull.bind(self.address)
        held: dict[int, Any] = {}
        shape = (self.job.tokens, self.job.hidden)

        def receive() -> tuple[int, torch.Tensor]:
            number = int.from_bytes(pull.recv(), "little")
            frame = held[number] = pull.recv(copy=False)
            return number, torch.frombuffer(frame.buffer, dtype=torch.bfloat16).view(shape)

        return receive, held.pop

    def close(self) -> None:
        shutil.rmtree(self._folder)


class ZeroMQIpc(ZeroMQ):
    name = "ZeroMQ, ipc"

    def _address(self) -> str:
        return f"ipc://{self._folder}/socket"


class ZeroMQTcp(ZeroMQ):
    name = "ZeroMQ, tcp"

    def _address(self) -> str:
        return f"tcp://127.0.0.1:{free_port()}"


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
    """`torch.multiprocessing.Queue`: the tensor goes into shared memory, its handle through a pipe."""

    name = "torch.multiprocessing"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import torch.multiprocessing

        self._queue = torch.multiprocessing.get_context("fork").SimpleQueue()

    def sender(self) -> Send:
        def send(number: int, rows: torch.Tensor) -> None:
            # what is put is shared from then on, and the caller goes on writing
            self._queue.put((number, rows.clone()))

        return send

    def receiver(self) -> tuple[Receive, Release]:
        return self._queue.get, lambda number: None


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
        os.environ["MC_FORCE_TCP"] = "1"
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
