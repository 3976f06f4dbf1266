"""What may be wrong with one of a node's users, or with who reads it, while the others go on: each as a context manager
(P21).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from embridge import Client
from embridge.pipeline.client.client import library_of
from support import encoding
from support.agents import running
from support.nodes import Station
from support.ports import addresses_of_nobody
from support.scheduling import Queues
from support.waiting import wait_until

NUM_WAITING = 40


@contextmanager
def waiting_rooms(encode: Station, queues: Queues, rooms: Iterator[int]) -> Iterator[None]:
    """A scheduler waits for encoders that do not come."""
    waiting = [next(rooms) for _ in range(NUM_WAITING)]
    for room in waiting:
        queues.add(encode.addr, room)
    wait_until(lambda: all(queues.requests[room].record.is_contacted for room in waiting))
    yield
    queues.step()
    assert not set(waiting) & set(queues.done)  # they waited all the while
    for room in waiting:
        queues.requests[room].abort("enough")
    for room in waiting:
        assert queues.take(room, 60.0).reason == "enough"


@contextmanager
def silent_encoder(encode: Station, queues: Queues, rooms: Iterator[int]) -> Iterator[None]:
    """An encoder stops in the middle of a request that is longer than the pool."""
    room = next(rooms)
    total = 2 * library_of(queues.client).attachment.control.blocks.num_blocks * queues.client.geometry.block_size
    with running("silent encoder") as agent:
        agent.call(encoding.open_room, encode.run_dir, room, total, announce=True)
        queues.add(encode.addr, room)
        agent.call(encoding.write, room, 0, total // 4)
        wait_until(lambda: queues.requests[room].transferred_tokens == total // 4)
        agent.kill(signal.SIGSTOP)
        try:
            yield
            queues.step()
            assert room not in queues.done
        finally:
            agent.kill(signal.SIGCONT)
        agent.call(encoding.write, room, total // 4, total)
        assert queues.take(room, 60.0).difference == ""
        agent.call(encoding.leave, encode.run_dir)


@contextmanager
def nodes_that_are_not_there(encode: Station, queues: Queues, rooms: Iterator[int]) -> Iterator[None]:
    """Requests to ports where nobody listens; each failure has its line in the log, which nobody may be reading."""
    with addresses_of_nobody(NUM_WAITING) as addresses:
        failing = {next(rooms): addr for addr in addresses}
        for room, addr in failing.items():
            queues.add(addr, room)
        yield
        for room in failing:
            assert queues.take(room, 60.0).error == "PeerLost"


Trouble = Callable[[Station, Queues, Iterator[int]], AbstractContextManager[None]]
TROUBLES: dict[str, Trouble] = {
    "waiting rooms": waiting_rooms,
    "a silent encoder": silent_encoder,
    "nodes that are not there, in a log that nobody reads": nodes_that_are_not_there,
}


def carry(
    encode: Station,
    sending: Client,
    queues: Queues,
    rooms: Iterator[int],
    count: int,
    *,
    in_flight: int = 8,
    tokens: int = 100,
) -> list[int]:
    """A steady load; each request has to arrive, right. Returns how many ns each took, from its room to its end."""
    began: dict[int, int] = {}
    took: list[int] = []
    left, clock = count, library_of(queues.client).attachment.clock
    while left or began:
        while left and len(began) < in_flight:
            room = next(rooms)
            began[room] = clock()
            queues.add(encode.addr, room)
            assert encoding.give(encoding.open_sender(sending, room, tokens, announce=True))
            left -= 1
        room = next(iter(began))
        received = queues.take(room, 60.0)
        assert (received.total, received.difference, received.error) == (tokens, "", ""), received
        took.append(received.ended_ns - began.pop(room))
    return took
