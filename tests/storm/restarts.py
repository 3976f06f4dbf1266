"""Peers that come and go, and what the nodes that stay have of the machine meanwhile (P23).

Two nodes stay, one of each role. In every round a new language node comes, is sent one request by the encode node that
stays, and is killed; then a new encode node, which sends one to the language node that stays. Or, much quicker, the
workers of one node that stays are killed, with which the other's have to do: they map its payload, or begin new
sessions.

What a process keeps for a while, and then lets go at once, makes a saw: so the least of the first third of the rounds
is compared with the least of the last. A worker that renews itself lets go by ending: what it has as it begins is
compared, of its first lives and its last.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

from support.encoding import give, open_sender
from support.nodes import Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator.geometry import Limits
from embridge.allocator.records import Process
from embridge.workers.process_spec import READY
from storm.runner import tell
from storm.soak import MORE_BYTES, WARM_UP, Held, held_by

TOKENS = 300
MOST_RESTARTS = 100_000  # of a worker within a minute; what is killed here is no sign of trouble
LIMITS = Limits(
    num_slots=64,
    max_clients=1,
    num_workers=1,
    max_destinations=1,
    window_blocks=16,
    max_peers=4,
    max_peer_slots=64,
    ring_records=64,
)


def allowed_descriptors(number: int) -> list[str]:
    """What a command is run within to be allowed so many, and no more."""
    return ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(number)]


class Visits:
    """Two nodes that stay, and what each of their processes had after every round."""

    def __init__(
        self, path: Path, engine: str, encode: Station, language: Station, sending: Client, queues: Queues
    ) -> None:
        self._path = path
        self._engine = engine
        self.encode = encode
        self.language = language
        self._sending = sending
        self._queues = queues
        self._rooms = itertools.count(1)
        self.lives: dict[str, dict[int, list[Held]]] = {}
        """By process, by pid, what it had, in the order of the samples."""
        self.most_open: dict[str, int] = {}
        """By process, the most descriptors that it had, doorbells that were not rung yet by one of two."""

    # ---- rounds

    def language_node(self) -> None:
        room = next(self._rooms)
        with self._visitor("language", room) as it, attach(it.run_dir) as client:
            self._request(self._sending, Queues(client), self.encode.addr, room)
            it.kill_group()
        self._wait_buried(self.encode, it)

    def encode_node(self) -> None:
        room = next(self._rooms)
        with self._visitor("encode", room) as it, attach(it.run_dir) as sending:
            self._request(sending, self._queues, it.addr, room)
            it.kill_group()
        self._wait_buried(self.language, it)

    @staticmethod
    def _wait_buried(node: Station, visitor: Station) -> None:
        peers, who = node.control.peers, (visitor.control.node_id, visitor.control.incarnation)
        wait_until(lambda: peers.find(*who) is None, 10)

    def workers(self, it: Station) -> None:
        """One request by each worker of a node; then they are killed. A sample is taken after each request."""
        state = it.control.processes
        workers = {name: it.pid_of(name) for name in state.names if name.startswith("worker")}
        for worker in range(len(workers)):
            room = next(room for room in self._rooms if it.control.worker_of(room) == worker)
            self._request(self._sending, self._queues, self.encode.addr, room)
            self.take_samples()
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)
        for name, pid in workers.items():
            wait_until(lambda: it.pid_of(name) != pid and state.get(name, Process.STATE) == READY, 30)  # noqa: B023

    @contextmanager
    def _visitor(self, role: str, number: int) -> Iterator[Station]:
        run_dir = self._path / f"{role[0]}{number}"
        with station(role, run_dir, engine=self._engine, limits=LIMITS, log_level="WARNING") as it:
            yield it
        shutil.rmtree(run_dir)
        run_dir.with_suffix(".log").unlink()

    @staticmethod
    def _request(sending: Client, queues: Queues, addr: str, room: int) -> None:
        queues.add(addr, room)
        assert give(open_sender(sending, room, TOKENS)), f"room {room} is not sent"
        received = queues.take(room, 30)
        assert received.difference == "", f"room {room}: {received.reason or received.difference}"

    # ---- what is held

    def rounds(self, number: int, kinds: Sequence[Callable[[], None]], *, seconds: float = float("inf")) -> int:
        """Returns how many there were until the time was over."""
        begun, done = time.monotonic(), 0
        while done < number and time.monotonic() - begun < seconds:
            for visit in kinds:
                visit()
            done += 1
            self.take_samples()
        return done

    def held(self) -> dict[tuple[str, int], Held]:
        """What each process, by its name and pid, has now."""
        found = {}
        for node in (self.encode, self.language):
            for process, pid in node.pids().items():
                held = held_by(pid)
                if held is not None:
                    found[f"{node.control.role.name.lower()}/{process}", pid] = held
        return found

    def take_samples(self) -> None:
        for (name, pid), held in self.held().items():
            self.lives.setdefault(name, {}).setdefault(pid, []).append(held)
            with suppress(FileNotFoundError):  # it has ended
                self.most_open[name] = max(self.most_open.get(name, 0), len(os.listdir(f"/proc/{pid}/fd")))

    def wait_as_before(self, before: dict[tuple[str, int], Held]) -> None:
        """Until no process that has stayed has more than it had; of what has gone, some is let go a moment later."""

        def more() -> list[str]:
            now = self.held()
            return [f"{who[0]}: {text}" for who in before.keys() & now for text in more_than(before[who], now[who])]

        wait_until(lambda: not more(), 15, lambda: ", ".join(more()))

    def problems(self) -> list[str]:
        return [f"{name}: {text}" for name, lives in sorted(self.lives.items()) for text in growth([*lives.values()])]


def more_than(before: Held, after: Held) -> list[str]:
    """What is held more of; a few MiB of memory may come."""
    found = []
    for name in Held._fields:
        first, last = getattr(before, name), getattr(after, name)
        if last - first > (MORE_BYTES + first / 100 if name == "resident_bytes" else 0):
            found.append(f"{name}: {first:g}, then {last:g}")
    return found


def growth(lives: Sequence[Sequence[Held]]) -> list[str]:
    """What a process has more of at the end than at the beginning, by its lives, and by its samples in each."""
    return growth_of_one(lives[0]) if len(lives) == 1 else growth_of_many(lives)


def growth_of_one(samples: Sequence[Held]) -> list[str]:
    """What the least of the last third of the samples has more of than the least of the first, a warm-up left out."""
    samples = samples[int(len(samples) * WARM_UP) :]  # in which a node first connects to another, say
    third = len(samples) // 3
    if third < 2:
        return [f"{len(samples)} samples are too few to judge"]
    return more_than(least(samples[:third]), least(samples[-third:]))


def growth_of_many(lives: Sequence[Sequence[Held]]) -> list[str]:
    """What the last third of the lives begins with more of than the first, the warm-up's lives left out.

    A life's first sample is taken before its first request or after it, as it comes, and the first brings an engine. So
    each is judged by its second one: as much more as one request brings, within a life, is no growth.
    """
    warm = WARM_UP * sum(map(len, lives))
    later = [life for life, end in zip(lives, accumulate(map(len, lives)), strict=True) if end - len(life) >= warm]
    lives = later if len(later) > 1 else lives
    lives = [life[1:] for life in lives if len(life) > 1] or lives
    third = max(1, len(lives) // 3)
    first, last = least([life[0] for life in lives[:third]]), least([life[0] for life in lives[-third:]])
    pairs = [pair for life in lives for pair in pairwise(life)]
    steps = [[max(after - before, 0) for before, after in zip(*pair, strict=True)] for pair in pairs]
    of_one = [statistics.median(step) for step in zip(*steps, strict=True)] if steps else [0] * len(first)
    return more_than(Held(*(have + int(more) for have, more in zip(first, of_one, strict=True))), last)


def least(samples: Sequence[Held]) -> Held:
    """Of each field."""
    return Held(*map(min, zip(*samples, strict=True)))


@contextmanager
def visits(
    path: Path, engine: str, *, num_descriptors: int, encode_workers: int = 1, language_workers: int = 1
) -> Iterator[Visits]:
    """The two nodes that stay. Each process of the encode node may have so many descriptors."""
    with (
        station(
            "encode",
            path / "e",
            engine=engine,
            limits=replace(LIMITS, num_workers=encode_workers),
            within=allowed_descriptors(num_descriptors),
            peer_timeout_s=5.0,
            max_restarts=MOST_RESTARTS,
        ) as encode,
        station(
            "language",
            path / "l",
            engine=engine,
            limits=replace(LIMITS, num_workers=language_workers),
            peer_timeout_s=5.0,
            max_restarts=MOST_RESTARTS,
        ) as language,
        attach(encode.run_dir) as sending,
        attach(language.run_dir) as client,
    ):
        yield Visits(path, engine, encode, language, sending, Queues(client))


NUM_DESCRIPTORS = 1024  # what a process mostly may have: a worker of Mooncake's begins anew every 32 sessions


WORKERS = 5


def soak(engine: str, restarts: int, seconds: float, *, of: str) -> int:
    """So many nodes of each role, or workers, that come and go, until the time is over; 1 if something grows.

    The workers are those with which the other side's processes have to do: an encode node's map the payload of a
    language node, through Mooncake a language node's begin new sessions.

    Raises:
        AssertionError: a request failed.
    """
    tell(f"soak: engine {engine}, {restarts} {of} that come and go, {seconds:g} s at most")
    with run_dirs() as path:
        if of == "nodes":
            with visits(path, engine, num_descriptors=NUM_DESCRIPTORS) as it:
                done = it.rounds(restarts, [it.language_node, it.encode_node], seconds=seconds)
        else:
            role = "encode" if engine == "shm" else "language"
            with visits(path, engine, num_descriptors=NUM_DESCRIPTORS, **{f"{role}_workers": WORKERS}) as it:
                kinds = [lambda: it.workers(getattr(it, role))]
                done = WORKERS * it.rounds(-(-restarts // WORKERS), kinds, seconds=seconds)
        problems = it.problems()
    for name, lives in sorted(it.lives.items()):
        seen = [held for life in lives.values() for held in life]
        low, high = (Held(*map(choose, zip(*seen, strict=True))) for choose in (min, max))
        mib = f"{low.resident_bytes / 2**20:.1f} to {high.resident_bytes / 2**20:.1f} MiB resident"
        tell(
            f"  {name:20} {len(lives)} lives, {low.descriptors} to {high.descriptors} descriptors, "
            f"{low.threads} to {high.threads} threads, {low.mappings} to {high.mappings} mappings, {mib}"
        )
    for text in problems:
        tell(f"DRIFT {text}")
    tell(f"soak: {done} {of} came and went: {'drift' if problems else 'no drift'}")
    return 1 if problems else 0
