"""What does an attack on the control ports cost those who behave (P16)?

Two nodes with keys; one request of 300 tokens after the other, each timed from its grant to `Success`, without an attack and
under each kind, in turns. *Strangers*: one process opens connections to all four ports, sends noise, half a greeting, a greeting or
nothing, and leaves some open; none gets beyond the handshake. *Listed node*: one whose key is listed sends frames that the schema
refuses. Each at the pace that is named, and as fast as one process can send.

The attacker needs a core, too, and on a machine of two it takes one of those that the nodes run on. So each kind is also aimed at a
process that is none of the nodes, takes what comes and does nothing with it (*aside*): what the nodes suffer from that is the share of
the machine, and the rest is the cost of refusing.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import zmq
from _harness import Benchmark, Figures, percentile

from embridge.pipeline import Client, Geometry, PipelineConfig, attach, launch
from embridge.workers.keys import KeyPair, new_key_pair, write_key_file

TOKENS, HIDDEN, NUM_BLOCKS = 300, 64, 16
PACES = {"1000 a second": 1000, "as fast as it can": 0}
OPEN_AT_ONCE = 64


def strangers(ports: list[int], pace: int) -> None:
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
        due = wait(due, pace)


def listed(address: str, pair: KeyPair, server: str, pace: int) -> None:
    """Until killed."""
    rng, due = random.Random(16), time.monotonic()
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.curve_secretkey, sock.curve_publickey, sock.curve_serverkey = pair.secret.encode(), pair.public.encode(), server.encode()
    sock.connect(address)
    while True:
        sock.send(rng.randbytes(rng.randint(1, 400)))
        due = wait(due, pace)


def aside(kind: str, public: str) -> None:
    """Until killed: takes what strangers or a listed node send, on a port that it prints."""
    if kind == "listed":
        sock = zmq.Context().socket(zmq.ROUTER)
        sock.curve_server, sock.curve_publickey, sock.curve_secretkey = True, public.encode(), os.environ["EB_BENCH_ASIDE"].encode()
        print(sock.bind_to_random_port("tcp://127.0.0.1"), flush=True)
        while True:
            sock.recv_multipart()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server, selectors.DefaultSelector() as selector:
        print(server.getsockname()[1], flush=True)
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    selector.register(server.accept()[0], selectors.EVENT_READ)
                    continue
                with contextlib.suppress(ConnectionError):
                    if key.fileobj.recv(4096):
                        continue
                selector.unregister(key.fileobj)
                key.fileobj.close()


def wait(due: float, pace: int) -> float:
    if pace:
        due = max(due + 1 / pace, time.monotonic() - 0.05)
        time.sleep(max(0.0, due - time.monotonic()))
    return due


class Attack:
    """A process that attacks while a turn lasts."""

    def __init__(self, *words: object) -> None:
        self._words = [sys.executable, __file__, "--attack", *map(str, words)]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._words)
        time.sleep(0.7)  # it imports, and begins

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def process_aside(kind: str, pair: KeyPair) -> Iterator[int]:
    """`aside` as a process; its port."""
    environment = {**os.environ, "EB_BENCH_ASIDE": pair.secret}
    words = [sys.executable, __file__, "--aside", kind, pair.public]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


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
        until(lambda: all(client.control.blocks.counts().free == NUM_BLOCKS for client in (self._encode, self._language)))
        return took

    def turn(self, count: int, attack: Attack | None = None) -> Figures:
        with attack or contextlib.nullcontext():
            times = [self.one() * 1e3 for _ in range(count)]
        return {"p50": statistics.median(times), "p99": percentile(times, 99), "worst": max(times)}


def until(condition: Callable[[], bool], pause_s: float = 0.0005) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a request does not go on under this attack")
        time.sleep(pause_s)


def main() -> None:
    if "--attack" in sys.argv:
        kind, pace, *words = sys.argv[2:]
        if kind == "strangers":
            strangers([int(word) for word in words], int(pace))
        listed(words[0], KeyPair(words[1], os.environ["EB_BENCH_SECRET"]), words[2], int(pace))
    if "--aside" in sys.argv:
        aside(*sys.argv[2:])
    bench = Benchmark(__file__, __doc__, rounds=12)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        path, pairs = Path(root), {name: new_key_pair() for name in ("encode", "language", "listed")}
        allow_file = path / "nodes.allow"
        allow_file.write_text("".join(f"127.0.0.1 {pair.public} {name}\n" for name, pair in pairs.items() if name == "encode"))
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
            process_aside("strangers", pairs["encode"]) as decoy_port,
            process_aside("listed", pairs["encode"]) as decoy_listed,
        ):
            requests = Requests(there, here, source.bootstrap_addr)
            addresses = [node_addr for node in (source, target) for node_addr in (node.bootstrap_addr, node.poller_addr)]
            ports = [address.rsplit(":", 1)[1] for address in addresses]
            requests.turn(20)
            cases = {"no attack": lambda: requests.turn(bench.scaled(200))}
            keys = pairs["listed"].public, pairs["encode"].public
            kinds: dict[str, Callable[[int, bool], Attack]] = {
                "strangers": lambda pace, off: Attack("strangers", pace, *([decoy_port] if off else ports)),
                "listed node": lambda pace, off: Attack(
                    "listed", pace, f"tcp://127.0.0.1:{decoy_listed}" if off else source.bootstrap_addr, *keys
                ),
            }
            names = {(kind, pace): f"{kind}, {words}" for kind in kinds for words, pace in PACES.items()}
            for (kind, pace), name in names.items():
                for off in (True, False):
                    attack = kinds[kind](pace, off)
                    cases[f"{name}, aside" if off else name] = lambda attack=attack: requests.turn(bench.scaled(200), attack)
            results = bench.interleave(cases)
            bench.show("one good request, from its grant to Success", results, {"p50": "ms", "p99": "ms", "worst": "ms"})
            for name in names.values():
                bench.at_most(f"p99 under attack: {name}", results.ratio("p99", name, "no attack"), 2.0)
            for name in names.values():
                bench.at_most(f"... of that under the same aside: {name}", results.ratio("p99", name, f"{name}, aside"), 2.0)
    bench.finish()


if __name__ == "__main__":
    main()
