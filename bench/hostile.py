"""What does an attack on the control ports cost those who behave (P16)?

Two nodes with keys; one request of 300 tokens after the other, each timed from its grant to `Success`, without an
attack and under each kind, in turns. *Strangers*: one process opens connections to all four ports, sends noise, half a
greeting, a greeting or nothing, and leaves some open; none gets beyond the handshake. *Listed node*: one whose key is
listed sends frames that the schema refuses. Each at the pace that is named, and as fast as one process can send.

An attacker has a machine of its own, so here it has a core of its own, the last one: nodes and clients keep to the
others, with an attack and without. Else the figure would be what a lost core costs, which is as much when the attack is
aimed elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zmq
from _harness import Benchmark, Figures, percentile

from embridge import Client, Geometry, PipelineConfig, attach, launch
from embridge.pipeline.client.client import library_of
from embridge.workers.keys import KeyPair, new_key_pair, write_key_file

TOKENS, HIDDEN, NUM_BLOCKS = 300, 64, 16
PACES = {"1000 a second": 1000, "as fast as it can": 0}
OPEN_AT_ONCE = 64


def strangers(count: np.ndarray, ports: list[int], pace: int) -> None:
    """Until killed."""
    rng, held, due = random.Random(16), [], time.monotonic()
    greeting = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    while True:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", rng.choice(ports)), timeout=1)
            held.append(sock)
            sock.setblocking(False)
            sock.send(rng.choice([rng.randbytes(200), greeting[:11], greeting, b"\x00"]))
        if len(held) > OPEN_AT_ONCE:
            held.pop(rng.randrange(len(held))).close()
        count += 1
        due = wait(due, pace)


def listed(count: np.ndarray, address: str, pair: KeyPair, server: str, pace: int) -> None:
    """Until killed."""
    rng, due = random.Random(16), time.monotonic()
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.curve_secretkey, sock.curve_publickey, sock.curve_serverkey = (
        pair.secret.encode(),
        pair.public.encode(),
        server.encode(),
    )
    sock.connect(address)
    while True:
        sock.send(rng.randbytes(rng.randint(1, 400)))
        count += 1
        due = wait(due, pace)


def wait(due: float, pace: int) -> float:
    if pace:
        due = max(due + 1 / pace, time.monotonic() - 0.05)
        time.sleep(max(0.0, due - time.monotonic()))
    return due


class Attack:
    """A process that attacks while a turn lasts, on a core of its own; `pace`, connections or frames a second, is what
    it then did.
    """

    def __init__(self, file: Path, core: int, *words: object) -> None:
        self._words = [sys.executable, __file__, "--attack", *map(str, (file, core, *words))]
        self._count = np.memmap(file, np.int64, "w+", shape=1)
        self.pace = 0.0

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._words)
        self._count[0] = 0
        until(lambda: self._count[0] > 100)
        self._begun, self._before = time.monotonic(), int(self._count[0])

    def __exit__(self, *_: object) -> None:
        self.pace = (int(self._count[0]) - self._before) / (time.monotonic() - self._begun)
        self._process.kill()
        self._process.wait()


class Requests:
    """Good requests, one at a time."""

    def __init__(self, encode: Client, language: Client, addr: str) -> None:
        self._encode, self._language, self._addr = encode, language, addr
        self._room = 0
        self._rows = (
            torch.randn(TOKENS, HIDDEN).bfloat16(),
            torch.zeros(TOKENS, dtype=torch.int32),
            torch.zeros(TOKENS, 3, dtype=torch.int32),
        )

    def one(self) -> float:
        """Seconds."""
        self._room += 1
        receiver, sender = self._language.receiver(self._addr, self._room), self._encode.sender(self._room, TOKENS)
        until(lambda: receiver.handshake_done)
        sender.send_embedding(*self._rows)
        begun = time.perf_counter()
        receiver.init(receiver.allocate(3), TOKENS)
        until(lambda: receiver.poll().is_terminal, 50e-6)
        took = time.perf_counter() - begun
        assert receiver.poll().name == "Success", receiver.failure_exception()
        sender.clear()
        receiver.clear()
        pools = [library_of(client).attachment.control.blocks for client in (self._encode, self._language)]
        until(lambda: all(pool.counts().free == NUM_BLOCKS for pool in pools))
        return took

    def turn(self, count: int, attack: Attack | None = None) -> Figures:
        with attack or contextlib.nullcontext():
            times = [self.one() * 1e3 for _ in range(count)]
        figures = {"p50": statistics.median(times), "p99": percentile(times, 99), "worst": max(times)}
        return figures | ({"pace": attack.pace} if attack else {})


def until(condition: Callable[[], bool], pause_s: float = 0.0005) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a request, or the attack, does not go on")
        time.sleep(pause_s)


def main() -> None:
    if "--attack" in sys.argv:
        file, core, kind, pace, *words = sys.argv[2:]
        os.sched_setaffinity(0, {int(core)})
        count = np.memmap(file, np.int64, "r+", shape=1)
        if kind == "strangers":
            strangers(count, [int(word) for word in words], int(pace))
        listed(count, words[0], KeyPair(words[1], os.environ["EB_BENCH_SECRET"]), words[2], int(pace))
    bench = Benchmark(__file__, __doc__, rounds=12)
    *ours, core = sorted(os.sched_getaffinity(0))
    if not ours:
        raise SystemExit("this benchmark wants two cores: one is the attacker's")
    os.sched_setaffinity(0, ours)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        path, pairs = Path(root), {name: new_key_pair() for name in ("encode", "language", "listed")}
        allow_file = path / "nodes.allow"
        allow_file.write_text(
            "".join(f"127.0.0.1 {pair.public} {name}\n" for name, pair in pairs.items() if name == "encode")
        )
        with allow_file.open("a") as file:
            file.writelines(f"- {pairs[name].public} {name}\n" for name in ("language", "listed"))
        os.environ["EB_BENCH_SECRET"] = pairs["listed"].secret
        for name, pair in pairs.items():
            write_key_file(path / f"{name}.key", pair)
        encode, language = (
            PipelineConfig(
                role=role,
                run_dir=path / role,
                geometry=Geometry(hidden_size=HIDDEN, num_blocks=NUM_BLOCKS),
                lock_memory=False,
                key_file=path / f"{role}.key",
                allow_file=allow_file,
                log_level="ERROR",
            )
            for role in ("encode", "language")
        )
        with (
            launch(encode) as source,
            launch(language) as target,
            attach(source.run_dir) as there,
            attach(target.run_dir) as here,
        ):
            requests = Requests(there, here, source.bootstrap_addr)
            addresses = [
                node_addr for node in (source, target) for node_addr in (node.bootstrap_addr, node.poller_addr)
            ]
            ports = [address.rsplit(":", 1)[1] for address in addresses]
            requests.turn(20)
            keys = pairs["listed"].public, pairs["encode"].public
            cases = {"no attack": lambda: requests.turn(bench.scaled(200))}
            for words, pace in PACES.items():
                for name, attack in (
                    (f"strangers, {words}", Attack(path / f"strangers {pace}", core, "strangers", pace, *ports)),
                    (
                        f"listed node, {words}",
                        Attack(path / f"listed {pace}", core, "listed", pace, source.bootstrap_addr, *keys),
                    ),
                ):
                    cases[name] = lambda attack=attack: requests.turn(bench.scaled(200), attack)
            results = bench.interleave(cases)
            columns = {"p50": "p50, ms", "p99": "p99, ms", "worst": "worst, ms", "pace": "attempts a second"}
            bench.show("one good request, from its grant to Success", results, columns)
            for name in list(cases)[1:]:
                bench.at_most(f"p99 under attack: {name}", results.ratio("p99", name, "no attack"), 2.0)
    bench.finish()


if __name__ == "__main__":
    main()
