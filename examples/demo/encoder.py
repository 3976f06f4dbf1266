"""The encoder process of the demo: attaches to the encode node, embeds photographs, and streams them as it goes.

It is an ordinary client, and shows both ways to send. Streamed: the length is announced as soon as the job arrives,
long before its turn with the tower, and rows are written a band at a time. At once: nothing is said before the whole
request is embedded, so the language side has granted its default by then and resumes from there. Either way the tensors
are kept until the request has ended, because the library reads from them. One request is embedded at a time, any number
may be under way behind it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from embridge.allocator.errors import EmbridgeError, NodeBusyError
from embridge.allocator.status import Phase
from embridge.demo.photographs import Photograph
from embridge.demo.prompt import Prompt
from embridge.demo.stream import Chunk, Digests, EmbeddingStream, joined
from embridge.demo.vision import PATCH, VisionTower

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client
    from embridge.pipeline.client.sender import EmbeddingSender


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    run_dir: Path
    hidden_size: int
    deepstack_layers: int
    chunk_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Parent to encoder: embed this and send it to this room."""

    room: int
    photograph: Photograph
    prompt: Prompt
    streamed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Encoder to parent: attached, weights made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Encoder to parent: every row was written. The digests are of what was produced, taken before it was sent."""

    room: int
    digests: dict[str, str]
    first_ns: int  # when the first and the last rows were given to the library;
    last_ns: int  # all processes of a host share time.monotonic_ns()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Encoder to parent: this side of the request is over; `failure` says why, if it failed."""

    room: int
    phase: Phase
    failure: str | None


Report = Ready | Written | Ended


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    job: Job
    sender: EmbeddingSender
    digests: Digests = field(default_factory=Digests)
    rows: list[Chunk] = field(default_factory=list)  # of a request that is not streamed, until it is sent
    first_ns: int = 0


def main(connection: Connection, settings: EncoderSettings) -> None:
    """Entry of the spawned process: work until the parent sends None or is gone."""
    from embridge import attach

    # Ctrl-C reaches the whole terminal; the parent alone decides, by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # the nodes need the other half
    tower = VisionTower(
        hidden_size=settings.hidden_size, deepstack_layers=settings.deepstack_layers, seed=settings.seed
    )
    try:
        with attach(settings.run_dir) as client:
            connection.send(Ready())
            _Encoder(connection, settings, client, tower).run()
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # the parent is gone, and with it whoever would read the reports
    except EmbridgeError as error:
        print(f"encoder: {error}", file=sys.stderr)
        raise SystemExit(1) from error


class _Encoder:
    def __init__(self, connection: Connection, settings: EncoderSettings, client: Client, tower: VisionTower) -> None:
        self._connection = connection
        self._settings = settings
        self._client = client
        self._tower = tower
        self._waiting: deque[_Request] = deque()
        self._live: dict[int, _Request] = {}
        self._current: tuple[_Request, Iterator[Chunk]] | None = None
        self._closing = False

    def run(self) -> None:
        while not (self._closing and not self._live):
            self._take_jobs()
            self._client.poll()
            self._end_requests()
            if self._current is None and self._waiting:
                self._begin(self._waiting.popleft())
            if self._current is not None:
                self._step(*self._current)
            elif self._live or not self._closing:
                self._sleep()

    def _take_jobs(self) -> None:
        while not self._closing and self._connection.poll():
            job: Job | None = self._connection.recv()
            if job is None:
                self._closing = True
                return
            prompt = job.prompt
            sender = self._client.sender(
                job.room,
                prompt.num_tokens,
                aux_datas=prompt.aux_datas(),
                mrope_position_delta=prompt.mrope_position_delta,
            )
            if job.streamed:
                sender.announce()
            request = _Request(job=job, sender=sender)
            self._live[job.room] = request
            self._waiting.append(request)

    def _begin(self, request: _Request) -> None:
        """Read its photograph.

        One that cannot be read, though its header could, fails this request by name, and no other.
        """
        try:
            self._current = (request, self._chunks(request.job))
        except Exception as error:  # PIL's readers raise what they like
            name = request.job.photograph.path.name
            request.sender.abort(
                f"image {name} cannot be read: {error or type(error).__name__}; take it out of the folder"
            )

    def _chunks(self, job: Job) -> Iterator[Chunk]:
        grid = job.prompt.grid
        pixels = job.photograph.load(height=grid.height * PATCH, width=grid.width * PATCH)
        stream = EmbeddingStream(
            tower=self._tower, prompt=job.prompt, seed=self._settings.seed, chunk_tokens=self._settings.chunk_tokens
        )
        return stream.chunks(pixels)

    def _step(self, request: _Request, chunks: Iterator[Chunk]) -> None:
        """Embed one band, and write it if the request is streamed.

        With the last band, tell the parent what should arrive.
        """
        chunk = next(chunks)
        request.digests.add(chunk)
        is_last = chunk.start + len(chunk.fill_ids) == request.job.prompt.num_tokens
        now_ns = time.monotonic_ns()
        if request.job.streamed:
            request.first_ns = request.first_ns or now_ns
            self._give(request.sender.write, *chunk)
        else:
            request.rows.append(chunk)
            if is_last:
                request.first_ns = now_ns
                self._give(request.sender.send_embedding, *joined(request.rows)[1:])
                request.rows.clear()
        if not is_last:
            return
        self._current = None
        request.digests.update("aux_datas", request.job.prompt.aux_datas())
        self._connection.send(
            Written(
                room=request.job.room,
                digests=request.digests.result(),
                first_ns=request.first_ns,
                last_ns=now_ns,
            )
        )

    def _give(self, write: Callable[..., bool], *rows: int | torch.Tensor | None) -> None:
        """Write rows. If the node has no room for them, wait until rows have been sent, here or by another encoder."""
        while True:
            try:
                write(*rows)  # False if it has failed meanwhile: `_end_requests` sees that
            except NodeBusyError:
                self._client.poll()
                if self._client.arm():
                    wait([self._client.fileno()], timeout=1.0)
            else:
                return

    def _end_requests(self) -> None:
        for room, request in list(self._live.items()):
            phase = request.sender.poll()
            if not phase.is_terminal:
                continue
            failure = request.sender.failure_exception()
            self._connection.send(Ended(room=room, phase=phase, failure=None if failure is None else str(failure)))
            request.sender.clear()
            del self._live[room]
            if self._current is not None and self._current[0] is request:
                self._current = None
            if request in self._waiting:
                self._waiting.remove(request)

    def _sleep(self) -> None:
        """Until a job comes or a request moves: `arm` says whether anything moved since the last poll."""
        if self._client.arm():
            wait([self._connection, self._client.fileno()], timeout=1.0)
