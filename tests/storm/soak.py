"""`python -m storm.soak`, with tests/ on the path: full load without faults for an hour, and what each process has of
the machine.

Every few seconds the descriptors, threads, mappings and resident memory of every process are written down. After a
warm-up (a tenth of the time, if nothing else is said) the medians of the first tenth and of the last are compared:
descriptors, threads and mappings must not differ, memory may by little. A median does not see what one process had open
for the moment in which it was looked at.

With `--restarts`, peers come and go instead (`storm/restarts.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from support.unharmed import opened_by

from storm.checker import check, figures
from storm.history import read
from storm.places import Options
from storm.runner import Storm, messages_in, raise_storm, tell

WARM_UP = 0.1
TENTH = 10
MORE_BYTES = 4 << 20  # resident memory that may have come, and as much as a hundredth of it
QUIET = frozenset({"asked", "opened", "phase", "grant", "aborting"})  # an hour of them would be gigabytes
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """What one process had of the machine."""

    descriptors: int
    threads: int
    mappings: int
    resident_bytes: int


def held_by(pid: int) -> Held | None:
    """None when it is gone."""
    try:
        threads = len(os.listdir(f"/proc/{pid}/task"))
        descriptors = opened_by(pid).total()  # whichever doorbells were rung so far
        maps = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return None
    # of files and shared memory: the others are malloc's, and count as memory
    mappings = sum(int(words[4]) != 0 for words in maps)
    return Held(descriptors, threads, mappings, resident)


def drift(samples: Sequence[Held], warm_up: float = WARM_UP) -> list[str]:
    """What has grown between the first tenth after the warm-up and the last one; empty when nothing has."""
    warm = samples[int(len(samples) * warm_up) :]
    if len(warm) < 2 * TENTH:
        return [f"{len(samples)} samples are too few to judge"]
    part = max(1, len(warm) // TENTH)
    found = []
    for name in Held._fields:
        first, last = (statistics.median(getattr(s, name) for s in some) for some in (warm[:part], warm[-part:]))
        allowed = MORE_BYTES + first / 100 if name == "resident_bytes" else 0
        if last - first > allowed:
            found.append(f"{name}: {first:g}, then {last:g}")
    return found


@dataclass
class Samples:
    """All processes of a soak by name."""

    warm_up: float = WARM_UP
    of: dict[str, list[Held]] = field(default_factory=dict)

    def take(self, storm: Storm) -> None:
        pids = {
            f"{name}/{process}": pid
            for name, node in storm.nodes.items()
            if node.is_up
            for process, pid in node.pids().items()
        }
        pids |= {seat.name: seat.process.pid for seat in storm.seats if seat.process is not None}
        for name, pid in pids.items():
            held = held_by(pid)
            if held is not None:
                self.of.setdefault(name, []).append(held)

    def problems(self) -> list[str]:
        return [f"{name}: {text}" for name, samples in sorted(self.of.items()) for text in drift(samples, self.warm_up)]


class Soak(Storm):
    """A storm without faults, at full load."""

    def __init__(self, options: Options, path: Path, *, every_s: float, samples: Samples) -> None:
        super().__init__(options, path)
        self._every_s = every_s
        self._samples = samples
        self._last_told = time.monotonic()

    def _begin(self) -> None:
        super()._begin()
        self._at(self._every_s, self._sample)

    def _sample(self) -> None:
        if self._ending:
            return
        self._samples.take(self)
        if time.monotonic() - self._last_told > 60:
            self._last_told = time.monotonic()
            tell(f"soak: {self.tally}")
        self._at(self._every_s, self._sample)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m storm.soak", description=__doc__)
    parser.add_argument("--engine", choices=["shm", "mooncake"], default="shm")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="the part of the samples that is left out")
    parser.add_argument(
        "--in-flight", type=int, default=40, help="requests of each of two schedulers; the pool has room for some ten"
    )
    parser.add_argument("--longest", type=int, default=Options.longest, help="tokens of a request, at most")
    parser.add_argument(
        "--block-size", type=int, default=Options.block_size, help="tokens of a block; the pools keep their size"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", type=Path, default=Path("soak.jsonl"))
    parser.add_argument(
        "--restarts", type=int, default=0, help="no load, but so many peers of each role that come and go"
    )
    parser.add_argument("--of", choices=["nodes", "workers"], default="nodes", help="what --restarts restarts")
    args = parser.parse_args(argv)
    if args.restarts:
        from storm.restarts import soak

        return soak(args.engine, args.restarts, args.seconds, of=args.of)
    args.history.unlink(missing_ok=True)
    options = Options(
        engine=args.engine,
        seed=args.seed,
        seconds=args.seconds,
        history=args.history.absolute(),
        kinds=(),
        in_flight=args.in_flight,
        longest=args.longest,
        block_size=args.block_size,
        deadline_s=120.0,
        without=QUIET,
    )
    samples = Samples(args.warm_up)
    tell(
        f"soak: engine {args.engine}, seed {args.seed}, {args.seconds:g} s, a sample every {args.every:g} s, history "
        f"{args.history}"
    )
    with messages_in(args.history):
        storm = raise_storm(options, lambda path: Soak(options, path, every_s=args.every, samples=samples))
    events = read(args.history)
    wrong = [event for event in events if event["event"] != "ended" or event["difference"]]
    problems = samples.problems() + [str(violation) for violation in check(wrong)]
    if storm.unexplained:
        problems.append(f"{storm.unexplained} requests failed that nobody gave up")
    if not storm.tally["arrived"]:
        problems.append("no request arrived")
    first = next(iter(samples.of.values()), [])
    for name, seen in sorted(samples.of.items()):
        tell(f"  {name:16} {seen[0]} -> {seen[-1]}")
    for text in problems:
        tell(f"DRIFT {text}")
    tell(f"soak: {figures(events)['blocks']} blocks of {args.block_size} tokens, every byte checked")
    tell(
        f"soak: {storm.tally}, {len(first)} samples of {len(samples.of)} processes: "
        f"{'drift' if problems else 'no drift'}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
