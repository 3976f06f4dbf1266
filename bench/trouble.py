"""How much slower are others while one of a node's users is in trouble? (P21)

A steady load of small requests, eight in flight, through two nodes of 64 blocks; then the same beside each trouble of
`tests/support/troubles.py`, in turn, so that what other work takes of the machine meets both alike. Small requests are
announced, and their rows are there at once. The goal: p99 at most doubles.

    PYTHONPATH=tests python bench/trouble.py [rounds]
"""

from __future__ import annotations

import itertools
import statistics
import sys

from support.nodes import run_dirs, station
from support.pipes import full_pipe
from support.scheduling import Queues
from support.troubles import TROUBLES, carry

from embridge import attach

COUNT = 400


def p99(took: list[int]) -> float:
    return sorted(took)[len(took) * 99 // 100] / 1e6


def main(rounds: int) -> None:
    settings = {
        "engine": "shm",
        "num_blocks": 64,
        "block_size": 16,
        "connect_timeout_s": 3.0,
        "client_silent_after_s": 0.0,
    }
    rooms = itertools.count(1)
    with (
        run_dirs() as path,
        full_pipe() as pipe,
        station("encode", path / "e", stderr=pipe.write, **settings) as encode,
        station("language", path / "l", stderr=pipe.write, default_allocate_tokens=1024, **settings) as language,
        attach(encode.run_dir) as sending,
        attach(language.run_dir) as client,
    ):
        queues = Queues(client)
        carry(encode, sending, queues, rooms, COUNT)
        for name, trouble in TROUBLES.items():
            before, beside = [], []
            for _ in range(rounds):
                before.append(carry(encode, sending, queues, rooms, COUNT))
                with trouble(encode, queues, rooms):
                    beside.append(carry(encode, sending, queues, rooms, COUNT))
            p50s = [statistics.median(itertools.chain(*took)) / 1e6 for took in (before, beside)]
            p99s = [statistics.median(p99(took) for took in rows) for rows in (before, beside)]
            print(
                f"{name}: p50 {p50s[0]:.2f} -> {p50s[1]:.2f} ms, p99 {p99s[0]:.2f} -> {p99s[1]:.2f} ms "
                f"({p99s[1] / p99s[0]:.2f} times)"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
